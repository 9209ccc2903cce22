"""One spelling for answers that differ in typing only: LaTeX layout, fonts,
Unicode signs, invisible characters.

Every pass is linear in the text. Words in `\\text{}`, `\\mathrm{}` and the like keep one wrapper, `\\text{}`,
since a unit in it is no product of variables. Nothing is evaluated.
"""

# ruff: noqa: SIM905

import re
import unicodedata
from functools import lru_cache

from lgrpo_lite.verifier.repeating import repeated

_INVISIBLE = {"Cf", "Cc", "Cs", "Co", "Cn"}  # zero width, direction marks, controls
_SIGNS = {
    "⁄": "/", "−": "-", "–": "-", "﹣": "-", "±": r"\pm ", "∓": r"\mp ",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": r"\div ",
    "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ",
    "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
    "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "∀": r"\forall ", "→": r"\to ", "∧": r"\wedge ", "∨": r"\vee ", "∣": "|",
    "ħ": r"\hbar ", "′": "'", "’": "'", "。": ".", "，": ",", "、": ",", "；": ";",
    "€": "", "£": "", "¥": "", "₹": "", "₩": "", "¢": r"\text{ cents}",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
).split()
_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", _GREEK_NAMES, strict=True))
_LAYOUT = (
    "displaystyle textstyle scriptstyle limits nolimits nonumber left right bigl bigr Bigl Bigr biggl "
    "biggr Biggl Biggr big Big bigg Bigg middle bf rm it tt sf boldmath hfill centering qquad quad enspace "
    "thinspace negthinspace space Large LARGE large Huge huge small normalsize "
    "mathbf boldsymbol bm mathit mathsf mathtt mathcal mathscr mathfrak boxed "
    "fbox bold ensuremath mathstrut strut hline bigstar euro pounds"
).split()
_WORDS = (
    "text textbf textit textrm texttt textsf textnormal textup mathrm mbox hbox emph operatorname textsc "
    "mathop underline"
).split()
_SAME = {  # commands that mean another one, or nothing
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "sfrac": r"\frac", "nicefrac": r"\frac",
    "dbinom": r"\binom", "tbinom": r"\binom",
    "leq": r"\le ", "leqslant": r"\le ", "leqq": r"\le ", "lt": "<",
    "geq": r"\ge ", "geqslant": r"\ge ", "geqq": r"\ge ", "gt": ">",
    "neq": r"\ne ",
    "R": r"\mathbb{R}", "Reals": r"\mathbb{R}", "cbrt": r"\sqrt[3]",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "colon": ":", "ast": "*", "cdotp": r"\cdot ", "degree": r"^\circ ",
    "varnothing": r"\emptyset ", "infin": r"\infty ", "reals": r"\mathbb{R}",
    "varphi": r"\phi ", "varepsilon": r"\epsilon ",
    "land": r"\wedge ", "lor": r"\vee ",
    "top": "T", "intercal": "T",
    "backslash": r"\setminus ", "cupdot": r"\cup ", "sqcup": r"\cup ", "bigcup": r"\cup ",
    **dict.fromkeys(_LAYOUT, " "),
    **dict.fromkeys(_WORDS, r"\text"),
}  # fmt: skip
_SYMBOL = {
    r"\,": "\u2009", r"\!": "\u200a",
    r"\;": " ", r"\:": " ", r"\>": " ", r"\ ": " ", "\\\n": " ",
    r"\(": " ", r"\)": " ", r"\[": " ", r"\]": " ",
    r"\%": "%", r"\$": "", r"\#": "#", r"\&": "&", r"\_": "_", r"\|": "|",
}  # fmt: skip
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+\*?|.)", re.DOTALL)
_ODD = re.compile(r"[^\x20-\x7e]")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile(r"[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_GROUPED = re.compile(
    "(?<=[0-9])(?:,\u200a|(,?)[\u2009\u200a])[\u2009\u200a ]*(?=[0-9]{3})"
)  # 98\,721, 11,\!111
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
_UNSEEN = re.compile(  # brackets without a sign, colours, gaps as wide as what they hold, environments
    r"\\(?:left|right)\s*\.(?!\d)|\\(?:(?:text)?color|[hv]?phantom)\s*\{[^{}]*\}|"
    r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|gathered|displaymath|math|center)\*?\}"
)
_EMPTY = re.compile(r"(?<![\\a-zA-Z}\]^_])\{\s*\}")
_TWICE = re.compile(r"\\text\s*\{\s*(\\text\s*\{[^{}]*\})\s*\}")
_TH = r"(?:st|nd|rd|th)"
_FORMULA_AS_TEXT = re.compile(r"\\text\s*(?=\{\s*\\(?:frac|sqrt|pi)(?![a-zA-Z]))")  # \mathrm{\frac{3}{8}}
_ROW_GAP = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")  # \\[4pt]
_BOLD_DOMAIN = re.compile(r"(?<=\\in) ?\\(?:mathbf|boldsymbol|bm|mathrm) ?\{? ?([ZNQRC]) ?\}?")
_MODULE = re.compile(r"(?<![\w\\.])(?:np|numpy|math|sp|sympy)\.(?=[a-z])")  # np.arcsin
_HALF_OF_DAY = re.compile(r"(?<=[\d{ ])([ap])\. ?m(?:\.|\b)", re.IGNORECASE)
_ORDINAL = re.compile(
    rf"(?<=\d)(?:{_TH}\b|\s?\^\s?(?:\{{\s?\\text\s?\{{{_TH}\}}\s?\}}|\\text\s?\{{{_TH}\}}|\{{{_TH}\}}))"
)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_TRAILS_OFF = re.compile(r"(?:(?<![\d.])\d+|,) ?\.\.\.$")  # 7... is no 7, and 1, 2, ... not 1, 2
MAX_MISSING = 2  # braces that a text cut off a little early lacks
MAX_BUILDER = 200  # characters
_BUILDER = re.compile(
    r"\{ ?[a-z](?: ?\\in [^{}|:]{1,20}(?:\{R\})?)? ?[|:][^{}]*(?:[<>]|\\(?:le|ge|ne|in)\b)[^{}]*\}"
)  # {x : x > 2}
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
    if folded == character:
        return character
    return "".join(part if part.isascii() else _plain(part) for part in folded)


