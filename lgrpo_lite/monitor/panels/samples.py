"""The panel of completions: one right, one wrong, one truncated, their tokens by credit; before the first
step, what is known.
"""

from typing import Any

from rich.text import Text

from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.panels.panel import Panel
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import BAD, CALM, GOOD, LABEL, WARN, amount, clean, cut
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
    answers = [tokens for _, tokens in shown]
    scales = scales_of(answers)
    lines: list[Text] = []
    for i, (row, tokens) in enumerate(shown):
        room = (height - len(lines)) // (len(shown) - i)
        lines += sample(row, tokens, width, room, scales[i])
    return Panel(_title(run, answers, width), lines[:height])


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each kind first, then the others as they come; the same answer is not shown twice while there
    are others.
    """
    kinds: set[str] = set()
    texts: set[tuple[str, str]] = set()
    first = []
    other = []
    again = []
    for row in rows[:MOST]:
        kind = kind_of(row)
        text = (str(row.get("prompt")), str(row.get("completion")))
        if text in texts:
            again.append(row)
        elif kind in kinds:
            other.append(row)
        else:
            first.append(row)
        kinds.add(kind)
        texts.add(text)
    rank = list(KINDS)
    first.sort(key=lambda row: rank.index(kind_of(row)))
    return first + other + again


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
    credit, raised, lowered = "", " raised  ", " lowered"
    if width > 100:
        credit = "credit = advantage × weight: "
        raised, lowered = " or green: raised  ", " or red: lowered"
    legend = Text.assemble(credit, (RAISED, GOOD), raised, (LOWERED, BAD), lowered)
    return title.append("  ").append_text(legend)


def wanted(run: RunView, width: int) -> int:
    """Lines that the samples of this run can fill, by its recipe alone, so that they do not move from step to
    step.
    """
    tokens = max(0.0, run.number("model.max_new_tokens", 1e4))
    count = max(1.0, run.number("log.completions_per_step", 4))
    text = min(1 + 4 * tokens / max(1, width), 1e3)  # a token is about four characters
    marks = 2 if isinstance(run.get("algorithm.trace"), dict) else 1
    return int(min(1e3, count * (1 + text * marks)))


def sample(row: dict[str, Any], tokens: Tokens, width: int, height: int, scale: float) -> list[Text]:
    """A completion in `height` lines: one, all in it; from two on a heading and the text, with marks where
    credit differs.
    """
    sign, style = KINDS[kind_of(row)]
    prompt = clean(row.get("prompt", ""), 600)
    length = len(str(row.get("completion", "")))
    words, colour = stamp(tokens)
    if height <= 1 or (height == 2 and not tokens.even):
        short = words.removesuffix(" on every token").removesuffix(" at most") if tokens.credit else ""
        question = cut(prompt, width // 3)
        start = Text.assemble((f"{sign[0]} ", style), (f"{short:<8} ", colour), (question, LABEL), "  ")
        body = drawn(tokens, width - start.cell_len, height, scale, length=length, marked=height == 2)
        if not body:
            return [start]
        margin = Text(" " * start.cell_len)
        return [start + body[0], *(margin + line for line in body[1:])]
    figures = _figures(row, width, words, colour)
    question = cut(prompt, max(10, width - figures.cell_len - 8))
    start = Text.assemble((f"{sign:<8}", style), (question, LABEL), figures)
    return [start, *drawn(tokens, width, height - 1, scale, length=length, marked=not tokens.even)]


def _figures(row: dict[str, Any], width: int, words: str, colour: str) -> Text:
    gold = clean(row.get("reference", ""), 60)
    count = amount(row.get("tokens"))
    if width < 100:
        short = words.replace(" on every token", " each").replace(" at most", "")
        return Text.assemble((f"  gold {cut(gold, 10)}", CALM), (f"  {count} tok  ", LABEL), (short, colour))
    reward = figure(row.get("reward"), ".2f")
    middle = f"  reward {reward}  {count} tokens  "
    return Text.assemble((f"  gold {cut(gold, 30)}", CALM), (middle, LABEL), (words, colour))


def _before(run: RunView, height: int) -> Panel:
    """Without a completion: the last things the run said."""
    said = [line for event in run.events[-40:] for line in _words(event)]
    lines = [Text.assemble((f"{kind:<9}", style), words) for kind, style, words in said[-height:]]
    title = "samples: none kept" if run.records else "before the first step"
    return Panel(title, lines or [Text("no completion yet", LABEL)])


def _words(event: dict[str, Any]) -> list[tuple[str, str, str]]:
    kind = event.get("kind")
    if kind in ("note", "warning"):
        style = WARN if kind == "warning" else LABEL
        return [(str(kind), style, clean(event.get("message", ""), 400))]
    if kind == "chosen":
        key = clean(event.get("key", "?"), 60)
        value = clean(event.get("value", "?"), 60)
        why = clean(event.get("why", ""), 200)
        return [("chosen", CALM, f"{key} = {value}: {why}")]
    if kind == "plan" and isinstance(event.get("lines"), list):
        return [("plan", LABEL, clean(line, 300)) for line in event["lines"][:20]]
    if kind == "baseline" and finite(event.get("solved")) is not None:
        share = figure(event["solved"], ".0%")
        answers = amount(event.get("answers"))
        return [("baseline", LABEL, f"{share} of {answers} answers solved before training")]
    return []
