"""`lgrpo-lite chat RUN`: talk to what a run learned, and to its base beside it."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgrpo_lite.cli.export import checkpoint_of
from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json, say
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.cli.watch import add_run, run_named
from lgrpo_lite.errors import ConfigError, LgrpoError, nearest

if TYPE_CHECKING:
    from lgrpo_lite.cli.terminal.talk import Flow, Presses
    from lgrpo_lite.evaluation.conversation import Conversation, Question
    from lgrpo_lite.types import Completion

PROMPT = "you: "
LEAST = 0.05  # nats: a token that became less than 5 % likelier or unlikelier is drawn as unchanged
STRONG = 2.0  # nats, of which three quarters are drawn strongest: the same for every answer
NOTHING = "-"  # /system - takes the system text away
ENDS = {"stop": "", "length": ", cut at the limit", "interrupted": ", ended by Ctrl-C"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite chat [RUN] [--beside base] [options]"
    add_run(parser)
    add_runs(parser)
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or a step")
    parser.add_argument(
        "--beside",
        choices=("base",),
        help="answer twice, the base first; the policy's tokens by how much training moved them",
    )
    parser.add_argument(
        "--temperature", help="of the answers (default: eval.temperature of the recipe); 0 is greedy"
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", help="of an answer (default: model.max_new_tokens of the recipe)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the answers (default: 0)")
    add_json(parser, "print each answer as one JSON object")


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.checks.check import demand
    from lgrpo_lite.folder.code import warned
    from lgrpo_lite.folder.logs import log_if_writable

    path = run_named(args)
    recipe = _recipe(path, args)
    usable = checkpoint_of(path, args.checkpoint)
    changed = warned(path, recipe)
    demand(recipe)
    log_if_writable(path / "logs" / "chat.log")
    from lgrpo_lite.engines.transformers import TransformersEngine
    from lgrpo_lite.evaluation.conversation import Conversation, opened

    with showing(as_json=args.json):
        policy = opened(recipe, usable)
    for warning in changed:
        say(f"warning: {warning}", file=sys.stderr)
    with TransformersEngine(recipe).serving(policy) as sampler:
        conversation = Conversation(policy, sampler, recipe, seed=args.seed)
        return Talk(conversation, path, usable.name, beside=bool(args.beside), as_json=args.json).run()


def _recipe(path: Path, args: argparse.Namespace) -> Any:
    """The run's, with what the command line says of answers. No base to set beside it: ConfigError."""
    from lgrpo_lite.recipe.bounds import SEEDS
    from lgrpo_lite.recipe.marks import shown
    from lgrpo_lite.recipe.read import load_recipe

    if not 0 <= args.seed < SEEDS:
        what, fix = f"--seed {shown(args.seed)} is no seed", f"--seed 0 to {SEEDS - 1}"
        raise ConfigError(what, where="command line", fix=fix)
    given = {"eval.temperature": args.temperature, "model.max_new_tokens": args.max_new_tokens}
    settings = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe = load_recipe(str(path / "config.resolved.yaml"), settings)
    if args.beside and recipe.model.lora is None:
        what = "all parameters were trained: the policy has no base to switch back to"
        fix = "chat without --beside; `lgrpo-lite eval` asks the base by its name"
        raise ConfigError(what, where="--beside base, model.lora=null", fix=fix)
    return recipe


@dataclass(frozen=True, slots=True)
class Said:
    """An answer that was given."""

    completion: "Completion"
    ended: str  # stop, length, or interrupted
    seconds: float

    @property
    def facts(self) -> str:
        count = len(self.completion.token_ids)
        tokens = "1 token" if count == 1 else f"{count} tokens"
        return f"{tokens}, {self.seconds:.1f}s{ENDS[self.ended]}"

    @property
    def result(self) -> dict[str, Any]:
        return {
            "text": self.completion.text,
            "tokens": len(self.completion.token_ids),
            "ended": self.ended,
            "seconds": round(self.seconds, 3),
        }


