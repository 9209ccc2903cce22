"""The order in which prompts are drawn: shuffled per epoch by the seed, resumable from one number."""

import random
from collections.abc import Callable, Sequence

from lgrpo_lite.types import Prompt


class PromptStream:
    """Endless draws from a finite set. The state is how many prompts have been drawn; nothing else."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        self.prompts, self.seed, self.drawn = prompts, seed, 0
        self._epoch: int | None = None
        self._order: list[int] = []

    def first(self, count: int) -> list[Prompt]:
        """The prompts of the first `count` draws of a run, each once, in the order they come."""
        fresh = PromptStream(self.prompts, self.seed)
        return fresh.draw(min(count, len(self.prompts)))

    def keep(self, wanted: Callable[[Prompt], bool]) -> int:
        """Leave out the prompts that are not wanted, from the start of the run on; returns how many."""
        kept = [p for p in self.prompts if wanted(p)]
        left_out = len(self.prompts) - len(kept)
        self.prompts, self._epoch = kept, None
        return left_out

    def draw(self, count: int) -> list[Prompt]:
        """The next `count` prompts; every prompt once before any is drawn again."""
        taken = []
        for _ in range(count):
            epoch, place = divmod(self.drawn, len(self.prompts))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, list(range(len(self.prompts)))
                random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
            taken.append(self.prompts[self._order[place]])
            self.drawn += 1
        return taken
