"""The panel of completions: one right, one wrong, one truncated, their tokens by credit; before
the first step, what is known.
"""

from typing import Any

from rich.text import Text

from lgrpo_lite.monitor.panels.panel import Panel
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import BAD, CALM, GOOD, LABEL, WARN, amount, clean, cut, known, number
from lgrpo_lite.monitor.tokens import LOWERED, RAISED, Tokens, drawn, scales_of, stamp, tokens_of

KINDS = {
    "right": ("✓ right", GOOD),
    "wrong": ("✗ wrong", BAD),
    "truncated": ("✂ cut", WARN),
    "unparsable": ("? no answer", WARN),
}
MOST = 12  # completions that are looked at


def samples(run: RunView, width: int, height: int) -> Panel:
    """Some answers of the newest step that kept any, each with as many lines as the others leave it."""
    if not run.samples:
        return _before(run, height)
    rows = ordered(run.samples)
    count = max(1, min(len(rows), max(3, height // 4)))
    shown = [(row, tokens_of(row)) for row in rows[:count]]
    scales, lines = scales_of([tokens for _, tokens in shown]), []
    for i, (row, tokens) in enumerate(shown):
        room = (height - len(lines)) // (len(shown) - i)
        lines += sample(row, tokens, width, room, scales[i])
    return Panel(_title(run, [t for _, t in shown], width), lines[:height])


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each kind first, then the others as they come; the same answer is not
    shown twice while there are others.
    """
    seen: set[Any] = set()
    first, other, again = [], [], []
    for row in rows[:MOST]:
        kind, text = kind_of(row), (str(row.get("prompt")), str(row.get("completion")))
        where = again if text in seen else other if kind in seen else first
        seen |= {kind, text}
        where.append(row)
    rank = list(KINDS)
    return sorted(first, key=lambda row: rank.index(kind_of(row))) + other + again


def kind_of(row: dict[str, Any]) -> str:
    if row.get("outcome") == "ok":
        return "right"
    if row.get("finish_reason") == "length":
        return "truncated"
    return "unparsable" if row.get("outcome") == "unparsable" else "wrong"


def _title(run: RunView, shown: list[Tokens], width: int) -> Text:
    title = Text(f"samples of step {amount(run.sampled_at)}")
    if not any(tokens.credit for tokens in shown):
        return title
    legend = [(RAISED, GOOD), " raised  ", (LOWERED, BAD), " lowered"]
    if width > 100:
        legend = [
            "credit = advantage × weight: ",
            (RAISED, GOOD),
            " or green: raised  ",
            (LOWERED, BAD),
            " or red: lowered",
        ]
    return title.append("  ").append_text(Text.assemble(*legend))


def wanted(run: RunView, width: int) -> int:
    """Lines that the samples of this run can fill, by its recipe alone, so that they
    do not move from step to step.
    """
    tokens, trace = run.number("model.max_new_tokens", 1e4), isinstance(run.get("algorithm.trace"), dict)
    body = 1 + 4 * max(0.0, tokens) / max(1, width)  # a token is about four characters
    return int(
        min(
            1e3,
            max(1.0, run.number("log.completions_per_step", 4)) * (1 + min(body, 1e3) * (2 if trace else 1)),
        )
    )


def sample(row: dict[str, Any], tokens: Tokens, width: int, height: int, scale: float) -> list[Text]:
    """A completion in `height` lines: one, all in it; from two on a heading and the text,
    with marks where credit differs.
    """
    sign, style = KINDS[kind_of(row)]
    prompt = clean(row.get("prompt", ""), 600)
    length = len(str(row.get("completion", "")))
    words, colour = stamp(tokens)
    if height <= 1 or (height == 2 and not tokens.even):
        short = words.removesuffix(" on every token").removesuffix(" at most") if tokens.credit else ""
        start = Text.assemble(
            (f"{sign[0]} ", style), (f"{short:<8} ", colour), (cut(prompt, width // 3), LABEL), "  "
        )
        body = drawn(tokens, width - start.cell_len, height, scale, length=length, marked=height == 2)
        return (
            [start + body[0], *(Text(" " * start.cell_len) + line for line in body[1:])] if body else [start]
        )
    figures = _figures(row, width, words, colour)
    start = Text.assemble(
        (f"{sign:<8}", style), (cut(prompt, max(10, width - figures.cell_len - 8)), LABEL), figures
    )
    return [start, *drawn(tokens, width, height - 1, scale, length=length, marked=not tokens.even)]


def _figures(row: dict[str, Any], width: int, words: str, colour: str) -> Text:
    gold = clean(row.get("reference", ""), 60)
    if width < 100:
        short = words.replace(" on every token", " each").replace(" at most", "")
        return Text.assemble(
            (f"  gold {cut(gold, 10)}", CALM),
            (f"  {amount(row.get('tokens'))} tok  ", LABEL),
            (short, colour),
        )
    told = f"  reward {number(row.get('reward'), '.2f')}  {amount(row.get('tokens'))} tokens  "
    return Text.assemble((f"  gold {cut(gold, 30)}", CALM), (told, LABEL), (words, colour))


def _before(run: RunView, height: int) -> Panel:
    """Without a completion: the last things the run said."""
    said = [line for event in run.events[-40:] for line in _words(event)]
    lines = [Text.assemble((f"{kind:<9}", style), words) for kind, style, words in said[-height:]]
    return Panel(
        "samples: none kept" if run.records else "before the first step",
        lines or [Text("no completion yet", LABEL)],
    )


def _words(event: dict[str, Any]) -> list[tuple[str, str, str]]:
    kind = event.get("kind")
    if kind in ("note", "warning"):
        return [(str(kind), WARN if kind == "warning" else LABEL, clean(event.get("message", ""), 400))]
    if kind == "chosen":
        words = (
            f"{clean(event.get('key', '?'), 60)} = {clean(event.get('value', '?'), 60)}:"
            f" {clean(event.get('why', ''), 200)}"
        )
        return [("chosen", CALM, words)]
    if kind == "plan" and isinstance(event.get("lines"), list):
        return [("plan", LABEL, clean(line, 300)) for line in event["lines"][:20]]
    if kind == "baseline" and known(event.get("solved")) is not None:
        return [
            (
                "baseline",
                LABEL,
                (
                    f"{number(event['solved'], '.0%')} of {amount(event.get('answers'))} answers solved"
                    " before training"
                ),
            )
        ]
    return []
