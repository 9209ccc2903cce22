"""What is written down is executed: generated pages are current, commands in the README exist, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lgrpo_lite.cli.main import VERBS
from lgrpo_lite.recipe import recipe_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_pages_are_current():
    assert subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"]).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    for verb, word in re.findall(r"^\s*(?:\$ )?lgrpo-lite (\w+)(?: ([a-z][\w.-]*))?", page.read_text("utf-8"), re.MULTILINE):
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
    files = {p.name for p in (ROOT / "lgrpo_lite").rglob("*.py") if p.name not in ("__init__.py", "__main__.py")}
    assert listed == files


def test_files_stay_readable():
    long = {p.name: n for p in (ROOT / "lgrpo_lite").rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 300}
    assert not long
