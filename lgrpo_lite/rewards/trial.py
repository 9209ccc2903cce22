"""Trying a reward before training on it: golds must score 1, near misses 0, labelled cases as labelled."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.rewards.part import Tally, quantile
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.types import Completion, Outcome, Prompt, Score
from lgrpo_lite.verifier.plain_numbers import as_number
from lgrpo_lite.verifier.votes import normal

SHOWN = 20  # rows of what went wrong that are listed
MAX_SHOWN = 200  # characters of a text in a report
# forms tried for a pattern
WRAPS = ("{}", "\\boxed{{{}}}", "#### {}", "The answer is {}", "<answer>{}</answer>", "({})")
NO_OPERAND = "^_,+-=({[<>"  # a sign behind one of them is no operator
NO_PROGRAMS = (
    "```python\npass\n```",
    "```python\nimport sys\nsys.exit(0)\n```",
    "```python\nimport os\nos._exit(0)\n```",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A completion and whether it is right. `where` names its row."""

    prediction: str
    gold: str
    label: bool
    where: str
    category: str = ""
    tier: str = ""
    prompt: str = ""  # the question; the gold where none is known
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of its row
    messages: tuple[tuple[str, str], ...] = ()  # the chat it is asked in


@dataclass(frozen=True, slots=True)
class Scored:
    """What the reward said of a case."""

    case: Case
    score: Score

    @property
    def passed(self) -> bool:
        """Whether it scored as it must: 1 for a right one, 0 for a wrong one. A missing reward is neither."""
        return self.score.value == (1.0 if self.case.label else 0.0)

    @property
    def ok(self) -> bool:
        """Whether the reward calls it right."""
        return self.score.outcome is Outcome.ok

    def to_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "where": case.where,
            "category": case.category,
            "tier": case.tier,
            "label": case.label,
            "prediction": case.prediction[:MAX_SHOWN],
            "gold": case.gold[:MAX_SHOWN],
            "value": self.score.value,
            "outcome": self.score.outcome.value,
        }


# ------------------------------------------------------------------------------------------- gold answers


def gold_cases(gold: str, solution: str, reward: Reward, where: str) -> tuple[list[Case], list[Case]]:
    """Right completions made of a gold answer, and near misses of it, in the form the reward reads.

    Of `code` the gold is the worked solution, and a near miss a program that does nothing.
    Without one: no right completion.
    """
    if reward.use == "code":
        right = [_fenced(solution)] if solution.strip() else []
        misses = list(NO_PROGRAMS)
    else:
        wrap = _form(reward, gold)
        right = [wrap(gold)]
        misses = [wrap(miss) for miss in near_misses(gold)]
    right_cases = [Case(text, gold, True, where) for text in right]
    miss_cases = [Case(text, gold, False, where) for text in misses]
    return right_cases, miss_cases


def _fenced(solution: str) -> str:
    return solution if "```" in solution else f"```python\n{solution}\n```"


def near_misses(gold: str) -> list[str]:
    """Answers close to the gold one: a digit changed, one more and one less, the sign, the last term lost.

    Each differs from the gold in value where that can be told, else in spelling.
    """
    number = as_number(gold)
    plain = gold.strip()
    misses = [_digit(gold)]
    if number is not None:
        if re.fullmatch(r"[-+]?\d+", plain):
            whole = int(number)
            misses += [str(whole + 1), str(whole - 1)]
        misses.append(_negated(plain))
    else:
        misses.append(_without_last(gold))
        if re.fullmatch(r"\(?[A-Y]\)?", plain):
            letter = plain.strip("()")
            misses.append(plain.replace(letter, chr(ord(letter) + 1)))
    return [miss for miss in dict.fromkeys(misses) if miss and not _same(miss, gold)]


def _same(one: str, other: str) -> bool:
    a, b = as_number(one), as_number(other)
    if a is None or b is None:
        return normal(one) == normal(other)
    return a == b


