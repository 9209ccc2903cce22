"""Notations and phrases that stand for another spelling: ]2, 3[ for (2, 3), all real numbers except 2,
the cube root of 5.
"""

import re

_BRACKETS = re.compile(r"\\[{}]|[\[\](){},;]")
_MARKED = re.compile(r"real|root|solution|empty|cbrt|cup|cap|mathbb|infinity|exist|dne", re.IGNORECASE)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_REALS = (
    r"(?:the set of )?(?:all|any|every)(?: the)? reals?(?: numbers?| values?)?"
    r"(?: (?:of|for) \$?[a-z]\$?| [a-z])?"
)
_ALL_REALS = re.compile(_REALS, re.IGNORECASE)
_ALL_BUT = re.compile(
    rf"{_REALS},? (?:except|but|other than|excluding|besides)(?: for)? (.{{1,80}})", re.IGNORECASE
)
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|(?:the )?empty set", re.IGNORECASE
)
_INFINITE = re.compile(r"(positive |plus |negative |minus )?infinity", re.IGNORECASE)
_NO_LIMIT = re.compile(r"(?:(?:the )?limit |it )?does not exist|d\.?n\.?e\.?", re.IGNORECASE)
_ROOT_OF = re.compile(
    r"(?:the )?(square|cube|fourth|fifth) root of ([^a-zA-Z]{1,40}|[a-zA-Z])", re.IGNORECASE
)
_DEGREES = {"square": 2, "cube": 3, "fourth": 4, "fifth": 5}
_HALF_LINES = [
    (
        re.compile(r"\\mathbb\s*\{?R\}?\s*(?:\^\s*\{?\s*\+\s*\}?|_\s*\{?\s*(?:\+|>\s*0)\s*\}?)"),
        r"(0,\\infty)",
    ),
    (re.compile(r"\\mathbb\s*\{?R\}?\s*(?:\^\s*\{?\s*-\s*\}?|_\s*\{?\s*(?:-|<\s*0)\s*\}?)"), r"(-\\infty,0)"),
    (re.compile(r"\\mathbb\s*\{?R\}?\s*_\s*\{\s*\\ge?\s*0\s*\}"), r"[0,\\infty)"),
]
_NAMED_ROOT = re.compile(r"(?<![\\a-zA-Z])cbrt(?![a-zA-Z])")
_OLD_ROOT = re.compile(r"\\root\s*\{?\s*(\d)\s*\}?\s*\\of(?![a-zA-Z])")
_RAISED_ROOT = re.compile(r"(^|[-+*/(,= ])\^\{(\d)\}\s*\\sqrt\s")  # ³√2
_BASES = "two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
_WRITTEN = [  # what is written in another way, and the way it is read
    (re.compile(r"(?<=[)\]]) ?(?:U|union|\\text ?\{ ?union ?\}) ?(?=[(\[])"), r" \\cup "),  # (0,1) U (2,3)
    (re.compile(r"(?<=\d) ?[xX] ?(?=10 ?\^)"), r"\\times "),  # 2.5 x 10^3
    (re.compile(r"^([A-Z]) ?(\([^()]*,[^()]*\))$"), r"\1 = \2"),  # P(3, 5)
    (re.compile(r"\( ?(?:\\text ?\{ ?mod ?\}|\\?b?mod) ?(\d+|[a-zA-Z]) ?\)"), r"\\pmod{\1}"),  # (mod 7)
    (re.compile(r" ?\( ?(?:\\text ?\{ ?for ?\})? ?([a-z] ?\\in ?\\mathbb ?\{? ?[ZNQRC] ?\}?) ?\)$"), r", \1"),
    (re.compile(r"^(\d+) to (\d+)$"), r"\1:\2"),
    (re.compile(r"(?<=frac\{)(\d{1,3}),(\d{3})(?=\})"), r"\1\2"),
    (re.compile(r"(?<=\}\{)(\d{1,3}),(\d{3})(?=\})"), r"\1\2"),
    (re.compile(r" ?\\text ?\{ ?(?:for|where|with) ?\} ?(?=[a-zA-Z] ?\\in)"), ", "),
    (
        re.compile(
            r",? ?\\text ?\{ ?(?:for|where|with) (?:any|all|every|some|each|an arbitrary)(?: real)?"
            r"(?: constants?| numbers?)? ?\} ?([a-zA-Z])$"
        ),
        r", \1 \\in \\mathbb{R}",
    ),
    (re.compile(r"\\mathbb ?\{? ?Z ?\}? ?(?:\^ ?\{? ?\+ ?\}?|_ ?\{? ?(?:\+|> ?0) ?\}?)"), r"\\mathbb{N}"),
    (re.compile(r"([a-z]) ?= ?1 ?, ?2 ?, ?(?:3 ?, ?)?\\[cl]?dots ?$"), r"\1 \\in \\mathbb{N}"),
    (re.compile(r"\\frac ?\{ ?d ?\^ ?\{? ?2 ?\}? ?([a-z]) ?\} ?\{ ?d ?[a-z] ?\^ ?\{? ?2 ?\}? ?\}"), r"\1''"),
    (re.compile(r"\b(sq|cu)\. ?(?=[a-zA-Z])"), r"\1 "),
    (re.compile(r"^(?:USD|EUR|GBP|Rs)\.? ?(?=\d)"), ""),
    (re.compile(r"^the (?=\d)", re.IGNORECASE), ""),
    (re.compile(r" ?\((?:\\text ?\{ ?)?approx(?:imately|\.)?(?: ?\})?\)$"), ""),
    (
        re.compile(r"(?<=[\d}]) ?((?:k|c|m)?m|ft|mi)/(s|h|hr|min)((?: ?\^ ?\{?2\}?)?)$"),
        r" \\text{\1/\2\3}",
    ),  # m/s^2
    (
        re.compile(r"(?<=\d) ?_? ?\{? ?\(?(?:\\text ?\{ ?)?\(?(?:in )?base[- ]?\}? ?(\w+) ?\}?\)? ?\}?$"),
        r"_{\1}",
    ),
    *[
        (re.compile(rf"(?<=\d)_ ?\{{ ?{name} ?\}}$"), f"_{{{number}}}")
        for number, name in enumerate(_BASES, 2)
    ],
]
_INEQUALITY = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]")


