"""The matrix that a tree is: written out, or negated, added, multiplied by a scalar."""

from collections.abc import Callable, Sequence

from lgrpo_lite.verifier.tree import Node

MAX_ENTRIES = 100  # of a product that is written out
MAX_POWER = 4
MAX_DETERMINANT = 4  # rows


def as_matrix(node: Node) -> Node | None:
    """The matrix a tree is, a scalar factor multiplied in."""
    kind = node[0]
    if kind == "matrix":
        return node
    if kind == "tuple":
        return _bracketed(node)
    if kind == "neg":
        inner = as_matrix(node[1])
        return inner and _entrywise(inner, lambda entry: ("neg", entry))
    if kind == "+":
        terms = [as_matrix(term) for term in node[1:]]
        matrices = [term for term in terms if term is not None]
        return _added(matrices) if len(matrices) == len(terms) else None
    if kind in ("*", "/") and len(node) == 3:
        return _scaled(node)
    if kind == "^":
        return _raised(node)
    return None


def _bracketed(node: Node) -> Node | None:
    """The matrix that [[1, 2], [3, 4]] writes in the way of programs."""
    _, opening, _, *rows = node
    if opening != "[" or any(row[:2] != ("tuple", "[") for row in rows):
        return None
    entries = tuple(row[3:] for row in rows)
    return ("matrix", entries) if len(set(map(len, entries))) == 1 else None


def as_column(node: Node) -> Node | None:
    """The column that (1, 2, 3) is as a vector."""
    return ("matrix", tuple((entry,) for entry in node[3:])) if node[:3] == ("tuple", "(", ")") else None


def _transposed(node: Node) -> Node | None:
    """The transpose of a matrix; of (1, 2, 3) the column."""
    if node[0] == "tuple":
        return as_column(node)
    matrix = as_matrix(node)
    if matrix is None or len(matrix) != 2 or len(set(map(len, matrix[1]))) != 1:
        return None
    return ("matrix", tuple(zip(*matrix[1], strict=True)))


def multiplies_transposes(node: Node) -> bool:
    """Whether matrices that have but names are multiplied in a tree, one of them transposed."""
    if node[0] == "*" and "^T" in _capitals(node) and all(_capitals(factor) for factor in node[1:]):
        return True
    return any(multiplies_transposes(child) for child in node if isinstance(child, tuple) and child)


def _capitals(node: Node) -> list[str]:
    """The capital letters in a tree, and ^T for one that is transposed."""
    if node[0] == "v":
        return [node[1]] if node[1].isupper() else []
    if node[0] == "^" and node[2] == ("v", "T"):
        return [*_capitals(node[1]), "^T"] if _capitals(node[1]) else []
    found = []
    for child in node:
        if isinstance(child, tuple) and child:
            found += _capitals(child)
    return found


def is_determinant(node: Node) -> bool:
    """Whether a tree is a square table between bars, written out."""
    if node[0] != "matrix" or len(node) != 3:
        return False
    rows = node[1]
    return len(rows) <= MAX_DETERMINANT and all(len(row) == len(rows) for row in rows)


def worked_out(node: Node) -> Node:
    """The value of a determinant, by its first row; any other node as it is."""
    return _determinant(node[1]) if is_determinant(node) else node


def _determinant(rows: Sequence[Sequence[Node]]) -> Node:
    first, *others = rows
    if not others:
        return first[0]
    terms = []
    for column, entry in enumerate(first):
        minor = [(*row[:column], *row[column + 1 :]) for row in others]
        term = ("*", entry, _determinant(minor))
        terms.append(("neg", term) if column % 2 else term)
    return ("+", *terms)


def _scaled(node: Node) -> Node | None:
    """A product or quotient of which a factor is a matrix."""
    kind, left, right = node
    matrix = as_matrix(left)
    if matrix is not None and kind == "*":
        other = as_matrix(right)
        if other is not None:
            return _multiplied(matrix, other)
    if matrix is not None:
        return _entrywise(matrix, lambda entry: (kind, entry, right))
    matrix = as_matrix(right) if kind == "*" else None
    if matrix is not None:
        return _entrywise(matrix, lambda entry: (kind, entry, left))
    return None


def _raised(node: Node) -> Node | None:
    """A small power of a matrix."""
    _, base, exponent = node
    if exponent == ("v", "T"):
        return _transposed(base)
    matrix = as_matrix(base)
    if matrix is None or exponent[0] != "n" or exponent[1] not in range(1, MAX_POWER + 1):
        return None
    power: Node | None = matrix
    for _ in range(int(exponent[1]) - 1):
        power = power and _multiplied(power, matrix)
    return power


def _multiplied(left: Node, right: Node) -> Node | None:
    """The product of two matrices, row by column; None where they do not fit, or one is a determinant."""
    _, rows, *bars = left
    _, other_rows, *other_bars = right
    if bars or other_bars or len({len(row) for row in other_rows}) != 1:
        return None
    columns = list(zip(*other_rows, strict=True))
    if any(len(row) != len(other_rows) for row in rows) or len(rows) * len(columns) > MAX_ENTRIES:
        return None
    product = []
    for row in rows:
        product.append(tuple(_dot(row, column) for column in columns))
    return ("matrix", tuple(product))


def _dot(row: Sequence[Node], column: Sequence[Node]) -> Node:
    terms = [("*", a, b) for a, b in zip(row, column, strict=True)]
    return ("+", *terms) if len(terms) > 1 else terms[0]


def _entrywise(matrix: Node, change: Callable[[Node], Node]) -> Node:
    _, rows, *bars = matrix
    changed = tuple(tuple(map(change, row)) for row in rows)
    return ("matrix", changed, *bars)


def _added(matrices: Sequence[Node]) -> Node | None:
    """The sum of matrices of one shape; None of different ones."""
    shapes = set()
    for _, rows, *bars in matrices:
        shapes.add((len(rows), *map(len, rows), *bars))
    if len(shapes) != 1:
        return None
    sums = []
    all_rows = [rows for _, rows, *_ in matrices]
    for rows in zip(*all_rows, strict=True):
        entries = zip(*rows, strict=True)
        sums.append(tuple(("+", *terms) for terms in entries))
    _, _, *bars = matrices[0]
    return ("matrix", tuple(sums), *bars)
