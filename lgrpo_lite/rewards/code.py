"""The reward `code`: a completion's program, run against tests in a sandbox.

Where the tests are asserts, they and the solution run in two sandboxes that exchange plain data; where they
are pairs of input and output, the solution is a program and its output is compared out here. Either way what
decides is not in the process of the solution, so it can neither read the tests nor say that they passed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.rewards.collected import read as read_collected
from lgrpo_lite.rewards.inside import NOT_PYTHON
from lgrpo_lite.rewards.leaning import Fault
from lgrpo_lite.rewards.sandbox import Kind, Limits, Sandbox, open_sandbox, run_program, run_tests
from lgrpo_lite.types import Outcome

if TYPE_CHECKING:  # pydantic is not for worker processes
    from lgrpo_lite.recipe.reward import Reward

# of `timeout` that the code may use: an endless loop is a wrong answer before it is a missing reward
SHARE = 0.75
PYTHON = ("python", "python3", "py")
WRONG, UNPARSABLE = (0.0, Outcome.wrong), (0.0, Outcome.unparsable)


@dataclass(frozen=True, slots=True)
class Pair:
    """A test of a program: text on stdin, text that it prints."""

    given: str
    printed: str


def code(
    completion: str,
    reference: str,
    *,
    sandbox: Annotated[Kind, "auto: in bubblewrap, or in docker where `image` is given"] = "auto",
    image: Annotated[str | None, "docker image with python3"] = None,
    memory_mb: Annotated[int, Ge(64), Le(2**24), "MiB a program may hold with its tests"] = 512,
    timeout: float = 5.0,
) -> tuple[float, Outcome]:
    """1 when every test passes, else 0: a share would pay for special-casing the easy ones.

    `wrong` too where the code is no Python, ends early, or takes more than 3/4 of `timeout` seconds,
    all tests together; `unparsable` where there is no code. Tests that are no good and a sandbox that
    fails raise: the reward is missing.
    """
    tests = read_tests(reference)
    text, fenced = code_in(completion)
    if not text.strip() or "\0" in text:
        return WRONG if text.strip() else UNPARSABLE
    opened = open_sandbox(sandbox, image)
    limits = Limits(SHARE * timeout, memory_mb)
    if isinstance(tests, str):
        return _asserts(opened, text, tests, limits, fenced)
    return _pairs(opened, text, tests, limits, fenced)


def missing_sandbox(rewards: Sequence["Reward"]) -> EnvironmentFault | None:
    """Why rewards that run code cannot do so here; None where they can, or there are none."""
    for reward in rewards:
        if reward.use == "code":
            options = reward.options
            try:
                open_sandbox(options.get("sandbox", "auto"), options.get("image"))
            except EnvironmentFault as fault:
                return fault
    return None


def code_in(completion: str) -> tuple[str, bool]:
    """The last block marked as Python, else the last block, else the whole text; and whether it is a block.

    A last block that is not closed counts. Linear time.
    """
    bodies, of_python = [], []
    for block in completion.split("```")[1::2]:
        info, _, body = block.partition("\n")
        bodies.append(body)
        if info.strip().lower() in PYTHON:
            of_python.append(body)
    if not bodies:
        return completion, False
    return (of_python or bodies)[-1], True


def read_tests(reference: str) -> str | list[Pair]:
    """Test code, or pairs of input and output. None at all, or pairs of another form: ValueError."""
    try:
        rows = json.loads(reference)
    except (ValueError, RecursionError):
        rows = None
    if isinstance(rows, list) and rows:
        if all(isinstance(row, str) for row in rows):
            return "\n".join(rows)
        if all(isinstance(row, dict) for row in rows):
            return [_pair(row) for row in rows]
    if rows is not None or not reference.strip():
        raise ValueError('no tests: give Python asserts, or a JSON list of {"input": …, "output": …}')
    return reference


def fault_of_tests(reference: str) -> str | None:
    """Why the tests of a row are unusable; None when they are not, or it is not seen without running."""
    try:
        tests = read_tests(reference)
        if isinstance(tests, str):
            compile(tests, "tests", "exec")  # compiled, never run
            read_collected(tests)
    except (ValueError, SyntaxError, RecursionError, MemoryError, Fault) as error:
        return str(error)
    return None


def _pair(row: dict) -> Pair:
    given, printed = row.get("input", ""), row.get("output")
    if not isinstance(given, str) or not isinstance(printed, str):
        keys = sorted(map(str, row))
        raise ValueError(f'a test with the keys {keys}: "input" and "output" are texts')
    return Pair(given, printed)


def _asserts(sandbox: Sandbox, text: str, tests: str, limits: Limits, fenced: bool) -> tuple[float, Outcome]:
    answer = run_tests(sandbox, text, tests, limits)
    verdict = json.loads(answer) if answer else {"failed": "ended"}
    if "fault" in verdict:
        raise ValueError(verdict["fault"])
    if verdict.get("passed") is True:
        return 1.0, Outcome.ok
    return UNPARSABLE if verdict.get("syntax") and not fenced else WRONG


def _pairs(
    sandbox: Sandbox, text: str, tests: list[Pair], limits: Limits, fenced: bool
) -> tuple[float, Outcome]:
    left = limits.seconds
    for test in tests:
        printed, exit_code, used = run_program(sandbox, text, test.given, Limits(left, limits.memory))
        left -= used
        if exit_code == NOT_PYTHON and not fenced:
            return UNPARSABLE
        if exit_code != 0 or left <= 0 or _plain(printed) != _plain(test.printed):
            return WRONG
    return 1.0, Outcome.ok


def _plain(text: str) -> list[str]:
    """Lines without white space at their ends and at the text's end, as judges of programs compare them."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
