"""YAML as a recipe wants it: 1e-5 is a number, a key given twice is an error,
and every key remembers its line.
"""

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
        # a single section may stand for a list of one
        plain = tuple(part for part in path if not part.isdigit())
        for candidate in (path, plain):
            for end in range(len(candidate), 0, -1):
                mark = self.lines.get(candidate[:end])
                if mark is None and end == len(candidate):  # a section: the first key set inside it
                    mark = next((m for p, m in self.lines.items() if p[:end] == candidate), None)
                if mark is not None:
                    place = mark if isinstance(mark, str) else f"{self.origin}:{mark}"
                    return place if end == len(candidate) else f"{place} ({'.'.join(path)})"
        return f"{self.origin} ({'.'.join(path)}, by default)" if path else self.origin


def load_marked(text: str, origin: str) -> tuple[dict, Marks]:
    """Parse one mapping. Raises ConfigError with origin:line on bad YAML, a repeated
    key, or anything but a mapping.
    """
    marks = Marks(origin)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = {} if node is None else _build(loader, node, (), marks)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"not YAML: {error.problem}", where=f"{origin}:{line}", fix="mend the syntax there"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not YAML: {error}", where=origin, fix="mend the file") from None
    if not isinstance(data, dict):
        raise ConfigError(
            "a recipe is a mapping of sections", where=origin, fix="see `lgrpo-lite recipe show tiny-math`"
        )
    return data, marks


def parse_scalar(text: str, place: str) -> Any:
    """The value of a `key=value`: a YAML value (number, null, list in brackets), else the text itself."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(
            f"the value {text!r} is not YAML: {problem}", where=place, fix="quote the value"
        ) from None


def _build(loader: _Loader, node: yaml.Node, path: tuple[str, ...], marks: Marks) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*path, str(i)), marks) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        key, line = str(loader.construct_object(key_node)), key_node.start_mark.line + 1
        if key in result:
            dotted = ".".join((*path, key))
            raise ConfigError(
                f"key {dotted!r} stands twice", where=f"{marks.origin}:{line}", fix="keep one of them"
            )
        marks.lines[(*path, key)] = line
        result[key] = _build(loader, child, (*path, key), marks)
    return result


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; lists of sections by index, other lists and empty sections as they are."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{prefix}.{i}").items()}
    return {prefix: value}


def differences(old: Any, new: Any, free: Iterable[str]) -> list[str]:
    """Settings that differ, as `key: old ->
    new`; keys below `free` may differ.
    """
    before, after = flat(old), flat(new)
    keys = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if not k.startswith(tuple(free))]
