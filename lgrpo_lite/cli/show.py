"""`lgrpo-lite show RUN`: the answers that a step kept, token by token with their credit. Reads only, needs no
model.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json
from lgrpo_lite.cli.watch import add_run, run_named
from lgrpo_lite.errors import ConfigError, DataError

NAME = re.compile(r"step-(\d+)\.jsonl\.gz")
Row = dict[str, Any]  # a completion, as its file has it
Numbered = tuple[int, Row]  # with the number of its prompt in the step, from 1
ENDS = {"stop": "ended by itself", "length": "cut at the limit"}  # by finish_reason


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite show [RUN] [--step N] [--prompt K] [options]"
    add_run(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="whose answers (default: the newest step that kept some)"
    )
    parser.add_argument(
        "--prompt", metavar="K", help="only the K-th prompt of that step, or the prompt of that id"
    )
    parser.add_argument(
        "--prompt-text",
        action="store_true",
        help="show each prompt as the model read it, with its template and special tokens",
    )
    add_runs(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.monitor.tail import completions

    path = run_named(args)
    step, file = _file(path, args.step)
    rows = completions(file)
    if not rows:
        fix = f"lgrpo-lite show {path} --step N; {_near(sorted(_steps(path)), step)}"
        raise DataError("no completion can be read in that file", where=str(file), fix=fix)
    numbered = _numbered(rows)
    if args.prompt is not None:
        numbered = _of_prompt(numbered, args.prompt, file)
    if args.prompt_text:
        numbered = [(number, _as_read(row, file)) for number, row in numbered]
    line, record = _step_line(path, step)
    if args.json:
        shown = [row | {"number": number, "credit_thirds": _thirds(row)} for number, row in numbered]
        result = {"run": str(path), "step": step, "record": record, "completions": shown}
        print_json("show", result)
        return 0
    _show(line, numbered)
    return 0


def _as_read(row: Row, file: Path) -> Row:
    """The row with what the model read in place of the question. Of an earlier version's run: ConfigError."""
    if not isinstance(row.get("read"), str):
        what = "what the model read is not in this run: a version before this one made it"
        raise ConfigError(what, where=str(file), fix="lgrpo-lite validate RECIPE --show 2 shows it as of now")
    return row | {"prompt": f"{row['read']}\n[{row.get('read_tokens')} tokens; the answer begins here]"}


# ------------------------------------------------------------------------------------------- what there is


def _steps(path: Path) -> dict[int, Path]:
    """Steps that kept completions."""
    steps = {}
    for file in (path / "completions").glob("step-*.jsonl.gz"):
        if match := NAME.fullmatch(file.name):
            steps[int(match[1])] = file
    return steps


def _file(path: Path, asked: int | None) -> tuple[int, Path]:
    """The completions of a step, or of the newest that has some. None: ConfigError that names the nearest."""
    steps, where = _steps(path), str(path / "completions")
    if not steps:
        fix = "wait for its first step, or train with log.completions_per_step above 0"
        raise ConfigError("the run kept no completions", where=where, fix=fix)
    step = max(steps) if asked is None else asked
    if step not in steps:
        raise ConfigError(f"no completions of step {step}", where=where, fix=_near(sorted(steps), step))
    return step, steps[step]


def _near(steps: Sequence[int], step: int) -> str:
    """The steps next to one, before and after it."""
    before = [s for s in steps if s < step]
    after = [s for s in steps if s > step]
    around = [*before[-2:], *after[:2]]
    near = f"the nearest are {', '.join(map(str, around))}" if around else "there is no other"
    return f"{near} (all: {steps[0]} to {steps[-1]}, {len(steps)} of them)"


def _numbered(rows: Sequence[Row]) -> list[Numbered]:
    """In the order of the file."""
    numbers: dict[str, int] = {}
    numbered = []
    for row in rows:
        number = numbers.setdefault(_id(row), len(numbers) + 1)
        numbered.append((number, row))
    return numbered


def _of_prompt(rows: Sequence[Numbered], asked: str, file: Path) -> list[Numbered]:
    """An id wins over a number."""
    by_id = [(number, row) for number, row in rows if _id(row) == asked]
    by_number = [(number, row) for number, row in rows if str(number) == asked]
    if not by_id and not by_number:
        prompts = ", ".join(f"{number} ({_id(row)})" for number, row in dict(rows).items())
        raise ConfigError(f"no prompt {asked!r} in this step", where=str(file), fix=f"use one of: {prompts}")
    return by_id or by_number


def _id(row: Row) -> str:
    return str(row.get("prompt_id", row.get("prompt", "")))


def _step_line(path: Path, step: int) -> tuple[str, dict[str, Any] | None]:
    """The step's plain line and its record; of a long run's earlier step only a whole reading finds it."""
    from dataclasses import asdict

    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.text import step_line

    for whole in (False, True):
        view = Tail(path, whole=whole).refresh()
        for record in (*reversed(view.records), *view.sparse):
            if record.step == step:
                line = step_line(record, view.steps, None).rpartition(" | eta")[0]
                return line, asdict(record)
    return f"step {step}: its line is not in metrics.jsonl", None


# ------------------------------------------------------------------------------------------- how it looks


