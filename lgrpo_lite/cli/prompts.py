"""Prompts as the model reads them: template applied, special tokens visible, tokens counted."""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError


def show_prompts(recipe: Any, count: int) -> None:
    """The first prompts of data.train. Loads its tokenizer and nothing else of a model. A Hub that is needed
    and out of reach: EnvironmentFault, in seconds.
    """
    from lgrpo_lite.checks.model import reach_hub
    from lgrpo_lite.cli.terminal.output import say
    from lgrpo_lite.folder.logs import log_to

    if count < 1:
        raise ConfigError(f"--show {count} shows nothing", where="command line", fix="give 1 or more")
    with tempfile.TemporaryDirectory() as folder:  # what libraries say of tokenizers is not for a terminal
        log_to(Path(folder) / "main.log")
        reach_hub(recipe)
        say(*_lines(recipe, count))


def _lines(recipe: Any, count: int) -> Iterator[str]:
    from lgrpo_lite.checks.check import wants_of
    from lgrpo_lite.data.prompts import prompt_of, read
    from lgrpo_lite.data.sound import Shown, begins, check_model, ends
    from lgrpo_lite.policy.load import generation_ends, load_tokenizer

    tokenizer = load_tokenizer(recipe.model, recipe.where("model.id"))
    check_model(recipe.data, tokenizer, recipe.where)
    whole = Shown(recipe.data, tokenizer)
    wants = wants_of(recipe, imports=False)
    shown = 0
    for i, source in enumerate(recipe.data.train):
        rows = read(source, recipe.where(f"data.train.{i}"), wants)
        for row in islice(rows, count - shown):
            shown += 1
            prompt = prompt_of(row, recipe.data, tokenizer)
            whole.check(prompt.messages, row.place)
            yield from _told(f"prompt {shown}  {row.place}", prompt, recipe, tokenizer)
    settings = generation_ends(recipe.model, recipe.where("model.id"))
    own = tokenizer.eos_token_id
    told = ends(recipe.data, tokenizer, settings | {own} - {None}, own, settings)
    for line in [*begins(recipe.data, tokenizer), *told]:
        yield f"note       {line}"


def _told(head: str, prompt, recipe, tokenizer) -> list[str]:
    """A prompt as lines: how many tokens of which kinds, then all of it."""
    ids = prompt.token_ids
    special = sum(i in tokenizer.all_special_ids for i in ids)
    most = recipe.model.max_prompt_tokens
    long = f", more than model.max_prompt_tokens={most}: left out" if len(ids) > most else ""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    lines = [f"{head}: {len(ids)} tokens, {special} of them special{long}"]
    lines += [f"  | {line}" for line in text.split("\n")]
    return [*lines, f"  [the answer begins here; gold {prompt.reference!r}]"]