def plainly(spelled: str) -> str:
    """The spelled answer in the notation that is parsed; one that has no other stays as it is."""
    if "..." in spelled:
        spelled = spelled.replace("...", "\\ldots ")
    if "[" in spelled or "]" in spelled:
        spelled = _turned_brackets(spelled)
    if "root" in spelled or "sqrt" in spelled:
        spelled = _OLD_ROOT.sub(r"\\sqrt[\1]", spelled)
        spelled = _RAISED_ROOT.sub(r"\1\\sqrt[\2] ", spelled)
    if len(spelled) <= 200:
        for written, plain in _WRITTEN:
            spelled = written.sub(plain, spelled)
    if not _MARKED.search(spelled):
        return spelled
    if "cbrt" in spelled:
        spelled = _NAMED_ROOT.sub(r"\\sqrt[3]", spelled)
    if "mathbb" in spelled:
        for half_line, interval in _HALF_LINES:
            spelled = half_line.sub(interval, spelled)
    if "\\cup" in spelled or "\\cap" in spelled:
        return _joined(spelled)
    return _phrase(spelled)


def is_phrase(text: str) -> bool:
    """Whether a text of words is an answer in words: all real numbers except 2."""
    if len(text) > 200 or not _MARKED.search(text):
        return False
    said = text.strip(" .*$")
    return any(phrase.fullmatch(said) for phrase in (_ALL_REALS, _NOTHING, _ALL_BUT, _ROOT_OF))


def _phrase(spelled: str) -> str:
    """What a phrase of words alone stands for."""
    if len(spelled) > 200:
        return spelled
    said = " ".join(_TEXT.sub(r" \1 ", spelled).split())
    if _ALL_REALS.fullmatch(said):
        return r"\mathbb{R}"
    if _NOTHING.fullmatch(said):
        return r"\emptyset"
    infinite = _INFINITE.fullmatch(said)
    if infinite:
        return r"-\infty" if infinite[1] in ("negative ", "minus ") else r"\infty"
    if _NO_LIMIT.fullmatch(said):
        return r"\text{DNE}"
    but = _ALL_BUT.fullmatch(said)
    if but:
        return r"\mathbb{R}\setminus\{" + re.sub(r"^[a-z]\s*=\s*", "", but[1]) + r"\}"
    root = _ROOT_OF.fullmatch(said)
    if root:
        degree = _DEGREES[root[1].lower()]
        return rf"\sqrt[{degree}]{{{root[2]}}}"
    return spelled


def _joined(spelled: str) -> str:
    """x < 1 \\cup x > 3 joins inequalities as `or` does."""
    if not _INEQUALITY.search(spelled) or re.search(r"[(\[{]", spelled):
        return spelled
    return spelled.replace("\\cup", " \\text{or} ").replace("\\cap", " \\text{and} ")


def _turned_brackets(spelled: str) -> str:
    """]2, 3[ as (2, 3): square brackets that are turned outwards stand for open ends. As it is where they
    pair as usual, or hold anything but two ends.
    """
    square: list[tuple[int, str]] = []  # place and sign of those outside other brackets
    depth, commas = 0, 0
    for match in _BRACKETS.finditer(spelled):
        sign = match[0]
        if sign in ("[", "]"):
            if depth:
                continue
            square.append((match.start(), sign))
            if len(square) % 2 == 0:
                if commas != 1:
                    return spelled
                commas = 0
        elif sign in (",", ";"):
            commas += depth == 0
        else:
            depth += 1 if sign in ("(", "{", "\\{") else -1
    openings, closings = square[::2], square[1::2]
    if len(openings) != len(closings):
        return spelled
    turned = {place: "(" for place, sign in openings if sign == "]"}
    turned |= {place: ")" for place, sign in closings if sign == "["}
    if not turned:
        return spelled
    return "".join(turned.get(place, character) for place, character in enumerate(spelled))
