"""How values go over the line between a solution and its tests: as JSON, and as copies of their types.

Standard library only, any Python from 3.8 on. A class of the standard library is imported by the side that
reads, where its first value is read.
"""

import functools
import importlib

CHANGEABLE = (list, dict, set, bytearray)
KNOWN_CHANGEABLE = ("collections.deque", "collections.Counter", "collections.OrderedDict", "array.array")


def _whole(value, _):
    return int(value) if -(2**53) < value < 2**53 else {"i": hex(value)}


def _real(value, _):
    return float(value) if value - value == 0 else {"f": repr(float(value))}


# How plain values are written, and in this order: a bool is an int too.
PLAIN = (
    ((type(None), bool), lambda value, pack: value),
    (str, lambda value, pack: str.__str__(value)),
    (int, _whole),
    (float, _real),
    (complex, lambda value, pack: {"c": [pack(value.real), pack(value.imag)]}),
    (bytearray, lambda value, pack: {"y": value.hex()}),
    (bytes, lambda value, pack: {"b": value.hex()}),
    (list, lambda value, pack: [pack(v) for v in value]),
    (dict, lambda value, pack: {"d": [[pack(k), pack(v)] for k, v in value.items()]}),
    (tuple, lambda value, pack: {"t": [pack(v) for v in value]}),
    (set, lambda value, pack: {"s": [pack(v) for v in value]}),
    (frozenset, lambda value, pack: {"z": [pack(v) for v in value]}),
    (range, lambda value, pack: {"r": [pack(v) for v in (value.start, value.stop, value.step)]}),
)


# Values of the standard library that are copied too, by class: what makes one anew.
KNOWN = {
    "fractions.Fraction": lambda v: (v.numerator, v.denominator),
    "decimal.Decimal": lambda v: (str(v),),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
    "datetime.timezone": lambda v: (v.utcoffset(None),),
    "datetime.datetime": lambda v: (*v.timetuple()[:6], v.microsecond, _zone(v)),
    "datetime.date": lambda v: (v.year, v.month, v.day),
    "datetime.time": lambda v: (v.hour, v.minute, v.second, v.microsecond, _zone(v)),
    "collections.deque": lambda v: (list(v), v.maxlen),
    "collections.Counter": lambda v: (dict(v),),
    "collections.OrderedDict": lambda v: (list(v.items()),),
    "array.array": lambda v: (v.typecode, v.tolist()),
    "uuid.UUID": lambda v: (v.hex,),
    "pathlib.PosixPath": lambda v: (str(v),),
    "pathlib.PurePosixPath": lambda v: (str(v),),
}


def _zone(when):
    """Its distance from UTC, as a time zone that can be copied."""
    distance = when.utcoffset()
    return None if distance is None else importlib.import_module("datetime").timezone(distance)


@functools.lru_cache(maxsize=1000)
def known(kind):
    """The name in KNOWN of a class, or of one that it is made from."""
    for parent in kind.__mro__:
        name = f"{parent.__module__}.{parent.__qualname__}"
        if name in KNOWN:
            return name
    return None


# How they are read back: from a text, or from a list of values.
FROM_TEXT = {"i": lambda text: int(text, 16), "f": float, "b": bytes.fromhex, "y": bytearray.fromhex}
FROM_VALUES = {
    "t": tuple,
    "s": set,
    "z": frozenset,
    "c": lambda values: complex(*values),
    "r": lambda values: range(*values),
}


def copied(name, parts):
    """A value of KNOWN, of this side's own class."""
    if name not in KNOWN:
        raise ValueError(f"no {name!r} goes over the line")
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(module), kind)(*parts)


def is_changeable(value):
    return type(value) in CHANGEABLE or known(type(value)) in KNOWN_CHANGEABLE


def replace(old, new):
    if isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif known(type(old)) == "collections.deque":
        old.clear()
        old.extend(new)
    elif isinstance(old, (list, bytearray)) or hasattr(old, "typecode"):
        old[:] = new
