"""An upload to the Hub that a recipe asks for, looked at before hours of training."""

import os
from collections.abc import Iterator

from lgrpo_lite.checks.fault import Fault, that_hold
from lgrpo_lite.machine.account import demand_account, malformed
from lgrpo_lite.recipe.schema import Recipe

OF_ADAPTERS = {"adapter", "lora-gguf"}


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