# a scale is no more than a unit
_CELSIUS = re.compile(r"(\d\s*\^\\circ)\s*(?:\\text\{\s*[CF]\s*\}|[CF])(?![a-zA-Z])")


_PERCENT = re.compile(
    r"(?<=[\d})]) ?(?:\\text ?\{ ?)?(?:per ?cents?|pct|percentage(?: points?)?)\b\.?(?: ?\})?", re.IGNORECASE
)


def spell(text: str) -> str:
    """The text in the one spelling; equal results mean the same answer, typed differently."""
    text = _RAISED.sub(lambda match: "^{" + _level(match[0]) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + _level(match[0]) + "}", text)
    if not text.isascii() or not text.isprintable():
        text = _ODD.sub(lambda m: _plain(m[0]), text)
    if "&" in text or "<" in text:
        for old, new in _HTML:
            text = text.replace(old, new)
    text = text.replace("{,}", ",").replace("{:}", ":")
    text = _EMPTY.sub("", text)
    if "\\" in text:
        if "begin" not in text:
            text = re.sub(r"\\\\(?=[a-zA-Z{}])", r"\\", text)  # escaped twice
        text = _ROW_GAP.sub(" ", text)
        text = _BOLD_DOMAIN.sub(r"\\mathbb{\1}", text)
        text = _UNSEEN.sub(" ", text)
        text = text.replace("^{\\circ}", "^\\circ ").replace("\\not=", "\\ne ")
        text = _COMMAND.sub(_command, text)
        text = _TWICE.sub(r"\1", text)
        text = _FORMULA_AS_TEXT.sub("", text)
        text = _GROUPED.sub(lambda match: match[1] or "", text)
        text = re.sub("[\u2009\u200a]+", " ", text)
    text = _CELSIUS.sub(r"\1", text)
    text = _ORDINAL.sub("", text)
    text = text.replace("$", " ").replace("~", " ").replace("!=", "\\ne ").replace("+/-", "\\pm ")
    if "." in text:
        text = repeated(_MODULE.sub("", text))
        text = _HALF_OF_DAY.sub(lambda match: f"{match[1].lower()}m", text)
    text = " ".join(text.split())
    if "p" in text or "P" in text:
        text = _PERCENT.sub("%", text)
    text = _STOP.sub("", text)
    if len(text) <= MAX_BUILDER and _BUILDER.fullmatch(text):
        text = f"\\{text[:-1]}\\}}"
    missing = text.count("{") - text.count("}")
    if 0 < missing <= MAX_MISSING and "\\{" not in text:
        text += "}" * missing
    return _without_ends(text)


def _level(raised: str) -> str:
    """Raised or lowered digits as ordinary ones."""
    return unicodedata.normalize("NFKC", raised).replace("−", "-")


def _command(match: re.Match[str]) -> str:
    command = match[0]
    if command in _SYMBOL:
        return _SYMBOL[command]
    name = command[1:].rstrip("*")
    return _SAME.get(name, command)


def _without_ends(text: str) -> str:
    """Without what closes a sentence, and without braces around the whole."""
    for _ in range(8):
        before = text
        text = text.strip("*` ")
        if not _TRAILS_OFF.search(text):
            text = text.rstrip(".,;:").rstrip()
        wrapped = _TEXT.fullmatch(text)
        if wrapped:
            inner = wrapped[1].strip().rstrip(".,;:").strip()
            text = "\\text{" + inner + "}"
        if not text.endswith("\\}"):
            text = text.rstrip("\\").rstrip()
        text = _unwrapped(text)
        if text == before:
            break
    return text


def _unwrapped(text: str) -> str:
    """Without the braces that enclose all of it."""
    opening = len(text) - len(text.lstrip("{"))
    closing = len(text) - len(text.rstrip("}"))
    around = min(opening, closing)
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
    """A spelled answer as bare text: no wrappers, no spaces, no case; what words are compared by."""
    text = _TEXT.sub(r" \1 ", spelled)
    text = text.replace("{", "").replace("}", "").lower()
    text = text.strip().strip("\"'`*_")
    text = re.sub(r"^(?:the|an?)\s+", "", text)
    text = re.sub(r"[\s\"'`*_\\~]+", "", text)
    return text.strip(".,;:!?").replace("-", "")
