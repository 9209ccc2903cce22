"""`lgrpo-lite show RUN`: the answers that a step kept, token by token with their
credit. Reads only, needs no model.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json
from lgrpo_lite.errors import ConfigError, DataError

NAME = re.compile(r"step-(\d+)\.jsonl\.gz")
PART = 200  # characters of a token that are drawn at once


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite show RUN [--step N] [--prompt K] [options]"
    parser.add_argument(
        "words", nargs=1, metavar="RUN", help="a run folder, or its name under --runs; live, ended or crashed"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="whose answers (default: the newest step that kept some)"
    )
    parser.add_argument(
        "--prompt", metavar="K", help="only the K-th prompt of that step, or the prompt of that id"
    )
    add_runs(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.cli.watch import find_run
    from lgrpo_lite.monitor.tail import completions

    path = find_run(args.words[0], args.runs)
    step, file = _file(path, args.step)
    rows = completions(file)
    if not rows:
        fix = f"lgrpo-lite show {path} --step N; {_near(sorted(_steps(path)), step)}"
        raise DataError("no completion can be read in that file", where=str(file), fix=fix)
    numbered = _numbered(rows)
    if args.prompt is not None:
        numbered = _of_prompt(numbered, args.prompt, file)
    line, record = _step_line(path, step)
    if args.json:
        shown = [row | {"number": number, "credit_thirds": _thirds(row)} for number, row in numbered]
        result = {"run": str(path), "step": step, "record": record, "completions": shown}
        print_json("show", result)
        return 0
    _show(line, numbered)
    return 0


# ------------------------------------------------------------------------------------------- what there is


def _steps(path: Path) -> dict[int, Path]:
    """Steps that kept completions."""
    return {
        int(found[1]): file
        for file in (path / "completions").glob("step-*.jsonl.gz")
        if (found := NAME.fullmatch(file.name))
    }


def _file(path: Path, wanted: int | None) -> tuple[int, Path]:
    """The completions of a step, or of the newest that has some. None: ConfigError that names the nearest."""
    steps = _steps(path)
    if not steps:
        fix = "wait for its first step, or train with log.completions_per_step above 0"
        raise ConfigError("the run kept no completions", where=str(path / "completions"), fix=fix)
    step = max(steps) if wanted is None else wanted
    if step not in steps:
        raise ConfigError(
            f"no completions of step {step}", where=str(path / "completions"), fix=_near(sorted(steps), step)
        )
    return step, steps[step]


def _near(steps: Sequence[int], step: int) -> str:
    """The steps next to one, before and after it."""
    around = [*[s for s in steps if s < step][-2:], *[s for s in steps if s > step][:2]]
    near = f"the nearest are {', '.join(map(str, around))}" if around else "there is no other"
    return f"{near} (all: {steps[0]} to {steps[-1]}, {len(steps)} of them)"


def _numbered(rows: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Rows with the number of their prompt in the step, from 1, in the order of the file."""
    number: dict[str, int] = {}
    return [(number.setdefault(_id(row), len(number) + 1), row) for row in rows]


def _of_prompt(
    rows: Sequence[tuple[int, dict[str, Any]]], asked: str, file: Path
) -> list[tuple[int, dict[str, Any]]]:
    """An id wins over a number."""
    found = [pair for pair in rows if _id(pair[1]) == asked]
    found = found or [pair for pair in rows if str(pair[0]) == asked]
    if not found:
        there = ", ".join(f"{number} ({_id(row)})" for number, row in dict(rows).items())
        raise ConfigError(f"no prompt {asked!r} in this step", where=str(file), fix=f"use one of: {there}")
    return found


def _id(row: dict[str, Any]) -> str:
    return str(row.get("prompt_id", row.get("prompt", "")))


def _step_line(path: Path, step: int) -> tuple[str, dict[str, Any] | None]:
    """The step's plain line and its record; of a long run's earlier step only a whole reading finds it."""
    from dataclasses import asdict

    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.text import step_line

    for whole in (False, True):
        view = Tail(path, whole=whole).refresh()
        record = next((r for r in [*reversed(view.records), *view.sparse] if r.step == step), None)
        if record is not None:
            return step_line(record, view.steps, None).rpartition(" | eta")[0], asdict(record)
    return f"step {step}: its line is not in metrics.jsonl", None


# ------------------------------------------------------------------------------------------- how it looks


