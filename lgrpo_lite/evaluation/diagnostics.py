"""What samples say about a policy: pass@k, coverage of a base model, what a KL-regularised optimum could be.

Questions of "Can GRPO Help LLMs Transcend Their Pretraining Origin?" (arXiv:2510.15990), as numbers from
counts of right answers.
"""

import math
from collections.abc import Sequence


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k): the unbiased chance that one of k of n samples is right (arXiv:2107.03374).

    k <= n.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def pass_curve(n: int, correct: Sequence[int], ks: Sequence[int]) -> list[float]:
    """pass@k averaged over problems, for each k."""
    curve = []
    for k in ks:
        chances = [pass_at_k(n, c, k) for c in correct]
        curve.append(math.fsum(chances) / len(correct))
    return curve


def crossover(base: Sequence[float], tuned: Sequence[float], ks: Sequence[int]) -> int | None:
    """The first k at which the base model's curve is above the tuned one's; None if it never is."""
    for k, of_base, of_tuned in zip(ks, base, tuned, strict=True):
        if of_base > of_tuned:
            return k
    return None


def coverage(base: Sequence[int], tuned: Sequence[int]) -> dict[str, int]:
    """Problems solved at least once by both, gained, lost, or by neither, from counts of right samples."""
    pairs = [(before > 0, after > 0) for before, after in zip(base, tuned, strict=True)]
    return {
        "both": pairs.count((True, True)),
        "gained": pairs.count((False, True)),
        "lost": pairs.count((True, False)),
        "neither": pairs.count((False, False)),
    }


def tilted(p: float, beta: float) -> float:
    """p e^(1/β)/(1 - p + p e^(1/β)): success at the optimum of a 0/1 reward with KL weight β,
    from success p of the reference.

    logit p* = logit p + 1/β; what the reference never solves stays unsolved.
    """
    gain = math.exp(-1 / beta)  # the same fraction, divided through, so that a small β does not overflow
    return p / (gain * (1 - p) + p) if p else 0.0


def never_upper(n: int, level: float = 0.95) -> float:
    """Upper bound of a success rate of which n samples showed nothing: 1 - (1 - level)^(1/n)."""
    return 1.0 - (1.0 - level) ** (1.0 / n)
