"""Reading recipes: a packaged name or a file, `key=value` on top; each fault a ConfigError with its place."""

from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lgrpo_lite.errors import ConfigError, LgrpoError, nearest, noted, raise_all
from lgrpo_lite.recipe import words
from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.marks import SHOWN, Marks, flat, load_marked, parse_scalar, shown, without_secrets
from lgrpo_lite.recipe.schema import Recipe, section_inside

S = TypeVar("S", bound=Section)
LONGEST = 1 << 20  # bytes of a recipe's file


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
    recipe, faults = looked_at(raw, marks, overrides)
    raise_all(faults)
    assert recipe is not None, "None has a fault"
    return recipe


def looked_at(
    raw: dict, marks: Marks, overrides: list[str] | None = None
) -> tuple[Recipe | None, list[LgrpoError]]:
    """The recipe without the settings that are at fault, and every fault. None: nothing is left of it."""
    faults: list[LgrpoError] = []
    for item in overrides or []:
        with noted(faults):
            _override(raw, marks, item)
    recipe = None
    wrong = True
    while wrong and recipe is None:
        recipe, wrong = _without_faults(Recipe, raw, marks, "see `lgrpo-lite config`", faults)
    if recipe is not None:
        recipe._marks = marks
    return recipe, faults


def validated(schema: type[S], raw: dict, marks: Marks, *, help_: str) -> S:
    """`raw` as the schema has it. What is wrong: ConfigError in this project's words."""
    faults: list[LgrpoError] = []
    read, _ = _without_faults(schema, raw, marks, help_, faults)
    raise_all(faults)
    assert read is not None, "None has a fault"
    return read


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
        if last in node:
            marks.before.setdefault(tuple(path), node[last])
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


def _without_faults(
    schema: type[S], raw: dict, marks: Marks, help_: str, faults: list[LgrpoError]
) -> tuple[S | None, bool]:
    """(`raw` as the schema has it, whether a second look at it is worth it).

    What is wrong joins `faults` and is taken out of `raw`, so that the rest can be looked at.
    """
    try:
        return schema.model_validate(raw), False
    except ValidationError as error:
        reports: dict[tuple, list[Any]] = {}
        for report in error.errors(include_url=False):
            reports.setdefault(_address(schema, report), []).append(report)
        for address, same in reports.items():
            faults.append(_explain(address, same, marks, schema, help_))
        removed = [_removed(raw, address) for address in reports]
        return None, all(removed)


def _address(schema: type[Section], report: Any) -> tuple:
    """Where the setting stands, without the member of a union that pydantic names behind it."""
    loc = tuple(report["loc"])
    if report["type"] in ("extra_forbidden", "missing"):
        return loc
    section: type[Section] | None = schema
    for i, part in enumerate(loc):
        if isinstance(part, int):
            continue
        field = _field(section, part)
        if field is None:
            return loc[:i]
        section = section_inside(field.annotation)
    return loc


def _removed(raw: Any, address: tuple) -> bool:
    """Take a setting out of what was read; False where it is not there, as one that is missing."""
    if not address:  # of the whole recipe: a key that is no text
        return False
    *above, last = address
    for part in above:
        entry = isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        if isinstance(raw, list) and not entry:
            return False
        if isinstance(raw, dict) and part == 0 and part not in raw:
            continue  # a single section may stand for a list of one
        if not entry and not (isinstance(raw, dict) and part in raw):
            return False
        raw = raw[part]
    if not isinstance(raw, dict) or last not in raw:
        return False
    del raw[last]
    return True


def _explain(
    address: tuple, reports: list[Any], marks: Marks, schema: type[Section], help_: str
) -> ConfigError:
    """What pydantic reports of one setting, in this project's words."""
    first = reports[0]
    loc = tuple(str(part) for part in address)
    dotted = ".".join(loc)
    where = marks.where(loc)
    if first["type"] == "extra_forbidden":
        what, fix = _unknown(address, first["input"], schema)
    elif first["type"] == "missing":
        where = marks.where(loc[:-1])
        what, fix = f"{dotted} is missing", f"add {dotted}: …"
    elif first["type"] == "model_type":
        keys = ", ".join(_keys_at(schema, address))
        what = f"{dotted} is a section, not {shown(first['input'])}"
        fix = f"write {dotted}.KEY=…, or {dotted}={{}} for the defaults; keys: {keys}"
    else:
        reasons = [_reason(report["msg"]) for report in reports]
        what, fix = f"{dotted}={shown(first['input'])}: {', or '.join(reasons)}", help_
    return ConfigError(what, where=where, fix=fix, key=dotted)


def _unknown(address: tuple, value: Any, schema: type[Section]) -> tuple[str, str]:
    """(what, fix) of a key that the schema does not have: another trainer's word for one, or a typo."""
    dotted = ".".join(map(str, address))
    leaf = str(address[-1])
    known = _keys_at(schema, address[:-1])
    reason = words.not_here(dotted)
    if reason:
        why, instead = reason
        return f"{dotted}: {why}", f"remove it; there is {instead}"
    typo = nearest(leaf[:SHOWN], known)
    meant = _meant(dotted, value) if schema is Recipe else {}
    known_word = words.ours(dotted) or any(map(words.is_foreign, meant))
    if meant and (known_word or not typo):
        said = [f"{word} is {' or '.join(settings)} here{_noted(word)}" for word, settings in meant.items()]
        settings = [setting for settings in meant.values() for setting in settings]
        return f"unknown key {shown(dotted)}: {'; '.join(said)}", f"write {_written(settings)}"
    what = f"unknown key {shown(dotted)}{typo}"
    return what, f"remove it, or use one of: {', '.join(known)}"


def _meant(dotted: str, value: Any) -> dict[str, tuple[str, ...]]:
    """What an unknown key means here, or each of the keys inside it that mean something."""
    inside = flat(value, dotted) if isinstance(value, dict) and value else {dotted: value}
    meant = {}
    for key in [*inside][:SHOWN]:
        settings = words.ours(key)
        if settings and len(meant) < words.MOST:
            meant[_printable(key)] = settings
    return meant


def _noted(word: str) -> str:
    note = words.note(word)
    return f" ({note})" if note else ""


def _written(settings: list[str]) -> str:
    """As they are set on a command line."""
    return ", ".join(setting if "=" in setting else f"{setting}=…" for setting in settings)


def _field(section: type[Section] | None, part: Any) -> Any:
    fields = section.model_fields.items() if section else ()
    return next((field for name, field in fields if part in (name, field.alias)), None)


def _keys_at(section: Any, loc: tuple) -> list[str]:
    for part in loc:
        if isinstance(part, int):
            continue
        section = section_inside(_field(section, part).annotation)
    return [field.alias or name for name, field in section.model_fields.items()]


def _reason(message: str) -> str:
    """As it goes on after a colon; the values that it names are as they are written."""
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
