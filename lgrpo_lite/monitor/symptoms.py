"""When an alarm's condition holds, and what it then says: one class an alarm, each a fold over a run's
records.

Start values are those of the guides of Axolotl and NeMo-RL; where runs of this project say otherwise, the
measured value stands beside the constant. A figure that is missing or no number is passed over: it
neither raises an alarm nor mends it.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.trend import Growth, Recent
from lgrpo_lite.recipe.algorithm import compares_answers
from lgrpo_lite.types import StepRecord

FEW, RECENT = 5, 10  # steps that a mean needs, steps that it is taken over
START, UNTRAINED = 10, 3  # steps that count as a run's beginning, and as what the model could before training
SUSTAINED = 3  # steps in a row, where one step alone may be a fluke

SIGNAL = 0.2  # share of groups that teach, at or below which a run wastes its time …
# … and where it learned what there was: healthy runs of tiny-math end between 0.15 and 0.4
SIGNAL_LEARNED = 0.05
MOST = 0.6  # a share of groups from which on they give the alarm its words
LOST = 0.1  # a policy that solves less than this share of what it solved at first is broken
TRUNCATED = 0.6  # share of answers
ENTROPY = 0.05  # nats a token …
ENTROPY_FALL = 0.2  # … and this share of the beginning's …
# … with less solved than that: healthy runs of tiny-math fall so far with 0.83 or more solved
ENTROPY_SOLVED = 0.7
MULT_ERROR, MISMATCH_KL = 0.05, 0.01  # nf4 against vLLM, healthy: 0.010 to 0.015, and 0.001
# of long to short answers; the effective number of answers says it later, so it only gives words
WEIGHT_RATIO = 10.0
MISSING, MISSING_LEAST = 0.02, 3  # share of answers and answers
WARM_UP = 40  # steps whose memory still settles: tiny-math goes from 530 to 600 MB, and stays there
# with the lengths of a step, or no device memory at all
_COMES_AND_GOES = ("activations", "cached", "free", "host", "host_free")


@dataclass(frozen=True, slots=True)
class Alarm:
    """`what`: the symptom with its numbers, most important words first. `fix`: the one next step."""

    name: str
    what: str
    fix: str


class Signal:
    """Groups whose answers all get the same reward teach nothing. Steps whose answers were cut are
    `truncation`'s.
    """

    def __init__(self, recipe: dict[str, Any]):
        self.compares = _compares_answers(recipe)
        self.lr = _setting(recipe, "optim.lr")
        self.mixed, self.right, self.wrong = (Recent(RECENT, START) for _ in range(3))
        self.solved = Recent(RECENT, UNTRAINED)

    def __call__(self, record: StepRecord) -> Alarm | None:
        groups = finite(record.groups)
        solved = finite(record.solved)
        if not groups or solved is None or _or_zero(record.truncated) > TRUNCATED:
            return None  # every reward is missing, or the step was refused
        if self.compares:
            self.mixed.add(_or_zero(record.groups_mixed) / groups)
        else:
            self.mixed.add(float(_or_zero(record.reward_std) > 0))
        self.right.add(_or_zero(record.groups_right) / groups)
        self.wrong.add(_or_zero(record.groups_wrong) / groups)
        self.solved.add(solved)
        if len(self.mixed.values) < FEW or self.mixed.mean > SIGNAL:
            return None
        learned = self.mixed.began > SIGNAL and self.right.mean >= MOST
        if learned and self.mixed.mean > SIGNAL_LEARNED:
            return None
        return Alarm("no_signal", *self._words(learned))

    def _words(self, learned: bool) -> tuple[str, str]:
        right, wrong, solved = self.right.mean, self.wrong.mean, self.solved
        few = f"{self.mixed.mean:.0%} of groups teach in {len(self.mixed.values)} steps"
        if learned:
            what = f"learned out: {right:.0%} of groups are all right, {few}"
            return what, "stop here (Ctrl-C saves), or train on harder problems"
        if wrong >= MOST and _lost(solved):
            now = f"{solved.mean:.0%} of answers are right"
            return f"the policy broke: {now}, {solved.began:.0%} were at first", _smaller_lr(self.lr)
        if wrong >= MOST:
            what = f"all wrong: {wrong:.0%} of groups have no right answer, {few}"
            return what, "`lgrpo-lite baseline RECIPE` names the cause; or easier problems, or a larger model"
        if right >= MOST:
            what = f"all right from the start: {right:.0%} of groups, {few}"
            test = "`lgrpo-lite reward test RECIPE` if that is too good to be true"
            return what, f"train on harder problems; {test}"
        if right + wrong >= MOST:
            what = f"always or never: {right:.0%} of groups all right, {wrong:.0%} all wrong, {few}"
            return what, "rollout.group_size or rollout.temperature higher, or problems in between"
        what = f"equal rewards for right and wrong answers, {few}"
        return what, "rewards.N.weight: parts that cancel each other, or a first reward of weight 0"


class Truncation:
    """An answer that is cut is mostly a wrong one, whatever it would have said."""

    def __init__(self, recipe: dict[str, Any]):
        self.limit = _setting(recipe, "model.max_new_tokens")
        self.lr = _setting(recipe, "optim.lr")
        self.cut = Recent(FEW, UNTRAINED)
        self.solved = Recent(FEW, UNTRAINED)

    def __call__(self, record: StepRecord) -> Alarm | None:
        cut = finite(record.truncated)
        ended = finite(record.length_ended)
        if cut is None:
            return None
        self.cut.add(cut)
        self.solved.add(_or_zero(record.solved))
        if len(self.cut.values) < FEW or self.cut.mean <= TRUNCATED:
            return None
        limit = f" at {self.limit} tokens" if finite(self.limit) else ""
        what = f"{self.cut.mean:.0%} of answers are cut{limit} in {FEW} steps"
        if ended is not None:
            what += f"; those that end have {ended:.0f}"
        if self.cut.began <= TRUNCATED and _lost(self.solved):
            return Alarm("truncation", f"the policy broke and does not end: {what}", _smaller_lr(self.lr))
        raised = f"={2 * self.limit}" if type(self.limit) is int else " higher"
        fix = f"model.max_new_tokens{raised} in a new run, or ask for short answers in data.system"
        return Alarm("truncation", what, fix)


class Entropy:
    """A policy that is sure without being right explores no more. One that solves nearly everything may be
    sure.
    """

    def __init__(self, recipe: dict[str, Any]):
        self.lr = _setting(recipe, "optim.lr")
        self.entropy = Recent(RECENT, START)
        self.solved = Recent(RECENT, START)

    def __call__(self, record: StepRecord) -> Alarm | None:
        entropy = finite(record.entropy)
        solved = finite(record.solved)
        if entropy is None or solved is None:
            return None
        self.entropy.add(entropy)
        self.solved.add(solved)
        if not self.entropy.settled or self.solved.mean >= ENTROPY_SOLVED:
            return None
        now, began = self.entropy.mean, self.entropy.began
        if now >= min(ENTROPY, ENTROPY_FALL * began):
            return None
        right = f"only {self.solved.mean:.0%} of answers are right"
        what = f"entropy {now:.4f} nats, {began:.3f} at first, and {right}"
        return Alarm("entropy_collapse", what, f"{_smaller_lr(self.lr)}, or algorithm.entropy_coef=0.001")


class Disagreement:
    """The sampler gives tokens another probability than the trainer, so the ratio of the update is wrong."""

    def __init__(self, recipe: dict[str, Any]):
        self.engine = _setting(recipe, "rollout.engine")
        self.run = 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        error = finite(record.token_mult_error)
        kl = finite(record.mismatch_kl)
        if error is None and kl is None:
            return None
        error, kl = error or 0, kl or 0
        disagrees = error > MULT_ERROR or kl > MISMATCH_KL
        self.run = self.run + 1 if disagrees else 0
        if self.run < SUSTAINED:
            return None
        engine = f" (rollout.engine={self.engine})" if isinstance(self.engine, str) else ""
        what = f"sampler and trainer disagree: token probabilities by {error:.1%}, KL {kl:.4f}{engine}"
        fix = "`lgrpo-lite selftest RECIPE` finds where; rollout.engine=transformers agrees"
        return Alarm("disagreement", what, fix)


class Clamp:
    """λ cannot follow its gradient any further."""

    def __init__(self, recipe: dict[str, Any]):
        clamp = _setting(recipe, "algorithm.length_preference.clamp")
        pair = isinstance(clamp, list | tuple) and len(clamp) == 2
        low, high = map(finite, clamp) if pair else (None, None)
        self.clamp = None if low is None or high is None else (low, high)
        self.run = 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        value = finite(record.length_lambda)
        if self.clamp is None or value is None:
            return None
        low, high = self.clamp
        near = 1e-6 * (high - low)
        at_a_bound = value <= low + near or value >= high - near
        self.run = self.run + 1 if at_a_bound else 0
        if self.run < SUSTAINED:
            return None
        what = f"λ is at its bound {value:+.3g} for {self.run} steps, and can say no more"
        fix = "algorithm.length_preference.lr smaller; or .clamp wider, if it crept there slowly"
        return Alarm("lambda_clamp", what, fix)


class Weights:
    """λ so far from 0 that a few answers of a group are all that counts."""

    def __init__(self, recipe: dict[str, Any]):
        self.size = _setting(recipe, "rollout.group_size")
        self.run = 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        short = finite(record.weight_short)
        long = finite(record.weight_long)
        if short is None or long is None:
            return None
        small, large = sorted((short, long))
        self.run = self.run + 1 if large > WEIGHT_RATIO * small else 0
        if self.run < SUSTAINED:
            return None
        ratio = f"{large / small:.3g}" if small > 0 else "more than 1e300"
        heavy, light = ("longest", "shortest") if long > short else ("shortest", "longest")
        what = f"the {heavy} answers count {ratio} times the {light}"
        effective = finite(record.weight_effective)
        if effective is not None and type(self.size) is int:
            what += f"; of {self.size} answers {effective * self.size:.1f} count"
        value = finite(record.length_lambda)
        now = f" (λ is {value:+.3g})" if value is not None else ""
        return Alarm("dominated_weights", what, f"algorithm.length_preference.clamp=[-1,1]{now} in a new run")


class Rewards:
    """Answers whose reward timed out, crashed or raised have left their groups."""

    def __init__(self, recipe: dict[str, Any]):
        self.size = finite(_setting(recipe, "rollout.group_size"))
        self.steps: deque[tuple[float, ...]] = deque(maxlen=RECENT)

    def __call__(self, record: StepRecord) -> Alarm | None:
        missing = _or_zero(record.missing)
        # probes are sampled too, and have no say in `missing`
        answers = _or_zero(record.groups) * self.size if self.size else _or_zero(record.rollout_answers)
        if answers <= 0:
            return None
        kinds = (record.reward_timeouts, record.reward_crashes, record.reward_errors)
        self.steps.append((answers, missing, *map(_or_zero, kinds)))
        if not missing and not any(step[1] for step in self.steps):
            return None
        total, gone, *faults = map(sum, zip(*self.steps, strict=True))
        if len(self.steps) < SUSTAINED or gone < MISSING_LEAST or gone <= MISSING * total:
            return None
        share = f"{gone / total:.1%} of rewards are missing in {len(self.steps)} steps"
        what = f"{share} ({gone:.0f} of {total:.0f})"
        most, kind = max(zip(faults, ("timeouts", "crashes", "errors"), strict=True))
        if most:
            what += f", mostly {kind}"
        fix = "`lgrpo-lite reward test RECIPE`; logs/attempt_N/main.log has the first one in full"
        if most and kind == "timeouts":
            fix = "`lgrpo-lite reward test RECIPE` shows how long one takes; or raise rewards.N.timeout"
        return Alarm("reward_faults", what, fix)


class Memory:
    """What stays between steps grows."""

    def __init__(self, recipe: dict[str, Any]):
        self.host = Growth()
        self.device = Growth()
        self.steps = 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        memory = record.memory if isinstance(record.memory, dict) else {}
        if not memory:
            return None
        self.steps += 1
        if self.steps <= WARM_UP:
            return None
        host = finite(memory.get("host"))
        device = _stays(memory) if "free" in memory else None
        return _grows("host", self.host, host, memory.get("host_free")) or _grows(
            "GPU", self.device, device, memory.get("free")
        )


CHECKS = (Signal, Truncation, Entropy, Disagreement, Clamp, Weights, Rewards, Memory)


def _stays(memory: dict[str, Any]) -> float:
    """Bytes of the device that are taken between steps too."""
    return sum(_or_zero(size) for name, size in memory.items() if name not in _COMES_AND_GOES)


def _grows(name: str, growth: Growth, now: float | None, free: Any) -> Alarm | None:
    rate = growth.add(now) if now is not None else None
    if rate is None:
        return None
    free = finite(free)
    full = f", full in {free / rate:,.0f} steps" if free is not None else ""
    what = f"{name} memory grows by {rate / 1e6:.1f} MB a step{full} ({(now or 0) / 1e9:.1f} GB now)"
    fix = "Ctrl-C, then the same command with --resume auto starts with fresh memory"
    return Alarm("memory_slope", what, fix)


def _lost(solved: Recent) -> bool:
    return solved.began > 0 and solved.mean < LOST * solved.began


def _smaller_lr(lr: Any) -> str:
    now = f" (now {lr:g})" if finite(lr) else ""
    return f"a new run with a smaller optim.lr{now}"


def _compares_answers(recipe: dict[str, Any]) -> bool:
    keys = ("algorithm.advantage", "algorithm.surrogate", "algorithm.residual.centre")
    return compares_answers(*(_setting(recipe, key) for key in keys))


def _or_zero(value: Any) -> float:
    """0 for what is no number."""
    return finite(value) or 0


def _setting(recipe: Any, key: str) -> Any:
    """A dotted key; None where it, or anything above it, is not there."""
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return recipe
