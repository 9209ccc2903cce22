"""Runs that are killed again and again, and the one that was not: do they end with the same bytes?

    python -m tests.attack.chaos --kills 300                        five algorithms, transformers
    python -m tests.attack.chaos --kills 30 --engine vllm           in a Python that has vLLM
    python -m tests.attack.chaos --case '{"algorithm": "grpo", "kills": [["saving", 1, "changes", 7]]}'

A case is a run that is killed up to three times, resumed after each, and compared with a whole run of the same
algorithm: every file (`left`), links and states included. A kill falls at a random moment of a phase or before
a random change of a file in it (`killed`); the phase is the one that was hit least so far. Processes that
outlive their run by 20 s, resumes that are refused and runs that hang count as faults too.

A run is a fork of a process that has imported everything, so that 300 kills take an hour and not three; one in
ten, and every run on vLLM, is a fresh interpreter.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from .left import differing, left
from .marked import living, marked, stamp

ALGORITHMS = {
    "length_preference": (),
    "trace": ("model.weights=nf4",),
    "grpo": ("model.weights=nf4", "algorithm.kl.coef=0.04"),
    "dapo": (),
    "flowrl": (),
}
PHASES = (
    "loading", "looking for a signal", "evaluating", "proving the rollouts", "rollout", "reward", "update",
    "saving", "exporting",
)  # fmt: skip
SMALL = (
    "train.steps=4", "train.save_every=2", "train.eval_every=2", "rollout.prompts_per_step=4",
    "rollout.group_size=4", "data.train.limit=40", "data.eval.limit=4", "eval.k=1", "rewards=[{use: math}]",
    "data.date=2026-01-01T00:00:00",  # of its start a run keeps the time, and no two start at one
    "safety.sync_proof_every=4",
)  # fmt: skip
ENGINES = {"transformers": (), "vllm": ("rollout.engine=vllm", "rollout.vllm.kv_cache_gb=0.1")}
MOST_KILLS = 3  # of a case
FRESH = 0.1  # share of runs in an interpreter of their own
LIMIT = 900.0  # seconds a run may take on a loaded machine
ORPHANS = 20.0  # seconds within which what a killed run has started is gone

Kill = tuple[str, int, str, float]  # phase, which time it comes, seconds or changes, how many of them
Spans = dict[str, list[tuple[float, int]]]  # of each phase, each time it came: seconds, changes of files


@dataclass
class Finding:
    """One case: what was asked for, where the kills fell, and what was wrong in the end."""

    algorithm: str
    kills: list[Kill]
    hit: list[str] = field(default_factory=list)  # phases
    fault: str = ""  # wrong, refused, hung, orphans; empty: none
    detail: str = ""


@dataclass(frozen=True)
class Attack:
    """How runs of one campaign are started. `home` holds their folders."""

    home: Path
    engine: str

    def words(self, algorithm: str) -> list[str]:
        settings = (*SMALL, *ENGINES[self.engine], f"algorithm.use={algorithm}", *ALGORITHMS[algorithm])
        return ["recipe", "tiny-math", *settings, "--name", "run", "--ui", "plain", "--resume", "auto"]

    def run(self, algorithm: str, runs: Path, kill: Kill | None, *, fresh: bool) -> tuple[int, list[Any]]:
        """Start or resume the run in `runs`. Its exit code (negative: the signal), and what lives on."""
        argv = ["--tell", str(runs / "tell"), "--runs", str(runs), *self.words(algorithm)]
        if kill is not None:
            argv = ["--at", *(str(part) for part in kill), *argv]
        mark, environment = marked(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_CPU_KVCACHE_SPACE="1")
        runs.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            _become(argv, environment, runs, fresh=fresh or self.engine == "vllm")
        code = _ended(pid)
        waited = time.monotonic()
        while living(mark) and time.monotonic() - waited < ORPHANS:
            time.sleep(0.1)
        return code, living(mark)


def _become(argv: list[str], environment: dict[str, str], runs: Path, *, fresh: bool) -> None:
    """The child of a fork: the run, in a session of its own; it never returns."""
    code = 1
    try:
        os.setsid()
        out = os.open(runs / "out.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if fresh:
            os.execve(sys.executable, [sys.executable, "-m", "tests.attack.killed", *argv], environment)
        os.environ.update(environment)
        sys.argv[1:] = argv
        from .killed import main

        code = main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _ended(pid: int) -> int:
    """Exit code of a child, negative for a signal. One that takes too long is killed: 124."""
    began = time.monotonic()
    while time.monotonic() - began < LIMIT:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


def spans_of(tell: Path) -> Spans:
    """What each phase of a whole run took, from what it told."""
    spans: Spans = {}
    for row in tell.read_text().splitlines():
        name, *took = row.split("\t")
        if took:
            seconds, changes = took
            spans.setdefault(name, []).append((float(seconds), int(changes)))
    return spans


def drawn(draw: random.Random, phase: str, spans: Spans) -> Kill:
    """A kill in a phase: some time that it came, some moment or some change of a file in it."""
    number = draw.randrange(len(spans[phase]))
    seconds, changes = spans[phase][number]
    if changes and draw.random() < 0.5:
        return phase, number, "changes", draw.randint(1, changes)
    return phase, number, "seconds", round(draw.uniform(0, seconds), 6)


def attacked(attack: Attack, name: str, finding: Finding, whole: dict[str, str], draw: random.Random) -> None:
    """Play one case: kill, resume, …, resume to the end, compare."""
    runs = attack.home / name
    for kill in [*finding.kills, None]:
        code, alive = attack.run(finding.algorithm, runs, kill, fresh=draw.random() < FRESH)
        if code in (-signal.SIGKILL, -signal.SIGALRM):
            finding.hit.append((runs / "tell").read_text().rpartition("\n")[2])
        if alive:
            finding.fault = "orphans"
            finding.detail = "; ".join(" ".join(process.cmdline())[:200] for process in alive)
            return
        if code >= 0:
            break
    if code == 124:
        finding.fault = "hung"
    elif code != 0:
        finding.fault = "refused"
    else:
        other = differing(whole, left(runs / "run"))
        finding.fault = "wrong" if other else ""
        finding.detail = ", ".join(other)
    if finding.fault in ("hung", "refused"):
        finding.detail = f"exit {code}: " + (runs / "out.log").read_text(errors="replace")[-1500:]
    if not finding.fault:
        shutil.rmtree(runs)


@dataclass
class Board:
    """What all workers have hit so far, in shared memory."""

    hits: Any  # kills by phase
    cases: Any

    def take(self) -> int:
        with self.cases.get_lock():
            self.cases.value += 1
            return self.cases.value - 1

    def least(self, spans: Spans, draw: random.Random) -> str:
        """The phase that was hit least; of equals any."""
        known = [(self.hits[i], draw.random(), phase) for i, phase in enumerate(PHASES) if phase in spans]
        return min(known)[2]

    def add(self, phases: list[str]) -> None:
        with self.hits.get_lock():
            for phase in phases:
                self.hits[PHASES.index(phase) if phase in PHASES else len(PHASES)] += 1

    def total(self) -> int:
        return sum(self.hits)


def works(attack: Attack, board: Board, wholes: dict[str, Any], kills: int, seed: int, out: Path) -> None:
    """One worker: cases until there were enough kills, a line of JSON each."""
    with out.open("w", buffering=1) as file:
        while board.total() < kills:
            number = board.take()
            draw = random.Random(f"{seed}/{number}")
            algorithm = list(wholes)[number % len(wholes)]
            whole, spans = wholes[algorithm]
            asked = [drawn(draw, board.least(spans, draw), spans)]
            for _ in range(draw.randrange(MOST_KILLS)):
                asked.append(drawn(draw, draw.choice([phase for phase in PHASES if phase in spans]), spans))
            finding = Finding(algorithm, asked)
            attacked(attack, f"case{number}", finding, whole, draw)
            board.add(finding.hit)
            file.write(json.dumps(vars(finding)) + "\n")


def whole_of(attack: Attack, algorithm: str) -> tuple[dict[str, str], Spans]:
    """The run that is not killed. One that does not end well ends the campaign."""
    runs = attack.home / f"whole-{algorithm}"
    code, _ = attack.run(algorithm, runs, None, fresh=True)
    if code != 0:
        raise RuntimeError(f"a run of {algorithm} that nobody killed ended {code}: see {runs / 'out.log'}")
    return left(runs / "run"), spans_of(runs / "tell")


def campaign(attack: Attack, kills: int, jobs: int, seed: int, algorithms: list[str]) -> dict[str, Any]:
    """Whole runs first, then workers; what they found, as one table."""
    began = time.monotonic()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(jobs) as pool:
        found = pool.starmap(whole_of, [(attack, algorithm) for algorithm in algorithms], chunksize=1)
    wholes = dict(zip(algorithms, found, strict=True))
    board = Board(multiprocessing.Array("i", len(PHASES) + 1), multiprocessing.Value("i", 0))
    outs = [attack.home / f"findings-{job}.jsonl" for job in range(jobs)]
    workers = []
    for out in outs:
        worker = fork.Process(target=works, args=(attack, board, wholes, kills, seed, out))
        worker.start()
        workers.append(worker)
    for worker in workers:
        worker.join()
    findings = []
    for out in outs:
        findings += map(json.loads, out.read_text().splitlines())
    if any(worker.exitcode for worker in workers):
        findings.append(vars(Finding("?", [], fault="hung", detail="a worker of the campaign ended early")))
    return (
        table(findings)
        | stamp()
        | {"engine": attack.engine, "seed": seed, "minutes": round((time.monotonic() - began) / 60, 1)}
    )


def table(findings: list[dict[str, Any]]) -> dict[str, Any]:
    """Kills by phase and algorithm, faults by kind, and every case that had one."""
    phases: dict[str, int] = {}
    algorithms: dict[str, dict[str, int]] = {}
    for finding in findings:
        row = algorithms.setdefault(finding["algorithm"], {"cases": 0, "kills": 0, "faults": 0})
        row["cases"] += 1
        row["kills"] += len(finding["hit"])
        row["faults"] += bool(finding["fault"])
        for phase in finding["hit"]:
            phases[phase] = phases.get(phase, 0) + 1
    return {
        "kills": sum(phases.values()),
        "by_phase": phases,
        "by_algorithm": algorithms,
        "faults": [finding for finding in findings if finding["fault"]],
    }


def told(report: dict[str, Any]) -> list[str]:
    """One line an algorithm, one of where the kills fell, one a fault."""
    lines = []
    for algorithm, row in report["by_algorithm"].items():
        lines.append(
            f"{algorithm:20}{row['cases']:>5} runs {row['kills']:>5} kills {row['faults']:>4} faults"
        )
    lines.append(", ".join(f"{phase} {count}" for phase, count in sorted(report["by_phase"].items())))
    for finding in report["faults"]:
        again = json.dumps({"algorithm": finding["algorithm"], "kills": finding["kills"]})
        lines.append(f"{finding['fault'].upper()} --case '{again}': {finding['detail'][-600:]}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--engine", choices=list(ENGINES), default="transformers")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=json.loads, help="one case, as a fault is printed")
    parser.add_argument("--out", type=Path, default=Path("build/chaos.json"))
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if asked.engine == "transformers":
        for name in ("train.loop", "train.build", "export.export"):  # what every fork has then
            import_module(f"lgrpo_lite.{name}")
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    attack = Attack(home, asked.engine)
    if asked.case:
        algorithm, kills = asked.case["algorithm"], [tuple(kill) for kill in asked.case["kills"]]
        whole, _ = whole_of(attack, algorithm)
        finding = Finding(algorithm, kills)
        attacked(attack, "case", finding, whole, random.Random(0))
        report = table([vars(finding)])
    else:
        report = campaign(attack, asked.kills, asked.jobs, asked.seed, asked.algorithms.split(","))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=1))
    print("\n".join(told(report)))
    if report["faults"]:
        print(f"folders of the faults: {home}")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
