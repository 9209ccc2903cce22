"""Worker processes: what a reward does to its process costs that process, one
missing reward, and nothing else.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.recipe.schema import Safety
from lgrpo_lite.rewards.mark import Pooled, settled
from lgrpo_lite.rewards.part import Tally
from lgrpo_lite.rewards.pool import Pool
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.rewards.worker import FileFunction
from lgrpo_lite.types import Completion, Outcome, Prompt

USER = b"""
import ctypes, os, subprocess, sys, threading, time

def length(completion): return len(completion)
def sleeps(completion): time.sleep(1000)
def spins(completion):
    while True: pass
def segfaults(completion): ctypes.string_at(0)
def exits(completion): os._exit(7)
def quits(completion): sys.exit(0)
def eats(completion):
    kept = []
    while True: kept.append(os.urandom(1 << 20) * 16)
def leaks(completion):
    leaks.kept = getattr(leaks, "kept", []) + [b"x" * (200 << 20)]
    return 1.0
def raises(completion): raise ValueError("on purpose")
def recurses(completion): return recurses(completion)
def unsendable(completion): return threading.Lock()
def says(completion):
    print("printed by a reward", flush=True)
    return 1.0
def forks(completion):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvpe("sleep", ["sleep", "1234"], {})
        os._exit(0)
    return 1.0
def hops(completion):
    # a process that is somebody else at every look: it forks, and the parent ends
    if os.fork() == 0:
        os.setsid()
        for _ in range(100):
            if os.fork():
                os._exit(0)
        os.execvpe("sleep", ["sleep", "1234"], {})
    return 1.0
def forks_and_sleeps(completion):
    forks(completion)
    subprocess.Popen(["sleep", "1234"], start_new_session=True)
    time.sleep(1000)
def forks_and_dies(completion):
    subprocess.Popen(["sleep", "1234"], start_new_session=True)
    os._exit(1)
def pid(completion): return os.getpid() % 1000
def works(completion):
    end = time.process_time() + 0.4
    while time.process_time() < end: pass
    return 1.0
