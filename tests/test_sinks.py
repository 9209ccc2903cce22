"""Loggers: every number of a step has a tag, resumed curves do not double, a logger that
fails ends nothing but itself.
"""

import dataclasses
import importlib
import json
import sys
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lgrpo_lite.folder.sinks import LOGGERS, PARTS, TAGS, missing_loggers, open_sinks, scalars
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.types import StepRecord

EVALUATION = {
    "step": 0,
    "problems": 4,
    "accuracy": 0.5,
    "greedy": None,
    "intervals": {"accuracy": [0, 1]},
    "time": 1e9,
}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens the sinks of a run in `tmp_path`; `told` are the warnings."""
    # Files are read in the order of their names: time, process, and this, which two attempts
    # do not share outside of a test.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
    told: list[str] = []
    sinks = []

    def open_(*settings):
        sinks.append(open_sinks(load_recipe("tiny-math", list(settings)), tmp_path, told.append))
        return sinks[-1]

    open_.told = told
    yield open_
    for each in sinks:
        each.close()


def record(step, reward, **more):
    return StepRecord(step, step, reward=reward, **more)


def curves(tmp_path):
    """What TensorBoard shows: (step, value) of every tag."""
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    return {
        tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


# ------------------------------------------------------------------------------------------- what is written


def test_every_number_of_a_step_has_a_tag_of_its_own():
    told_otherwise = {"step", "time", "skipped", "alarms"}
    assert {f.name for f in dataclasses.fields(StepRecord)} == set(TAGS) | set(PARTS) | told_otherwise
    assert len(set(TAGS.values())) == len(TAGS)


def test_only_finite_numbers_are_written():
    values = scalars(
        record(
            1, 0.5, loss=float("nan"), grad_norm=float("inf"), skipped="no finite loss", alarms=("no_signal",),
            reward_parts={"math": 0.25}, seconds={"rollout": 2.0}, memory={"host": 7},
        )
    )  # fmt: skip
    assert {"optim/loss", "optim/grad_norm", "policy/kl"} & set(values) == set()
    expected = {"reward/mean": 0.5, "reward/part/math": 0.25, "seconds/rollout": 2.0, "memory/host": 7}
    assert values | expected == values and (values["alarms/standing"], values["optim/skipped"]) == (1, 1)


# ------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_reads_the_steps_and_evaluations(opened, tmp_path):
    sinks = opened("log.tensorboard=true")
    sinks.evaluation(EVALUATION)
    for step in (1, 2, 3):
        sinks.log(record(step, step / 10, length_lambda=0.5))
    sinks.evaluation(EVALUATION | {"step": 3, "accuracy": 0.75})
    sinks.close()
    sinks.close()
    found = curves(tmp_path)
    assert found["reward/mean"] == [(1, 0.1), (2, 0.2), (3, 0.3)] and found["lambda/value"] == [
        (n, 0.5) for n in (1, 2, 3)
    ]
    assert found["eval/accuracy"] == [(0, 0.5), (3, 0.75)] and found["eval/problems"] == [(0, 4), (3, 4)]
    assert not {"eval/step", "eval/time", "eval/greedy", "eval/intervals"} & set(found)


@pytest.mark.parametrize("evaluated_first", [False, True])
@pytest.mark.parametrize(("reached", "saved"), [(5, 3), (5, 5), (4, 0)])
def test_resumed_curves_do_not_double(opened, tmp_path, reached, saved, evaluated_first):
    killed = opened("log.tensorboard=true")
    for step in range(1, reached + 1):
        killed.log(record(step, 0.1))
    killed.close()
    resumed = opened("log.tensorboard=true")
    if evaluated_first:
        resumed.evaluation(EVALUATION | {"step": saved})
    for step in range(saved + 1, 8):
        resumed.log(record(step, 0.2))
    resumed.close()
    assert curves(tmp_path)["reward/mean"] == [(n, 0.1 if n <= saved else 0.2) for n in range(1, 8)]


# ------------------------------------------------------------------------------------------- faults


def test_without_a_logger_nothing_is_written_or_imported(opened, tmp_path):
    sinks = opened()
    sinks.log(record(1, 0.5))
    sinks.evaluation(EVALUATION)
    sinks.close()
    assert list(tmp_path.iterdir()) == [] and opened.told == []


def test_a_logger_that_fails_is_told_once_and_the_others_go_on(opened, tmp_path, service):
    (tmp_path / "tensorboard").write_text("no folder")
    sinks = opened("log.tensorboard=true", "log.trackio=true")
    for step in (1, 2):
        sinks.log(record(step, 0.5))
    assert len(opened.told) == 1 and opened.told[0].startswith("log.tensorboard is off from here: ")
    assert [step for step, _ in service.sent()] == [1, 2]


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_service_that_fails_at_any_point_ends_only_itself(opened, service, when):
    service.fails = when
    sinks = opened("log.trackio=true")
    sinks.log(record(1, 0.5))
    sinks.log(record(2, 0.5))
    sinks.close()
    assert opened.told == ["log.trackio is off from here: the network is down"]


def test_missing_packages_are_named_and_a_folder_of_that_name_is_none(tmp_path, monkeypatch):
    recipe = load_recipe("tiny-math", [f"log.{name}=true" for name in LOGGERS])
    here = [name for name in LOGGERS if name not in missing_loggers(recipe)]
    assert "tensorboard" in here and missing_loggers(load_recipe("tiny-math")) == []
    (tmp_path / "wandb").mkdir()  # as its own runs leave one
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert ("wandb" in missing_loggers(recipe)) == ("wandb" not in here)


# ------------------------------------------------------------------------------------------- services

STANDIN = """
import json, pathlib
here, fails, made = pathlib.Path(__file__).parent, "", []
def _meets(point):
    print("about", point)
    if point == fails:
        raise OSError("the network is down\\nand more")
