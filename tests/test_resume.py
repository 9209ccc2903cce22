"""A run that is killed, interrupted or stopped loses nothing: it ends with the
same bytes as one that was not.
"""

import json
import os
import pty
import random
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import lgrpo

SMALL = [
    "train.steps=12", "train.save_every=3", "train.eval_every=4", "rollout.prompts_per_step=4", "rollout.group_size=4",
    "data.train.limit=40", "data.eval.limit=16", "eval.k=1", "export.formats=[adapter]", "safety.sync_proof_every=0",
]  # fmt: skip


def command(runs: Path, name: str, *more: str) -> list[str]:
    options = ["--runs", str(runs), "--name", name, "--ui", "plain", "--resume", "auto", *more]
    return [sys.executable, "-m", "lgrpo_lite", "recipe", "tiny-math", *SMALL, *options]


def start(runs: Path, name: str, *more: str) -> subprocess.Popen:
    return subprocess.Popen(command(runs, name, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(runs: Path, name: str, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl has that many lines."""
    path = runs / name / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= step):
        time.sleep(0.01)


def result(runs: Path, name: str) -> dict:
    """All that the end of a run is: bytes of the adapter, λ, and the numbers of
    every step that are no seconds.
    """
    last = runs / name / "checkpoints" / "step-000012"
    state = json.loads((last / "state.json").read_text())
    rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    steps = [
        {k: v for k, v in row.items() if k not in ("seconds", "time", "reward_p50", "reward_p95", "memory")}
        for row in rows
    ]
    evals = [json.loads(line)["accuracy"] for line in (runs / name / "evals.jsonl").read_text().splitlines()]
    adapter = (last / "adapter" / "adapter_model.safetensors").read_bytes()
    exported = (runs / name / "export" / "adapter" / "adapter_model.safetensors").read_bytes()
    links = {link.name: os.readlink(link) for link in last.parent.iterdir() if link.is_symlink()}
    return {
        "state": state,
        "steps": steps,
        "evals": evals,
        "adapter": adapter,
        "exported": exported,
        "trainer": (last / "trainer.pt").read_bytes(),
        "links": links,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    subprocess.run(command(runs, "whole"), check=True, capture_output=True)
    return runs


def same(whole: Path, name: str) -> None:
    expected, actual = result(whole, "whole"), result(whole, name)
    for part, value in expected.items():
        assert actual[part] == value, part


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_random_and_resumed(whole, seed):
    name, rng = f"killed{seed}", random.Random(seed)
    process = start(whole, name)
    wait_for(whole, name, rng.randint(0, 10), process)
    time.sleep(rng.random() * 0.2)
    process.kill()
    process.wait()
    proven = command(whole, name)
    proven[proven.index("safety.sync_proof_every=0")] = (
        "safety.sync_proof_every=4"  # a proof changes no number of a run
    )
    subprocess.run(proven, check=True, capture_output=True)
    same(whole, name)


@pytest.mark.slow
def test_first_ctrl_c_finishes_the_step_and_saves(whole):
    process = start(whole, "interrupted")
    wait_for(whole, "interrupted", 4, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"--resume auto" in err and b"Traceback" not in err
    folder = whole / "interrupted"
    status = json.loads((folder / "STATUS.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 130)
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert (folder / "checkpoints" / f"step-{done:06d}").is_dir()
    subprocess.run(command(whole, "interrupted"), check=True, capture_output=True)
    same(whole, "interrupted")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_second_signal_stops_now(whole, number, code):
    name = f"twice{code}"
    process = start(whole, name, "--debug")
    wait_for(whole, name, 2, process)
    process.send_signal(number)
    time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code


@pytest.mark.slow
def test_a_corrupt_checkpoint_falls_back_and_says_so(whole):
    process = start(whole, "corrupt")
    wait_for(whole, "corrupt", 8, process)
    process.kill()
    process.wait()
    newest = max((whole / "corrupt" / "checkpoints").glob("step-*"))
    (newest / "trainer.pt").write_bytes(b"garbage")
    done = subprocess.run(command(whole, "corrupt"), check=True, capture_output=True, text=True)
    assert f"checkpoint {newest.name} is corrupt" in done.stderr
    assert done.stderr.count("step 1/12 ") == 0  # lines of the first attempt are not shown again
    same(whole, "corrupt")


def test_resuming_with_other_settings_is_refused(whole, capfd):
    code = lgrpo(
        "recipe", "tiny-math", *SMALL, "optim.lr=0.5", "--runs", whole, "--name", "whole", "--resume", "auto"
    )
    assert code == 2
    assert "optim.lr: 0.001 -> 0.5" in capfd.readouterr().err


def test_an_existing_run_is_not_written_over(whole, capfd):
    before = (whole / "whole" / "metrics.jsonl").read_bytes()
    assert lgrpo("recipe", "tiny-math", *SMALL, "--runs", whole, "--name", "whole") == 2
    assert "a run of that name exists" in capfd.readouterr().err
    assert (whole / "whole" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_processes_cannot_share_a_run(whole):
    process = start(whole, "locked")
    wait_for(whole, "locked", 1, process)
    second = subprocess.run(command(whole, "locked"), capture_output=True, text=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert second.returncode == 2
    assert "another process is training" in second.stderr


@pytest.mark.slow
def test_a_finished_run_resumed_is_still_the_same(whole):
    before = result(whole, "whole")
    subprocess.run(command(whole, "whole"), check=True, capture_output=True)
    assert result(whole, "whole") == before


@pytest.mark.slow
def test_a_time_limit_stops_resumable(whole):
    done = subprocess.run(command(whole, "limit", "train.time_limit=0.0001"), capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    subprocess.run(command(whole, "limit"), check=True, capture_output=True)
    same(whole, "limit")


@pytest.mark.slow
def test_stopped_inside_an_evaluation(whole):
    """The evaluation is made up for on resuming, with the same numbers."""
    process = start(whole, "evaluating")
    wait_for(whole, "evaluating", 4, process)  # eval_every is 4
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    subprocess.run(command(whole, "evaluating"), check=True, capture_output=True)
    same(whole, "evaluating")


@pytest.mark.slow
def test_a_second_kill_is_survived_too(whole):
    for step in (2, 7):
        process = start(whole, "again")
        wait_for(whole, "again", step, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(whole, "again"), check=True, capture_output=True)
    same(whole, "again")


# --------------------------------------------------------------------------------- what a machine does to a run


def broke(whole: Path, name: str, code: int, err: str) -> None:
    """It said so in three lines and in STATUS.json."""
    lines = err[err.index("error: ") :].splitlines()
    assert len(lines) == 3 and "Traceback" not in err and "Logging error" not in err
    status = json.loads((whole / name / "STATUS.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", code)


@pytest.mark.slow
@pytest.mark.parametrize("percent", [20, 50, 90], ids=lambda percent: f"{percent} % of a run")
def test_a_full_disk_is_told_and_the_run_goes_on_where_there_is_room(whole, percent):
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("needs bubblewrap for a disk of its own")
    name = f"full{percent}"
    size = sum(file.lstat().st_size for file in (whole / "whole").rglob("*"))
    kept = whole / name
    kept.mkdir()
    run = shlex.join(command(Path("/mnt"), name))
    script = f"{run}; code=$?; cp -r /mnt/{name}/. {shlex.quote(str(kept))}; exit $code"
    disk = ["--size", str(size * percent // 100), "--tmpfs", "/mnt"]
    own = ["--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc"]
    inside = [bwrap, *own, *disk, "sh", "-c", script]
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "the disk is full" in done.stderr
    broke(whole, name, 7, done.stderr)
    subprocess.run(command(whole, name), check=True, capture_output=True)
    same(whole, name)


@pytest.mark.slow
def test_a_run_folder_that_is_renamed_ends_the_run_and_it_goes_on_once_it_is_back(whole):
    process = start(whole, "moved")
    wait_for(whole, "moved", 5, process)
    (whole / "moved").rename(whole / "elsewhere")
    _, err = process.communicate(timeout=60)
    (whole / "elsewhere").rename(whole / "moved")
    text = err.decode()
    assert process.returncode == 7 and "the run folder is gone" in text
    assert "Traceback" not in text and len(text[text.index("error: ") :].splitlines()) == 3
    subprocess.run(command(whole, "moved"), check=True, capture_output=True)
    same(whole, "moved")


@pytest.mark.slow
@pytest.mark.parametrize("then", ["nothing", "an empty folder"])
def test_a_run_folder_that_is_removed_ends_the_run_and_says_so(whole, then):
    name = f"removed, {then}"
    process = start(whole, name)
    wait_for(whole, name, 2, process)
    process.send_signal(signal.SIGSTOP)  # rm is not fast enough for it otherwise
    shutil.rmtree(whole / name)
    if then == "an empty folder":
        (whole / name).mkdir()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    text = err.decode()
    assert process.returncode == 7 and "the run folder is gone" in text
    assert "Traceback" not in text and len(text[text.index("error: ") :].splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("ui", ["live", "plain"])
def test_a_terminal_that_is_closed_finishes_the_step_and_saves(whole, ui):
    name = f"closed-{ui}"
    argv = [word if word != "plain" else ui for word in command(whole, name)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    path = whole / name / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= 4):
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    _, waited = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(waited) == 129
    status = json.loads((whole / name / "STATUS.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 129)
    subprocess.run(command(whole, name), check=True, capture_output=True)
    same(whole, name)


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_is_not_noticed(whole):
    process = subprocess.Popen(
        ["nohup", *command(whole, "nohup")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for(whole, "nohup", 2, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    same(whole, "nohup")


@pytest.mark.slow
def test_rows_that_a_power_cut_took_are_named(whole):
    process = start(whole, "cut")
    wait_for(whole, "cut", 8, process)
    process.kill()
    process.wait()
    path = whole / "cut" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    done = subprocess.run(command(whole, "cut"), check=True, capture_output=True, text=True)
    assert "metrics.jsonl lacks" in done.stderr and "their records were lost" in done.stderr


@pytest.mark.parametrize("line", ["7", "[1]", '{"step": "x"}', "null", '{"step": 1e400}', '{"step": true}'])
def test_a_line_that_is_no_record_does_not_stop_a_run_from_going_on(whole, tmp_path, line):
    from lgrpo_lite.folder.folder import RunFolder

    for name in ("metrics.jsonl", "evals.jsonl"):
        rows = (whole / "whole" / name).read_text()
        (tmp_path / name).write_text(f"{line}\n{rows}{line}\n")
    folder = RunFolder(tmp_path)
    folder.rewind(12, evaluated=True)
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert folder.rows(name) == RunFolder(whole / "whole").rows(name)


def test_logs_of_an_attempt_that_were_tidied_away_do_not_stop_the_next(tmp_path):
    from lgrpo_lite.folder.folder import RunFolder

    for number in (2, 10):
        (tmp_path / "logs" / f"attempt_{number}").mkdir(parents=True)
    folder = RunFolder(tmp_path)
    folder.open()
    assert folder.attempt == 11
    folder.close()


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a: [", b"a: 2026-99-99"])
def test_a_foreign_folder_does_not_stop_runs_from_going_on(whole, tmp_path, capfd, text):
    """Beside the others it is passed over; by its name it is refused."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.resolved.yaml").write_bytes(text)
    asked = ["recipe", "tiny-math", *SMALL, "--runs", tmp_path, "--name", "foreign", "--resume", "auto"]
    assert lgrpo(*asked) == 2
    assert "the settings of the run cannot be read" in capfd.readouterr().err
    from lgrpo_lite.folder.opening import open_run
    from lgrpo_lite.recipe.read import load_recipe

    folder, resumed = open_run(load_recipe("tiny-math", []), tmp_path, None, "auto")
    folder.close()
    assert not resumed and folder.path != foreign
