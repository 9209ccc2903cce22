"""What is written down is executed: generated pages are current, commands in the
README exist, links lead somewhere.
"""

import ast
import json
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import yaml
from support import lgrpo

from lgrpo_lite.cli.main import VERBS
from lgrpo_lite.objective.named import NAMED, when
from lgrpo_lite.recipe.read import recipe_names

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import generate  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
def test_generated_pages_are_current():
    assert subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"]).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    for verb, word in re.findall(
        r"^\s*(?:\$ )?lgrpo-lite ([\w-]+)(?: ([a-z][\w.-]*))?", page.read_text("utf-8"), re.MULTILINE
    ):
        assert verb in VERBS, verb
        if verb == "recipe" and word and word not in ("ls", "show", "cp", "run", "NAME"):
            assert word in recipe_names(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if not target.startswith(("http", "arxiv")):
            assert (page.parent / target).exists(), target


def test_the_tree_in_the_readme_is_the_packages():
    text = (ROOT / "README.md").read_text("utf-8")
    tree = text[text.index("lgrpo_lite/\n") :].split("```")[0]
    assert len(tree.splitlines()) <= 25
    listed = set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))
    assert listed == {p.parent.name for p in (ROOT / "lgrpo_lite").glob("*/__init__.py")}
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/ ", tree, re.MULTILINE))


def test_every_file_stands_by_its_path_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    listed = re.findall(r"^\| `([\w/]+\.py)` \| \S", text, re.MULTILINE)
    package = ROOT / "lgrpo_lite"
    files = [str(p.relative_to(package)) for p in package.rglob("*.py") if not p.name.startswith("__")]
    assert sorted(listed) == sorted(files)


def test_the_glossary_has_each_word_once_and_its_places_exist():
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)[1:]
    words = [word for word, _ in rows]
    assert len(set(words)) == len(words) > 30
    for _, places in rows:
        for place in re.findall(r"`([\w/.]+)`", places):
            root = ROOT if place.startswith("docs/") else ROOT / "lgrpo_lite"
            module, _, name = place.partition(".")
            code = root / f"{module}.py"
            assert (root / place).exists() or (
                code.exists() and f"class {name}" in code.read_text("utf-8")
            ), place


def test_every_promise_stands_once_with_tests_that_exist():
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| R-(\d+) (\|.*\|)$", text, re.MULTILINE))
    assert re.findall(r"^\| R-(\d+)", text, re.MULTILINE) == [str(n) for n in range(1, 31)] == list(rows)
    for number, row in rows.items():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "**Not yet:**" in row, number
        assert len(named) == row.count("tests/"), number
        for file, name in named:
            assert name in functions_of(ROOT / file), f"R-{number}: {file}::{name}"
        for place in re.findall(r"`([a-z_]+/[\w/.]*|[a-z_]+\.py)`", row.partition("`tests/")[0]):
            assert (ROOT / "lgrpo_lite" / place).exists(), f"R-{number}: {place}"


def functions_of(file: Path) -> set[str]:
    """Names of all functions of a file, which is not imported."""
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


ATTACKED = {
    "date": "2026-12-01",
    "machine": "x86_64, 2 cores",
    "commit": "abc1234",
    "versions": {"torch": "2.13.0"},
}
CHAOS = ATTACKED | {
    "seed": 3, "minutes": 61.2, "kills": 302, "by_phase": {"rollout": 300, "saving": 2}, "faults": [{"fault": "wrong"}],
    "by_algorithm": {"grpo": {"cases": 100, "kills": 202, "faults": 1}, "dapo": {"cases": 50, "kills": 100, "faults": 0}},
}  # fmt: skip
FUZZ = ATTACKED | {
    "seed": 0, "classes": {"recipes": {
        "cases": 5000, "outcomes": {"exit 0": 4000, "exit 2: …": 1000}, "worst_seconds": 1.234, "most_mib": 40,
        "faults": [{"case": 7, "fault": "a"}, {"case": 7, "fault": "b"}],
    }},
}  # fmt: skip
HELD = {
    "unit": "step", "done": 4321, "kb_per_unit": [-1.0, 0.5, 2.0], "kb_per_unit_second_half": [-2.0, 0.0, 2.0],
    "memory_is_flat": True, "first_most_last": {"descriptors": [30, 33, 30.0]}, "rest_is_flat": True,
}  # fmt: skip
SOAK = ATTACKED | {
    "hours": 2.0, "exit_code": 130, "folder_bytes_per_step": 1234.5, "run": HELD,
    "workers": HELD | {"unit": "call", "memory_is_flat": False, "rest_is_flat": False},
}  # fmt: skip


