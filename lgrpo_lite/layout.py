"""How sequences are laid out for one forward pass, and how a batch is cut so that
each pass fits a budget of tokens.

rows    one sequence a row, padded on the right: attention never sees padding, every layer computes it
packed  all sequences in one row, end to end; attention does not cross a border
shared  as packed, but equal contexts stand there once: the answers of a group attend to one prompt

One contract: the same log-probs and gradients to rounding. The last token of a sequence
predicts nothing and is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lgrpo_lite.batch import TrainBatch, ranges


class Segment(NamedTuple):
    """Tokens that attend causally to themselves, after `context` tokens elsewhere (a shared prompt)."""

    start: int
    length: int
    context_start: int = 0
    context: int = 0


@dataclass(frozen=True, slots=True)
class Laid:
    """What the model is given. `segments` None: rows, every token attends to its own row."""

    input_ids: Int[Tensor, "B W"]
    position_ids: Int[Tensor, "B W"] | None
    # where a token of the batch stands in the flattened input_ids; of a last token: nowhere that counts
    place: Int[Tensor, " N"]
    segments: tuple[Segment, ...] | None = None


def rows(batch: TrainBatch) -> Laid:
    """Right-padded rows."""
    width = int(batch.length.max()) - 1
    column, row = ranges(torch.zeros_like(batch.length), batch.length)
    ids = torch.zeros(batch.num_sequences, width, dtype=torch.long)
    inside = column < width
    ids[row[inside], column[inside]] = batch.input_ids[inside]
    return Laid(ids, None, row * width + column)


def packed(batch: TrainBatch) -> Laid:
    """End to end, positions restart."""
    length = batch.length - 1
    source, _ = ranges(batch.start, length)
    place = torch.zeros_like(batch.input_ids)
    place[source] = torch.arange(len(source))
    positions, _ = ranges(torch.zeros_like(length), length)
    starts = (length.cumsum(0) - length).tolist()
    segments = tuple(Segment(start, count) for start, count in zip(starts, length.tolist(), strict=True))
    return Laid(batch.input_ids[source][None], positions[None], place, segments)


def shared(batch: TrainBatch) -> Laid:
    """End to end, each context once, followed by what its sequences add to it."""
    begin, length, context = batch.start.tolist(), batch.length.tolist(), batch.context.tolist()
    segments: list[Segment] = []
    pieces: list[tuple[int, int, int]] = []  # first token in the batch, tokens, first position
    homes: list[tuple[int, int, int]] = []  # first token in the batch, tokens, first place
    place = 0
    for members in clusters(batch):
        count, first = context[members[0]], place
        segments.append(Segment(first, count))
        pieces.append((begin[members[0]], count, 0))
        place += count
        for s in members:
            own = length[s] - 1 - count
            homes += [(begin[s], count, first), (begin[s] + count, own, place)]
            pieces.append((begin[s] + count, own, count))
            segments.append(Segment(place, own, first, count))
            place += own
    source, _ = ranges(*_columns(pieces, 0, 1))
    positions, _ = ranges(*_columns(pieces, 2, 1))
    tokens, _ = ranges(*_columns(homes, 0, 1))
    place_of = torch.zeros_like(batch.input_ids)
    place_of[tokens], _ = ranges(*_columns(homes, 2, 1))
    return Laid(batch.input_ids[source][None], positions[None], place_of, tuple(segments))


LAYOUT: dict[str, Callable[[TrainBatch], Laid]] = {"rows": rows, "packed": packed, "shared": shared}

# What a token costs in a layout, in tokens of rows: gathering sequences for attention, and keys of a shared
# prompt, are not free. Measured by bench/step.py on a CPU; the choice depends on these and on the batch
# alone, so a resumed run makes it again.
COST = {"rows": 1.0, "packed": 1.05, "shared": 1.12}


def clusters(batch: TrainBatch) -> list[list[int]]:
    """Sequences with the same context, in order of first appearance."""
    members: dict[tuple[int, ...], list[int]] = {}
    ids = batch.input_ids.tolist()
    for s, (start, count) in enumerate(zip(batch.start.tolist(), batch.context.tolist(), strict=True)):
        context = tuple(ids[start : start + count])
        members.setdefault(context, []).append(s)
    return list(members.values())


def size_of(batch: TrainBatch, layout: str) -> Callable[[Sequence[int]], int]:
    """The function that says how many tokens, padding included, the model computes for some sequences."""
    length, context = (batch.length - 1).tolist(), batch.context.tolist()
    if layout == "rows":
        return lambda part: len(part) * max(length[s] for s in part)
    if layout == "packed":
        return lambda part: sum(length[s] for s in part)
    cluster = {s: number for number, members in enumerate(clusters(batch)) for s in members}

    def shared_size(part: Sequence[int]) -> int:
        contexts = {cluster[s]: context[s] for s in part}
        return sum(length[s] - context[s] for s in part) + sum(contexts.values())

    return shared_size


def micro_rows(batch: TrainBatch, budget: int, layout: str, *, whole_groups: bool = False) -> list[list[int]]:
    """Sequences (indices into S) of each pass: at most `budget` tokens with padding; at least one sequence.

    Similar lengths go together, and in `shared` the answers to one prompt. whole_groups keeps the answers of
    a rollout group together, even where that is more than the budget.
    """
    size, length = size_of(batch, layout), batch.length.tolist()
    units = _units(batch, layout, whole_groups)
    for unit in units:
        unit.sort(key=lambda s: -length[s])
    units.sort(key=lambda unit: -length[unit[0]])
    parts: list[list[int]] = []
    for unit in units:
        together = whole_groups or size(unit) <= budget
        pieces = [unit] if together else [[s] for s in unit]
        for piece in pieces:
            if parts and size(parts[-1] + piece) <= budget:
                parts[-1] += piece
            else:
                parts.append(list(piece))
    return parts


def _units(batch: TrainBatch, layout: str, whole_groups: bool) -> list[list[int]]:
    """Sequences that should share a pass: a rollout group's, those of one prompt, or each alone."""
    if whole_groups:
        groups: dict[int, list[int]] = {}
        for s, group in enumerate(batch.step_group[batch.row].tolist()):
            groups.setdefault(group, []).append(s)
        return list(groups.values())
    if layout == "shared":
        return clusters(batch)
    return [[s] for s in range(batch.num_sequences)]


def split(
    batch: TrainBatch, budget: int, layouts: Sequence[str] = ("rows",), *, whole_groups: bool = False
) -> list[tuple[Int[Tensor, " _"], TrainBatch]]:
    """Micro-batches, and which sequences they are, in the one of `layouts` that makes the batch cheapest."""
    cuts = {layout: micro_rows(batch, budget, layout, whole_groups=whole_groups) for layout in layouts}

    def cost(layout: str) -> float:
        return COST[layout] * sum(map(size_of(batch, layout), cuts[layout]))

    best = min(layouts, key=cost)
    parts = [torch.tensor(rows) for rows in cuts[best]]
    return [(part, replace(batch.select(part), layout=best)) for part in parts]


def _columns(rows: Sequence[tuple[int, ...]], *which: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([row[i] for row in rows], dtype=torch.long) for i in which)
