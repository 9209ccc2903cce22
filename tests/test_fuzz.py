"""The attack tool in short: some cases of every class, and what it says of a fault, a hang and a death."""

import json
import os
import time

import pytest
from attack import fuzz, runner
from attack.case import LONGEST, Said, Told, faults_of_text

SHORT = {"recipes": 60, "data": 40, "folders": 3, "answers": 300, "programs": 6, "replies": 8, "terminal": 60}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_hostile_input_of_every_class_comes_to_a_good_end(name, tmp_path, capfd):
    found = tmp_path / "fuzz.json"
    code = fuzz.main(["--classes", name, f"{name}={SHORT[name]}", "--seed", "1", "--json", str(found)])
    said = capfd.readouterr()
    assert code == 0, said.err
    row = json.loads(found.read_text())["classes"][name]
    assert row["cases"] == SHORT[name] and row["faults"] == [] and len(row["outcomes"]) > 1
    assert said.out.startswith(name)


# ------------------------------------------------------------------------------------------- the tool itself

COUNT, SECONDS, MEMORY = 6, 2.0, 64


def prepare(folder):
    return folder


def attack(draw, folder, prepared):
    """What a class is to the tool; this one does wrong by the number of the case."""
    kind = int(folder.name.partition("-")[0])
    if kind == 1:
        raise KeyError("x")
    if kind == 2:
        time.sleep(60)
    if kind == 3:
        os._exit(9)
    if kind == 4:
        bytearray(200 << 20)
    (folder / "x").write_text("x")
    return Told("good", (), f"{draw.random()}")


@pytest.mark.slow
def test_a_fault_a_hang_a_death_and_much_memory_are_faults_with_their_case(tmp_path, capfd):
    report = runner.run_class("wrong", __name__, range(COUNT), 0)
    faults = {fault["case"]: fault["fault"] for fault in report.faults}
    assert sorted(faults) == [1, 2, 3, 4]
    assert "KeyError" in faults[1] and "no end after 2 s" in faults[2] and "ended with 9" in faults[3]
    assert "MiB, more than 64" in faults[4]
    assert report.outcomes["good"] == 3 and "wrong --case 2: no end" in capfd.readouterr().err
    assert runner.case_random(0, "wrong", 5).random() == runner.case_random(0, "wrong", 5).random()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said(0, "fine\n", ""), []),
        (Said(2, "", "error: no\n  at  here\n  fix it\n"), []),
        (Said(1, "", "error: unexpected KeyError: 'x'\n"), ["exit code 1"]),
        (Said(5, "", "x" * (LONGEST + 1)), ["a line of", "messages, the longest of"]),
        (Said(2, "", "a\x1b[2J"), ["control characters on stderr"]),
        (Said(0, "\u202e", ""), ["control characters on stdout"]),
        (Said(0, "Traceback (most recent call last):\n", ""), ["a traceback"]),
        (Said(0, '{"a": "' + "x" * LONGEST + '"}\n', ""), []),
        (Said(0, '{"a": NaN, "b": "' + "x" * LONGEST + '"}\n', ""), ["a line of"]),
    ],
)
def test_what_is_a_fault_of_a_command(said, words):
    assert len(said.faults) == len(words)
    assert all(word in fault for word, fault in zip(words, said.faults, strict=True))
    assert list(faults_of_text("x", "plain\ttext\n")) == []


def test_the_classes_and_their_counts_are_chosen_by_words(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        runner,
        "run_class",
        lambda name, module, cases, seed: asked.append((name, len(cases))) or runner.Report(name),
    )
    assert fuzz.main(["data=7", "--classes", "data,recipes", "--json", str(tmp_path / "x.json")]) == 0
    assert asked == [("data", 7), ("recipes", 5000)]
    with pytest.raises(SystemExit):
        fuzz.main(["nothing=7"])
