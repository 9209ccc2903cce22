"""Recipes: each one in recipes/, its tree and its text changed, with settings on the command line; then
`validate`, `plan` or `train --dry-run`. All but this project's own refusals are faults.
"""

import copy
import random
import re
from pathlib import Path
from typing import Any

import yaml

from .case import ROOT, Told, about, command, damaged, placed

from test_bad_recipes import BOMB, GOOD, JUDGED, LONG_NAMES, NINE  # isort: skip

COUNT, SECONDS, MEMORY = 5000, 5.0, 512

# values by the type a setting may have; each in the place of any
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    10**6,
    10**9,
    2**31,
    2**32,
    2**63,
    2**64,
    10**40,
    -(2**63),
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e-9,
    1e308,
    -1e308,
]
WORDS = [
    "", " ", "a", "x" * 300, "y" * 5000, "z" * 200_000, "ž数𝟘", "e\u0301", "\u202eabc", "\u2028", "\x85", "a\tb", "a\nb\nc", "\\boxed{", "{0}",
    "%s%n", "${HOME}", "`id`", "$(id)", "../..", "/", "/dev/zero", "/dev/stdin", ".", "~", "nul", "builtin:", "builtin:tiny-math", "builtin:../x",
    "org/model", "mine.py:f", "./mine.py:f", "mine.py:", ":f", "mine.py:f.g", "auto", "none", "yes", "off", "null", "arithmetic", "grpo", "exact",
    "http://127.0.0.1:1", "http://[::1", "http://a:99999", "https://u:p@h", "file:///etc/passwd", "{question}", "{question", "{question.x}", "{a}{b}",
    "{question!r:>99999999}", "[red]x[/red]", "[/]", "[link=x]", "NaN", "1e5", "0x10", "1_000", "12:30:45", "2026-01-01", "=", "<<", "!x", "&x", "*x",
]  # fmt: skip
OTHERS = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    {"a": {"b": {"c": 1}}},
    [1, "a", None],
    {"use": "exact"},
    [{"use": "exact"}] * 3,
    [0.9, 0.99],
]
# what YAML reads in ways of its own: stands in the text as it is
RAW = [
    "2026-99-99", "2026-01-01", "2026-01-01T99:99:99Z", "!!int abc", "!!float abc", "!!bool abc", "!!binary abc", "!!binary ///=", "!!null x", "!!set {a, b}",
    "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp soon", "!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!map [1]", "!!seq {a: 1}", "!!str 5",
    "!unknown x", "!<tag:x,2000:y> z", "! 5", "&a [*a]", "*nowhere", "&a 5", "&a {b: *a}", "{<<: *nowhere}", "{<<: {use: exact}}", "{<<: [1]}", "{<<: 5}", ".inf", "-.inf",
    ".nan", "0o17", "017", "0b101", "0x" + "F" * 400, "1" * 400, "1" * 5000, "1e400", "1e-400", "1_0_0", "190:20:30", "+.inf", "~", "Null", "ON", "y", "{? [a] : b}",
    "{[a]: b}", "{a: 1, a: 2}", "[" * 99, "[" * 300 + "]" * 300, "{a: " * 150 + "1" + "}" * 150, NINE.format("&z [1]"), "'a", '"a', '"\\x00"', '"\\ud800"', '"\\U0010ffff"',
    '"\\x1b[2J"', "|\n  a\n   b\n", ">-\n", "@x", "`x`", "%x", "a: b: c", "- x", "? x", ": x", "#x", "[,]", "{,}", "\t5", "5 # x", "--- 5", "...", "'\\n'", '"\\q"', "\u00a05", "５",
]  # fmt: skip
TEXTS = [
    BOMB,
    "",
    "\n",
    "#\n",
    "---\n",
    "--- 5\n",
    "[]\n",
    "5\n",
    "null\n",
    "a\n",
    "? a\n",
    "- " * 900,
    "{" * 900,
    "a: &a [*a]\n",
    "%YAML 9.9\n---\na: 1\n",
    "%TAG ! x\n",
]
PLACE = "PLACE-OF-A-RAW-VALUE-"


def bases() -> list[dict[str, Any]]:
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    return [yaml.safe_load(text) for text in [*texts, GOOD, GOOD]]


def prepare(folder: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, ...], list[Any]]]:
    """The recipes that are changed, and the address of every setting there is."""
    return bases(), addresses()


