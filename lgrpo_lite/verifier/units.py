"""Units of measure: which words are one, and how many of the basic unit they hold."""

# ruff: noqa: SIM905

import re
from fractions import Fraction

_TABLE = {
    "length": {
        "nm": "1/1000000000", "mm": "1/1000", "millimeter": "1/1000",
        "cm": "1/100", "centimeter": "1/100", "dm": "1/10",
        "m": "1", "meter": "1", "km": "1000", "kilometer": "1000",
        "in": "127/5000", "inch": "127/5000", "inches": "127/5000",
        "ft": "381/1250", "foot": "381/1250", "feet": "381/1250",
        "yd": "1143/1250", "yard": "1143/1250",
        "mi": "1609344/1000", "mile": "1609344/1000",
    },
    "mass": {
        "mg": "1/1000", "g": "1", "gram": "1", "kg": "1000", "kilogram": "1000",
        "lb": "45359237/100000", "pound": "45359237/100000",
        "ton": "1000000", "tonne": "1000000",
    },
    "time": {
        "ms": "1/1000", "s": "1", "sec": "1", "second": "1", "min": "60", "minute": "60",
        "h": "3600", "hr": "3600", "hour": "3600", "day": "86400", "week": "604800",
    },
    "money": {"cent": "1/100", "dollar": "1", "usd": "1", "buck": "1"},
    "volume": {
        "ml": "1/1000", "mL": "1/1000", "milliliter": "1/1000",
        "l": "1", "L": "1", "liter": "1", "litre": "1",
    },
    "angle": {"degree": "1", "deg": "1", "^circ": "1"},
}  # fmt: skip
_OTHER = (
    "am pm AM PM unit units year years month months mph kph kmh rad radian radians hz Hz W kW V A K J N Pa C"
    " F eV mol M erg dyne cal kcal people person apples miles hours minutes seconds days dollars cents bucks"
    " pounds points sq cubic square cups students marbles books coins pages weeks meters metres"
).split()
MULTIPLES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_VALUES = {name: (kind, Fraction(size)) for kind, sizes in _TABLE.items() for name, size in sizes.items()}
_PLURALS = [f"{name}s" for name in _VALUES if len(name) > 2]
KNOWN = frozenset([*_VALUES, *_PLURALS, *_OTHER])
_NO_UNIT = re.compile(
    r"(?:^|(?<!\^)\s)\.?\d|"  # another number
    r"^(?:squared|cubed|factorial|choose)\b|"  # 7 squared is 49, and 7 meters squared an area
    r"\b(?:tenths|doubled|tripled|halved|reversed|negated|inverse|inverted|score|below|"
    r"or|and|not|no|if|when|where|for|all|more|less|times|than|at|most|least|only|but|is|are|any|every|with|plus|minus|"
    r"mod|divided|half|over|integer|integers|real|odd|even|positive|negative|except|because|since|wrong|solution|solutions|import|exec|eval|print|return|lambda|select|drop|sudo|exit|quit|echo)\b",
    re.IGNORECASE,
)


_WORDED_POWER = re.compile(r"(square|sq|cubic|cu)\.? (\w+)")


def multiple(unit: str) -> tuple[int, str]:
    """What a word like `million` multiplies by, and the unit after it."""
    first, _, rest = unit.partition(" ")
    size = MULTIPLES.get(first.lower())
    return (1, unit) if size is None else (size, rest)


def is_unit(words: str) -> bool:
    """Whether words after a number may name what was counted: at most five, none of which changes
    the number.
    """
    if len(words) > 80 or len(words.split()) > 5:
        return False
    return not _NO_UNIT.search(words)


def _basic(unit: str) -> tuple[str, Fraction]:
    worded = _WORDED_POWER.fullmatch(unit)
    if worded:
        unit = f"{worded[2]}^{2 if worded[1].startswith('sq') else 3}"
    name = re.sub(r"[\s.{}]+", "", unit)
    base, _, power = name.partition("^")
    lower = base.lower()
    for spelled in (base, base.removesuffix("s"), lower, lower.removesuffix("s")):
        if spelled in _VALUES:
            kind, size = _VALUES[spelled]
            if power in ("2", "3"):
                return kind + power, size ** int(power)
            return kind, size
    return name.lower().removesuffix("s"), Fraction(1)


def factor(unit: str, other: str) -> Fraction | None:
    """How many of `other` one `unit` is; None when they measure different things. cm, m: 1/100."""
    kind, size = _basic(unit)
    other_kind, other_size = _basic(other)
    return size / other_size if kind == other_kind else None
