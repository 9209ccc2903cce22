"""Where the weights are, and what every test here trains: `smollm-sums`, made small. Without LGRPO_REAL_MODELS,
the folder that install.sh filled, nothing here runs.
"""

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = os.environ.get("LGRPO_REAL_MODELS")
SMOLLM, GEMMA = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"
SMALL = [
    "train.steps=3", "train.save_every=3", "rollout.prompts_per_step=2", "rollout.group_size=6", "data.train.limit=64",
    "data.eval.limit=4", "eval.k=1", "safety.baseline_check=false", "memory.micro_tokens=1024",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    if FOLDER is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs real weights: make test-real"))


@pytest.fixture(scope="session", autouse=True)
def cache():
    """What is made of a GGUF stays beside it, for the tests on vLLM too."""
    if FOLDER is not None:
        os.environ["XDG_CACHE_HOME"] = str(Path(FOLDER).resolve() / "cache")


@pytest.fixture(scope="session")
def smollm() -> str:
    return str(Path(FOLDER or "").resolve() / SMOLLM)


@pytest.fixture(scope="session")
def gemma() -> str:
    return str(Path(FOLDER or "").resolve() / GEMMA)


@pytest.fixture(scope="session")
def tokenizers() -> Path:
    """A folder of each real tokenizer with its chat template, as tokenizers.sh has them."""
    folder = Path(FOLDER or "").resolve() / "tokenizers"
    subprocess.run([Path(__file__).parent / "tokenizers.sh", folder], check=True)
    return folder


def sums(model: str, *more: str) -> list[str]:
    """The packaged recipe on that model, small."""
    return ["smollm-sums", f"model.id={model}", "model.revision=null", *SMALL, *more]
