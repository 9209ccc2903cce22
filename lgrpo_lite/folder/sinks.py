"""A run's curves for other programs: TensorBoard, wandb, trackio. The run folder has them all the same.

    sinks = open_sinks(recipe, folder.path, warn)
    sinks.log(record); sinks.evaluation(row); sinks.close()

One that fails is told of once and left out from then on: no logger ends a training run.
"""

import contextlib
import io
import json
import logging
import math
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lgrpo_lite import progress
from lgrpo_lite.engines.base import installed
from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import StepRecord

LOGGERS = ("tensorboard", "wandb", "trackio")  # keys of `log`, and packages
SECONDS = 60.0  # that a service may take to open or to close
FLUSH_SECONDS = 10
TAGS = {  # of the numbers of a step; those of its dicts are named by their keys
    "reward": "reward/mean", "reward_std": "reward/std", "solved": "reward/solved",
    "missing": "reward/missing",
    "reward_timeouts": "reward/timeouts", "reward_crashes": "reward/crashes",
    "reward_errors": "reward/errors", "verifier_faults": "reward/verifier_faults",
    "reward_p50": "reward/seconds_p50", "reward_p95": "reward/seconds_p95",
    "groups": "groups/admitted", "groups_mixed": "groups/mixed", "groups_right": "groups/right",
    "groups_wrong": "groups/wrong",
    "draws": "groups/draws",
    "length": "length/mean", "length_right": "length/right", "length_wrong": "length/wrong",
    "length_p95": "length/p95",
    "length_ended": "length/ended", "truncated": "length/truncated",
    "length_lambda": "lambda/value", "length_lambda_grad": "lambda/grad", "length_lambda_grpo": "lambda/grpo",
    "weight_short": "lambda/weight_short", "weight_median": "lambda/weight_median",
    "weight_long": "lambda/weight_long",
    "weight_effective": "lambda/weight_effective",
    "credit_first": "trace/credit_first", "credit_middle": "trace/credit_middle",
    "credit_last": "trace/credit_last",
    "credit_floored": "trace/credit_floored",
    "clip_low": "policy/clip_low", "clip_high": "policy/clip_high", "ratio_max": "policy/ratio_max",
    "kl": "policy/kl",
    "entropy": "policy/entropy", "policy_version": "policy/version",
    "disagreement": "agreement/mean", "disagreement_max": "agreement/max",
    "mismatch_kl": "agreement/mismatch_kl",
    "token_mult_error": "agreement/token_mult_error", "capped": "agreement/capped",
    "loss": "optim/loss", "grad_norm": "optim/grad_norm", "lr": "optim/lr",
    "trained_tokens": "optim/trained_tokens",
    "rollout_tokens": "rollout/tokens", "rollout_answers": "rollout/answers",
    "guide_tokens": "rollout/guide_tokens",
}  # fmt: skip
PARTS = {"reward_parts": "reward/part", "seconds": "seconds", "memory": "memory"}


class Sink(Protocol):
    def write(self, values: dict[str, float], step: int, *, kind: str) -> None:
        """`kind`: step or evaluation. Steps come once and in order, but a resumed run makes some again."""
        ...

    def close(self) -> None: ...