def _show(line: str, rows: Sequence[Numbered]) -> None:
    from rich.text import Text

    from lgrpo_lite.monitor.theme import BAD, GOOD, LABEL, clean
    from lgrpo_lite.monitor.tokens import LOWERED, RAISED, scales_of

    screen = console(highlight=False)
    tokens = [_tokens(row) for _, row in rows]
    screen.print(Text(clean(line, len(line)), LABEL), soft_wrap=True)
    legend = Text.assemble(
        ("credit = advantage × weight of a token: ", LABEL),
        (f"{RAISED} or green", GOOD),
        (" more likely  ", LABEL),
        (f"{LOWERED} or red", BAD),
        (" less likely; marks stand below their line", LABEL),
    )
    screen.print(legend)
    for (number, row), own, scale in zip(rows, tokens, scales_of(tokens), strict=True):
        screen.print()
        for text in _completion(number, row, own, max(20, screen.width), scale):
            screen.print(text, no_wrap=True, overflow="ignore", crop=False)
    screen.print()
    screen.print(_table(rows))


def _completion(number: int, row: Row, tokens, width: int, scale: float) -> Iterator[Any]:
    """A completion as lines: what was asked, what it came to, the answer."""
    from rich.text import Text

    from lgrpo_lite.monitor.panels.samples import KINDS, kind_of
    from lgrpo_lite.monitor.theme import CALM, LABEL, clean
    from lgrpo_lite.monitor.tokens import stamp, whole

    sign, style = KINDS[kind_of(row)]
    words, colour = stamp(tokens)
    yield Text.assemble((f"prompt {number}  ", "bold"), (clean(_id(row), 200), LABEL))
    for line in _lines(str(row.get("prompt", "")), width - 2):
        yield Text.assemble("  ", (line, LABEL))
    gold = f"gold {clean(row.get('reference', '–'), 200)}  "
    yield Text.assemble((f"{sign}  ", style), (gold, CALM), ", ".join(_facts(row)))
    yield Text.assemble((f"credit {words}" if tokens.credit else words, colour))
    yield from whole(tokens, width, scale)


def _facts(row: Row) -> list[str]:
    """What a completion came to, in words."""
    from lgrpo_lite.monitor.numbers import figure
    from lgrpo_lite.monitor.theme import amount

    facts = [f"reward {figure(row.get('reward'), '.3f')}", *_parts(row.get("parts"))]
    facts.append(f"{amount(row.get('tokens'))} tokens")
    facts.append(ENDS.get(str(row.get("finish_reason")), "end unknown"))
    if row.get("given"):
        facts.append(f"the first {row['given']} tokens were given")
    if row.get("off"):
        facts.append("sampled under another prompt")
    return facts


def _parts(parts: Any) -> list[str]:
    """The unweighted rewards, where there is more than one."""
    from lgrpo_lite.monitor.numbers import figure
    from lgrpo_lite.monitor.theme import clean

    if not isinstance(parts, dict) or len(parts) < 2:
        return []
    shown = list(parts.items())[:12]
    return [f"{clean(name, 40)} {figure(value, '.2f')}" for name, value in shown]


def _lines(text: str, width: int) -> Iterator[str]:
    """A text as a terminal may show it, its own line breaks kept; long lines are broken at the width."""
    from lgrpo_lite.monitor.theme import clean, place

    for line in text.split("\n"):
        rest = clean(line, len(line))
        end = max(1, place(rest, width))
        yield rest[:end]
        while rest := rest[end:]:
            end = max(1, place(rest, width))
            yield rest[:end]


def _tokens(row: Row):
    """All tokens of an answer; of an earlier version's, without pieces, the text."""
    from lgrpo_lite.monitor.numbers import finite
    from lgrpo_lite.monitor.tokens import Tokens

    pieces, credit = row.get("pieces"), row.get("credit")
    if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
        return Tokens((str(row.get("completion", "")),), (), None)
    if not isinstance(credit, list):
        credit = []
    values = tuple(finite(value) or 0.0 for value in credit[: len(pieces)])
    return Tokens(tuple(pieces), values, len(pieces))


def _thirds(row: Row) -> list[float] | None:
    """Shares of Σ|credit| that fall on the first, middle and last third of an answer's tokens; None without
    credit.
    """
    credit = [abs(value) for value in _tokens(row).credit]
    whole = sum(credit)
    if not whole:
        return None
    shares = [0.0] * 3
    for i, value in enumerate(credit):
        shares[3 * i // len(credit)] += value / whole
    return shares


def _table(rows: Sequence[Numbered]):
    from rich.table import Table

    from lgrpo_lite.monitor.panels.samples import kind_of
    from lgrpo_lite.monitor.theme import amount

    title = "share of |credit| by thirds of an answer"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("prompt", "answer"):
        table.add_column(column, justify="left")
    for column in ("tokens", "first", "middle", "last"):
        table.add_column(column, justify="right")
    for number, row in rows:
        shares = _thirds(row)
        cells = ["–", "–", "–"]
        if shares is not None:
            cells = [f"{share:.0%}" for share in shares]
        table.add_row(str(number), kind_of(row), amount(row.get("tokens")), *cells)
    return table
