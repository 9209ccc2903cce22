"""When an alarm's condition holds, and what it then says: one class an alarm,
each a fold over a run's records.

Start values are those of the guides of Axolotl and NeMo-RL; where runs of this project say otherwise, the
measured value stands beside the constant. A figure that is missing or no number is passed over: it
neither raises an alarm nor mends it.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.monitor.trend import Growth, Recent, number
from lgrpo_lite.recipe.algorithm import compares_answers
from lgrpo_lite.types import StepRecord

FEW, RECENT = 5, 10  # steps that a mean needs, steps that it is taken over
# steps that count as a run's beginning, and as what the model could before it was trained
START, UNTRAINED = (10, 3)
SUSTAINED = 3  # steps in a row, where one step alone may be a fluke

SIGNAL = 0.2  # share of groups that teach, at or below which a run wastes its time …
SIGNAL_LEARNED = (
    0.05  # … and where it learned what there was: healthy runs of tiny-math end between 0.15 and 0.4
)
MOST = 0.6  # a share of groups from which on they give the alarm its words
LOST = 0.1  # a policy that solves less than this share of what it solved at first is broken
TRUNCATED = 0.6  # share of answers
ENTROPY = 0.05  # nats a token …
ENTROPY_FALL = 0.2  # … and this share of the beginning's …
ENTROPY_SOLVED = (
    0.7  # … with less solved than that: healthy runs of tiny-math fall so far with 0.83 or more solved
)
MULT_ERROR, MISMATCH_KL = 0.05, 0.01  # nf4 against vLLM, healthy: 0.010 to 0.015, and 0.001
WEIGHT_RATIO = (
    10.0  # of long to short answers; the effective number of answers says it later, so it only gives words
)
MISSING, MISSING_LEAST = 0.02, 3  # share of answers and answers
WARM_UP = 10  # steps whose memory still settles


@dataclass(frozen=True, slots=True)
class Alarm:
    """`what`: the symptom with its numbers, most important words first. `fix`: the one next step."""

    name: str
    what: str
    fix: str


# ------------------------------------------------------------ one class an alarm


class Signal:
    """Groups whose answers all get the same reward teach nothing. Steps whose
    answers were cut are `truncation`'s.
    """

    def __init__(self, recipe: dict[str, Any]):
        self.compares = _compares_answers(recipe)
        self.lr = _at(recipe, "optim.lr")
        self.mixed, self.right, self.wrong = (Recent(RECENT, START) for _ in range(3))
        self.solved = Recent(RECENT, UNTRAINED)

    def __call__(self, record: StepRecord) -> Alarm | None:
        groups, solved, cut = number(record.groups), number(record.solved), number(record.truncated)
        if not groups or solved is None or (cut or 0) > TRUNCATED:
            return None  # every reward is missing, or the step was refused
        mixed = (
            (number(record.groups_mixed) or 0) / groups
            if self.compares
            else float((number(record.reward_std) or 0) > 0)
        )
        self.mixed.add(mixed)
        self.right.add((number(record.groups_right) or 0) / groups)
        self.wrong.add((number(record.groups_wrong) or 0) / groups)
        self.solved.add(solved)
        if len(self.mixed.values) < FEW or self.mixed.mean > SIGNAL:
            return None
        learned = self.mixed.began > SIGNAL and self.right.mean >= MOST
        if learned and self.mixed.mean > SIGNAL_LEARNED:
            return None
        return Alarm("no_signal", *self._words(learned))

    def _words(self, learned: bool) -> tuple[str, str]:
        mixed, right, wrong = self.mixed.mean, self.right.mean, self.wrong.mean
        few = f"{mixed:.0%} of groups teach in {len(self.mixed.values)} steps"
        if learned:
            return (
                f"learned out: {right:.0%} of groups are all right, {few}",
                "stop here (Ctrl-C saves), or train on harder problems",
            )
        if wrong >= MOST and _lost(self.solved):
            what = (
                f"the policy broke: {self.solved.mean:.0%} of answers are right, {self.solved.began:.0%} were"
                " at first"
            )
            return what, _smaller_lr(self.lr)
        if wrong >= MOST:
            what = f"all wrong: {wrong:.0%} of groups have no right answer, {few}"
            return what, "`lgrpo-lite baseline RECIPE` names the cause; or easier problems, or a larger model"
        if right >= MOST:
            what = f"all right from the start: {right:.0%} of groups, {few}"
            return (
                what,
                "train on harder problems; `lgrpo-lite reward test RECIPE` if that is too good to be true",
            )
        if right + wrong >= MOST:
            what = f"always or never: {right:.0%} of groups all right, {wrong:.0%} all wrong, {few}"
            return what, "rollout.group_size or rollout.temperature higher, or problems in between"
        what = f"equal rewards for right and wrong answers, {few}"
        return what, "rewards.N.weight: parts that cancel each other, or a first reward of weight 0"


class Truncation:
    """An answer that is cut is mostly a wrong one, whatever it would have said."""

    def __init__(self, recipe: dict[str, Any]):
        self.limit, self.lr = _at(recipe, "model.max_new_tokens"), _at(recipe, "optim.lr")
        self.cut, self.solved = Recent(FEW, UNTRAINED), Recent(FEW, UNTRAINED)

    def __call__(self, record: StepRecord) -> Alarm | None:
        cut, solved, ended = number(record.truncated), number(record.solved), number(record.length_ended)
        if cut is None:
            return None
        self.cut.add(cut)
        self.solved.add(solved or 0.0)
        if len(self.cut.values) < FEW or self.cut.mean <= TRUNCATED:
            return None
        limit = f" at {self.limit} tokens" if number(self.limit) else ""
        what = f"{self.cut.mean:.0%} of answers are cut{limit} in {FEW} steps"
        what += f"; those that end have {ended:.0f}" if ended is not None else ""
        if self.cut.began <= TRUNCATED and _lost(self.solved):
            return Alarm("truncation", f"the policy broke and does not end: {what}", _smaller_lr(self.lr))
        raised = f"={2 * self.limit}" if type(self.limit) is int else " higher"
        return Alarm(
            "truncation",
            what,
            f"model.max_new_tokens{raised} in a new run, or ask for short answers in data.system",
        )


class Entropy:
    """A policy that is sure without being right explores no more. One that solves
    nearly everything may be sure.
    """

    def __init__(self, recipe: dict[str, Any]):
        self.lr = _at(recipe, "optim.lr")
        self.entropy, self.solved = Recent(RECENT, START), Recent(RECENT, START)

    def __call__(self, record: StepRecord) -> Alarm | None:
        entropy, solved = number(record.entropy), number(record.solved)
        if entropy is None or solved is None:
            return None
        self.entropy.add(entropy)
        self.solved.add(solved)
        now, began = self.entropy.mean, self.entropy.began
        if (
            not self.entropy.settled
            or now >= min(ENTROPY, ENTROPY_FALL * began)
            or self.solved.mean >= ENTROPY_SOLVED
        ):
            return None
        what = (
            f"entropy {now:.4f} nats, {began:.3f} at first, and only {self.solved.mean:.0%} of answers are"
            " right"
        )
        return Alarm("entropy_collapse", what, f"{_smaller_lr(self.lr)}, or algorithm.entropy_coef=0.001")


class Disagreement:
    """The sampler gives tokens another probability than the trainer, so the ratio of the update is wrong."""

    def __init__(self, recipe: dict[str, Any]):
        self.engine, self.run = _at(recipe, "rollout.engine"), 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        error, kl = number(record.token_mult_error), number(record.mismatch_kl)
        if error is None and kl is None:
            return None
        self.run = self.run + 1 if (error or 0) > MULT_ERROR or (kl or 0) > MISMATCH_KL else 0
        if self.run < SUSTAINED:
            return None
        engine = f" (rollout.engine={self.engine})" if isinstance(self.engine, str) else ""
        what = (
            f"sampler and trainer disagree: token probabilities by {error or 0:.1%}, KL {kl or 0:.4f}{engine}"
        )
        return Alarm(
            "disagreement",
            what,
            "`lgrpo-lite selftest RECIPE` finds where; rollout.engine=transformers agrees",
        )


class Clamp:
    """λ cannot follow its gradient any further."""

    def __init__(self, recipe: dict[str, Any]):
        clamp = _at(recipe, "algorithm.length_preference.clamp")
        known = (
            isinstance(clamp, list | tuple)
            and len(clamp) == 2
            and all(number(bound) is not None for bound in clamp)
        )
        self.clamp, self.run = (clamp if known else None), 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        found = number(record.length_lambda)
        if self.clamp is None or found is None:
            return None
        low, high = self.clamp
        near = 1e-6 * (high - low)
        self.run = self.run + 1 if found <= low + near or found >= high - near else 0
        if self.run < SUSTAINED:
            return None
        what = f"λ is at its bound {found:+.3g} for {self.run} steps, and can say no more"
        return Alarm(
            "lambda_clamp",
            what,
            "algorithm.length_preference.lr smaller; or .clamp wider, if it crept there slowly",
        )


class Weights:
    """λ so far from 0 that a few answers of a group are all that counts."""

    def __init__(self, recipe: dict[str, Any]):
        self.size, self.run = _at(recipe, "rollout.group_size"), 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        short, long, effective = (
            number(record.weight_short),
            number(record.weight_long),
            number(record.weight_effective),
        )
        if short is None or long is None:
            return None
        small, large = sorted((short, long))
        self.run = self.run + 1 if large > WEIGHT_RATIO * small else 0
        if self.run < SUSTAINED:
            return None
        ratio = f"{large / small:.3g}" if small > 0 else "more than 1e300"
        longest, shortest = ("longest", "shortest") if long > short else ("shortest", "longest")
        what = f"the {longest} answers count {ratio} times the {shortest}"
        if effective is not None and type(self.size) is int:
            what += f"; of {self.size} answers {effective * self.size:.1f} count"
        lam = number(record.length_lambda)
        at = f" (λ is {lam:+.3g})" if lam is not None else ""
        return Alarm("dominated_weights", what, f"algorithm.length_preference.clamp=[-1,1]{at} in a new run")


class Rewards:
    """Answers whose reward timed out, crashed or raised have left their groups."""

    def __init__(self, recipe: dict[str, Any]):
        self.size = number(_at(recipe, "rollout.group_size"))
        self.steps: deque[tuple[float, ...]] = deque(maxlen=RECENT)

    def __call__(self, record: StepRecord) -> Alarm | None:
        groups, sampled, missing = (
            number(record.groups) or 0,
            number(record.rollout_answers) or 0,
            number(record.missing) or 0,
        )
        kinds = (
            number(n) or 0 for n in (record.reward_timeouts, record.reward_crashes, record.reward_errors)
        )
        # probes are sampled too, and have no say in `missing`
        answers = groups * self.size if self.size else sampled
        if answers <= 0:
            return None
        self.steps.append((answers, missing, *kinds))
        if not missing and not any(step[1] for step in self.steps):
            return None
        total, gone, timeouts, crashes, errors = map(sum, zip(*self.steps, strict=True))
        if len(self.steps) < SUSTAINED or gone < MISSING_LEAST or gone <= MISSING * total:
            return None
        what = (
            f"{gone / total:.1%} of rewards are missing in {len(self.steps)} steps ({gone:.0f} of"
            f" {total:.0f})"
        )
        count, kind = max((timeouts, "timeouts"), (crashes, "crashes"), (errors, "errors"))
        what += f", mostly {kind}" if count else ""
        if count and kind == "timeouts":
            return Alarm(
                "reward_faults",
                what,
                "`lgrpo-lite reward test RECIPE` shows how long one takes; or raise rewards.N.timeout",
            )
        return Alarm(
            "reward_faults",
            what,
            "`lgrpo-lite reward test RECIPE`; logs/attempt_N/main.log has the first one in full",
        )


class Memory:
    """What stays between steps grows."""

    def __init__(self, recipe: dict[str, Any]):
        self.host, self.device, self.seen = Growth(), Growth(), 0

    def __call__(self, record: StepRecord) -> Alarm | None:
        memory = record.memory if isinstance(record.memory, dict) else {}
        if not memory:
            return None
        self.seen += 1
        if self.seen <= WARM_UP:
            return None
        stays = [number(size) or 0 for name, size in memory.items() if name not in _COMES_AND_GOES]
        host, device = number(memory.get("host")), sum(stays) if "free" in memory else None
        for name, growth, now, free in (
            ("host", self.host, host, "host_free"),
            ("GPU", self.device, device, "free"),
        ):
            rate = growth.add(now) if now is not None else None
            if rate is not None:
                left = number(memory.get(free))
                full = f", full in {left / rate:,.0f} steps" if left is not None else ""
                what = (
                    f"{name} memory grows by {rate / 1e6:.1f} MB a step{full} ({(now or 0) / 1e9:.1f} GB now)"
                )
                return Alarm(
                    "memory_slope",
                    what,
                    "Ctrl-C, then the same command with --resume auto starts with fresh memory",
                )
        return None


# with the lengths of a step, or no device memory at all
_COMES_AND_GOES = ("activations", "cached", "free", "host", "host_free")
CHECKS = (Signal, Truncation, Entropy, Disagreement, Clamp, Weights, Rewards, Memory)


def _lost(solved: Recent) -> bool:
    return solved.began > 0 and solved.mean < LOST * solved.began


def _smaller_lr(lr: Any) -> str:
    return f"a new run with a smaller optim.lr{f' (now {lr:g})' if number(lr) else ''}"


def _compares_answers(recipe: dict[str, Any]) -> bool:
    keys = ("algorithm.advantage", "algorithm.surrogate", "algorithm.residual.centre")
    return compares_answers(*(_at(recipe, key) for key in keys))


def _at(recipe: Any, key: str) -> Any:
    """A dotted key; None where it, or anything above it, is not there."""
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return recipe
