"""A reward's options are the keyword arguments of its function.

Its signature is the one place that names, types, bounds, defaults and documents them.

    def brief(completion_tokens, floor=5): ...          rewards: [{use: "mine.py:brief", floor: 3}]

What an `Annotated` argument carries besides its type is its bounds (`Ge(1)`) and, as a string, its meaning.
Built-in rewards and a user's own are read alike.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from lgrpo_lite.errors import ConfigError, nearest
from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.marks import shown
from lgrpo_lite.recipe.reward import REWARD_KEYS, Reward, without_defaults
from lgrpo_lite.recipe.schema import section_inside

ROLLOUT = (  # what a reward may name of an answer
    "completion", "completion_tokens", "finish_reason", "prompt", "reference", "rubric",
)  # fmt: skip
LIMIT = "timeout"  # a key of every reward, which its function may name too


def arguments_of(function: Callable) -> list[str]:
    """What the function is given of an answer."""
    named = set(inspect.signature(function).parameters)
    return sorted(named & set(ROLLOUT))


def schema_of(function: Callable) -> type[Section]:
    """The options as a closed schema. An argument of a user's that says no type takes the type of its
    default; one without a default that all rewards once shared (`REWARD_KEYS`) keeps that one.
    """
    fields: dict[str, Any] = {}
    hints = _hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        spread = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        has_default = parameter.default is not parameter.empty
        private = name.startswith("_") and has_default  # a memo, say
        if spread or private or name in (*ROLLOUT, LIMIT):
            continue
        default = parameter.default if has_default else REWARD_KEYS.get(name, ...)
        fields[name] = (hints.get(name, _type_of(default)), default)
    return create_model("Options", __base__=_Options, **fields)


def options_of(function: Callable, reward: Reward, key: str, where: Callable[[str], str]) -> dict[str, Any]:
    """All options of the reward at `key` of the recipe (`rewards.0`), defaults included.

    One that its function does not name, that it needs, or of another type: ConfigError.
    """
    schema = schema_of(function)
    # what an earlier version wrote for every reward is no option of this one
    given = without_defaults(reward.options)
    named = {name: value for name, value in reward.options.items() if name in schema.model_fields}
    try:
        options = schema.model_validate(given | named)
    except ValidationError as error:
        raise _explained(error, schema, reward, key, where) from None
    return {name: getattr(options, name) for name in schema.model_fields}


def documented(function: Callable) -> Iterator[tuple[str, Any, Any, str]]:
    """(name, type, default, meaning) of each option."""
    for name, field in schema_of(function).model_fields.items():
        meanings = [text for text in field.metadata if isinstance(text, str)]
        meaning = meanings[0] if meanings else ""
        default = ... if field.is_required() else field.default
        yield name, field.annotation, default, meaning


class _Options(Section):
    model_config = ConfigDict(arbitrary_types_allowed=True)  # a user's function may name any type


def _hints(function: Callable) -> dict[str, Any]:
    """Types of the arguments; none of a function whose annotations name what is not there when it runs."""
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _type_of(default: Any) -> Any:
    if isinstance(default, bool | str):
        return type(default)
    return int | float if isinstance(default, int | float) else Any


def _explained(
    error: ValidationError, schema: type[Section], reward: Reward, key: str, where: Callable[[str], str]
) -> ConfigError:
    """The first fault of pydantic's report, in this project's words."""
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0])
    field = schema.model_fields.get(option)
    if section_inside(field.annotation if field else None):
        option = ".".join(str(part) for part in first["loc"])
    place = f"{key}.{option}"
    if first["type"] == "extra_forbidden" and "." not in option:
        known = [*schema.model_fields, *Reward.model_fields]
        what = f"reward {reward.use!r} reads no option {option!r}{nearest(option, known)}"
        fix = f"remove {option}, or use one of: {', '.join(known)}"
        return ConfigError(what, where=where(place), fix=fix)
    if first["type"] == "missing" and "." not in option:
        what = f"reward {reward.use!r} asks for {option}"
        fix = f"set {option} beside `use`; of an answer a reward may name {', '.join(ROLLOUT)}"
        return ConfigError(what, where=where(f"{key}.use"), fix=fix)
    if first["type"] == "missing":
        section = place.rpartition(".")[0]
        return ConfigError(f"{place} is missing", where=where(section), fix=f"add {option}: …")
    value, message = first["input"], first["msg"].lower()
    what = f"{place}={shown(value)}: {message}"
    return ConfigError(what, where=where(place), fix="see docs/rewards.md")
