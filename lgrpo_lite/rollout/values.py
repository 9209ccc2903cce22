"""Values from rollouts: of steps by fresh continuations (VinePPO), of prompts under the reference (A*-PO)."""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lgrpo_lite.machine.disk import plain
from lgrpo_lite.recipe.algorithm import ProbeValues, ValueCache
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Group, Prompt, Rollout

State = tuple[tuple[int, ...], tuple[int, ...]]  # token ids of a prompt and of the beginning of an answer
BLOCK = 64  # prompts of the pre-pass between two looks at whether to stop; each block has its own seed

# ------------------------------------------------------------------------------------------- VinePPO


def step_spans(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], delimiter: str
) -> tuple[tuple[int, int], ...]:
    """Steps of an answer as ranges of tokens: a step ends with the token that completes `delimiter`.

    A token belongs to the step of its first character. Tokens of white space or of no text (the end of
    sequence) after a border stay with the step before it.
    """
    ends: list[int] = []
    text = ""
    for i, token in enumerate(token_ids):
        piece = decode([token])
        if ends and not text and not piece.strip():
            ends[-1] = i + 1
            continue
        text += piece
        if delimiter in text:
            ends.append(i + 1)
            text = ""
    if text:
        ends.append(len(token_ids))
    elif not ends and token_ids:
        ends = [len(token_ids)]
    begins = [0, *ends[:-1]] if ends else []
    return tuple(zip(begins, ends, strict=True))


def probe_values(groups: Sequence[Group], settings: ProbeValues, tools: Tools) -> list[Group]:
    """Each answer with its steps and V at their starts (arXiv:2410.01679).

    V is the mean reward of k continuations, of which one that is cut at the limit counts 0. Identical states
    are asked for once; states past max_states have no estimate.
    """
    stepped = [_with_steps(group, settings, tools) for group in groups]
    states: dict[State, Prompt] = {}
    for group in stepped:
        if not _probed(group, settings):
            continue
        for rollout in group.rollouts:
            for state in _states(rollout, settings):
                states.setdefault(state, rollout.prompt)
    prompts = list(states.values())
    prefixes = [prefix for _, prefix in states]
    continuations = tools.score(prompts, tools.generate(prompts, settings.k, prefixes))
    values = {state: _mean_reward(group) for state, group in zip(states, continuations, strict=True)}
    return [_with_values(group, values, settings) for group in stepped]


def _probed(group: Group, settings: ProbeValues) -> bool:
    """Whether its states are asked for."""
    return settings.only != "mixed" or group.varied


def _with_steps(group: Group, settings: ProbeValues, tools: Tools) -> Group:
    rollouts = []
    for rollout in group.rollouts:
        spans = step_spans(rollout.completion.token_ids, tools.decode, settings.delimiter)
        rollouts.append(replace(rollout, spans=spans))
    return replace(group, rollouts=tuple(rollouts))


def _states(rollout: Rollout, settings: ProbeValues) -> Iterator[State]:
    """(prompt, prefix) of every state to be asked for."""
    skip = 1 if settings.first == "group_mean" else 0
    for begin, _ in rollout.spans[skip : settings.max_states]:
        yield rollout.prompt.token_ids, rollout.completion.token_ids[:begin]


def _mean_reward(group: Group) -> float | None:
    rewards = []
    for rollout in group.rollouts:
        cut = rollout.completion.finish_reason == "length"
        rewards.append(0.0 if cut else rollout.reward)
    return statistics.fmean(rewards) if rewards else None


def _with_values(group: Group, known: dict[State, float | None], settings: ProbeValues) -> Group:
    """V of each state; one whose continuations all lack a reward takes the value before it, so that no credit
    falls there.
    """
    if not _probed(group, settings) or not group.rollouts:
        return group
    mean = statistics.fmean(group.rewards)
    rollouts = []
    for rollout in group.rollouts:
        values = [mean] if settings.first == "group_mean" and rollout.spans else []
        for state in _states(rollout, settings):
            value = known[state]
            if value is None:
                value = values[-1] if values else mean
            values.append(value)
        rollouts.append(replace(rollout, values=tuple(values)))
    return replace(group, rollouts=tuple(rollouts))


# ------------------------------------------------------------------------------------------- A*-PO