def _show(line: str, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
    from rich.text import Text

    from lgrpo_lite.monitor.theme import BAD, GOOD, LABEL
    from lgrpo_lite.monitor.tokens import LOWERED, RAISED, scales_of

    screen = console(highlight=False, markup=False)
    tokens = [_tokens(row) for _, row in rows]
    screen.print(Text(line, LABEL), soft_wrap=True)
    screen.print(
        Text.assemble(
            ("credit = advantage × weight of a token: ", LABEL),
            (f"{RAISED} or green", GOOD),
            (" more likely  ", LABEL),
            (f"{LOWERED} or red", BAD),
            (" less likely; marks stand below their line", LABEL),
        )
    )
    for (number, row), own, scale in zip(rows, tokens, scales_of(tokens), strict=True):
        screen.print()
        for text in _completion(number, row, own, max(20, screen.width), scale):
            screen.print(text, no_wrap=True, overflow="ignore", crop=False)
    screen.print()
    screen.print(_table(rows))


def _completion(number: int, row: dict[str, Any], tokens, width: int, scale: float) -> Iterator[Any]:
    """A completion as lines: what was asked, what it came to, the answer."""
    from rich.text import Text

    from lgrpo_lite.monitor.panels.samples import KINDS, kind_of
    from lgrpo_lite.monitor.theme import CALM, LABEL, amount, clean
    from lgrpo_lite.monitor.theme import number as figure
    from lgrpo_lite.monitor.tokens import stamp

    sign, style = KINDS[kind_of(row)]
    words, colour = stamp(tokens)
    yield Text.assemble((f"prompt {number}  ", "bold"), (clean(_id(row), 200), LABEL))
    for line in _lines(str(row.get("prompt", "")), width - 2):
        yield Text.assemble("  ", (line, LABEL))
    facts = [
        f"reward {figure(row.get('reward'), '.3f')}",
        *_parts(row.get("parts")),
        f"{amount(row.get('tokens'))} tokens",
    ]
    facts += [
        {"stop": "ended by itself", "length": "cut at the limit"}.get(
            str(row.get("finish_reason")), "end unknown"
        )
    ]
    facts += [f"the first {row['given']} tokens were given"] if row.get("given") else []
    facts += ["sampled under another prompt"] if row.get("off") else []
    yield Text.assemble(
        (f"{sign}  ", style), (f"gold {clean(row.get('reference', '–'), 200)}  ", CALM), ", ".join(facts)
    )
    yield Text.assemble((f"credit {words}" if tokens.credit else words, colour))
    yield from _text(tokens, width, scale)


def _parts(parts: Any) -> list[str]:
    """The unweighted rewards, where there is more than one."""
    from lgrpo_lite.monitor.theme import clean, number

    if not isinstance(parts, dict) or len(parts) < 2:
        return []
    return [f"{clean(name, 40)} {number(value, '.2f')}" for name, value in list(parts.items())[:12]]


def _lines(text: str, width: int) -> Iterator[str]:
    """A text as a terminal may show it, its own line breaks kept; long lines are broken at the width."""
    from lgrpo_lite.monitor.theme import clean, place

    for line in text.split("\n"):
        rest = clean(line, len(line))
        while True:
            end = max(1, place(rest, width))
            yield rest[:end]
            rest = rest[end:]
            if not rest:
                break


def _text(tokens, width: int, scale: float) -> Iterator[Any]:
    """All of an answer, a line of its own as a line; below each the strip of marks, where credit differs."""
    from rich.text import Text

    from lgrpo_lite.monitor.tokens import Tokens, drawn

    for pieces, credit in _split(tokens):
        part = Tokens(pieces, credit, len(pieces))
        lines = drawn(part, width, 2 * sum(map(len, pieces)) + 2, scale, marked=not tokens.even)
        for at, line in enumerate(lines):
            line.rstrip()
            if at % 2 == 0 or line.plain or tokens.even:  # a strip without a mark is no line
                yield Text.assemble(line)


def _split(tokens) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Pieces and their credit, line by line; a piece that holds a line break is divided there."""
    pieces: list[str] = []
    credit: list[float] = []
    for i, piece in enumerate(tokens.pieces):
        own = tokens.credit[i] if i < len(tokens.credit) else 0.0
        for n, part in enumerate(piece.split("\n")):
            if n:
                yield tuple(pieces), tuple(credit)
                pieces, credit = [], []
            for begin in range(0, len(part), PART):
                pieces.append(part[begin : begin + PART])
                credit.append(own)
    yield tuple(pieces), tuple(credit)


def _tokens(row: dict[str, Any]):
    """All tokens of an answer; of an earlier version's, without pieces, the text."""
    from lgrpo_lite.monitor.theme import known
    from lgrpo_lite.monitor.tokens import Tokens

    pieces, credit = row.get("pieces"), row.get("credit")
    if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
        return Tokens((str(row.get("completion", "")),), (), None)
    found = [known(value) or 0.0 for value in credit[: len(pieces)]] if isinstance(credit, list) else []
    return Tokens(tuple(pieces), tuple(found), len(pieces))


def _thirds(row: dict[str, Any]) -> list[float] | None:
    """Shares of Σ|credit| that fall on the first, middle and last third of an
    answer's tokens; None without credit.
    """
    credit = [abs(value) for value in _tokens(row).credit]
    if not (whole := sum(credit)):
        return None
    shares = [0.0] * 3
    for i, value in enumerate(credit):
        shares[3 * i // len(credit)] += value / whole
    return shares


def _table(rows: Sequence[tuple[int, dict[str, Any]]]):
    from rich.table import Table

    from lgrpo_lite.monitor.panels.samples import kind_of
    from lgrpo_lite.monitor.theme import amount

    table = Table(
        title="share of |credit| by thirds of an answer", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("prompt", "answer", "tokens", "first", "middle", "last"):
        table.add_column(column, justify="left" if column in ("prompt", "answer") else "right")
    for number, row in rows:
        shares = _thirds(row)
        cells = ["–"] * 3 if shares is None else [f"{share:.0%}" for share in shares]
        table.add_row(str(number), kind_of(row), amount(row.get("tokens")), *cells)
    return table
