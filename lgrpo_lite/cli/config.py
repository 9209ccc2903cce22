"""`lgrpo-lite config`: every key of a recipe with its type, default and meaning, from the schema itself."""

import argparse
import json

from lgrpo_lite.cli.terminal.output import add_json, say, summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite config [KEY …] [--json]"
    parser.add_argument(
        "words", nargs="*", metavar="KEY", help="only keys that begin so, e.g. algorithm.trace"
    )
    add_json(parser, "the JSON schema")


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.recipe.schema import Recipe

    if args.json:
        say(json.dumps(Recipe.model_json_schema(by_alias=True)))
        return 0
    for key, type_, default, meaning in rows(Recipe):
        if not args.words or key.startswith(tuple(args.words)):
            say(f"{key:46} {type_:28} {default:18} {meaning}".rstrip())
    return 0


def rows(section, prefix: str = ""):
    """(dotted key, type, default, meaning) of every setting, depth first."""
    from lgrpo_lite.recipe.schema import section_inside

    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = section_inside(field.annotation)
        if inner is not None:
            optional = type(None) in getattr(field.annotation, "__args__", ())
            kind = "section, or null" if optional else "section"
            yield key, kind, "", field.description or summary(inner)
            yield from rows(inner, f"{key}.")
            if name == "rewards":
                yield from _options(f"{key}.")
        elif field.is_required():
            yield key, type_name(field.annotation), "required", field.description or ""
        else:
            default = json.dumps(field.get_default(call_default_factory=True), default=str)
            yield key, type_name(field.annotation), default, field.description or ""


def _options(prefix: str):
    """Rows of the options of built-in rewards, each with the rewards that read it."""
    from lgrpo_lite.recipe.schema import section_inside
    from lgrpo_lite.rewards.options import documented
    from lgrpo_lite.rewards.part import REWARDS

    known: dict[str, tuple] = {}
    readers: dict[str, list[str]] = {}
    for use, function in REWARDS.items():
        for option in documented(function):
            name = option[0]
            known[name] = option
            readers.setdefault(name, []).append(f"`{use}`")
    for name, type_, default, meaning in known.values():
        key, inner = f"{prefix}{name}", section_inside(type_)
        kind = "section, or null" if inner else type_name(type_)
        yield key, kind, json.dumps(default), f"of {', '.join(readers[name])}: {meaning}"
        if inner:
            yield from rows(inner, f"{key}.")


def type_name(annotation) -> str:
    if annotation is type(None):
        return "null"
    args = getattr(annotation, "__args__", ())
    origin = str(getattr(annotation, "__origin__", ""))
    if "Literal" in origin:
        return "|".join(map(str, args))
    if "dict" in origin:
        return "mapping"
    if getattr(annotation, "__name__", "") == "NaiveDatetime":
        return "time"
    if not args:
        return getattr(annotation, "__name__", str(annotation))
    if "list" in origin or "tuple" in origin:
        return str(annotation).replace("typing.", "")
    return "|".join(map(type_name, args))
