"""One spelling for answers that differ in typing only: LaTeX layout, fonts,
Unicode signs, invisible characters.

Every pass is linear in the text. Words in `\\text{}`, `\\mathrm{}` and the like keep one wrapper, `\\text{}`,
since a unit in it is no product of variables. Nothing is evaluated.
"""

# ruff: noqa: SIM905

import re
import unicodedata
from functools import lru_cache

_INVISIBLE = {"Cf", "Cc", "Cs", "Co", "Cn"}  # zero width, direction marks, controls
_SIGNS = {
    "−": "-", "–": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*",
    "÷": r"\div ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"^\circ ", "º": r"^\circ ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "′": "'",
    "’": "'", "∣": "|",
    "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "∀": r"\forall ",
    "。": ".", "，": ",", "、": ",", "；": ";", "€": "", "£": "", "¥": "", "→": r"\to ", "∧": r"\wedge ",
    "∨": r"\vee ",
}  # fmt: skip
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        (
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau"
            " upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
        ).split(),
        strict=True,
    )
)
_SAME = {  # commands that mean another one, or nothing
    **dict.fromkeys(["dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"], r"\frac"),
    **dict.fromkeys(["dbinom", "tbinom"], r"\binom"),
    **dict.fromkeys(["leq", "leqslant", "leqq"], r"\le "),
    **dict.fromkeys(["geq", "geqslant", "geqq"], r"\ge "),
    **dict.fromkeys(["neq"], r"\ne "), "gt": ">", "lt": "<", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]",
    **dict.fromkeys(["lvert", "rvert", "vert", "mid"], "|"), "colon": ":", "ast": "*", "degree": r"^\circ ",
    "cdotp": r"\cdot ",
    "varnothing": r"\emptyset ", "infin": r"\infty ", "varphi": r"\phi ", "varepsilon": r"\epsilon ",
    "land": r"\wedge ",
    "lor": r"\vee ", "backslash": r"\setminus ", "cupdot": r"\cup ", "sqcup": r"\cup ", "bigcup": r"\cup ",
    "reals": r"\mathbb{R}",
    **dict.fromkeys((
        "displaystyle textstyle scriptstyle limits nolimits nonumber left right bigl bigr Bigl Bigr biggl "
        "biggr Biggl Biggr big Big bigg Bigg middle bf rm it tt sf boldmath hfill centering qquad quad "
        "enspace thinspace negthinspace space mathbf boldsymbol bm mathit mathsf mathtt mathcal mathscr "
        "mathfrak boxed fbox bold ensuremath phantom hphantom mathstrut strut hline bigstar euro pounds"
    ).split(), " "),
    **dict.fromkeys((
        "text textbf textit textrm texttt textsf textnormal textup mathrm mbox hbox emph operatorname textsc "
        "mathop underline"
    ).split(), r"\text"),
}  # fmt: skip
_SYMBOL = {
    r"\,": "\u2009", r"\!": "\u200a", r"\;": " ", r"\:": " ", r"\>": " ", r"\ ": " ", "\\\n": " ",
    r"\%": "%", r"\$": "",
    r"\#": "#", r"\&": "&", r"\(": " ", r"\)": " ", r"\[": " ", r"\]": " ", r"\_": "_", r"\|": "|",
}  # fmt: skip
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+\*?|.)", re.DOTALL)
_ODD = re.compile(r"[^\x20-\x7e]")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile(r"[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_GROUPED = re.compile("(?<=[0-9])(,?)[\u2009\u200a][\u2009\u200a ]*(?=[0-9]{3})")  # 98\,721 and 11,\! 111
_HTML = [
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&amp;", "&"),
    ("<sup>", "^{"),
    ("</sup>", "}"),
    ("<sub>", "_{"),
    ("</sub>", "}"),
]
_BRACES = re.compile(r"\\[{}\\]|[{}]")
_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_TH = r"(?:st|nd|rd|th)"
_ORDINAL = re.compile(
    rf"(?<=\d)(?:{_TH}\b|\s?\^\s?(?:\{{\s?\\text\s?\{{{_TH}\}}\s?\}}|\\text\s?\{{{_TH}\}}|\{{{_TH}\}}))"
)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_STOP = re.compile(r"\.\s*(?=[\])}]|\\\})")  # a full stop inside the brackets


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """The ASCII or LaTeX spelling of one character that is not printable ASCII."""
    if character in _SIGNS:
        return _SIGNS[character]
    if character in _GREEK:
        return f"\\{_GREEK[character]} "
    if character.isspace():
        return " "
    if unicodedata.category(character) in _INVISIBLE:
        return ""
    folded = unicodedata.normalize("NFKC", character)
    if "⁄" in folded:
        top, bottom = folded.split("⁄", 1)
        return rf"\frac{{{top}}}{{{bottom}}}"
    return folded if folded == character else "".join(_plain(c) if not c.isascii() else c for c in folded)


# a scale is no more than a unit
_CELSIUS = re.compile(r"(\d\s*\^\\circ)\s*(?:\\text\{\s*[CF]\s*\}|[CF])(?![a-zA-Z])")


def spell(text: str) -> str:
    """The text in the one spelling; equal results mean the same answer, typed differently."""
    text = _RAISED.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]).replace("−", "-") + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + unicodedata.normalize("NFKC", m[0]).replace("−", "-") + "}", text)
    if not text.isascii() or not text.isprintable():
        text = _ODD.sub(lambda m: _plain(m[0]), text)
    if "&" in text or "<" in text:
        for old, new in _HTML:
            text = text.replace(old, new)
    text = text.replace("{,}", ",")
    if "\\" in text:
        if "begin" not in text:
            text = re.sub(r"\\\\(?=[a-zA-Z{}])", r"\\", text)  # escaped twice
        text = _COLOR.sub(" ", text)
        text = _COMMAND.sub(_command, text.replace("^{\\circ}", "^\\circ ").replace("\\not=", "\\ne "))
        text = re.sub("[\u2009\u200a]+", " ", _GROUPED.sub(r"\1", text))
    text = _ORDINAL.sub("", _CELSIUS.sub(r"\1", text))
    text = text.replace("$", " ").replace("~", " ").replace("!=", "\\ne ")
    text = _STOP.sub("", " ".join(text.split()))
    return _ends(text)


