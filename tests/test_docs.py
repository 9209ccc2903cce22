"""What is written down is executed: generated pages are current, commands in the
README exist, links lead somewhere.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import lgrpo

from lgrpo_lite.cli.main import VERBS
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.read import recipe_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_pages_are_current():
    assert subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"]).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    for verb, word in re.findall(
        r"^\s*(?:\$ )?lgrpo-lite (\w+)(?: ([a-z][\w.-]*))?", page.read_text("utf-8"), re.MULTILINE
    ):
        assert verb in VERBS, verb
        if verb == "recipe" and word and word not in ("ls", "show", "cp", "run", "NAME"):
            assert word in recipe_names(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if not target.startswith(("http", "arxiv")):
            assert (page.parent / target).exists(), target


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text("utf-8")
    listed = set(re.findall(r"^ +([\w]+\.py) ", text, re.MULTILINE))
    files = {
        p.name for p in (ROOT / "lgrpo_lite").rglob("*.py") if p.name not in ("__init__.py", "__main__.py")
    }
    assert listed == files


def test_files_stay_readable():
    long = {
        p.name: n
        for p in (ROOT / "lgrpo_lite").rglob("*.py")
        if (n := len(p.read_text("utf-8").splitlines())) > 400
    }
    assert not long


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
    assert lgrpo("recipe") == 0
    listed, page = capsys.readouterr().out, (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    for name, row in NAMED.items():
        assert f" {name} " in listed and f"## {name}\n" in page and f"| `{name}` |" in page
        doc = row.__doc__ or ""
        assert "Limit:" in doc and ("arXiv:" in doc or name == "bnpo_trl" or "TRL" in doc)
