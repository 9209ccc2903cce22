"""What may import what, and what may not import torch. The import-linter contract
in pyproject.toml says the rest.
"""

import os
import subprocess
import sys

import pytest

LIGHT = [
    "lgrpo_lite.types",
    "lgrpo_lite.recipe.schema",
    "lgrpo_lite.monitor.tail",
    "lgrpo_lite.monitor.view",
    "lgrpo_lite.cli.main",
    "lgrpo_lite.cli.train",
    "lgrpo_lite.train.session",
    "lgrpo_lite.objective.named",
    "lgrpo_lite.checks.check",
    "lgrpo_lite.checks.tried",
    "lgrpo_lite.rewards.total",
    "lgrpo_lite.data.prompts",
]


@pytest.mark.parametrize("module", LIGHT)
def test_imports_without_torch(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_imports_neither_torch_nor_pydantic():
    code = (
        "import sys\nfrom lgrpo_lite.cli.main import main\n"
        "try: main(['recipe', '-h'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_the_library_in_six_names():
    code = (
        "import sys, lgrpo_lite\nassert 'torch' not in sys.modules\n"
        "from lgrpo_lite import NAMED, Objective, build, check, load_recipe, train_step\n"
        "run = build(check(load_recipe('tiny-math', ['algorithm.use=trace', 'data.eval=[]', 'rollout.group_size=2'])))\n"
        "record, groups = train_step(1, run)\nassert record.step == 1 and len(groups) == 16 and 'trace' in NAMED"
    )
    no_bars = os.environ | {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1"
    }  # those of transformers are the caller's choice
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=no_bars)
    assert (done.returncode, done.stderr) == (0, "")  # nor does a library say what nobody here can act upon


def test_layers():
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    # a process of its own: it silences every logger that is there
    assert subprocess.run([sys.executable, "-c", lint]).returncode == 0
