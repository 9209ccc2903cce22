"""The model card of an export: README.md, from the run's own facts."""

import dataclasses
import logging
import re
from contextlib import suppress
from functools import partial
from pathlib import Path

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.export.card_front import front_matter, results, results_of_files
from lgrpo_lite.export.card_parts import PARTS, Card, head
from lgrpo_lite.export.card_use import USES
from lgrpo_lite.export.place import REPORT, UNSTAMPED, report_of
from lgrpo_lite.folder.markdown import inline, part
from lgrpo_lite.folder.origin import README, base_of, cached, licence_of
from lgrpo_lite.machine.disk import write_whole
from lgrpo_lite.monitor.curves import best_of
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tables import evaluations
from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.policy.fetch import folder_of
from lgrpo_lite.recipe.schema import Recipe

STEP = re.compile(r"step-(\d+)")
MINIMAL = "---\npipeline_tag: text-generation\ntags:\n- lgrpo-lite\n---\n"
AGAIN = "`lgrpo-lite export RUN card` tries again"
FAILED = f"The card of this export could not be made: the run's logs say why, {AGAIN}."


def write_card(run: Path, recipe: Recipe, folder: Path, kind: str, checkpoint: str) -> None:
    """README.md of an export in `folder`: of that kind (merged, adapter, gguf, lora-gguf, ollama; run: of no
    export) and of that checkpoint (`step-000040`; anything else: the run's last step).

    Never raises, since no export is to be lost for its card: a part that cannot be made says so in its place,
    and where nothing can be made a few lines stand for it. The log says why.
    """
    with suppress(OSError):  # PEFT's empty form is worse than no card
        (folder / README).unlink(missing_ok=True)
    try:
        text = _text(_card(run, recipe, folder, kind, checkpoint))
    except Exception:
        logging.exception("the card could not be made")
        text = f"{MINIMAL}\n{FAILED}\n"
    try:
        write_whole(folder / README, text)
    except OSError:
        logging.exception("the card could not be written")


def write_cards(run: Path, recipe: Recipe, checkpoint: str, out: Path | None) -> list[Path]:
    """The cards of what was exported, anew, each of the checkpoint that its report names, else of
    `checkpoint`.

    `out` None: of every export in the run folder; where there is none, RUN/export/README.md tells of the run
    alone. Else of the export in `out`; no export: ConfigError.
    """
    if out is not None and not _is_export(out):
        fix = "name the folder of an export, or leave out --out"
        raise ConfigError("no export is there", where=str(out), fix=fix)
    home = run / "export"
    folders = [out] if out else sorted(path for path in home.glob("*") if _is_export(path))
    for folder in folders:
        report = report_of(folder)
        kind, of = report.get("kind"), report.get("checkpoint")
        made = of if isinstance(of, str) else checkpoint
        write_card(run, recipe, folder, str(kind) if kind in USES else _kind_of(folder), made)
    if not folders:
        home.mkdir(exist_ok=True)
        write_card(run, recipe, home, "run", checkpoint)
        folders = [home]
    return [folder / README for folder in folders]


def _is_export(folder: Path) -> bool:
    reports = (REPORT, *UNSTAMPED.values())
    return not folder.name.startswith(".") and any((folder / name).is_file() for name in reports)


def _kind_of(folder: Path) -> str:
    """Of an export that an earlier version made."""
    return "adapter" if (folder / "adapter_config.json").is_file() else "merged"


def _card(path: Path, recipe: Recipe, folder: Path, kind: str, checkpoint: str) -> Card:
    run = Tail(path, whole=True).refresh()
    run.recipe = recipe.model_dump(mode="json", by_alias=True)
    found = STEP.fullmatch(checkpoint)
    step = int(found[1]) if found else run.step
    model = recipe.model
    base = base_of(model.id, model.revision)
    if base.kind == "hub" and cached(model.id, README, model.revision) is None:
        folder_of(model.id, model.revision)  # fetches what lies beside the weights, its card among it
        base = base_of(model.id, model.revision)
    best = best_of(run)
    picked = best is not None and best.step == step and len(evaluations(run)) > 2
    return Card(_until(run, step), recipe, folder, kind, step, base, licence_of(base), picked)


def _until(run: RunView, step: int) -> RunView:
    """The run as it was at a step: what came later is none of the exported checkpoint's."""
    records = [record for record in run.records if record.step <= step]
    evals = [row for row in run.evals if (finite(row.get("step")) or 0) <= step]
    return dataclasses.replace(run, records=records, sparse=[], evals=evals)


def _text(card: Card) -> str:
    lines = part("", partial(head, card), _why)
    for heading, lines_of in PARTS.items():
        lines += part(heading, partial(lines_of, card), _why)
    return _front(card) + "\n" + "\n".join(lines).rstrip() + "\n"


def _front(card: Card) -> str:
    try:
        found = results_of_files(card.run, card.folder) if card.quantised else results(card.run, card.step)
        data = front_matter(card.run, card.kind, card.base, card.licence, inline(card.name), found)
        return f"---\n{data.to_yaml()}\n---\n"
    except Exception:
        logging.exception("the front matter of the card could not be made")
        return MINIMAL


def _why(fault: Exception) -> str:
    """A fault's own words may name places of this machine: they are for the log."""
    return f" ({type(fault).__name__}): the run's logs say why."