"""


def pool(*names: str, timeout: float = 60.0, **more) -> Pool:
    functions = [Pooled(FileFunction("mine.py", name, USER)) for name in names]
    return Pool(functions, [timeout] * len(names), **more)


def call(function: int, text: str = "abc"):
    return function, {"completion": text}


def sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1234"]]


def test_replies_come_in_order_from_several_processes():
    crew = pool("length", "pid", workers=2)
    replies = crew.run([call(0, "x" * n) for n in range(300)])
    assert [reply.value.value for reply in replies] == list(range(300)) and not any(
        reply.fault for reply in replies
    )
    assert crew.started == 2 and len({reply.value.value for reply in crew.run([call(1)] * 50)}) <= 2
    crew.close()


@pytest.mark.parametrize(
    ("name", "fault", "note", "seconds"),
    [
        ("sleeps", "timeout", "more than 0.5 s", 0.5),
        ("spins", "timeout", "more than 0.5 s", 0.5),
        ("segfaults", "crash", "SIGSEGV", 60.0),
        ("exits", "crash", "exit code 7", 60.0),
        ("quits", "error", "SystemExit", 60.0),
        ("eats", "error", "emory", 60.0),
        ("raises", "error", "ValueError: on purpose", 60.0),
        ("recurses", "error", "RecursionError", 60.0),
        ("unsendable", "error", "lock", 60.0),
    ],
)
def test_a_fault_costs_one_reply(name, fault, note, seconds):
    crew = pool("length", name, timeout=seconds, workers=1, memory=0.5)
    replies = crew.run([call(0), call(1), call(0, "abcd"), call(1), call(0, "abcde")])
    assert [reply.fault for reply in replies] == [None, fault, None, fault, None]
    assert [replies[i].value.value for i in (0, 2, 4)] == [3, 4, 5] and note in replies[1].note
    crew.close()


@pytest.mark.parametrize("name", ["forks", "hops", "forks_and_sleeps", "forks_and_dies"])
def test_no_process_outlives_the_batch_that_started_it(name):
    crew = pool(name, timeout=0.5, workers=1)
    crew.run([call(0)] * 2)
    crew.close()
    end = time.monotonic() + 10
    while sleepers() and time.monotonic() < end:
        time.sleep(0.05)
    assert not sleepers()


def test_what_an_import_started_lives_as_long_as_its_worker():
    """A server that a reward asks, say: started at the top of its file it stays; started by
    a call it goes with the batch.
    """
    text = b"import subprocess\nserver = subprocess.Popen(['sleep', '1234'])\ndef score(completion): return server.poll() is None"
    crew = Pool([Pooled(FileFunction("mine.py", "score", text))], [60.0], workers=1)
    assert (
        [crew.run([call(0)])[0].value.value for _ in range(3)] == [1.0] * 3
        and crew.started == 1
        and len(sleepers()) == 1
    )
    crew.close()
    assert not [p for p in sleepers() if p.status() != psutil.STATUS_ZOMBIE]


def test_a_process_that_has_grown_is_replaced_between_batches():
    crew = pool("leaks", workers=1, memory=1.0)
    for _ in range(12):  # 2.4 GB in all
        assert crew.run([call(0)])[0].fault is None
    assert crew.started >= 4
    crew.close()


def test_deadlines_do_not_count_waits_for_a_cpu():
    """0.4 s of work under a limit of 2 s, in eight processes on every core: wall time alone would end them."""
    cores = len(os.sched_getaffinity(0))
    crew = pool("works", timeout=2.0, workers=8 * cores)
    began = time.monotonic()
    replies = crew.run([call(0)] * (16 * cores))
    wall = time.monotonic() - began
    assert [reply.fault for reply in replies] == [None] * len(replies)
    assert max(reply.seconds for reply in replies) < 2.0 < wall
    crew.close()


def test_workers_end_with_their_parent(tmp_path):
    """SIGKILL to the trainer leaves no worker behind, in a call or not."""
    (tmp_path / "mine.py").write_bytes(USER)
    code = (
        "from lgrpo_lite.rewards.pool import Pool\nfrom lgrpo_lite.rewards.mark import Pooled\n"
        "from lgrpo_lite.rewards.worker import FileFunction\n"
        f"text = open({str(tmp_path / 'mine.py')!r}, 'rb').read()\n"
        "crew = Pool([Pooled(FileFunction('mine.py', n, text)) for n in ('pid', 'sleeps')], [60, 60], workers=2)\n"
        "crew.run([(0, {'completion': ''})] * 2)\n"
        "print(*[w.process.pid for w in crew._workers], flush=True)\n"
        "crew.run([(1, {'completion': ''})])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = list(map(int, parent.stdout.readline().split()))
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert pids and not any(map(psutil.pid_exists, pids))


def test_a_process_that_started_later_scores_by_the_same_text(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import os\ndef score(completion):\n    if completion == 'die': os._exit(1)\n    return 1.0\n"
    )
    rewards = RewardSum([Reward(use=f"{path}:score")], str)
    path.write_text("def score(completion): return 0.0\n")
    scores = rewards.scores([PROMPT], [[completion("die"), completion("live")]])[0]
    assert (scores[0].outcome, scores[1].value) == (Outcome.error, 1.0)
    rewards.close()


def test_what_cannot_start_is_told():
    crew = Pool([Pooled(FileFunction("mine.py", "score", b"raise SystemExit(3)"))], [1.0])
    with pytest.raises(DataError, match="cannot start"):
        crew.run([call(0)])


def test_prints_go_to_the_log(tmp_path, capfd):
    crew = pool("says", workers=1, log=tmp_path / "rewards.log")
    crew.run([call(0)])
    crew.close()
    assert capfd.readouterr() == ("", "") and "printed by a reward" in (tmp_path / "rewards.log").read_text()


PROMPT = Prompt("7", "?", (1,), "4")


def completion(text: str) -> Completion:
    return Completion((1,), (0.0,), text, "stop", 0)


@pytest.mark.parametrize(
    ("result", "value", "outcome", "parts"),
    [
        (1, 1.0, Outcome.ok, {}),
        (True, 1.0, Outcome.ok, {}),
        (-0.5, -0.5, Outcome.wrong, {}),
        ((0.0, Outcome.unparsable), 0.0, Outcome.unparsable, {}),
        ((0.5, "ok"), 0.5, Outcome.ok, {}),
        ({"steps": 0.25, "answer": 1}, 1.25, Outcome.ok, {"steps": 0.25, "answer": 1.0}),
        (None, None, Outcome.error, {}),
        (float("inf"), None, Outcome.error, {}),
        ({"a": float("nan")}, None, Outcome.error, {}),
    ],
)
def test_what_a_reward_may_return(result, value, outcome, parts):
    mark = settled(result)
    if value is None:
        assert mark is outcome
    else:
        assert (mark.value, mark.outcome, mark.parts) == (value, outcome, parts)


@pytest.mark.parametrize("result", ["1", [1], (1, "right"), (1, 2, 3), object()])
def test_what_a_reward_may_not_return(result):
    with pytest.raises((TypeError, ValueError)):
        settled(result)


def test_missing_rewards_leave_their_group_and_are_counted(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(
        USER
        + b"""
def mixed(completion):
    return {"sleep": sleeps, "crash": segfaults, "raise": raises}.get(completion, length)(completion) and 1.0
"""
    )
    safety = Safety(reward_workers=1, reward_memory_gb=1.0)
    rewards = RewardSum([Reward(use=f"{path}:mixed", timeout=0.5)], str, safety=safety)
    tally = Tally()
    answers = [
        list(map(completion, ["good", "sleep", "fine", "crash"])),
        list(map(completion, ["raise", "fine"])),
    ]
    groups = rewards.group([PROMPT, PROMPT], answers, tally=tally)
    assert [[r.completion.text for r in g.rollouts] for g in groups] == [["good", "fine"], ["fine"]]
    assert [g.missing for g in groups] == [2, 1]
    assert tally.faults == {"timeout": 1, "crash": 1, "error": 1} and len(tally.seconds) == 6
    rewards.close()


def test_named_parts_of_a_users_reward(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('def score(completion): return {"brief": 0.5, "polite": 0.25}\n')
    rewards = RewardSum([Reward(use=f"{path}:score", weight=2.0)], str)
    score = rewards.score(PROMPT, completion("x"))
    assert score.value == 1.5 and score.parts == {"score": 0.75, "score.brief": 0.5, "score.polite": 0.25}
    rewards.close()


def test_a_catastrophic_pattern_is_ended_at_its_deadline():
    rewards = RewardSum([Reward(use="format", pattern=r"(a+)+b", timeout=0.5)], str)
    score = rewards.score(PROMPT, completion("a" * 5000))
    assert (score.value, score.outcome) == (None, Outcome.timeout)
    rewards.close()


def test_the_pool_imports_neither_torch_nor_pydantic():
    code = (
        "import sys, lgrpo_lite.rewards.mark; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert out.stdout.strip() == "[]", out.stderr
