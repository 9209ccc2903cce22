"""A few answers of a step as people read them: right, wrong and truncated, with the credit of every token."""

from collections.abc import Callable, Sequence
from typing import Any

from lgrpo_lite.types import Group, Outcome, Rollout

Decode = Callable[[Sequence[int]], str]


def samples(
    groups: Sequence[Group], keep: int, decode: Decode, read: Decode | None = None
) -> list[dict[str, Any]]:
    """Rows of a completions file: at most `keep`, of each kind one before any gets a second. `read` decodes
    what the model read, special tokens and all.
    """
    picked = picks([r for g in groups for r in g.rollouts], keep)
    rows = []
    for rollout in picked:
        row = _row(rollout, decode)
        if read is not None:
            ids = rollout.prompt.token_ids
            row |= {"read": read(ids), "read_tokens": len(ids)}
        rows.append(row)
    return rows


def picks(rollouts: Sequence[Rollout], keep: int) -> list[Rollout]:
    """Right, wrong and truncated in turn; of a kind those of different prompts and with credit come first."""
    kinds: dict[str, list[int]] = {"right": [], "wrong": [], "truncated": []}
    for i, rollout in enumerate(rollouts):
        kinds[_kind(rollout)].append(i)
    for rows in kinds.values():
        rows.sort(key=lambda i: not any(rollouts[i].credit))
    chosen: list[int] = []
    while len(chosen) < keep and any(kinds.values()):
        for rows in kinds.values():
            if rows and len(chosen) < keep:
                prompts = {rollouts[i].prompt.id for i in chosen}
                others = [i for i in rows if rollouts[i].prompt.id not in prompts]
                pick = others[0] if others else rows[0]
                rows.remove(pick)
                chosen.append(pick)
    return [rollouts[i] for i in chosen]


def pieces(ids: Sequence[int], text: str, decode: Decode) -> list[str]:
    """What each token adds to `text`, the decoding of them all without special tokens: one string a token,
    end to end `text`.

    A character made of several tokens stands at its last one. What a tokenizer writes otherwise in a row
    stands at the end.
    """
    strings: list[str] = []
    pending: list[int] = []  # tokens of which no text is known yet
    end = 0  # of the text so far
    for token in ids:
        pending.append(token)
        piece = _next_piece(decode(pending), text, end)
        strings.append(piece or "")
        if piece is not None:
            end += len(piece)
            pending = []
    if strings:
        strings[-1] += text[end:]
    return strings


def _next_piece(piece: str, text: str, begin: int) -> str | None:
    """The piece as it stands in the text at `begin`; None where it is not what stands there."""
    if piece.endswith("\ufffd"):  # part of a character
        return None
    for lead in ("", " "):  # some tokenizers leave out the space before the first word
        if text.startswith(lead + piece, begin):
            return lead + piece if piece else ""
    return None


def _kind(rollout: Rollout) -> str:
    if rollout.score.outcome is Outcome.ok:
        return "right"
    return "truncated" if rollout.completion.finish_reason == "length" else "wrong"


def _row(r: Rollout, decode: Decode) -> dict[str, Any]:
    return {
        "prompt_id": r.prompt.id,
        "prompt": r.prompt.text,
        "reference": r.prompt.reference,
        "completion": r.completion.text,
        "reward": r.reward,
        "parts": r.score.parts,
        "outcome": r.score.outcome,
        "tokens": len(r.completion.token_ids),
        "finish_reason": r.completion.finish_reason,
        "policy_version": r.completion.policy_version,
        "given": r.completion.given,
        "off": r.off,
        "pieces": pieces(r.completion.token_ids, r.completion.text, decode),
        "credit": [float(f"{c:.4g}") for c in r.credit],
    }
