"""The line between a solution and its tests, each in a sandbox of its own.

Standard library only, any Python from 3.8 on.

What goes over it is plain data, rebuilt from JSON as Python's own types, so that a result has no `__eq__`, no
frames and no globals of the other side. All else stays where it is and is spoken to by number.
"""

import builtins
import importlib
import json
import operator
import os
import types

# where this runs, these files are one text
from lgrpo_lite.rewards.values import (
    FROM_TEXT,
    FROM_VALUES,
    KNOWN,
    PLAIN,
    copied,
    is_changeable,
    known,
    replace,
)

MAX_MESSAGE = 64 << 20
QUIET = (StopIteration, StopAsyncIteration)
ORDER = ("lt", "le", "gt", "ge")
COMPARE = ("eq", *ORDER)
COMBINE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "and_", "or_", "xor")


def _on_object(function):
    return lambda o, *_: function(o)


def _awaited(coroutine):
    asyncio = importlib.import_module("asyncio")  # of no use to most, and slow to load

    async def wait():
        return await coroutine

    return asyncio.run(wait())


async def _other_sides(remote):
    """What a coroutine of the other side is here: all of it runs there while this end waits."""
    return _ask(remote, "await")


def _state(o):
    """Whether a class decides about `==` itself, and the attributes of its object."""
    attributes = dict(getattr(o, "__dict__", {}))
    for kind in type(o).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(o, name):
                attributes[name] = getattr(o, name)
    return type(o).__eq__ is not object.__eq__, attributes


ASK = {
    "call": lambda f, args, named: f(*args, **named),
    "get": lambda o, args, _: getattr(o, *args),
    "set": lambda o, args, _: setattr(o, *args),
    "item": lambda o, args, _: o[args[0]],
    "put": lambda o, args, _: operator.setitem(o, *args),
    "isinstance": lambda o, args, _: isinstance(args[0], o),
    "two": lambda o, args, _: getattr(operator, args[0])(o, args[1]),
    "await": _on_object(_awaited),
    "state": _on_object(_state),
    **{function.__name__: _on_object(function) for function in (len, iter, next, bool, str, repr)},
}


class Remote:
    """An object of the other side. It equals, and can be combined with, objects of that side only: nothing
    that it says of itself makes it equal to plain data.

    `origin`: "class" of what the tests know as a class of the solution, "made" of what they made by calling
    it, else "".
    """

    __slots__ = ("__weakref__", "_lgrpo")

    def __init__(self, peer, number, origin=""):
        object.__setattr__(self, "_lgrpo", (peer, number, origin))

    def __call__(self, *args, **named):
        result = _ask(self, "call", args, named)
        return _of_origin(result, "made") if self._lgrpo[2] == "class" else result

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        result = _ask(self, "get", (name,))
        return _of_origin(result, "class") if self._lgrpo[2] == "class" else result

    def __setattr__(self, name, value):
        _ask(self, "set", (name, value))

    def __getitem__(self, key):
        return _ask(self, "item", (key,))

    def __setitem__(self, key, value):
        _ask(self, "put", (key, value))

    def __instancecheck__(self, other):
        return isinstance(other, Remote) and bool(_ask(self, "isinstance", (other,)))

    def __len__(self):
        return _ask(self, "len")

    def __iter__(self):
        items = _ask(self, "iter")
        return items if isinstance(items, Remote) else iter(items)

    def __next__(self):
        return _ask(self, "next")

    def __bool__(self):
        return bool(_ask(self, "bool"))

    def __str__(self):
        return str(_ask(self, "str"))

    def __repr__(self):
        return str(_ask(self, "repr"))

    def __hash__(self):
        return hash(self._lgrpo[1])


def _ask(remote, op, args=(), named=None):
    peer, number, _ = remote._lgrpo
    return peer.ask(op, number, args, named or {})


def _of_origin(value, origin):
    return Remote(*value._lgrpo[:2], origin) if isinstance(value, Remote) else value


def _two(name):
    def method(self, other):
        if isinstance(other, Remote):
            if name == "eq":
                return _equal(self, other)
            if name in ORDER and not self._lgrpo[0].trusting and not _made(self, other):
                raise TypeError("the solution is not asked how to order what its functions return")
            return _ask(self, "two", (name, other))
        if name == "eq":
            return False
        what = "an object of the solution can be compared and combined with objects of the solution only"
        raise TypeError(what)

    return method


def _made(*remotes):
    return [remote for remote in remotes if remote._lgrpo[2] == "made"]


def _equal(one, other):
    """Whether two objects of the other side are equal, which that side alone does not decide.

    Without an `__eq__` of their class they are what they are. With one it is asked, and must agree with their
    attributes, which are compared here; only of two objects that the tests themselves made it is believed.
    """
    peer, number, _ = one._lgrpo
    if number == other._lgrpo[1]:
        return True
    if not peer.trusting and len(_made(one, other)) < 2:
        own, attributes = _ask(one, "state")
        others_own, others_attributes = _ask(other, "state")
        if not (own or others_own):
            return False
        said = bool(_ask(one, "two", ("eq", other)))
        if said is not (attributes == others_attributes):
            raise TypeError(f"the solution's == says {said} of two objects, and their attributes do not")
        return said
    return bool(_ask(one, "two", ("eq", other)))