def _command(match: re.Match[str]) -> str:
    found = match[0]
    if found in _SYMBOL:
        return _SYMBOL[found]
    name = found[1:].rstrip("*")
    same = _SAME.get(name)
    return found if same is None else same


def _ends(text: str) -> str:
    """Without what closes a sentence, and without braces around the whole."""
    for _ in range(8):
        before = text
        text = text.strip("*` ").rstrip(".,;:").rstrip()
        if text.startswith("\\text") and (found := _TEXT.fullmatch(text)):
            text = "\\text{" + found[1].strip().rstrip(".,;:").strip() + "}"
        text = _unwrapped(text.rstrip("\\").rstrip() if not text.endswith("\\}") else text)
        if text == before:
            break
    return text


def _unwrapped(text: str) -> str:
    """Without the braces that enclose all of it."""
    around = min(len(text) - len(text.lstrip("{")), len(text) - len(text.rstrip("}")))
    if not around or text.endswith("\\}"):
        return text
    inner = text[around:-around]
    depth = least = 0
    for sign in _BRACES.findall(inner):
        depth += (sign == "{") - (sign == "}")
        least = min(least, depth)
    kept = -least if depth == 0 else around
    return "{" * kept + inner + "}" * kept


def words(spelled: str) -> str:
    """A spelled answer as bare text: no wrappers, no spaces, no case;
    what answers in words are compared by.
    """
    text = _TEXT.sub(r" \1 ", spelled).replace("{", "").replace("}", "").lower()
    text = re.sub(r"^(?:the|an?)\s+", "", text.strip().strip("\"'`*_"))
    return re.sub(r"[\s\"'`*_\\~]+", "", text).strip(".,;:!?").replace("-", "")
