"""Values from rollouts: of a step's start by fresh continuations (VinePPO), of a
prompt under the reference (A*-PO).
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lgrpo_lite.recipe.algorithm import ProbeValues, ValueCache
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Group, Prompt, Rollout

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
    return tuple(zip([0, *ends[:-1]], ends, strict=True)) if ends else ()


def probe_values(groups: Sequence[Group], settings: ProbeValues, tools: Tools) -> list[Group]:
    """Each answer with its steps and V at their starts, the mean reward of k
    continuations (arXiv:2410.01679).

    Identical states are asked for once. A continuation cut at the limit counts 0; states
    past max_states have no estimate.
    """
    split = [[_with_steps(r, settings, tools) for r in g.rollouts] for g in groups]
    states: dict[tuple[tuple[int, ...], tuple[int, ...]], Prompt] = {}
    for group, rollouts in zip(groups, split, strict=True):
        if settings.only == "mixed" and not group.varied:
            continue
        for r in rollouts:
            for key in _states(r, settings):
                states.setdefault(key, r.prompt)
    prompts = list(states.values())
    probed = tools.score(prompts, tools.generate(prompts, settings.k, [prefix for _, prefix in states]))
    value = {key: _mean_reward(found) for key, found in zip(states, probed, strict=True)}
    return [
        replace(group, rollouts=tuple(_with_values(r, group, value, settings) for r in rollouts))
        for group, rollouts in zip(groups, split, strict=True)
    ]


def _with_steps(rollout: Rollout, settings: ProbeValues, tools: Tools) -> Rollout:
    return replace(rollout, spans=step_spans(rollout.completion.token_ids, tools.decode, settings.delimiter))


def _states(rollout: Rollout, settings: ProbeValues):
    """(prompt, prefix) of every state to be asked for."""
    skip = 1 if settings.first == "group_mean" else 0
    for begin, _ in rollout.spans[skip : settings.max_states]:
        yield rollout.prompt.token_ids, rollout.completion.token_ids[:begin]


def _mean_reward(group: Group) -> float | None:
    rewards = [0.0 if r.completion.finish_reason == "length" else r.reward for r in group.rollouts]
    return statistics.fmean(rewards) if rewards else None


def _with_values(rollout: Rollout, group: Group, value: dict, settings: ProbeValues) -> Rollout:
    """V of each state; one whose continuations all lack a reward takes the value before it,
    so that no credit falls there.
    """
    if settings.only == "mixed" and not group.varied:
        return rollout
    values: list[float] = (
        [statistics.fmean(group.rewards)] if settings.first == "group_mean" and rollout.spans else []
    )
    for key in _states(rollout, settings):
        known = value[key]
        values.append(
            known if known is not None else values[-1] if values else statistics.fmean(group.rewards)
        )
    return replace(rollout, values=tuple(values))


# ------------------------------------------------------------------------------------------- A*-PO


def v_star(rewards: Sequence[float], beta: float) -> float:
    """β log mean exp(r/β) (arXiv:2505.20686); β = 0: the mean. Computed from the
    largest reward, so nothing overflows.
    """
    if beta == 0:
        return statistics.fmean(rewards)
    top = max(rewards)
    return top + beta * math.log(statistics.fmean(math.exp((r - top) / beta) for r in rewards))


class ValueStore:
    """Rewards of n answers of the reference per prompt, as lines of a file that grows block by block.

    A line's key says what its rewards depend on: the prompt and gold answer, the model, the rewards, the
    sampling. A prompt whose answers all lack a reward is kept as an empty list, and left out of training.
    """

    def __init__(self, settings: ValueCache, about: dict[str, Any], seed: int):
        self.settings, self.seed = settings, seed
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
        return bool(rewards) and (not self.settings.drop_unsolved or max(rewards) > 0)

    def prepare(
        self,
        prompts: Sequence[Prompt],
        tools: Tools,
        path: Path,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> bool:
        """Fill in what is missing, under the reference. False: stopped on request;
        what is done stays in the file.

        `progress` hears how many prompts are done, before each block and, from an
        engine that can tell, inside it.

        Each block draws from a seed of its own, so that a pre-pass that was killed ends with
        the values of one that was not.
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
                for prompt, rewards in self._ask(block, _ticking(tools, progress, begin, len(block)), number):
                    file.write(
                        json.dumps({"key": self.key(prompt), "id": prompt.id, "rewards": rewards}) + "\n"
                    )
                file.flush()
        return True

    def usable(self, prompts: Sequence[Prompt], tools: Tools) -> list[Prompt]:
        """The prompts that teach; those the pre-pass did not see (a redraw came upon them) are asked for
        now.
        """
        if new := [p for p in prompts if not self.knows(p)]:
            self._ask(new, tools, int(self.key(new[0])[:8], 16))
        return [p for p in prompts if self.teaches(p)]

    def _ask(self, block: Sequence[Prompt], tools: Tools, number: int) -> list[tuple[Prompt, list[float]]]:
        """Rewards of n answers each under the reference, drawn from the seed of that
        number. What is known stays as it is.
        """
        devices = list(range(torch.cuda.device_count()))
        with torch.random.fork_rng(devices), tools.reference():
            torch.manual_seed((self.seed + 1) * 1_000_003 + number)
            groups = tools.score(block, tools.generate(block, self.settings.n))
        return [
            (p, self.rewards.setdefault(self.key(p), g.rewards)) for p, g in zip(block, groups, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"rewards": dict(self.rewards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewards |= state["rewards"]

    def _read(self, path: Path) -> None:
        lines: Iterable[str] = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ()
        for line in lines:
            try:
                row = json.loads(line)
                self.rewards.setdefault(row["key"], [float(r) for r in row["rewards"]])
            except (ValueError, KeyError, TypeError):  # a line cut short by a kill: its prompt is asked again
                continue


def _ticking(tools: Tools, progress: Callable[[int], None], begin: int, count: int) -> Tools:
    sampling = replace(tools.sampling, tick=lambda share: progress(begin + int(count * share)))
    return replace(tools, sampling=sampling)
