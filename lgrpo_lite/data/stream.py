"""The order in which prompts are drawn: shuffled per epoch by the seed, resumable from one number."""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from lgrpo_lite.errors import DataError
from lgrpo_lite.types import Group, Prompt


class PromptStream:
    """Endless draws from a finite set. The state is how many places were passed, and of which prompts."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        self.prompts = prompts
        self.seed = seed
        self.drawn = 0
        self._epoch: int | None = None
        self._order: list[int] = []
        self._skipped: frozenset[int] = frozenset()
        self._digest = ""

    def first(self, count: int) -> list[Prompt]:
        """The prompts of the first `count` draws of a run, each once, in the order they come."""
        fresh = PromptStream(self.prompts, self.seed)
        return fresh.draw(min(count, len(self.prompts)))

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
            epoch, place = divmod(self.drawn, len(self.prompts))
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = list(range(len(self.prompts)))
                rng = random.Random(f"{self.seed}/{epoch}")
                rng.shuffle(self._order)
            self.drawn += 1
            index = self._order[place]
            if index not in self._skipped:
                return index

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
        """Of every prompt's token ids and gold answer, in their order."""
        if not self._digest:
            digest = hashlib.sha256()
            for prompt in self.prompts:
                text = repr((prompt.token_ids, prompt.reference))
                digest.update(text.encode("utf-8", "backslashreplace"))
            self._digest = digest.hexdigest()[:24]
        return self._digest
