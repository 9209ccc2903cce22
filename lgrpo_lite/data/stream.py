"""The order in which prompts are drawn: shuffled per epoch by the seed, resumable from one number."""

import random
from collections.abc import Callable, Sequence

from lgrpo_lite.types import Prompt


class PromptStream:
    """Endless draws from a finite set. The state is how many places have been passed; nothing else."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        self.prompts, self.seed, self.drawn = prompts, seed, 0
        self._epoch: int | None = None
        self._order: list[int] = []
        self._skipped: frozenset[int] = frozenset()

    def first(self, count: int) -> list[Prompt]:
        """The prompts of the first `count` draws of a run, each once, in the order they come."""
        fresh = PromptStream(self.prompts, self.seed)
        return fresh.draw(min(count, len(self.prompts)))

    def skip(self, unwanted: Callable[[Prompt], bool]) -> int:
        """Pass over such prompts from now on, the order of the others unchanged; returns how many there are."""
        self._skipped = frozenset(i for i, p in enumerate(self.prompts) if unwanted(p))
        return len(self._skipped)

    def draw(self, count: int) -> list[Prompt]:
        """The next `count` prompts; every prompt once before any is drawn again."""
        taken = []
        while len(taken) < count:
            epoch, place = divmod(self.drawn, len(self.prompts))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, list(range(len(self.prompts)))
                random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
            if self._order[place] not in self._skipped:
                taken.append(self.prompts[self._order[place]])
            self.drawn += 1
        return taken
