"""The exports that a recipe asks for, looked at before hours of training."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

from lgrpo_lite.checks.fault import Fault, that_hold
from lgrpo_lite.machine.account import demand_account, malformed
from lgrpo_lite.machine.stacks import GGUF
from lgrpo_lite.recipe.schema import Recipe

OF_ADAPTERS = {"adapter", "lora-gguf"}
THROUGH_LLAMA_CPP = {"gguf", "lora-gguf", "ollama"}


def export_faults(recipe: Recipe) -> Iterator[Fault]:
    """Formats that this policy cannot have, and what is wrong with an upload."""
    if "lora-gguf" in recipe.export.formats and recipe.model.lora is None:
        what = "all parameters are trained, so there is no adapter to export"
        yield what, "export.formats", "take lora-gguf out of export.formats"
    yield from hub_faults(recipe)


def missing_for_exports(recipe: Recipe) -> list[str]:
    """Packages that the formats need and that are not here."""
    asked = set(recipe.export.formats)
    if "hub" in asked:
        asked |= set(recipe.export.hub.holds)
    if not asked & THROUGH_LLAMA_CPP:
        return []
    return [name for name in GGUF if find_spec(name) is None]


def hub_faults(recipe: Recipe) -> Iterator[Fault]:
    """Of `export.hub`: no repository, no name of one, or nothing to upload."""
    hub = recipe.export.hub
    wanted = "hub" in recipe.export.formats
    repo, holds = hub.repo, hub.holds
    why = malformed(repo) if repo is not None else None
    adapters = OF_ADAPTERS.intersection(holds)
    no_adapter = wanted and recipe.model.lora is None and adapters
    yield from that_hold(
        (
            wanted and repo is None,
            "export.formats has hub, and no repository is named",
            "export.hub.repo",
            "set export.hub.repo=OWNER/NAME",
        ),
        (why, f"{repo!r} is no name of a repository: {why}", "export.hub.repo", "write it as OWNER/NAME"),
        (
            no_adapter,
            f"all parameters are trained, so there is no {', '.join(sorted(adapters))} to upload",
            "export.hub.holds",
            "set export.hub.holds=[merged]",
        ),
        (len(set(holds)) < len(holds), "one of them is named twice", "export.hub.holds", "name each once"),
    )


def demand_upload(recipe: Recipe) -> None:
    """The Hub, a token and the right to write, where the recipe ends in an upload. EnvironmentFault (exit 3)
    in seconds.
    """
    hub = recipe.export.hub
    if "hub" in recipe.export.formats and hub.repo is not None:
        demand_account(os.environ, hub.repo, recipe.where("export.hub.repo"))
