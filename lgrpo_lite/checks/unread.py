"""Parts of an algorithm that were set and that nothing reads. No torch here."""

from collections.abc import Iterator
from typing import Any

from lgrpo_lite.checks.fault import Fault
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.plugin import found
from lgrpo_lite.recipe.schema import Recipe, section_inside

# part, or key of a part -> (the key that decides whether it is read, the values with which it is; None: any
# but 0)
READ_BY = {
    "clip": ("surrogate", ("clipped",)),
    "cispo": ("surrogate", ("cispo",)),
    "residual": ("surrogate", ("residual",)),
    "residual.is_form": ("residual.is_clip", None),
    "residual.log_z_lr": ("residual.centre", ("learned",)),
    "reduce_constant": ("reduce", ("constant",)),
    "reduce_rows": ("reduce", ("micro_token_mean",)),
    "advantage_std": ("advantage", ("mean_std",)),
    "advantage_eps": ("advantage", ("mean_std",)),
    "kl.estimator": ("kl.coef", None),
    "kl.weighted": ("kl.coef", None),
    "kl.max": ("kl.coef", None),
    "trace.style": ("trace.mode", ("trace", "weight")),
    "trace.floor": ("trace.mode", ("trace", "weight")),
    "trace.normalize": ("trace.mode", ("trace", "weight")),
}


def unread(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    """Parts that were set, away from their default and from the row's own, and that nothing reads."""
    row = found(a.use, NAMED, recipe.where("algorithm.use"), "algorithm")()
    for part, (key, values) in READ_BY.items():
        if "." in part and _at(a, part.rpartition(".")[0]) is None:
            continue  # the section is off
        decides = _at(a, key)
        if values is None:
            read = bool(decides)
            readers = "a value above 0"
        else:
            read = decides in values or ".py:" in str(decides)
            readers = " or ".join(values)
        if not read and _at(a, part) not in (_default(part), _at(row, part)):
            what = f"{part} is not read by {key}={decides}"
            yield what, f"algorithm.{part}", f"remove it, or set {key}={readers}"


def _at(a: Algorithm, key: str) -> Any:
    """A dotted key of an algorithm; None below a section that is off."""
    node: Any = a
    for name in key.split("."):
        node = None if node is None else getattr(node, name)
    return node


def _default(key: str) -> Any:
    section: Any = Algorithm
    *above, last = key.split(".")
    for name in above:
        section = section_inside(section.model_fields[name].annotation)
    return section.model_fields[last].get_default(call_default_factory=True)