for _name in (*COMPARE, *COMBINE):
    setattr(Remote, f"__{_name.rstrip('_')}__", _two(_name))


class Peer:
    """One end of the line. `trusting`: this end is the solution, which may be asked anything."""

    def __init__(self, read, write, trusting):
        self.read = read
        self.write = write
        self.trusting = trusting
        self.mine = []  # objects the other end knows, by number
        self.numbers = {}  # of them, by id
        self.raises = {}  # exception classes of the other end, by name
        self.asked = 0

    def send(self, message):
        data = json.dumps(message).encode()
        data = len(data).to_bytes(8, "big") + data
        while data:
            data = data[os.write(self.write, data) :]

    def receive(self):
        size = int.from_bytes(exactly(self.read, 8), "big")
        if size > MAX_MESSAGE:
            raise ConnectionError(f"a message of {size} bytes")
        return json.loads(exactly(self.read, size))

    def ask(self, op, number, args, named):
        """Do something with the other end's object `number`; it may ask back meanwhile."""
        self.asked += 1
        packed_named = {name: self.pack(value) for name, value in named.items()}
        packed = [self.pack(value) for value in args]
        self.send({"op": op, "on": number, "args": packed, "named": packed_named})
        while True:
            message = self.receive()
            if "op" in message:
                self.answer(message)
                continue
            if "end" in message and op == "next":
                raise StopIteration
            if "raise" in message:
                raise self.exception(message["raise"], message["args"])
            for i, changed in message.get("changed", ()):
                replace(args[i], self.unpack(changed))
            return self.unpack(message["ok"])

    def answer(self, message):
        op = message["op"]
        try:
            target = self.mine[message["on"]]
            args = [self.unpack(a) for a in message["args"]]
            named = {name: self.unpack(value) for name, value in message["named"].items()}
            if not (self.trusting or _harmless(op, target, args)):
                raise PermissionError("the tests do not tell that")
            result = ASK[op](target, args, named)
            reply = {"ok": self.pack(result)}
            if result is None and op == "call":  # only what returns nothing works on its arguments
                changeable = [i for i, a in enumerate(args) if is_changeable(a)]
                reply["changed"] = [[i, self.pack(args[i])] for i in changeable]
        except StopIteration:
            reply = {"end": True} if op == "next" else {"raise": ["RuntimeError"], "args": []}
        except BaseException as error:
            names = [c.__name__ for c in type(error).__mro__]
            try:
                reply = {"raise": names, "args": [self.pack(a) for a in error.args]}
            except Exception:
                reply = {"raise": names, "args": []}
        self.send(reply)

    def exception(self, names, args):
        """An exception of the nearest class this end knows; none that would end a loop or process quietly."""
        for name in names:
            kind = self.raises.get(name) or getattr(builtins, name, None)
            if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, QUIET):
                continue
            try:
                return kind(*[self.unpack(a) for a in args])
            except Exception:
                break
        return RuntimeError(names[:1])

    def pack(self, value):
        """As JSON: lists as they are, every other type beside numbers and text as {its letter: …}."""
        name = known(type(value))
        if name:
            return {"k": [name, *[self.pack(v) for v in KNOWN[name](value)]]}
        for kind, write in PLAIN:
            if isinstance(value, kind):
                return write(value, self.pack)
        if isinstance(value, Remote):
            return {"home": value._lgrpo[1]}
        if hasattr(type(value), "dtype") and hasattr(value, "tolist"):  # of numpy, where an image has it
            return self.pack(value.tolist())
        number = self.numbers.setdefault(id(value), len(self.mine))
        if number == len(self.mine):
            self.mine.append(value)
        return {"a": number} if isinstance(value, types.CoroutineType) else {"o": number}

    def unpack(self, value):
        if isinstance(value, list):
            return [self.unpack(v) for v in value]
        if not isinstance(value, dict):
            return value
        ((letter, inner),) = value.items()
        if letter == "o":
            return Remote(self, inner)
        if letter == "a":
            return _other_sides(Remote(self, inner))
        if letter == "k":
            return copied(inner[0], [self.unpack(v) for v in inner[1:]])
        if letter == "home":
            return self.mine[inner]
        if letter == "d":
            return {self.unpack(k): self.unpack(v) for k, v in inner}
        if letter in FROM_TEXT:
            return FROM_TEXT[letter](inner)
        values = [self.unpack(v) for v in inner]
        return FROM_VALUES[letter](values)


def _harmless(op, target, args):
    """What the solution may ask of an object the tests handed it: to be called and walked, and, of a class of
    the tests, its public attributes. Frames, globals and classes stay out of reach.
    """
    if op in ("get", "set"):
        return type(target).__module__ == "tests" and not args[0].startswith("_")
    if op == "two":
        return type(target).__module__ == "tests" and args[0] in COMPARE + COMBINE
    return op not in ("put", "state", "await")


def exactly(fd, count):
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise ConnectionError("the solution's process has ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