class Sinks:
    """What a run writes its curves to; empty without any logger. `warn` gets a sentence when one fails."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]], warn: Callable[[str], None]):
        self._warn = warn
        self._open: dict[str, Sink] = {}
        for name, make in makers.items():
            with self._guarded(name):
                self._open[name] = make()

    def log(self, record: StepRecord) -> None:
        """The numbers of a step."""
        self._write(scalars(record), record.step, kind="step")

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """A line of evals.jsonl."""
        values = {}
        for name, value in row.items():
            if name not in ("step", "time") and _is_number(value):
                values[f"eval/{name}"] = value
        self._write(values, row["step"], kind="evaluation")

    def close(self) -> None:
        """Everything written out. Once is enough, more often does no harm."""
        for name, sink in list(self._open.items()):
            with self._guarded(name):
                sink.close()
        self._open.clear()

    def _write(self, values: dict[str, float], step: int, *, kind: str) -> None:
        for name, sink in list(self._open.items()):
            with self._guarded(name):
                sink.write(values, step, kind=kind)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: a network, a disk, a service
            logging.exception("the logger %s failed", name)
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            what = getattr(error, "what", reason)
            self._warn(f"log.{name} is off from here: {what}")
            self._open.pop(name, None)


def open_sinks(recipe: Recipe, path: Path, warn: Callable[[str], None]) -> Sinks:
    """The loggers of the recipe's `log` section, for the run in the folder `path`.

    A resumed run goes on in its curves.
    """
    log = recipe.log
    makers: dict[str, Callable[[], Sink]] = {}
    if log.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(path / "tensorboard")
    if log.wandb:
        makers["wandb"] = lambda: Service("wandb", recipe, path)
    if log.trackio:
        makers["trackio"] = lambda: Service("trackio", recipe, path)
    return Sinks(makers, warn)


def missing_loggers(recipe: Recipe) -> list[str]:
    """Packages that the `log` section asks for and that are not installed. Imports none of them."""
    return [name for name in LOGGERS if getattr(recipe.log, name) and not installed(name)]


def scalars(record: StepRecord) -> dict[str, float]:
    """Every finite number of a step by its tag."""
    values = {tag: getattr(record, name) for name, tag in TAGS.items()}
    for name, group in PARTS.items():
        for key, value in getattr(record, name).items():
            values[f"{group}/{key}"] = value
    values["alarms/standing"] = len(record.alarms)
    values["optim/skipped"] = int(record.skipped is not None)
    return {tag: value for tag, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class TensorBoard:
    """Event files in a folder. They begin with the first number, so that steps made again replace others."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._make = SummaryWriter
        self._writer: Any = None

    def write(self, values: dict[str, float], step: int, *, kind: str) -> None:
        if self._writer is None:
            first = step if kind == "step" else step + 1  # an evaluation comes after its step, which stays
            self._writer = self._make(str(self.folder), purge_step=first, flush_secs=FLUSH_SECONDS)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Service:
    """wandb or trackio, which speak alike: init, log, finish.

    RUN/loggers.json holds the run's id there and what it has. A step that was sent before the run was stopped
    is not sent again when the run makes it again.
    """

    def __init__(self, name: str, recipe: Recipe, path: Path):
        self.file = path / "loggers.json"
        self.name = name
        fresh = {"id": uuid.uuid4().hex[:12], "step": -1, "evaluation": -1}
        self.sent: dict[str, Any] = fresh | self._read().get(name, {})
        self._save()
        about = {
            "project": recipe.log.project,
            "config": recipe.model_dump(mode="json", by_alias=True),
            "resume": "allow",
        }
        service_options = {"wandb": _wandb, "trackio": _trackio}[name]
        options = service_options(path, self.sent["id"])
        progress.told(f"opening {name}", 0)
        with _prints_logged(name):
            self.module = import_module(name)
            self.run = self.module.init(**about, **options)
        progress.told(f"opening {name}", 1, 1)

    def write(self, values: dict[str, float], step: int, *, kind: str) -> None:
        if step <= self.sent[kind]:
            return
        with _prints_logged(self.name):
            self.run.log(dict(values), step=step)
        self.sent[kind] = step
        self._save()

    def close(self) -> None:
        with _prints_logged(self.name):
            self.module.finish()

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text("utf-8"))
        except (OSError, ValueError):  # the first time; or the disk was full, and the run is a new one there
            return {}

    def _save(self) -> None:
        rows = self._read() | {self.name: self.sent}
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(rows), "utf-8")
        fresh.replace(self.file)


def _wandb(path: Path, id_: str) -> dict[str, Any]:
    """Of wandb.init. Without a login it would ask for one on the terminal: EnvironmentFault instead."""
    import wandb  # pyright: ignore[reportMissingImports]

    settings = wandb.Settings(
        silent=True, console="off", init_timeout=SECONDS, finish_timeout=SECONDS, finish_timeout_raises=True
    )
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        fix = "`wandb login`, or set WANDB_MODE=offline"
        raise EnvironmentFault("wandb is not logged in", where="log.wandb", fix=fix)
    return {"id": id_, "name": path.name, "dir": str(path), "settings": settings}


def _trackio(path: Path, id_: str) -> dict[str, Any]:
    """Of trackio.init, which finds a run by its name."""
    return {"name": f"{path.name}-{id_}", "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}


@contextmanager
def _prints_logged(name: str) -> Iterator[None]:
    """What this thread prints inside it goes to the log; other threads print as before."""
    out = _OfOneThread(sys.stdout)
    try:
        with contextlib.redirect_stdout(out):
            yield
    finally:
        for line in out.taken.getvalue().splitlines():
            logging.getLogger(name).info(line)


class _OfOneThread(io.TextIOBase):
    def __init__(self, other: Any):
        self.other = other
        self.taken = io.StringIO()
        self.thread = threading.get_ident()

    def write(self, text: str) -> int:
        own = threading.get_ident() == self.thread
        return self.taken.write(text) if own else self.other.write(text)

    def flush(self) -> None:
        self.other.flush()

    def isatty(self) -> bool:
        return self.other.isatty()

    def fileno(self) -> int:
        return self.other.fileno()
