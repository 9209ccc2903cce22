"""No control sequence of what others wrote reaches a terminal: whatever a command shows, only this program
moves the cursor and sets colours. And no module but one prints.
"""

import ast
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from attack.screens import controls
from attack.terminal import SEQUENCES, commands, hostile, run_folder
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text
from support import lgrpo
from test_screen import Terminal

import lgrpo_lite
from lgrpo_lite.cli.terminal.output import console, overwrite, say
from lgrpo_lite.folder.report import write_report
from lgrpo_lite.monitor.text import visible
from lgrpo_lite.recipe.read import load_recipe

HARMLESS = "a text without harm"
EVERYTHING = "".join(SEQUENCES.values())
TEXTS = hostile(len(SEQUENCES) + 6, seed=17)


def shown(capsys, command: list[str]) -> str:
    """What a command prints, on either stream; how it ends is no matter."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):  # argparse
        lgrpo(*command)
    seen = capsys.readouterr()
    return seen.out + seen.err


def showing(name: str, text: str, folder: Path, capsys) -> str:
    folder.mkdir()
    return shown(capsys, commands()[name](folder, text))


@pytest.fixture
def coloured(monkeypatch, tmp_path):
    """Everything is written as to a terminal, though it is captured."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(tmp_path)


FEW = 5  # texts a command, others for the next one; `slow` has all


