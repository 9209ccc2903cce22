"""YAML as a recipe wants it: 1e-5 is a number, a key given twice an error, every key remembers its line.

Bounded before it is built: a file of any content is read, or refused, in well under a second.
"""

import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from lgrpo_lite.errors import ConfigError

MOST_VALUES = 20_000  # with what aliases repeat; a recipe has a hundred
DEEPEST = 50  # sections inside sections
LARGEST = 1024  # bits of a whole number; Python will not print one of 4300 digits
SHOWN = 80  # characters of a value that a message shows
SECRET = re.compile(r"(?<=://)[^/?#\s]*(?=@)|(?<=[?#])[^\s'\"]*")  # of an address: a password, a query
KINDS = {"int": "whole number", "float": "number", "bool": "boolean", "timestamp": "date"}


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, ten times as fast, where PyYAML has it


class _Loader(_Safe):
    """SafeLoader that reads `1e-5` as a float (YAML 1.2), where PyYAML alone returns a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass
class Marks:
    """Where each dotted key was set. `lines` maps a path to a line number, or to the place in words; `before`
    has the value of a file that the command line replaced.
    """

    origin: str = "defaults"
    lines: dict[tuple[str, ...], int | str] = field(default_factory=dict)
    before: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def where(self, path: tuple[str, ...]) -> str:
        dotted = ".".join(path)
        # a single section may stand for a list of one
        plain = tuple(part for part in path if not part.isdigit())
        for whole in (path, plain):
            mark = self.lines.get(whole) or self._first_inside(whole)
            if mark is not None:
                return self._place(mark)
        for candidate in (path, plain):
            for end in range(len(candidate) - 1, 0, -1):
                mark = self.lines.get(candidate[:end])
                if mark is not None:
                    return f"{self._place(mark)} ({dotted})"
        return f"{self.origin} ({dotted}, by default)" if path else self.origin

    def _place(self, mark: int | str) -> str:
        return mark if isinstance(mark, str) else f"{self.origin}:{mark}"

    def _first_inside(self, section: tuple[str, ...]) -> int | str | None:
        """The mark of the first key set inside a section; None of the whole recipe."""
        if not section:
            return None
        for path, mark in self.lines.items():
            if path[: len(section)] == section:
                return mark
        return None


def load_marked(text: str, origin: str) -> tuple[dict, Marks]:
    """Parse one mapping. ConfigError with origin:line on bad YAML, a repeated key, or anything else."""
    marks = Marks(origin)
    reader = _Reader(text, lambda line: f"{origin}:{line}", marks.lines, fix="mend the file there")
    data = reader.read()
    if data is None:
        data = {}
    if not isinstance(data, dict):
        fix = "see `lgrpo-lite recipe show tiny-math`"
        raise ConfigError("a recipe is a mapping of sections", where=origin, fix=fix)
    return data, marks


def parse_scalar(text: str, place: str) -> Any:
    """The value of a `key=value`: a YAML value (number, null, list in brackets), else the text itself."""
    return _Reader(text, lambda _: place, {}, fix="quote the value").read()


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, cut where it is long, and no secret of an address in it."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = SHOWN
    if isinstance(value, str):
        value = without_secrets(value)  # before it is cut
    text = without_secrets(short.repr(value))
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def without_secrets(text: str) -> str:
    """A text that may hold an address, without the password and the query that may be in it."""
    return SECRET.sub("…", text) if "://" in text else text


class _Reader:
    """One YAML text -> its value, and in `lines` the line of every key. Whatever is wrong: ConfigError."""

    def __init__(
        self, text: str, where: Callable[[int], str], lines: dict[tuple[str, ...], int | str], *, fix: str
    ):
        self.text = text
        self.where = where
        self.lines = lines
        self.fix = fix
        self.count = 0

    def read(self) -> Any:
        try:
            self._check_size()
            self.loader = _Loader(self.text)
            node = self.loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self._fault(f"not YAML: {error.problem}", line) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: half a surrogate pair
            position = getattr(error, "position", None) or 0
            line = self.text.count("\n", 0, position) + 1
            reason = getattr(error, "reason", None) or "cannot be read"
            raise self._fault(f"not YAML: {reason}", line) from None
        return None if node is None else self._value(node, ())

    def _check_size(self) -> None:
        """Before anything is built: what nests deep takes the parser the square of its depth."""
        depth = count = 0
        for event in yaml.parse(self.text, _Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            count += isinstance(event, yaml.NodeEvent)
            if depth > DEEPEST or count > MOST_VALUES:
                raise self._too_much(event.start_mark.line + 1)

    def _too_much(self, line: int) -> ConfigError:
        most = f"{MOST_VALUES:,} values and {DEEPEST} sections inside each other"
        return self._fault(f"more than a recipe can hold: at most {most}, aliases followed", line)

    def _value(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.count += 1
        line = node.start_mark.line + 1
        if self.count > MOST_VALUES or len(path) > DEEPEST:
            raise self._too_much(line)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, str(i))) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node, path)
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._fault("a key is a list or a mapping", key_node.start_mark.line + 1)
            key = str(self._scalar(key_node, path))
            line = key_node.start_mark.line + 1
            inner = (*path, key)
            if key in result:
                what = f"key {'.'.join(inner)!r} stands twice"
                raise ConfigError(what, where=self.where(line), fix="keep one of them")
            self.lines[inner] = line
            result[key] = self._value(child, inner)
        return result

    def _scalar(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        """PyYAML's constructors fail in ways of their own on a value that only looks like its type."""
        line = node.start_mark.line + 1
        tag = node.tag.rpartition(":")[2]
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, int) and value.bit_length() > LARGEST:
                raise ValueError
            return value
        except yaml.MarkedYAMLError as error:
            raise self._fault(f"not YAML: {error.problem}", line) from None
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            named = f"{'.'.join(path)}: " if path else ""
            raise self._fault(f"{named}{shown(node.value)} is no {KINDS.get(tag, tag)}", line) from None

    def _fault(self, what: str, line: int) -> ConfigError:
        return ConfigError(what, where=self.where(line), fix=self.fix)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; lists of sections by index, other lists and empty sections as they are."""
    settings: dict[str, Any] = {}
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            settings |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return settings
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            settings |= flat(inner, f"{prefix}.{i}")
        return settings
    return {prefix: value}


def differences(old: Any, new: Any, free: Iterable[str]) -> list[str]:
    """Settings that differ, as `key: old -> new`; keys below `free` may differ."""
    before = flat(old)
    after = flat(new)
    lines = []
    free = tuple(free)
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was != now and not key.startswith(free):
            lines.append(f"{key}: {was} -> {now}")
    return lines
