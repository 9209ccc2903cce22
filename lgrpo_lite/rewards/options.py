"""A reward's options are the keyword arguments of its function.

Its signature is the one place that names, types, bounds, defaults and documents them.

    def brief(completion_tokens, floor=5): ...          rewards: [{use: "mine.py:brief", floor: 3}]

What an `Annotated` argument carries besides its type is its bounds (`Ge(1)`) and, as a string, its meaning.
Built-in rewards and a user's own are read alike.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from lgrpo_lite.errors import ConfigError, nearest
from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.marks import shown
from lgrpo_lite.recipe.reward import REWARD_KEYS, Reward, without_defaults
from lgrpo_lite.recipe.schema import section_inside
from lgrpo_lite.rewards.form import Form, form_of, has_default, is_option

Completions = Annotated[
    Literal["text", "messages"] | None,
    "of TRL's form: answers as texts, or as chats of one message; null: messages where a template is used",
]


def schema_of(function: Callable, form: Form | None = None) -> type[Section]:
    """The options as a closed schema. An argument of a user's that says no type takes the type of its
    default; one without a default that all rewards once shared (`REWARD_KEYS`) keeps that one.
    """
    form = form or form_of(function)
    fields: dict[str, Any] = {}
    hints = _hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if is_option(name, parameter, form):
            default = parameter.default if has_default(parameter) else REWARD_KEYS.get(name, ...)
            fields[name] = (hints.get(name, _type_of(default)), default)
    if form.together:
        fields["completions"] = (Completions, None)
    return create_model("Options", __base__=_Options, **fields)


def options_of(function: Callable, reward: Reward, key: str, where: Callable[[str], str]) -> dict[str, Any]:
    """All options of the reward at `key` of the recipe (`rewards.0`), defaults included.

    One that its function does not name, or of another type: ConfigError. An argument without a default that
    is not set is no option but a column of the data.
    """
    form = form_of(function, reward.options)
    schema = schema_of(function, form)
    # what an earlier version wrote for every reward is no option of this one
    given = without_defaults(reward.options)
    named = {name: value for name, value in reward.options.items() if name in schema.model_fields}
    try:
        options = schema.model_validate(given | named)
    except ValidationError as error:
        raise _explained(error, schema, form.columns, reward, key, where) from None
    # of TRL's form what is not set stays the function's own, or a column's
    names = named if form.together else schema.model_fields
    return {name: getattr(options, name) for name in names}


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
    error: ValidationError,
    schema: type[Section],
    columns: Sequence[str],
    reward: Reward,
    key: str,
    where: Callable[[str], str],
) -> ConfigError:
    """The first fault of pydantic's report, in this project's words."""
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0])
    field = schema.model_fields.get(option)
    if section_inside(field.annotation if field else None):
        option = ".".join(str(part) for part in first["loc"])
    place = f"{key}.{option}"
    if first["type"] == "extra_forbidden" and "." not in option:
        known = [*schema.model_fields, *columns, *Reward.model_fields]
        what = f"reward {reward.use!r} reads no option {option!r}{nearest(option, known)}"
        fix = f"remove {option}, or use one of: {', '.join(known)}"
        return ConfigError(what, where=where(place), fix=fix)
    if first["type"] == "missing":
        section = place.rpartition(".")[0]
        return ConfigError(f"{place} is missing", where=where(section), fix=f"add {option}: …")
    value, message = first["input"], first["msg"].lower()
    what = f"{place}={shown(value)}: {message}"
    return ConfigError(what, where=where(place), fix="see docs/rewards.md")