@pytest.mark.parametrize(("number", "name"), list(enumerate(commands())))
def test_a_command_writes_the_control_sequences_that_it_writes_of_harmless_text(
    number, name, tmp_path, capsys, coloured
):
    texts = (TEXTS * 9)[FEW * number : FEW * (number + 1)]
    check(name, texts, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_a_command_writes_no_control_sequence_of_any_text(name, tmp_path, capsys, coloured):
    check(name, [*TEXTS, *hostile(60, seed=5)], tmp_path, capsys)


def check(name: str, texts: list[str], folder: Path, capsys) -> None:
    harmless = controls(showing(name, HARMLESS, folder / "harmless", capsys))
    for i, text in enumerate(texts):
        told = showing(name, text, folder / str(i), capsys)
        assert controls(told) <= harmless, (text, controls(told) - harmless)
        assert "Traceback" not in told and "fault of lgrpo-lite" not in told, (text, told)


# ------------------------------------------------------------------------------------------- the writers


@given(text=st.text() | st.sampled_from(TEXTS))
def test_the_writers_write_text(text):
    out = io.StringIO()
    screen = console(out)
    table = Table(text, title=text)
    table.add_row(text, style=None)
    say(text, file=out)
    screen.print(text)
    screen.print(Text(text), Text.assemble(("a", "bold"), text))
    screen.print(table)
    overwrite(out, text)
    written = out.getvalue()
    assert controls(written) <= {"\r", "\x1b[K"}
    written.encode()


@given(text=st.text() | st.sampled_from(TEXTS))
def test_a_line_that_is_said_is_one_line(text):
    out = io.StringIO()
    say(text, text, file=out)
    assert out.getvalue().count("\n") == 2 and len(out.getvalue().splitlines()) == 2


def test_ordinary_text_is_shown_as_it_is():
    text = "λ-GRPO: 中文、кириллица, العربية, naïve 🎉 ❤️ [red] :skull: 100 % \\frac{1}{2} {x}"
    out = io.StringIO()
    say(text, file=out)
    console(out, width=200).print(text)
    assert out.getvalue() == f"{text}\n{text}\n" and visible(text) == text


def test_a_live_view_filters_what_is_drawn_on_it():
    out = io.StringIO()
    screen = console(out, force_terminal=True, color_system=None, width=100, height=30)
    own = set()
    for text in ("harmless", *TEXTS):
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            live.update(Text(text), refresh=True)
        found = controls(out.getvalue())
        own = own or found
        assert found <= own, text


# ------------------------------------------------------------------------------------------- who writes

OWN = {  # what prints without the one writer, and why it may
    "cli/terminal/output.py": "the writer",
    "cli/terminal/plain.py": "its console",
    "models/pretrain.py": "makes the model that is shipped; prints its own figures",
    "train/stop.py": "inside a signal handler, a sentence of its own",
    "rewards/inside.py": "inside a sandbox, to a pipe",
}
NAMES = {"print", "Console", "ArgumentParser", "StreamHandler", "print_exc", "print_exception", "get_console"}


def writes(tree: ast.AST) -> list[str]:
    """What in a module writes to a terminal by itself."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in NAMES:
            found.append(f"{node.lineno}: {node.id}")
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute):
            whole = ast.unparse(called)
            to_stream = re.search(r"\b(stdout|stderr|__stdout__|__stderr__)\.(buffer\.)?write", whole)
            if to_stream or called.attr in NAMES - {"print"} or whole in ("rich.print", "builtins.print"):
                found.append(f"{node.lineno}: {whole}")
            numbers = [argument for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            if whole == "os.write" and numbers and numbers[0].value in (1, 2):
                found.append(f"{node.lineno}: os.write")
    return found


def test_no_module_but_one_prints():
    root = Path(lgrpo_lite.__file__).parent
    printing = {}
    for file in root.rglob("*.py"):
        found = writes(ast.parse(file.read_text("utf-8")))
        if found and file.relative_to(root).as_posix() not in OWN:
            printing[file.name] = found
    assert printing == {}


@pytest.mark.parametrize(
    "line",
    [
        "print(1)",
        "f = partial(print, file=sys.stderr)",
        "rich.console.Console()",
        "sys.stdout.write('')",
        "sys.stderr.buffer.write(b'')",
        "os.write(2, text)",
        "traceback.print_exc()",
        "argparse.ArgumentParser()",
    ],
)
def test_a_module_that_prints_is_found(line):
    assert writes(ast.parse(line))


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_recipe_is_shown_as_yaml_that_says_the_same(text, tmp_path, capsys):
    title = text.encode("utf-8", "ignore").decode()
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"schema": 1, "recipe": {"name": "a", "title": title}}))
    told = shown(capsys, ["recipe", "show", "tiny-math", f"recipe.title={yaml.safe_dump(title)}"])
    assert not controls(told)
    if not told.startswith("error"):
        file.write_text(told)
        assert load_recipe(str(file)).recipe.title == title


@pytest.mark.parametrize("name", ["a table's cell", "a line that looks like ours", "everything"])
def test_a_report_of_any_text_is_text_and_its_tables_have_their_columns(name, tmp_path):
    text = SEQUENCES.get(name, EVERYTHING)
    path = Path(run_folder(tmp_path, text))
    write_report(path)
    report = (path / "report.md").read_text("utf-8")
    assert not controls(report) and "<img" not in report and "](http" not in report
    width = 0
    for line in report.splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if line.startswith("|"):
            width = width or len(cells)
            assert len(cells) == width, line
        else:
            width = 0
    assert report.count("\n```") == 2


# ------------------------------------------------------------------------------------------- a terminal


def test_the_live_view_of_a_run_on_a_terminal_writes_its_own_sequences_only(tmp_path):
    found = []
    for name, text in (("harmless", HARMLESS), ("hostile", EVERYTHING)):
        (tmp_path / name).mkdir()
        path = run_folder(tmp_path / name, text, state="failed", exit_code=1)
        terminal = Terminal([sys.executable, "-m", "lgrpo_lite", "watch", path, "--ui", "live"])
        terminal.read()
        assert terminal.process.wait() == 0
        found.append(controls(terminal.seen.decode()))
    assert found[1] <= found[0]


HOOKS = [
    "threading.Thread(target=lambda: exec('raise ValueError(text)', globals())).start()",
    "warnings.warn(text)",
    "logging.getLogger('a').warning(text)",
    "raise ValueError(text)",
]


@pytest.mark.parametrize("line", HOOKS)
def test_what_python_prints_by_itself_is_text_too(line):
    program = f"""
import logging, threading, warnings
from lgrpo_lite.cli.terminal.guard import guard
guard()
text = {EVERYTHING!r}
{line}
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).stderr.decode()
    assert "owned" in told and not controls(told)
