"""A small renderer of Go's text/template: what our templates for Ollama are written in, and nothing else.

Known are text, trim markers, `define`, `template`, `if` with `else if` and `else`, `range $i, $m :=`, fields,
`$`, parentheses, strings, whole numbers, and the functions of FUNCTIONS. Like Go it counts a string in bytes.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_ACTION = re.compile(r'\{\{(-\s)?((?:[^"}]|"(?:[^"\\\n]|\\.)*")*?)(\s-)?\}\}', re.DOTALL)
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\\n]|\\.)*")|(-?\d+)|([$.][\w.$]*)|([A-Za-z]\w*)|([()]))')
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f", "b": "\b", "a": "\a", '"': '"', "\\": "\\"}
_SPACE = " \t\r\n"  # what a trim marker takes away
_RANGE = re.compile(r"range (\$\w+), (\$\w+) := (.+)", re.DOTALL)


class _Action(NamedTuple):
    word: str  # if, range, template; text; or empty for a value to be written
    argument: str = ""
    body: tuple["_Action", ...] = ()
    otherwise: tuple["_Action", ...] = ()


def render(template: str, data: Mapping[str, Any]) -> str:
    """The text that Go's text/template writes of `data`, dictionaries, lists, strings and numbers. What it
    would refuse, and what is not known here: ValueError.
    """
    defined: dict[str, tuple[_Action, ...]] = {}
    body, end = _parsed(_pieces(template), defined)
    if end:
        raise ValueError(f"{end!r} ends nothing")
    return _Writing(defined, data).all_of(body, data, {}).decode("utf-8")


def quoted(text: str) -> str:
    """A string of Go that is this text, with nothing in it but what can be printed."""
    known = {sign: name for name, sign in _NAMED.items()}
    signs = []
    for sign in text:
        if sign in known:
            signs.append(f"\\{known[sign]}")
        elif sign.isprintable():
            signs.append(sign)
        else:
            signs.append(f"\\u{ord(sign):04x}" if ord(sign) < 2**16 else f"\\U{ord(sign):08x}")
    return f'"{"".join(signs)}"'


def _unquoted(text: str) -> bytes:
    def sign(match: re.Match[str]) -> str:
        short, long, name = match.groups()
        return _NAMED[name] if name else chr(int(short or long, 16))

    return _ESCAPE.sub(sign, text[1:-1]).encode("utf-8")


def _pieces(template: str) -> Iterator[tuple[str, bool]]:
    """Texts and actions in their order, an action as (what is between its braces, True)."""
    at, trimmed = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip(_SPACE) if trimmed else text
        yield (text.rstrip(_SPACE) if match[1] else text), False
        yield match[2].strip(), True
        at, trimmed = match.end(), bool(match[3])
    rest = template[at:]
    if "{{" in rest:
        raise ValueError(f"an action that does not end: {rest[rest.index('{{') :]!r}")
    yield (rest.lstrip(_SPACE) if trimmed else rest), False


def _parsed(
    pieces: Iterator[tuple[str, bool]], defined: dict[str, tuple[_Action, ...]]
) -> tuple[tuple[_Action, ...], str]:
    """Up to the `end` or `else` that belongs to it, which is given too; empty at the end of the template."""
    actions: list[_Action] = []
    for piece, is_action in pieces:
        if not is_action:
            actions.append(_Action("text", piece))
            continue
        word = piece.partition(" ")[0]
        if word in ("end", "else"):
            return tuple(actions), piece
        if word == "define":
            name = piece.removeprefix("define").strip()
            defined[name], _ = _parsed(pieces, defined)
        elif word == "if":
            actions.append(_branch(piece, pieces, defined))
        elif word == "range":
            body, _ = _parsed(pieces, defined)
            actions.append(_Action("range", piece, body))
        elif word == "template":
            actions.append(_Action("template", piece))
        else:
            actions.append(_Action("", piece))
    return tuple(actions), ""


def _branch(piece: str, pieces: Iterator[tuple[str, bool]], defined: dict) -> _Action:
    body, end = _parsed(pieces, defined)
    otherwise: tuple[_Action, ...] = ()
    if end.startswith("else if "):
        otherwise = (_branch(end.removeprefix("else "), pieces, defined),)
    elif end == "else":
        otherwise, end = _parsed(pieces, defined)
    if not end:
        raise ValueError(f"no end of {piece!r}")
    return _Action("if", piece.removeprefix("if").strip(), body, otherwise)


class _Writing:
    """One rendering. `dot` and `names` ($i, …) change as it goes into ranges and templates."""

    def __init__(self, defined: Mapping[str, tuple[_Action, ...]], root: Any):
        self.defined, self.root = defined, root

    def all_of(self, actions: tuple[_Action, ...], dot: Any, names: Mapping[str, Any]) -> bytes:
        return b"".join(self.one(action, dot, names) for action in actions)

    def one(self, action: _Action, dot: Any, names: Mapping[str, Any]) -> bytes:
        word, argument, body, otherwise = action
        if word == "text":
            return argument.encode("utf-8")
        if word == "if":
            return self.all_of(body if self.value(argument, dot, names) else otherwise, dot, names)
        if word == "range":
            return self.each(argument, body, dot, names)
        if word == "template":
            _, name, given = argument.split(" ", 2)
            inner = self.value(given, dot, names)
            return _Writing(self.defined, inner).all_of(self.defined[name], inner, {})
        value = self.value(argument, dot, names)
        if not isinstance(value, bytes):
            raise ValueError(f"not a text: {argument!r}")
        return value

    def each(self, argument: str, body: tuple[_Action, ...], dot: Any, names: Mapping[str, Any]) -> bytes:
        match = _RANGE.fullmatch(argument)
        if match is None:
            raise ValueError(f"not a range that is known here: {argument!r}")
        index, item, listed = match.groups()
        parts = []
        for number, one in enumerate(self.value(listed, dot, names)):
            parts.append(self.all_of(body, one, {**names, index: number, item: one}))
        return b"".join(parts)

    def value(self, text: str, dot: Any, names: Mapping[str, Any]) -> Any:
        tokens = list(_TOKEN.finditer(text))
        if "".join(match[0] for match in tokens) != text.rstrip():
            raise ValueError(f"not known here: {text!r}")
        value, at = self.command(tokens, 0, dot, names)
        if at != len(tokens):
            raise ValueError(f"more than one value: {text!r}")
        return value

    def command(
        self, tokens: list[re.Match[str]], at: int, dot: Any, names: Mapping[str, Any]
    ) -> tuple[Any, int]:
        """A value, or a function and its arguments, up to a parenthesis that closes."""
        name = tokens[at][4]
        if name is None:
            return self.operand(tokens, at, dot, names)
        at += 1
        arguments = []
        # `and` and `or` stop at the argument that decides, so a later one is not refused
        decided = False
        while at < len(tokens) and tokens[at][5] != ")":
            if decided:
                at = _skipped(tokens, at)
                continue
            value, at = self.operand(tokens, at, dot, names)
            arguments.append(value)
            decided = (name == "and" and not value) or (name == "or" and bool(value))
        if name not in FUNCTIONS:
            raise ValueError(f"no function {name!r} here")
        return FUNCTIONS[name](*arguments), at

    def operand(
        self, tokens: list[re.Match[str]], at: int, dot: Any, names: Mapping[str, Any]
    ) -> tuple[Any, int]:
        text, number, field, _, parenthesis = tokens[at].groups()
        if text is not None:
            return _unquoted(text), at + 1
        if number is not None:
            return int(number), at + 1
        if field is not None:
            return self.field(field, dot, names), at + 1
        if parenthesis != "(":
            raise ValueError(f"not a value: {tokens[at][0]!r}")
        value, at = self.command(tokens, at + 1, dot, names)
        at += 1  # what closes it
        if at < len(tokens) and tokens[at][0].startswith("."):  # no space before: a field of the value
            return _part(value, tokens[at][3]), at + 1
        return value, at

    def field(self, field: str, dot: Any, names: Mapping[str, Any]) -> Any:
        if field == ".":
            return dot
        if field.startswith("."):
            return _part(dot, field)
        name, point, rest = field.partition(".")
        value = self.root if name == "$" else names[name]
        return _part(value, point + rest) if point else value


def _skipped(tokens: list[re.Match[str]], at: int) -> int:
    depth = 0
    while True:
        depth += {"(": 1, ")": -1}.get(tokens[at][5] or "", 0)
        at += 1
        followed = at < len(tokens) and tokens[at][0].startswith(".")
        if depth == 0 and not followed:
            return at


def _part(value: Any, path: str) -> Any:
    for name in path.split(".")[1:]:
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(f"no field {path!r}")
        value = value[name]
    return value.encode("utf-8") if isinstance(value, str) else value


def _equal(value: Any, *others: Any) -> bool:
    if any(type(other) is not type(value) for other in others):
        raise ValueError("incompatible types for comparison")
    return value in others


def _index(values: Any, number: int) -> Any:
    if not 0 <= number < len(values):
        raise ValueError(f"index out of range: {number}")
    return values[number]


def _slice(values: Any, begin: int = 0, end: int | None = None) -> Any:
    end = len(values) if end is None else end
    if not 0 <= begin <= end <= len(values):
        raise ValueError(f"slice out of range: {begin}, {end}")
    return values[begin:end]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: values[-1],  # of those that were looked at
    "or": lambda *values: values[-1],
    "not": lambda value: not value,
    "eq": _equal,
    "len": len,
    "index": _index,
    "slice": _slice,
}
