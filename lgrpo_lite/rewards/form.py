"""How a reward's function is called, read off its signature: answer by answer, or as TRL calls its own."""

import inspect
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe.reward import REWARD_KEYS

ROLLOUT = (  # what a reward may name of an answer
    "completion", "completion_tokens", "finish_reason", "prompt", "reference", "rubric",
)  # fmt: skip
LIMIT = "timeout"  # a key of every reward, which its function may name too
TOGETHER = ("completions", "prompts", "completion_ids")  # of TRL's form, a list each; the first one tells it
TRAINER = ("trainer_state", "log_extra", "log_metric", "environments")  # TRL's own, which nothing here has


@dataclass(frozen=True, slots=True)
class Form:
    """`together`: all answers to a prompt in one call, which returns as many rewards (TRL's form)."""

    wanted: tuple[str, ...]  # of an answer, or of the answers
    columns: tuple[str, ...]  # of the row, which must be there
    more: tuple[str, ...] = ()  # of the row where it has them; the function has defaults
    rest: bool = False  # every other column too, as its **kwargs
    together: bool = False


def form_of(function: Callable, set_: Container[str] = ()) -> Form:
    """`set_`: options that the recipe gives. Any other argument without a default is a column."""
    parameters = inspect.signature(function).parameters
    if TOGETHER[0] in parameters and "completion" not in parameters:
        return _together(function, set_)
    wanted = sorted(set(parameters) & set(ROLLOUT))
    rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    columns = []
    for name, parameter in _named(function):
        option = has_default(parameter) or name in REWARD_KEYS or name in set_
        if not option and name not in (*ROLLOUT, LIMIT):
            columns.append(name)
    return Form(tuple(wanted), tuple(columns), rest=rest)


def is_option(name: str, parameter: inspect.Parameter, form: Form) -> bool:
    """Whether a recipe may set it beside `use`."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    if form.together and name in TRAINER:
        return False
    private = name.startswith("_") and has_default(parameter)  # a memo, say
    return not private and name not in (*ROLLOUT, LIMIT, *TOGETHER, *form.columns)


def has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def reserved_by(function: Callable, form: Form) -> tuple[str, ...]:
    """Names that mean something else to it than a column of that name would."""
    names = list(form.wanted)
    for name, parameter in _named(function):
        shared = name in REWARD_KEYS and not has_default(parameter) and not form.together
        if shared or name == LIMIT:
            names.append(name)
    return tuple(names)


def refuse_other(function: Callable, use: str, where: str) -> None:
    """A class, or an argument of TRL's form that only TRL's trainer could give: ConfigError."""
    if inspect.isclass(function):
        name = function.__name__
        what = f"reward {use!r} is a class, and a call of it would make an object and no reward"
        raise ConfigError(what, where=where, fix=f"write `score = {name}(…)` into the file, and name score")
    if TOGETHER[0] not in inspect.signature(function).parameters:
        return
    for name, parameter in _named(function):
        if name in TRAINER and not has_default(parameter):
            what = f"reward {use!r} asks for {name}, which is a part of TRL's trainer"
            raise ConfigError(what, where=where, fix=f"give it a default: {name}=None")


def _together(function: Callable, set_: Container[str]) -> Form:
    wanted, columns, more = [], [], []
    rest = False
    for name, parameter in inspect.signature(function).parameters.items():
        if name in TOGETHER:
            wanted.append(name)
        elif parameter.kind is parameter.VAR_KEYWORD:
            rest = True
        elif parameter.kind is parameter.VAR_POSITIONAL or name in set_ or name in (*TRAINER, LIMIT):
            continue
        else:
            (more if has_default(parameter) else columns).append(name)
    if rest:
        wanted = list(TOGETHER)
    return Form(tuple(wanted), tuple(columns), tuple(more), rest, together=True)


def _named(function: Callable) -> Iterator[tuple[str, inspect.Parameter]]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield name, parameter
