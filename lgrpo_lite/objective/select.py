"""Which scored answers are trained: settled on the host, before any forward pass (CPPO, arXiv:2503.22342)."""

import statistics
from collections.abc import Sequence
from itertools import chain

from lgrpo_lite.recipe.algorithm import Select


def top_abs(advantages: Sequence[float], rewards: Sequence[float], keep: int) -> list[int]:
    """The `keep` answers of largest |A|, in their order. Ties keep the earlier one:
    answers are exchangeable as sampled.
    """
    by_size = sorted(range(len(advantages)), key=lambda i: (-abs(advantages[i]), i))
    return sorted(by_size[:keep])


def max_variance(advantages: Sequence[float], rewards: Sequence[float], keep: int) -> list[int]:
    """The `keep` answers whose rewards have the largest variance (PODS, arXiv:2504.13818):
    some best and some worst ones.
    """
    order = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    if keep >= len(order):
        return sorted(order)
    choices = []
    for low in range(keep + 1):
        high = keep - low
        choices.append([*order[:low], *order[len(order) - high :]])

    def variance(chosen: list[int]) -> float:
        return statistics.pvariance([rewards[i] for i in chosen])

    return sorted(max(choices, key=variance))


SELECT = {f.__name__: f for f in (top_abs, max_variance)}


def places(size: int, keep: float) -> int:
    """floor(size · keep), at least 1: how many of `size` answers stay. 1e-9, so that 10 · (1 - 0.9) is 1."""
    return max(1, int(size * keep + 1e-9)) if size else 0


def selected(
    advantages: Sequence[Sequence[float]], rewards: Sequence[Sequence[float]], settings: Select | None
) -> list[list[int]]:
    """Per group, the indices of the answers that stay; advantages stay as they are. None keeps everything."""
    if settings is None:
        return [list(range(len(group))) for group in rewards]
    rule = SELECT[settings.rule]
    if settings.scope == "group":
        return [rule(a, r, places(len(r), settings.keep)) for a, r in zip(advantages, rewards, strict=True)]
    homes = [(number, i) for number, group in enumerate(rewards) for i in range(len(group))]
    all_advantages = list(chain.from_iterable(advantages))
    all_rewards = list(chain.from_iterable(rewards))
    kept: list[list[int]] = [[] for _ in rewards]
    for k in rule(all_advantages, all_rewards, places(len(homes), settings.keep)):
        number, i = homes[k]
        kept[number].append(i)
    return kept