def addresses() -> dict[tuple[str, ...], list[Any]]:
    """Of all settings, as `lgrpo-lite config` lists them; with values that each may have, where it says some."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for line in command("config").out.splitlines():
        row = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)*)  +(\S+) *(\S+)?", line)
        if row is not None:
            kinds = row[2].split("|")
            good: list[Any] = [kind for kind in kinds if kind not in TYPES]
            for kind in kinds:
                good += TYPES.get(kind, [])
            found[tuple(row[1].split("."))] = good
    assert len(found) > 80, sorted(found)
    return found


TYPES = {
    "int": [1, 2, 7, 64, 100], "float": [0.01, 0.1, 0.5, 0.9, 1.0, 2.0], "bool": [True, False], "null": [None], "str": ["a", "tiny-math", "x-y"],
    "list[str]": [["q_proj"], ["a", "b"]], "section": [{}], "section,": [{}, None],
}  # fmt: skip


def attack(draw: random.Random, folder: Path, prepared: Any) -> Told:
    trees, keys = prepared
    tree = copy.deepcopy(draw.choice(trees))
    raw: list[str] = []
    for _ in range(draw.choice([0, 1, 1, 1, 1, 2, 3])):
        change(draw, tree, keys, raw)
    data = written(draw, tree, raw)
    if draw.random() < 0.25:
        data = damaged(draw, data)
    if draw.random() < 0.02:
        data = draw.choice(TEXTS).encode()
    path = folder / draw.choice(
        ["r.yaml"] * 20 + ["ž.yaml", "a b.yml", "-r.yaml", "[red].yaml", "x" * 240 + ".yaml", "r.txt"]
    )
    kind = placed(draw, path, data)
    overrides = [override(draw, keys) for _ in range(draw.choice([0, 0, 0, 0, 1, 1, 3]))]
    argv = [*draw.choice(COMMANDS), str(path), *overrides]
    about(f"{argv}\n--- {kind}\n{data[:20_000].decode('utf-8', 'replace')}")
    said = command(*argv)
    return Told(said.outcome, tuple(said.faults), str(said))


COMMANDS = (["validate"], ["validate"], ["validate"], ["validate", "--strict"], ["validate", "--import"], ["plan"], ["plan", "--json"], ["train", "--dry-run"])  # fmt: skip

# ------------------------------------------------------------------------------------------- trees


def value(draw: random.Random, raw: list[str]) -> Any:
    """Any value; one that only text can hold is left in `raw`, and stands as a mark."""
    kind = draw.randrange(10)
    if kind < 3:
        return draw.choice(NUMBERS)
    if kind < 6:
        return draw.choice(WORDS)
    if kind < 8:
        return copy.deepcopy(draw.choice(OTHERS))
    raw.append(draw.choice(RAW))
    return f"{PLACE}{len(raw) - 1}."


def change(draw: random.Random, tree: Any, keys: dict[tuple[str, ...], list[Any]], raw: list[str]) -> None:
    """One change of a recipe's tree: a setting set, a key added, renamed, removed, or all of it deeper."""
    kind = draw.randrange(12)
    nodes = [node for node in inside(tree) if node]
    node = draw.choice(nodes) if nodes else tree
    if kind < 6 or not isinstance(node, dict):
        address, good = draw.choice(list(keys.items()))
        put(tree, address, draw.choice(good) if good and draw.random() < 0.4 else value(draw, raw))
    elif kind < 8:
        node[draw.choice(sorted(map(str, node)))] = value(draw, raw)
    elif kind == 8:
        node[draw.choice([*WORDS, 5, None, True, 1.5, f"{PLACE}{len(raw)}."])] = value(draw, raw)
        raw.append(draw.choice(RAW))
    elif kind == 9:
        node.pop(draw.choice(list(node)))
    elif kind == 10:
        key = draw.choice(list(node))
        node[f"{key}{draw.choice('sx_ ')}"] = node.pop(key)
    else:
        deep: Any = 1
        for _ in range(draw.choice([5, 60, 400])):
            deep = {"a": deep} if draw.random() < 0.5 else [deep]
        node[draw.choice(list(node))] = deep


def inside(tree: Any) -> list[Any]:
    """All dicts and lists of a tree, itself first; as deep as recipes are."""
    found, left = [], [(tree, 0)]
    while left:
        node, depth = left.pop()
        if depth < 9 and isinstance(node, dict | list):
            found.append(node)
            left += [(part, depth + 1) for part in (node.values() if isinstance(node, dict) else node)]
    return found


def put(tree: Any, address: tuple[str, ...], new: Any) -> None:
    *above, last = address
    node = tree
    for part in above:
        if not isinstance(node, dict):
            return
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = new


def written(draw: random.Random, tree: Any, raw: list[str]) -> bytes:
    """The tree as YAML in one of its styles, raw values in their places."""
    try:
        text = yaml.safe_dump(
            tree,
            default_flow_style=draw.choice([None, None, False, True]),
            allow_unicode=True,
            sort_keys=False,
        )
    except (RecursionError, yaml.YAMLError):
        text = GOOD
    for number, piece in enumerate(raw):
        mark = f"{PLACE}{number}."
        text = re.sub(rf"'?{re.escape(mark)}'?", lambda _, piece=piece: piece, text)
    if draw.random() < 0.05:
        text += draw.choice(text.splitlines(keepends=True) or [""])  # a key twice
    if draw.random() < 0.02:
        text = draw.choice(["", "# "]) + text.replace(
            "\n", draw.choice(["\r\n", "\r", "\n\n", "\n  ", "\x85", "\u2028"])
        )
    return text.encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------- the command line


def override(draw: random.Random, keys: dict[tuple[str, ...], list[Any]]) -> str:
    kind = draw.randrange(12)
    key = ".".join(draw.choice(list(keys)))
    if kind == 0:
        return draw.choice(LONG_NAMES).format(draw.choice(WORDS))
    if kind == 1:
        return JUDGED % draw.choice(["http://127.0.0.1:1", "http://u:p@h", "x", ""])
    if kind == 2:
        return f"rewards.{draw.choice([0, 1, -1, 99, 'x', '0.0'])}.{draw.choice(['use', 'weight', 'extract', 'x', ''])}={draw.choice(RAW)}"
    if kind == 3:
        return draw.choice(
            [
                "=",
                "a",
                "",
                "a=",
                "=a",
                ".=1",
                "a..b=1",
                "x" * 5000 + "=1",
                "seed=1=2",
                "--x",
                "\udcff=1",
                "seed=\udcff",
                "a\x1b[2J=1",
                "seed=\x1b]0;x\x07",
            ]
        )
    if kind == 4:
        key = f"{key}.{draw.choice(['x', '0', '', 'ž'])}"
    if kind == 5:
        key = key.rpartition(".")[0] or key
    if kind < 8:
        text = draw.choice(RAW)
    elif kind < 10:
        text = draw.choice(WORDS)
    else:
        text = str(draw.choice(NUMBERS))
    return f"{key}={text}"
