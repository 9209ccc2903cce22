"""The last resort: math-verify, for LaTeX that is not read here. Only what is small enough that
sympy cannot run away with it.

Its own limits are off, since they are wall clock and need the main thread; the caller's pool
has the deadline.
"""

import itertools
import re
from typing import Any

MAX_LENGTH = 160
FORGET_AFTER = 50  # pairs that sympy was asked about
_asked = itertools.count(1)
# Never asked of sympy: limits, integrals of anything but polynomials, factorials, towers of powers, numbers
# of more than 6 digits, bases, mixed numbers; nor decimals: values below 1e-15 are the same to it.
_REFUSED = re.compile(
    r"\\(?:sum|prod|iint|oint|lim|binom|Gamma|zeta|gcd|lcm|exp|log|ln|infty)|!|\*\*|\d{7}|\d_|\.\d|\^\s*\{?[^{}]{0,40}\^|"
    r"\^\s*\{?\s*-?\s*\d{3}|\d\s*\\frac|import|__|eval|exec|lambda|[;\"'`@#&]"
)

# which math-verify leaves out
_WORDS = re.compile(r"\\text|(?<![\\a-zA-Z])(?<!begin\{)(?<!end\{)(?!d[xyt]\b)[a-zA-Z]{2,}")
_LIMITS = re.compile(r"\\int\s*_\s*\{?\s*-?\d\s*\}?\s*\^\s*\{?\s*\d\s*\}?")
_POLYNOMIAL = re.compile(
    r"\\int\s*_\s*\{?\s*-?\d\s*\}?\s*\^\s*\{?\s*\d\s*\}?(?:[\d\s+*()a-z-]|\^\s*\d|\^\s*\{\s*\d\s*\}){1,40}"
)


def agrees(prediction: str, gold: str) -> bool:
    """Whether math-verify finds two spelled formulas equal; False when it must not be asked, or fails."""
    if not _may_be_asked(prediction) or not _may_be_asked(gold):
        return False
    import logging

    try:
        from math_verify import LatexExtractionConfig, parse
        from math_verify import verify as equal
    except ImportError:  # without the extra `train` a formula that is not read here equals only itself
        return False
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    _forget()
    config = [LatexExtractionConfig()]
    off: Any = None  # their own limits
    try:
        gold_values = parse(f"${gold}$", extraction_config=config, parsing_timeout=off)
        values = parse(f"${prediction}$", extraction_config=config, parsing_timeout=off)
        return bool(gold_values and values) and equal(gold_values, values, timeout_seconds=off)
    except Exception:  # whatever sympy raises, the answer was not shown to be right
        return False


def _forget() -> None:
    """Empty now and then what sympy and the parser of LaTeX keep of former formulas: the last 1,000 results
    of each of a hundred functions, and every turn of the grammar. Both grow for a million answers.
    """
    if next(_asked) % FORGET_AFTER:
        return
    from antlr4.dfa.DFA import DFA
    from latex2sympy2_extended.antlr_parser import PSLexer, PSParser
    from sympy.core.cache import clear_cache

    clear_cache()
    for grammar in (PSLexer, PSParser):
        for number, state in enumerate(grammar.atn.decisionToState):
            grammar.decisionsToDFA[number] = DFA(state, number)
    PSParser.sharedContextCache.cache.clear()


def _may_be_asked(text: str) -> bool:
    if len(text) > MAX_LENGTH or "\\" not in text or text.count("^") > 4:
        return False
    if _WORDS.search(text) or _REFUSED.search(_LIMITS.sub(r"\\int ", text)):
        return False
    return "\\int" not in text or _POLYNOMIAL.fullmatch(text) is not None