def v_star(rewards: Sequence[float], beta: float) -> float:
    """β log mean exp(r/β) (arXiv:2505.20686); β = 0: the mean.

    Computed from the largest reward, so that nothing overflows.
    """
    if beta == 0:
        return statistics.fmean(rewards)
    top = max(rewards)
    scaled = [math.exp((reward - top) / beta) for reward in rewards]
    return top + beta * math.log(statistics.fmean(scaled))


class ValueStore:
    """Rewards of n answers of the reference per prompt, as lines of a file that grows block by block.

    A line's key says what its rewards depend on: the prompt and gold answer, the model, the rewards, the
    sampling. A prompt whose answers all lack a reward is kept as an empty list, and left out of training.
    """

    def __init__(self, settings: ValueCache, about: dict[str, Any], seed: int):
        self.settings = settings
        self.seed = seed
        self.about = json.dumps(about | {"n": settings.n, "seed": seed}, sort_keys=True)
        self.rewards: dict[str, list[float]] = {}

    def key(self, prompt: Prompt) -> str:
        text = json.dumps([self.about, prompt.token_ids, prompt.reference, repr(prompt.rubric)])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def knows(self, prompt: Prompt) -> bool:
        """Whether the pre-pass has seen it."""
        return self.key(prompt) in self.rewards

    def value(self, prompt: Prompt) -> float:
        """V* of a prompt that the pre-pass has seen."""
        return v_star(self.rewards[self.key(prompt)], self.settings.beta)

    def teaches(self, prompt: Prompt) -> bool:
        """Whether a prompt is trained on: it has rewards and, with drop_unsolved, one that is above 0."""
        rewards = self.rewards[self.key(prompt)]
        if not rewards:
            return False
        return max(rewards) > 0 or not self.settings.drop_unsolved

    def prepare(
        self,
        prompts: Sequence[Prompt],
        tools: Tools,
        path: Path,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> bool:
        """Fill in what is missing, under the reference. False: stopped on request; what is done stays.

        `progress` hears how many prompts are done, before each block and, from an engine that can tell,
        inside it. Each block draws from a seed of its own, so that a pre-pass that was killed ends with the
        values of one that was not.
        """
        self._read(path)
        with path.open("a", encoding="utf-8") as file:
            if file.tell() and not path.read_bytes().endswith(b"\n"):
                file.write("\n")  # a line that a kill cut short; it is asked for again
            for number, begin in enumerate(range(0, len(prompts), BLOCK)):
                block = prompts[begin : begin + BLOCK]
                if all(self.knows(p) for p in block):
                    continue
                if stop():
                    return False
                progress(begin)
                ticking = _ticking(tools, progress, begin, len(block))
                for prompt, rewards in self._ask(block, ticking, number):
                    row = {"key": self.key(prompt), "id": prompt.id, "rewards": rewards}
                    file.write(json.dumps(row) + "\n")
                file.flush()
        return True

    def usable(self, prompts: Sequence[Prompt], tools: Tools) -> list[Prompt]:
        """The prompts that teach; the pre-pass is made up for on those it did not see (from a redraw)."""
        new = [p for p in prompts if not self.knows(p)]
        if new:
            number = int(self.key(new[0])[:8], 16)
            self._ask(new, tools, number)
        return [p for p in prompts if self.teaches(p)]

    def _ask(self, block: Sequence[Prompt], tools: Tools, number: int) -> list[tuple[Prompt, list[float]]]:
        """Rewards of n answers each under the reference, drawn from the seed of that number.

        What is known stays as it is.
        """
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices), tools.reference():
            torch.manual_seed((self.seed + 1) * 1_000_003 + number)
            groups = tools.score(block, tools.generate(block, self.settings.n))
        pairs = []
        for prompt, group in zip(block, groups, strict=True):
            rewards = self.rewards.setdefault(self.key(prompt), group.rewards)
            pairs.append((prompt, rewards))
        return pairs

    def state_dict(self) -> dict[str, Any]:
        return {"rewards": dict(self.rewards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewards |= state["rewards"]

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        for line in plain(path).read_text("utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                rewards = [float(reward) for reward in row["rewards"]]
                self.rewards.setdefault(row["key"], rewards)
            except (ValueError, KeyError, TypeError):  # a line cut short by a kill: its prompt is asked again
                continue


def _ticking(tools: Tools, progress: Callable[[int], None], begin: int, count: int) -> Tools:
    """The tools, whose engine reports the progress of `count` prompts from `begin` on."""

    def tick(share: float) -> None:
        progress(begin + int(count * share))

    return replace(tools, sampling=replace(tools.sampling, tick=tick))