def test_the_figures_of_long_runs_are_those_that_were_stored():
    made = generate.long_runs({"chaos-cpu": CHAOS, "chaos-vllm": None, "fuzz": FUZZ, "soak": SOAK})
    assert (
        made.count("2026-12-01, x86_64, 2 cores, commit abc1234") == 3 and made.count("**Not run yet.**") == 1
    )
    for line in (
        "| `grpo` | 100 | 202 | 1 |",
        "| all, 61 min | 150 | 302 | 1 |",
        "Kills by phase: rollout 300, saving 2.",
        "| recipes | 5,000 | 2 | 1.23 | 40 | 1 |",
        "| run | 4,321 steps | +0.50 (-1.00 to +2.00) | +0.00 (-2.00 to +2.00) | flat | 30 → 30 |",
        "| workers | 4,321 calls | +0.50 (-1.00 to +2.00) | +0.00 (-2.00 to +2.00) | **grows** | **grows**: 30 → 30 |",
    ):
        assert line in made.splitlines(), line


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for place in re.findall(r"`([a-z_]+/[\w./]+)`", text):
        assert (ROOT / place).exists() or (ROOT / "lgrpo_lite" / place).exists() or "NAME" in place, place


def test_a_commit_is_checked_as_make_check_checks_it():
    make = (ROOT / "Makefile").read_text("utf-8")
    target = make[make.index("\ncheck:") :].split("\n\n")[0]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in target.splitlines()[2:]]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == commands


def test_six_frames_from_the_prompt_to_the_step(tmp_path, monkeypatch):
    """docs/architecture.md draws the way; here it is walked."""
    frames = []

    def walked(*_):
        frames.extend(traceback.extract_stack())
        raise KeyboardInterrupt

    monkeypatch.setattr("lgrpo_lite.train.loop.train_step", walked)
    small = [
        "rollout.prompts_per_step=2",
        "data.eval=[]",
        "safety.baseline_check=false",
        "safety.sync_proof_every=0",
    ]
    lgrpo("recipe", "tiny-math", *small, "--ui", "none", "--runs", tmp_path)
    ours = [frame.name for frame in frames if "/lgrpo_lite/" in frame.filename]
    way = ["main", "run", "start", "train", "steps"]
    assert ours == way and len({*way, "train_step"}) == 6


def test_files_stay_readable():
    long = {
        p.name: n
        for p in (ROOT / "lgrpo_lite").rglob("*.py")
        if (n := len(p.read_text("utf-8").splitlines())) > 375
    }
    assert not long


@pytest.mark.slow
def test_the_worked_example_is_short_and_runs(tmp_path, monkeypatch):
    """The command of docs/algorithms.md, with fewer steps."""
    text = (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    example = (ROOT / "docs" / "max_rl.py").read_text("utf-8").strip()
    assert example in text and len(example.splitlines()) < 20
    command = (
        re.search(r"^lgrpo-lite (recipe tiny-math algorithm.use=\S+max_rl)$", text, re.MULTILINE)
        .group(1)
        .split()
    )
    monkeypatch.chdir(ROOT)
    small = [
        "train.steps=1",
        "rollout.prompts_per_step=8",
        "data.eval.limit=4",
        "eval.k=1",
        "--ui",
        "none",
        "--runs",
        tmp_path,
    ]
    assert lgrpo(*command, *small, "--name", "mine") == 0
    record = json.loads((tmp_path / "mine" / "metrics.jsonl").read_text())
    assert record["skipped"] is None and record["loss"] is not None


def test_every_algorithm_is_listed_and_documented(capsys):
    assert lgrpo("algorithms") == 0
    listed, page = capsys.readouterr().out, (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    for name, row in NAMED.items():
        assert (
            f"\n{name} " in listed
            and when(name).removeprefix("Use this when ") in listed
            and f"## {name}\n" in page
            and f"| `{name}` |" in page
        )
        doc = row.__doc__ or ""
        assert "Limit:" in doc and ("arXiv:" in doc or name == "bnpo_trl" or "TRL" in doc)