def _negated(number: str) -> str:
    if number.startswith("-"):
        return number[1:]
    return "-" + number.removeprefix("+")


def _digit(gold: str) -> str | None:
    """The last digit of the first number that is no index and no exponent, one higher; 9 becomes 0."""
    match = re.search(r"(?<![\d_^.])(?<!\^\{)(?<!_\{)\d+", gold)
    if match is None:
        return None
    end = match.end() - 1
    digit = (int(gold[end]) + 1) % 10
    return f"{gold[:end]}{digit}{gold[end + 1 :]}"


def _without_last(gold: str) -> str | None:
    """Without the last element of a list, or the last term of a sum, at the top level of brackets."""
    inner = gold.strip()
    depth = 0
    last: dict[str, int] = {}  # where the last comma and the last sign stand
    for i, character in enumerate(inner):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and _separates(inner, i):
            last["comma" if character == "," else "sign"] = i
    cut = last.get("comma", last.get("sign"))
    if cut is None or "=" in inner[cut:]:
        return None
    return inner[:cut].strip() or None


def _separates(text: str, i: int) -> bool:
    """Whether a comma or an operator stands there; a sign with nothing to operate on before it is none."""
    if i == 0 or text[i] not in ",+-":
        return False
    before = text[i - 1]
    if before != " ":
        return before not in NO_OPERAND
    return i > 1 and text[i] != "," and text[i - 2] not in NO_OPERAND


def _form(reward: Reward, gold: str) -> Callable[[str], str]:
    """How a completion states an answer so that the reward finds it."""
    pattern = reward.options.get("pattern")
    if reward.use == "regex" and pattern is not None:
        for wrap in WRAPS:
            match = re.search(pattern, wrap.format(gold))
            if match and match[1 if match.re.groups else 0] == gold:
                return wrap.format
    gsm8k = reward.options.get("extract") == "gsm8k"
    return (lambda text: f"#### {text}") if gsm8k else (lambda text: f"\\boxed{{{text}}}")


# ------------------------------------------------------------------------------------------- labelled cases


