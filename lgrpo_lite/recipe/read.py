"""Reading recipes: a packaged name or a file, `key=value` on top; each fault a ConfigError with its place."""

from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lgrpo_lite.errors import ConfigError, nearest
from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.marks import SHOWN, Marks, load_marked, parse_scalar, shown, without_secrets
from lgrpo_lite.recipe.schema import Recipe, section_inside

S = TypeVar("S", bound=Section)
LONGEST = 1 << 20  # bytes of a recipe's file
NOT_HERE = {  # keys that users of other trainers will try, and why a recipe has none of them
    "model.lora.dora": "vLLM serves no DoRA adapter, so none is trained here",
    "model.lora.use_dora": "vLLM serves no DoRA adapter, so none is trained here",
    "model.lora.modules_to_save": (
        "vLLM serves no adapter that replaces whole modules, so none is trained here"
    ),
    "model.lora.bias": "vLLM serves no adapter with biases, so none is trained here",
}


def recipe_names() -> list[str]:
    """Names of the recipes inside the package, sorted."""
    files = [file.name for file in packaged().iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> tuple[str, str]:
    """(text, how to call its place in messages) of a packaged recipe or of a file. Unknown: ConfigError."""
    if name_or_path in recipe_names():
        file = packaged() / f"{name_or_path}.yaml"
        return file.read_text("utf-8"), f"recipe {name_or_path}"
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        return read_text(path), str(path)
    what = f"unknown recipe {shown(name_or_path)}{nearest(name_or_path[:SHOWN], recipe_names())}"
    raise ConfigError(what, where="command line", fix="`lgrpo-lite recipe ls` lists them")


def read_text(path: Path) -> str:
    """The text of a recipe's file. A pipe, a device, a folder, one too long or not UTF-8: ConfigError."""
    where = shown(str(path))[1:-1]
    try:
        if path.exists() and not path.is_file():  # a pipe waits for its writer, a device may never end
            reason = "not a file"
        elif path.stat().st_size > LONGEST:
            reason = f"longer than {LONGEST:,} bytes"
            with path.open("rb") as file:
                line = 1 + file.read(LONGEST).count(b"\n")  # at which it is too long
            where = f"{where}:{line}"
        else:
            return path.read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with NUL
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
    fix = "name a readable YAML file, or a recipe of `lgrpo-lite recipe ls`"
    raise ConfigError(f"cannot read the recipe: {reason}", where=where, fix=fix)


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read, override, validate. Every fault is a ConfigError (exit 2) that names its place."""
    text, origin = recipe_text(name_or_path)
    return parse_recipe(text, origin, overrides)


def parse_recipe(text: str, origin: str, overrides: list[str] | None = None) -> Recipe:
    """`load_recipe` on a text; `origin` is how messages call it."""
    return recipe_of(*load_marked(text, origin), overrides)


def recipe_of(raw: dict, marks: Marks, overrides: list[str] | None = None) -> Recipe:
    """`load_recipe` on what was read already; `marks` says where each key of `raw` came from."""
    for item in overrides or []:
        _override(raw, marks, item)
    recipe = validated(Recipe, raw, marks, help_="see `lgrpo-lite config`")
    recipe._marks = marks
    return recipe


def validated(schema: type[S], raw: dict, marks: Marks, *, help_: str) -> S:
    """`raw` as the schema has it. The first fault is a ConfigError in this project's words."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, marks, schema, help_) from None


def packaged():
    """The folder of recipes inside the package; suites/ is one in it."""
    inside = resources.files("lgrpo_lite") / "recipes"
    # a checkout keeps them at the top
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def _override(raw: dict, marks: Marks, item: str) -> None:
    key, sign, value = item.partition("=")
    place = f"command line, {_printable(item)}"
    if not sign or not key:
        fix = "write key=value, e.g. train.steps=50"
        raise ConfigError(f"not an override: {shown(item)}", where="command line", fix=fix)
    path = key.split(".")
    *above, last = path
    node: Any = raw
    for i, part in enumerate(above):
        if isinstance(node, list):
            inner = node[_index(node, part, place)]
        else:
            inner = node.get(part)
            if inner is None:  # a section the file leaves out, or switches off
                inner = node[part] = {}
        if not isinstance(inner, dict | list):
            what = f"{'.'.join(path[: i + 1])} is a value, not a section"
            raise ConfigError(what, where=place, fix="check the key")
        node = inner
    parsed = parse_scalar(value, place)
    if isinstance(node, list):
        node[_index(node, last, place)] = parsed
    else:
        node[last] = parsed
    marks.lines[tuple(path)] = place


def _printable(item: str) -> str:
    """As it was given, but for what a terminal would act upon, what no line holds and what is secret."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in without_secrets(item)[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _index(node: list, part: str, place: str) -> int:
    if part.isdecimal() and part.isascii() and len(part) < 9 and int(part) < len(node):
        return int(part)
    what = f"{shown(part)} is no entry of a list of {len(node)}"
    raise ConfigError(what, where=place, fix=f"use 0 to {len(node) - 1}")


def _explain(error: ValidationError, marks: Marks, schema: type[Section], help_: str) -> ConfigError:
    """The first fault of a pydantic report, in this project's words."""
    first = error.errors(include_url=False)[0]
    loc = tuple(str(part) for part in first["loc"])
    dotted = ".".join(loc)
    where = marks.where(loc)
    if first["type"] == "extra_forbidden":
        reason = NOT_HERE.get(dotted)
        if reason:
            fix = "remove it; model.lora.rank is what gives an adapter more"
            return ConfigError(f"{dotted}: {reason}", where=where, fix=fix)
        known = _keys_at(schema, first["loc"][:-1])
        what = f"unknown key {shown(dotted)}{nearest(loc[-1][:SHOWN], known)}"
        fix = f"remove it, or use one of: {', '.join(known)}"
        return ConfigError(what, where=where, fix=fix)
    if first["type"] == "missing":
        return ConfigError(f"{dotted} is missing", where=marks.where(loc[:-1]), fix=f"add {dotted}: …")
    if first["type"] == "model_type":
        keys = ", ".join(_keys_at(schema, first["loc"]))
        fix = f"write {dotted}.KEY=…, or {dotted}={{}} for the defaults; keys: {keys}"
        return ConfigError(f"{dotted} is a section, not {shown(first['input'])}", where=where, fix=fix)
    reason = first["msg"].lower().removeprefix("value error, ")
    return ConfigError(f"{dotted}={shown(first['input'])}: {reason}", where=where, fix=help_)


def _keys_at(section: Any, loc: tuple) -> list[str]:
    for part in loc:
        if isinstance(part, int):
            continue
        fields = section.model_fields.items()
        annotation = next(field.annotation for name, field in fields if part in (name, field.alias))
        section = section_inside(annotation)
    return [field.alias or name for name, field in section.model_fields.items()]
