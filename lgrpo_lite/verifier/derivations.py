"""Where a derivation in rows ends: 2x &= 8 \\\\ x &= 4."""

import re

_ROWS = re.compile(
    r"\\begin\{((?:align|gather|eqnarray|split)(?:ed)?)\*?\}((?:(?!\\begin).){1,2000}?)\\end\{\1\*?\}\W*$",
    re.DOTALL,
)
_NEW_ROW = re.compile(r"\\\\(?:\[[^\]]{0,9}\])?")


def derived(text: str) -> str | None:
    """The last row of a derivation that ends a text, where it goes on from the rows above: it begins with an
    equals sign, or tells the unknown that they all hold. None of a system, and of anything else.
    """
    match = _ROWS.search(text[-4000:])
    if match is None:
        return None
    rows = [row.replace("&", "").strip(" \n,.") for row in _NEW_ROW.split(match[2])]
    *above, last = [row for row in rows if row]
    name, _, value = last.partition("=")
    if not above or not value:
        return None
    name = name.strip()
    if not name:
        return value.rpartition("=")[2].strip()
    one_unknown = len(name) == 1 and all(
        re.search(rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z])", row) for row in above
    )
    return last if one_unknown and name.isalpha() else None
