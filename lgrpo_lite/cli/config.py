"""`lgrpo-lite config`: every key of a recipe with its type, default and meaning, from the schema itself."""

import argparse
import difflib
import json
import re

from lgrpo_lite.cli.terminal.output import add_json, print_json, say, summary
from lgrpo_lite.errors import ConfigError

Row = tuple[str, str, str, str]  # dotted key, type, default, meaning
WIDEST = (46, 28, 18)  # columns of key, type and default; what is longer pushes its row


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite config [KEY|WORD …] [--json]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY|WORD",
        help=(
            "keys that begin so, e.g. algorithm.trace; or a word of a name, of a meaning or of another "
            "trainer, e.g. temperature, num_generations"
        ),
    )
    add_json(parser, "the JSON schema; of some keys, what is said of them")


def run(args: argparse.Namespace) -> int:
    """A word that nothing is found for: exit 2, with the nearest keys."""
    from lgrpo_lite.recipe.schema import Recipe

    if args.json and not args.words:
        say(json.dumps(Recipe.model_json_schema(by_alias=True)))
        return 0
    told: list[Row] = list(rows(Recipe))
    said: list[str] = []
    if args.words:
        said = [sentence for word in args.words for sentence in explained(word)]
        told = found(args.words, told)
    if not told and not said:
        raise _nothing(args.words)
    if args.json:
        keys = [dict(zip(("key", "type", "default", "meaning"), row, strict=True)) for row in told]
        print_json("config", keys, said)
        return 0
    say(*said)
    widths = [min(most, max(len(row[i]) for row in told)) for i, most in enumerate(WIDEST) if told]
    for *cells, meaning in told:
        columns = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        say("  ".join([*columns, meaning]).rstrip())
    return 0


def found(asked: list[str], known: list[Row]) -> list[Row]:
    """Keys that begin with one of the words; else those that have all of them, or else one of them, in what
    is said of a key; and those that another trainer's word means, first.
    """
    from lgrpo_lite.recipe import words

    meant = {setting.partition("=")[0] for word in asked for setting in words.ours(word)}
    first = [row for row in known if row[0] in meant]
    begins = [row for row in known if row[0].startswith(tuple(asked))]
    if begins:
        return first + [row for row in begins if row not in first]
    having = [[row for row in known if _says(row, word)] for word in asked]
    every = [row for row in known if all(row in rows_ for rows_ in having)]
    some = [row for row in known if any(row in rows_ for rows_ in having)]
    return first + [row for row in every or some if row not in first]


def explained(word: str) -> list[str]:
    """What is to be said of a word that is no setting here: a name of an algorithm, a setting of others."""
    from lgrpo_lite.objective.named import NAMED
    from lgrpo_lite.recipe import words

    name = words.plain(word)
    sentences = [f"algorithm.use={row}: {summary(NAMED[row])}" for row in NAMED if words.plain(row) == name]
    if name in words.ALGORITHMS:
        sentences.append(words.ALGORITHMS[name][0])
    reason = words.not_here(word)
    if reason:
        why, instead = reason
        sentences.append(f"{word}: {why}; there is {instead}")
    return sentences


def _says(row: Row, word: str) -> bool:
    """Whether a word begins like this one in a key, its type, its meaning or what others call it."""
    from lgrpo_lite.recipe import words

    key, kind, _, meaning = row
    text = " ".join((key, kind, meaning, *words.called(key))).casefold()
    asked = re.escape(word.casefold().replace("-", "_"))
    return re.search(rf"(?<![^\W_]){asked}", text) is not None


def _nothing(asked: list[str]) -> ConfigError:
    from lgrpo_lite.recipe import words
    from lgrpo_lite.recipe.marks import shown

    leaves = {key.rpartition(".")[2]: key for key in words.all_keys()}
    near = [leaves[leaf] for word in asked for leaf in difflib.get_close_matches(word, leaves, n=3)]
    what = f"no setting has {' or '.join(map(shown, asked))} in its name or its meaning"
    fix = f"try {', '.join(near)}" if near else "`lgrpo-lite config` lists all of them"
    return ConfigError(what, where="command line", fix=fix)


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