class Run:
    def log(self, values, step):
        _meets("log")
        made.append((step, values))
def init(**options):
    _meets("init")
    (here / "init.jsonl").open("a").write(json.dumps(options) + "\\n")
    return Run()
def finish():
    _meets("finish")
"""


@pytest.fixture
def service(tmp_path_factory, monkeypatch):
    """A package named trackio that speaks as trackio does and keeps what it hears."""
    folder = tmp_path_factory.mktemp("standin")
    (folder / "trackio.py").write_text(STANDIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    trackio = importlib.import_module("trackio")
    trackio.sent = lambda: list(trackio.made)
    trackio.inits = lambda: [json.loads(line) for line in (folder / "init.jsonl").read_text().splitlines()]
    yield trackio
    sys.modules.pop("trackio", None)


def test_a_resumed_run_is_the_same_run_there_and_sends_no_step_again(opened, tmp_path, service, capsys):
    first = opened("log.trackio=true", "log.project=mine")
    first.evaluation(EVALUATION)
    for step in (1, 2, 3):
        first.log(record(step, 0.1))
    first.close()
    again = opened("log.trackio=true", "log.project=mine")
    for step in (2, 3, 4):
        again.log(record(step, 0.1))
    again.evaluation(EVALUATION | {"step": 4})
    assert [step for step, _ in service.sent()] == [0, 1, 2, 3, 4, 4]
    one, other = service.inits()
    assert one == other and one["project"] == "mine" and one["config"]["model"]["id"] == "builtin:tiny-math"
    assert one["name"].startswith(tmp_path.name) and capsys.readouterr().out == ""


def test_what_a_service_prints_is_logged_and_other_threads_print_on(opened, service, capsys, caplog):
    caplog.set_level("INFO")
    heard = threading.Event()
    plain_init = service.init

    def init(**options):
        thread = threading.Thread(target=lambda: (print("step 1/9"), heard.set()))
        thread.start()
        thread.join()
        return plain_init(**options)

    service.init = init
    opened("log.trackio=true")
    assert heard.is_set() and capsys.readouterr().out == "step 1/9\n" and "about init" in caplog.text


def test_trackio_itself(opened, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    for steps in ((1, 2), (2, 3)):
        sinks = opened("log.trackio=true")
        for step in steps:
            sinks.log(record(step, 0.5))
        sinks.close()
    assert opened.told == [] and json.loads((tmp_path / "loggers.json").read_text())["trackio"]["step"] == 3


def test_wandb_itself_offline(opened, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sinks = opened("log.wandb=true")
    sinks.log(record(1, 0.5))
    sinks.close()
    assert opened.told == [] and list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