def read_cases(path: Path) -> list[Case]:
    """JSON lines of {prediction, gold, label}, optionally category, tier, prompt and what a reward asks for.

    A bad row, or none at all: DataError (file:line).
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        what, fix = f"cannot read the cases: {why}", "name a JSON lines file"
        raise DataError(what, where=str(path), fix=fix) from None
    cases = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            cases.append(_case(line, f"{path}:{number}"))
    if not cases:
        fix = 'one object a line: {"prediction", "gold", "label"}'
        raise DataError("no cases in the file", where=str(path), fix=fix)
    return cases


def _case(line: str, where: str) -> Case:
    fix = 'one object a line: {"prediction": "…", "gold": "…", "label": true or false}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, fix=fix) from None
    if not isinstance(row, dict):
        raise DataError("not a JSON object", where=where, fix=fix)
    for key in ("prediction", "gold", "label"):
        if key not in row:
            raise DataError(f"no key {key!r}", where=where, fix=fix)
    if row["label"] not in (True, False):  # 1 and 0 too
        raise DataError(f"label {row['label']!r} is neither true nor false", where=where, fix=fix)
    texts = {}
    for key in ("prediction", "gold"):  # null: a completion or an answer of nothing
        value = "" if row[key] is None else row[key]
        if key == "gold" and isinstance(value, dict):  # as data.train keeps an object
            value = json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise DataError(f"{key} is no text", where=where, fix=fix)
        texts[key] = str(value)
    return Case(
        **texts,
        label=bool(row["label"]),
        where=where,
        category=str(row.get("category", "")),
        tier=str(row.get("tier", "")),
        prompt=str(row.get("prompt") or ""),
        columns={"answer": texts["gold"], **row},  # what a recipe calls the column of golds
    )


def judged(cases: Sequence[Case], reward: RewardSum) -> tuple[list[Scored], Tally]:
    """Every case through the reward as training scores it: same worker processes, deadlines and limits; cases
    of one row, which follow each other, are answers to one prompt.
    """
    prompts: list[Prompt] = []
    answers: list[list[Completion]] = []
    for (where, gold), same in groupby(cases, key=lambda case: (case.where, case.gold)):
        of_row = list(same)
        case = of_row[0]
        given = {"columns": case.columns, "messages": case.messages}
        prompts.append(Prompt(where, case.prompt or gold, (), gold, **given))
        answers.append([Completion((), None, case.prediction, "stop", 0) for case in of_row])
    tally = Tally()
    scores = reward.scores(prompts, answers, tally=tally)
    rows = [Scored(case, score) for case, score in zip(cases, chain.from_iterable(scores), strict=True)]
    return rows, tally


def verifier(rewards: Sequence[Reward]) -> Reward:
    """The first reward alone, which says what is right."""
    return rewards[0].model_copy(update={"weight": 1.0})


# ------------------------------------------------------------------------------------------- reports


def counts(rows: Sequence[Scored]) -> dict[str, Any]:
    """Right is what the reward calls ok; a missing reward calls nothing right. `accuracy`: agreement with the
    labels.
    """
    pairs = Counter((row.case.label, row.ok) for row in rows)
    return {
        "cases": len(rows),
        "accuracy": (pairs[True, True] + pairs[False, False]) / len(rows),
        "right": pairs[True, True] + pairs[True, False],
        "false_positives": pairs[False, True],
        "false_negatives": pairs[True, False],
        "missing": sum(row.score.value is None for row in rows),
    }


def case_report(rows: Sequence[Scored], tally: Tally) -> dict[str, Any]:
    """Of all cases, by tier and by category; the first disagreements; seconds a case, CPU waits left out."""
    wrong = [row for row in rows if row.case.label != row.ok]
    by_tier = {tier: counts(group) for tier, group in _by(rows, lambda case: case.tier)}
    by_category = {name: counts(group) for name, group in _by(rows, lambda case: case.category)}
    shares = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    seconds = {name: quantile(tally.seconds, share) for name, share in shares.items()}
    return counts(rows) | {
        "seconds": seconds,
        "faults": dict(tally.faults),
        "first_fault": tally.first,
        "verifier_faults": tally.verifier_faults,
        "by_tier": by_tier,
        "by_category": by_category,
        "disagreements": [row.to_json() for row in wrong[:SHOWN]],
        "disagreements_left_out": max(0, len(wrong) - SHOWN),
    }


def gold_report(right: Sequence[Scored], misses: Sequence[Scored], tally: Tally) -> dict[str, Any]:
    """How many golds score 1 and near misses 0, and the first that do not, by row."""
    failed = [row for row in right if not row.passed]
    passed = [row for row in misses if not row.passed]  # by a reward that should not let them
    return {
        "ok": not failed and not passed,
        "golds": len(right),
        "near_misses": len(misses),
        "golds_failed": len(failed),
        "golds_shown": [row.to_json() for row in failed[:SHOWN]],
        "near_misses_failed": len(passed),
        "near_misses_shown": [row.to_json() for row in passed[:SHOWN]],
        "faults": dict(tally.faults),
        "first_fault": tally.first,
        "verifier_faults": tally.verifier_faults,
    }


def split_by_label(rows: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    right = [row for row in rows if row.case.label]
    wrong = [row for row in rows if not row.case.label]
    return right, wrong


def _by(rows: Sequence[Scored], key: Callable[[Case], str]) -> Iterator[tuple[str, list[Scored]]]:
    """(key, rows) in order of the keys; rows without one are left out."""
    groups = defaultdict(list)
    for row in rows:
        name = key(row.case)
        if name:
            groups[name].append(row)
    yield from sorted(groups.items())
