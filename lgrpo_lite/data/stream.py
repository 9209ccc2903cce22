"""The order in which prompts are drawn: shuffled per epoch by the seed, resumable from one number."""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from lgrpo_lite.errors import DataError
from lgrpo_lite.types import Group, Prompt


def _share(count: int, share: float) -> int:
    return round(share * count)


def places(weight: float, count: int) -> int:
    """Of an epoch, for so many prompts of one weight. Not one: DataError."""
    number = int(weight) * count + _share(count, weight - int(weight))
    if count and not number:
        what = f"of the {count} questions with weight {weight:g} none would ever be drawn"
        fix = "raise data.train.N.weight, or remove that source"
        raise DataError(what, where="data.train", fix=fix)
    return number


class PromptStream:
    """Endless draws from a finite set. The state is how many places were passed, and of which prompts.

    An epoch draws a prompt `weight` times: 2.5 is twice, and a third time in every other epoch. Its length is
    the same in every epoch.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        self.prompts = prompts
        self.seed = seed
        self.drawn = 0
        self._epoch: int | None = None
        self._order: list[int] = []
        self._skipped: frozenset[int] = frozenset()
        self._digest = ""
        self._by_weight: dict[float, list[int]] = {}
        for i, prompt in enumerate(prompts):
            self._by_weight.setdefault(prompt.weight, []).append(i)
        # places of an epoch
        self.length = 0
        for weight, indices in self._by_weight.items():
            self.length += places(weight, len(indices))

    def first(self, count: int | None = None) -> list[Prompt]:
        """The prompts of the first `count` draws of a run, each once, in the order they come; None: of as
        many as it takes to draw all.
        """
        fresh = PromptStream(self.prompts, self.seed)
        seen: dict[int, None] = {}
        while len(seen) < len(self.prompts) and (count is None or fresh.drawn < count):
            seen[fresh.next_index()] = None
        return [self.prompts[i] for i in seen]

    def skip(self, unwanted: Callable[[Prompt], bool]) -> int:
        """Pass over such prompts from now on, in unchanged order; returns how many there are."""
        self._skipped = frozenset(i for i, p in enumerate(self.prompts) if unwanted(p))
        return len(self._skipped)

    @property
    def skipped(self) -> frozenset[int]:
        """Indices of the prompts that are passed over."""
        return self._skipped

    def draw(self, count: int) -> list[Prompt]:
        """The next `count` prompts; every prompt once before any is drawn again."""
        return [self.prompts[self.next_index()] for _ in range(count)]

    def next_index(self) -> int:
        """Of the next prompt in the order."""
        while True:
            epoch, place = divmod(self.drawn, self.length)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = self._places(epoch)
                rng = random.Random(f"{self.seed}/{epoch}")
                rng.shuffle(self._order)
            self.drawn += 1
            index = self._order[place]
            if index not in self._skipped:
                return index

    def _places(self, epoch: int) -> list[int]:
        """Indices of an epoch's prompts, as often as each is drawn, in no order that counts."""
        drawn = []
        for weight, indices in self._by_weight.items():
            whole = int(weight)
            drawn += indices * whole
            extra = _share(len(indices), weight - whole)
            if extra:
                # of a round that all take part in, so that none waits longer than another
                begin = epoch * extra % len(indices)
                turned = random.Random(f"{self.seed}/weight").sample(indices, len(indices)) * 2
                drawn += turned[begin : begin + extra]
        return sorted(drawn)

    def observe(self, groups: Sequence[Group]) -> None:
        """This order does not depend on what was sampled."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "digest": self.digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Other prompts: DataError, since a place would mean another prompt."""
        if state.get("digest", self.digest()) != self.digest():
            what = "the prompts are not those of the checkpoint"
            before = "bring back the data and the template the run began with"
            date = "where the template writes a date, set data.date to the day it began"
            fix = f"{before}; {date}; or start again under another --name"
            raise DataError(what, where="data.train", fix=fix)
        self.drawn = state["drawn"]

    def digest(self) -> str:
        """Of every prompt's token ids, gold answer and columns that rewards read, in their order."""
        if not self._digest:
            digest = hashlib.sha256()
            for prompt in self.prompts:
                text = repr((prompt.token_ids, prompt.reference))
                if prompt.columns:
                    text += repr(sorted(prompt.columns.items()))
                digest.update(text.encode("utf-8", "backslashreplace"))
            self._digest = digest.hexdigest()[:24]
        return self._digest
