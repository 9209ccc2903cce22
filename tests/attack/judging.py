"""The workers' half of a soak: answers of every kind against golds of every kind, until it is ended.

python -m tests.attack.judging FILE      FILE holds how many answers were judged so far
"""

import random
import sys
import time
from pathlib import Path

from lgrpo_lite.machine.disk import write_whole
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.types import Completion, Prompt

from .kinds import KINDS, WRAPS

# A pair of kinds that reaches a rare place of sympy or of its parser comes seldom: where these kept what they
# saw, memory rose for half a million calls of a worker. A soak must get past that.
ROUND = 4000  # answers
REST = 5.0  # seconds between two rounds: the run beside it wants a core


def pair(draw: random.Random) -> tuple[Completion, Prompt]:
    """An answer in a solution, and the question that it may belong to."""
    one, other = draw.choice(KINDS), draw.choice(KINDS)
    answer, gold = draw.choice(WRAPS).format(one), draw.choice(WRAPS).format(other)
    text = f"We find {answer} at step {draw.random()}. So the answer is \\boxed{{{answer}}}."
    return Completion((1,), (0.0,), text, "stop", 0), Prompt("0", "?", (1,), gold)


def main() -> None:
    counted = Path(sys.argv[1])
    draw = random.Random(0)
    reward = RewardSum([Reward(use="math")], lambda key: key, max_new_tokens=64)
    done = 0
    while True:
        pairs = [pair(draw) for _ in range(ROUND)]
        reward.scores([prompt for _, prompt in pairs], [[completion] for completion, _ in pairs])
        done += ROUND
        write_whole(counted, str(done), sync=False)  # somebody reads it meanwhile
        time.sleep(REST)


if __name__ == "__main__":
    main()
