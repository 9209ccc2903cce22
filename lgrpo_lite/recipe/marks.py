"""YAML as a recipe wants it: 1e-5 is a number, a key given twice an error, every key remembers its line."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from lgrpo_lite.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-5` as a float (YAML 1.2), where PyYAML alone returns a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass
class Marks:
    """Where each dotted key was set. `lines` maps a path to a line number, or to the place in words."""

    origin: str = "defaults"
    lines: dict[tuple[str, ...], int | str] = field(default_factory=dict)

    def where(self, path: tuple[str, ...]) -> str:
        dotted = ".".join(path)
        # a single section may stand for a list of one
        plain = tuple(part for part in path if not part.isdigit())
        for candidate in (path, plain):
            for end in range(len(candidate), 0, -1):
                whole = end == len(candidate)
                mark = self.lines.get(candidate[:end])
                if mark is None and whole:
                    mark = self._first_inside(candidate)
                if mark is not None:
                    place = mark if isinstance(mark, str) else f"{self.origin}:{mark}"
                    return place if whole else f"{place} ({dotted})"
        return f"{self.origin} ({dotted}, by default)" if path else self.origin

    def _first_inside(self, section: tuple[str, ...]) -> int | str | None:
        """The mark of the first key set inside a section."""
        for path, mark in self.lines.items():
            if path[: len(section)] == section:
                return mark
        return None


def load_marked(text: str, origin: str) -> tuple[dict, Marks]:
    """Parse one mapping. ConfigError with origin:line on bad YAML, a repeated key, or anything else."""
    marks = Marks(origin)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = {} if node is None else _build(loader, node, (), marks)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = f"not YAML: {error.problem}"
        raise ConfigError(what, where=f"{origin}:{line}", fix="mend the syntax there") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not YAML: {error}", where=origin, fix="mend the file") from None
    if not isinstance(data, dict):
        fix = "see `lgrpo-lite recipe show tiny-math`"
        raise ConfigError("a recipe is a mapping of sections", where=origin, fix=fix)
    return data, marks


def parse_scalar(text: str, place: str) -> Any:
    """The value of a `key=value`: a YAML value (number, null, list in brackets), else the text itself."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "cannot be read"
        what = f"the value {text!r} is not YAML: {problem}"
        raise ConfigError(what, where=place, fix="quote the value") from None


def _build(loader: _Loader, node: yaml.Node, path: tuple[str, ...], marks: Marks) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*path, str(i)), marks) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        key = str(loader.construct_object(key_node))
        line = key_node.start_mark.line + 1
        inner = (*path, key)
        if key in result:
            what = f"key {'.'.join(inner)!r} stands twice"
            raise ConfigError(what, where=f"{marks.origin}:{line}", fix="keep one of them")
        marks.lines[inner] = line
        result[key] = _build(loader, child, inner, marks)
    return result


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
