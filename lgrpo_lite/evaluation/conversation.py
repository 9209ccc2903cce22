"""A conversation with a policy: what it reads, its answers as they come, how far training moved each of their
tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.data.prompts import prompt_of
from lgrpo_lite.data.rows import Row
from lgrpo_lite.data.sound import Shown, check_model
from lgrpo_lite.data.template import Messages, question_of
from lgrpo_lite.engines.base import SamplingParams, sampling_of
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.errors import DataError
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.memory import room_told
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

WHERE = "chat"  # of its errors
BROKEN = "\ufffd"  # what a decoder gives for the first bytes of a character


def opened(recipe: Recipe, folder: Path) -> Policy:
    """The policy at a checkpoint, to be talked to. What loading raises; a template that loses the question,
    or none: DataError; no room: OutOfMemory.
    """
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    with room_told("the policy", WHERE, "free memory, or talk to it where more of it is"):
        policy = Policy.load(recipe)
        checkpoint.load(folder, policy)
    check_model(recipe.data, policy.tokenizer, recipe.where)
    return policy


@dataclass(frozen=True, slots=True)
class Question:
    """What a policy is asked next."""

    prompt: Prompt
    sampling: SamplingParams
    turns: Messages  # of the conversation that it reads, the question last
    forgotten: int  # turns before those, for which the model's window has no room


class Conversation:
    """Questions and the answers that were kept, read through the template of a recipe: its system text, its
    examples and the beginning of its answers as in training.

    Answers are sampled as by the recipe's evaluation. One follows from the seed, from how many questions came
    before it and from what the model reads.
    """

    def __init__(self, policy: Policy, sampler: TransformersSampler, recipe: Recipe, *, seed: int):
        self.policy = policy
        self.sampler = sampler
        self.data = recipe.data
        self.sampling = sampling_of(recipe, recipe.eval.temperature)
        self.seed = seed
        self.turns: Messages = ()
        self.asked = 0
        # tokens of a sequence; None: the model names no limit
        self.window: int | None = getattr(
            policy.base.config.get_text_config(), "max_position_embeddings", None
        )
        self._shown = Shown(self.data, policy.tokenizer)

    @property
    def system(self) -> str | None:
        return self.data.system

    def instruct(self, text: str | None) -> None:
        """The system text from now on; None: none. A template that does not show it: DataError, and it stays
        as it was.
        """
        data = self.data.model_copy(update={"system": text})
        check_model(data, self.policy.tokenizer, str)
        self.data = data
        self._shown = Shown(data, self.policy.tokenizer)

    def reset(self) -> None:
        """Nothing was said; the system text stays."""
        self.turns = ()

    def question(self, text: str) -> Question:
        """The next question behind as much of the conversation as the model's window has room for, whole
        questions with their answers. A template that refuses or loses a turn, or a question that alone is
        longer than the window: DataError.
        """
        turns = (*self.turns, ("user", text))
        prompt = self._prompt(turns)
        wanted = self.sampling.max_new_tokens
        while len(turns) > 1 and self._room(prompt) < self._reserved(wanted):
            turns = turns[2:]
            prompt = self._prompt(turns)
        room = min(wanted, self._room(prompt))
        if room < 1:
            what = f"the question takes {len(prompt.token_ids)} tokens, and the model reads {self.window}"
            raise DataError(what, where=WHERE, fix="ask a shorter one")
        forgotten = len(self.turns) + 1 - len(turns)
        return Question(prompt, replace(self.sampling, max_new_tokens=room), turns, forgotten)

    def _room(self, prompt: Prompt) -> int:
        """Tokens that an answer may have."""
        return (self.window or 2**62) - len(prompt.token_ids)

    def _reserved(self, wanted: int) -> int:
        """Tokens kept free for an answer: those it may have, but not more than half of the window."""
        return min(wanted, (self.window or 2**62) // 2)

    def _prompt(self, turns: Messages) -> Prompt:
        row = Row(f"chat-{self.asked}", question_of(turns), "", messages=turns)
        prompt = prompt_of(row, self.data, self.policy.tokenizer)
        self._shown.check(prompt.messages, WHERE)
        return prompt

    def answer(
        self,
        question: Question,
        show: Callable[[str], None],
        enough: Callable[[], bool],
        *,
        base: bool = False,
    ) -> Completion:
        """The answer of the policy, or of its base; the conversation stays as it is.

        `show` is given the text as it grows. `enough` is asked after every token; where it holds, that was
        the last one.
        """
        torch.manual_seed((self.seed + 1) * 1_000_003 + self.asked)
        hidden = () if question.sampling.stop_shown else question.sampling.stop
        growing = Growing(self._decode, question.prompt.prefill, hidden)
        show(growing.text)

        def heard(token: int) -> bool:
            show(growing.add(token))
            return enough()

        asking = self.policy.reference() if base else nullcontext()
        fix = "/reset, a shorter question, or a smaller --max-new-tokens"
        with asking, room_told("the answer", WHERE, fix):
            completion = self.sampler.answer(question.prompt, question.sampling, heard)
        show(completion.text[len(growing.text) :])
        return completion

    def keep(self, question: Question, answer: Completion) -> None:
        """Question and answer belong to what is read next."""
        self.turns = (*question.turns, ("assistant", answer.text))
        self.asked += 1

    @torch.no_grad()
    def moved(self, question: Question, answer: Completion) -> list[float]:
        """log π - log π_base of each token of an answer, in nats, at the temperature of training.

        Their sum is how much likelier the answer is under the policy than under its base. Needs an adapter.
        """
        batch = for_scoring([(question.prompt, answer)])
        with room_told("the comparison", WHERE, "/reset, or chat without --beside"):
            tuned = self.policy.logprobs(batch).logp.double()
            with self.policy.reference():
                base = self.policy.logprobs(batch).logp.double()
        return (tuned - base).tolist()

    def _decode(self, ids: Sequence[int]) -> str:
        return self.policy.tokenizer.decode(ids, skip_special_tokens=True)


class Growing:
    """The text of an answer while its tokens come. Nothing is given out that a later token may change: half a
    character, or the beginning of a text in `hidden`, which ends the answer and is not part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prefill: str, hidden: Sequence[str]):
        self.text = prefill  # given out so far
        self._decode = decode
        self._prefill = prefill
        self._hidden = hidden
        self._ids: list[int] = []

    def add(self, token: int) -> str:
        """What one more token adds."""
        self._ids.append(token)
        whole = self._prefill + self._certain(self._decode(self._ids))
        added = whole[len(self.text) :]
        self.text += added
        return added

    def _certain(self, text: str) -> str:
        text = text.rstrip(BROKEN)
        ends = [len(text)]
        for stop in self._hidden:
            at = text.find(stop)
            begun = [n for n in range(1, len(stop)) if text.endswith(stop[:n])]
            ends.append(at if at >= 0 else len(text) - max(begun, default=0))
        return text[: min(ends)]