class Talk:
    """The dialogue: lines in, answers out."""

    def __init__(
        self, conversation: "Conversation", path: Path, checkpoint: str, *, beside: bool, as_json: bool
    ):
        self.conversation = conversation
        self.path = path
        self.checkpoint = checkpoint
        self.beside = beside
        self.as_json = as_json
        self.flow: Flow | None = None  # what shows the answer that comes
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/system": (f"TEXT sets the system text, {NOTHING} takes it away; alone: shows it", self._system),
            "/reset": ("forgets what was said; the system text stays", self._reset),
            "/help": ("shows these", self._help),
            "/quit": ("ends the chat, as Ctrl-D does", lambda _: None),
        }

    def run(self) -> int:
        from lgrpo_lite.cli.terminal.talk import ctrl_c_noted, lines, on_terminal

        there = on_terminal()
        if there:
            self._welcome()
        for line in lines(PROMPT):
            text = line.strip()
            name = text.split(maxsplit=1)[0] if text.startswith("/") else ""
            if name == "/quit":
                break
            try:
                if name:
                    self._command(name, text[len(name) :].strip())
                elif text:
                    with ctrl_c_noted() as presses:
                        self._answer(text, presses)
            except LgrpoError as error:
                if not there:
                    raise
                if self.flow is not None:
                    self.flow.end()
                say(*error.lines(), file=sys.stderr)
        return 0

    # ------------------------------------------------------------------------------------- commands

    def _command(self, name: str, rest: str) -> None:
        if name not in self.commands:
            known = ", ".join(self.commands)
            what = f"no command {name!r}{nearest(name, self.commands)}; it was not sent"
            raise ConfigError(what, where="chat", fix=f"use one of: {known}")
        _, command = self.commands[name]
        command(rest)

    def _system(self, text: str) -> None:
        if text:
            self.conversation.instruct(None if text == NOTHING else text)
        self._note(f"system text: {self.conversation.system or 'none'}")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._note("nothing was said")

    def _help(self, _: str) -> None:
        for name, (words, _command) in self.commands.items():
            self._note(f"{name:<8} {words}")
        self._note("Ctrl-C   ends an answer, and what was said of it stays; pressed twice at the")
        self._note("         prompt, or three times while it answers, it ends the chat")

    # ------------------------------------------------------------------------------------- answers

    def _answer(self, text: str, presses: "Presses") -> None:
        question = self.conversation.question(text)
        if question.forgotten:
            left = f"its first {question.forgotten} turns are left out"
            self._note(f"the conversation is longer than the {self.conversation.window} tokens read: {left}")
        if self.beside:
            self._answer_twice(question, presses)
            return
        said = self._said(question, presses)
        self.conversation.keep(question, said.completion)
        self._end(said)
        if self.as_json:
            print_json("chat", self._result(question, said))

    def _answer_twice(self, question: "Question", presses: "Presses") -> None:
        """By the base, then by the policy, whose answer is drawn anew once all of it is there."""
        self._head("base")
        base = self._said(question, presses, base=True)
        self._end(base)
        self._head("policy")
        said = self._said(question, presses, again=True)
        self.conversation.keep(question, said.completion)
        moved = self.conversation.moved(question, said.completion)
        pieces = self._pieces(said.completion)
        if self.as_json:
            more = {"base": base.result, "pieces": pieces, "moved": moved}
            print_json("chat", self._result(question, said) | more)
            return
        if self.flow is not None and not self.flow.take_back():
            self.flow.end()
        self._draw(question.prompt.prefill, pieces, moved)
        self._note(said.facts)
        self._note(_told(pieces, moved))

    def _said(
        self, question: "Question", presses: "Presses", *, base: bool = False, again: bool = False
    ) -> Said:
        """The answer, shown as it comes; the first Ctrl-C ends it. `again`: it will be drawn once more, and
        is shown only where it can be taken back.
        """
        from lgrpo_lite.cli.terminal.talk import Flow

        flow = Flow(sys.stdout)
        self.flow = None if self.as_json or (again and not flow.moves) else flow
        show = _nowhere if self.flow is None else self.flow.write
        began = time.monotonic()
        presses.begin()
        completion = self.conversation.answer(question, show, presses, base=base)
        ended = completion.finish_reason
        if presses() and ended != "stop":
            ended = "interrupted"
        return Said(completion, ended, time.monotonic() - began)

    def _end(self, said: Said) -> None:
        """Of an answer that was shown: its last line, and what there is to tell of it."""
        if self.flow is not None:
            self.flow.end()
            self._note(said.facts)

    def _pieces(self, completion: "Completion") -> list[str]:
        """What each token adds to the text; the token that ends it under its name."""
        from lgrpo_lite.folder.samples import pieces

        tokenizer = self.conversation.policy.tokenizer

        def decode(ids: Sequence[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=True)

        ids = completion.token_ids
        found = pieces(ids, decode(ids), decode)
        if ids[-1] in self.conversation.policy.eos_ids:
            found[-1] += tokenizer.decode(ids[-1:], skip_special_tokens=False)
        return found

    def _result(self, question: "Question", said: Said) -> dict[str, Any]:
        return {
            "run": str(self.path),
            "checkpoint": self.checkpoint,
            "question": question.turns[-1][1],
            "read_tokens": len(question.prompt.token_ids),
            "forgotten": question.forgotten,
        } | said.result

    # ------------------------------------------------------------------------------------- how it looks

    def _welcome(self) -> None:
        from rich.text import Text

        from lgrpo_lite.monitor.theme import BAD, GOOD, LABEL
        from lgrpo_lite.monitor.tokens import LOWERED, RAISED

        sampling = self.conversation.sampling
        how = f"temperature {sampling.temperature:g}, at most {sampling.max_new_tokens} tokens an answer"
        self._note(f"{self.path} at {self.checkpoint}, {how}; /help shows commands")
        if not self.beside:
            return
        steps = f"{LEAST:g}, {STRONG / 4:g}, {STRONG / 2:g} and {STRONG * 3 / 4:g} nats"
        legend = Text.assemble(
            ("tokens of the policy: ", LABEL),
            (f"{RAISED} or green", GOOD),
            (" likelier than under its base, ", LABEL),
            (f"{LOWERED} or red", BAD),
            (f" less likely, by at least {steps}; marks stand below their line", LABEL),
        )
        console(sys.stderr, highlight=False).print(legend)

    def _head(self, words: str) -> None:
        from rich.text import Text

        if not self.as_json:
            console(highlight=False).print(Text(words, "bold"))

    def _note(self, words: str) -> None:
        """What is no answer goes to stderr."""
        from rich.text import Text

        from lgrpo_lite.monitor.theme import LABEL, clean

        screen = console(sys.stderr, highlight=False)
        screen.print(Text(clean(words, len(words)), LABEL), soft_wrap=not screen.is_terminal)

    def _draw(self, prefill: str, pieces: Sequence[str], moved: Sequence[float]) -> None:
        """The policy's answer, its tokens by how much likelier training made them."""
        from lgrpo_lite.monitor.tokens import Tokens, whole

        drawn = [value if abs(value) >= LEAST else 0.0 for value in moved]
        tokens = Tokens((prefill, *pieces), (0.0, *drawn), None)
        screen = console(highlight=False)
        for line in whole(tokens, screen.width, STRONG):
            screen.print(line, no_wrap=True, overflow="ignore", crop=False)


def _nowhere(text: str) -> None:
    """What an answer is shown on where it is not shown as it comes."""


def _told(pieces: Sequence[str], moved: Sequence[float]) -> str:
    """How much likelier an answer is than under the base, and the token that moved most."""
    most = max(range(len(moved)), key=lambda i: abs(moved[i]))
    largest = f"{moved[most]:+.2f} at token {most + 1}, {pieces[most][:20]!r}"
    return f"log π/π_base: {sum(moved):+.2f} nats over {len(moved)} tokens, largest {largest}"
