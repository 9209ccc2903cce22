"""The reward `math` beside math-verify alone, on the same rows in one run: who is right, at what CPU time.

    python bench/verifier.py --cases CASES.jsonl --outputs OUTPUTS.jsonl --gsm8k GSM8K.jsonl

CASES and OUTPUTS have {prediction, gold, label} and may have {tier, category, form, id}; GSM8K has {solution,
answer}. math-verify is used as its README says, `verify(parse(gold), parse(prediction))`, a bare answer in
dollar signs, in a process of its own that is killed after --limit seconds of wall time on one row. Nothing of
the rows is stored, only counts and ids.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import measure

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.verify import verify

DEADLINE = 5.0  # CPU seconds for one row; the default of the reward's timeout
Verdict = tuple[bool, float]  # judged right, CPU seconds


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def ours(row: dict[str, Any]) -> Verdict:
    begin = time.process_time()
    right = verify(row["prediction"], row["gold"]) == Outcome.ok
    return right, time.process_time() - begin


def answer_rows(pipe: Any) -> None:
    """The other process: math-verify on each row sent."""
    import logging

    from math_verify import parse
    from math_verify import verify as peer

    logging.disable(logging.CRITICAL)
    while True:
        gold, prediction = pipe.recv()
        begin = time.process_time()
        try:
            right = bool(peer(parse(gold), parse(prediction)))
        except Exception:
            right = False
        pipe.send((right, time.process_time() - begin))


class Peer:
    """math-verify in a process that is replaced when a row takes too long."""

    def __init__(self, limit: float):
        self.limit, self.late = limit, 0
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=answer_rows, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, row: dict[str, Any]) -> Verdict:
        bare = row.get("form", "answer") == "answer"
        gold, prediction = (
            (f"${row['gold']}$", f"${row['prediction']}$")
            if bare
            else (f"${row['gold']}$", row["prediction"])
        )
        try:
            self.pipe.send((gold.replace("$$", "$"), prediction.replace("$$", "$") if bare else prediction))
            if self.pipe.poll(self.limit):
                return self.pipe.recv()
        except (EOFError, OSError):
            pass
        self.process.kill()
        self.process.join()
        self.late += 1
        self.start()
        return False, self.limit


def judged(rows: Sequence[dict[str, Any]], judge: Callable[[dict[str, Any]], Verdict]) -> list[Verdict]:
    judge({"prediction": "x^2", "gold": "x^{2}+0", "form": "answer"})  # imports are not counted
    return [judge(row) for row in rows]


def counts(rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Accuracy, rewarded wrong answers (fp) and unrewarded right ones (fn), CPU milliseconds."""
    pairs = list(zip(rows, verdicts, strict=True))
    spent = sorted(seconds for _, (_, seconds) in pairs)
    return {
        "rows": len(pairs),
        "wrong_rows": sum(not row["label"] for row in rows),
        "accuracy": 100 * sum(right == row["label"] for row, (right, _) in pairs) / len(pairs),
        "fp": sum(right and not row["label"] for row, (right, _) in pairs),
        "fn": sum(row["label"] and not right for row, (right, _) in pairs),
        "late": sum(seconds > DEADLINE for seconds in spent), "mean_ms": 1e3 * statistics.mean(spent),
        "p50_ms": 1e3 * spent[len(spent) // 2], "p99_ms": 1e3 * spent[int(0.99 * (len(spent) - 1))], "max_ms": 1e3 * spent[-1],
        "per_cpu_second": len(spent) / sum(spent),
    }  # fmt: skip


def grouped(
    rows: Sequence[dict[str, Any]], both: dict[str, list[Verdict]], key: str
) -> dict[str, dict[str, Any]]:
    where: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        where[str(row.get(key))].append(i)
    return {
        value: {
            name: counts([rows[i] for i in at], [verdicts[i] for i in at]) for name, verdicts in both.items()
        }
        for value, at in sorted(where.items())
    }


def gsm8k(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Gold solutions in the set's own form, against their answer and against that of the row before."""
    solutions = [f"{row['solution']}\n#### {row['answer']}" for row in rows]
    golds = [row["answer"] for row in rows]
    shifted = golds[-1:] + golds[:-1]
    return {
        "rows": len(rows),
        "gold": sum(verify(s, g) == Outcome.ok for s, g in zip(solutions, golds, strict=True)),
        "shuffled": sum(verify(s, g) == Outcome.ok for s, g in zip(solutions, shifted, strict=True)),
        "coincidences": sum(
            a.replace(",", "") == b.replace(",", "") for a, b in zip(golds, shifted, strict=True)
        ),
    }


def compared(rows: Sequence[dict[str, Any]], peer: Peer) -> dict[str, list[Verdict]]:
    return {"ours": judged(rows, ours), "math-verify": judged(rows, peer)}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--cases", type=Path)
    arguments.add_argument("--outputs", type=Path)
    arguments.add_argument("--gsm8k", type=Path)
    arguments.add_argument(
        "--limit", type=float, default=20.0, help="wall seconds before math-verify is killed on a row"
    )
    args = arguments.parse_args()
    found: dict[str, Any] = {}
    peer = Peer(args.limit)
    if args.cases:
        rows = read(args.cases)
        both = compared(rows, peer)
        categories = grouped(rows, both, "category")
        errors = {
            name: {who: [c["fp"], c["fn"]] for who, c in row.items()} for name, row in categories.items()
        }
        found["tiers"] = grouped(rows, both, "tier")
        found["categories"] = {
            name: {"rows": categories[name]["ours"]["rows"], **row} for name, row in errors.items()
        }
        found["disagreements"] = [
            row.get("id") for row, (right, _) in zip(rows, both["ours"], strict=True) if right != row["label"]
        ]
    if args.outputs:
        rows = read(args.outputs)
        both = compared(rows, peer)
        found["outputs"] = {name: counts(rows, verdicts) for name, verdicts in both.items()}
        found["outputs_disagreements"] = {
            name: [
                row.get("id") for row, (right, _) in zip(rows, verdicts, strict=True) if right != row["label"]
            ]
            for name, verdicts in both.items()
        }
    if args.gsm8k:
        found["gsm8k"] = gsm8k(read(args.gsm8k))
    peer.process.kill()
    for tier, table in found.get("tiers", {}).items():
        for name, row in table.items():
            print(
                f"{tier:12} {name:12} {row['accuracy']:.2f} %  fp {row['fp']}  fn {row['fn']}  late {row['late']}"
            )
    for name, row in found.get("outputs", {}).items():
        speed = f"{row['per_cpu_second']:,.0f} a CPU second"
        print(f"{'outputs':12} {name:12} {row['accuracy']:.2f} %  fp {row['fp']}  fn {row['fn']}  {speed}")
    print(found.get("gsm8k", ""))
    print(
        measure.keep(
            "verifier", {"deadline_s": DEADLINE, "peer_limit_s": args.limit, "peer_killed": peer.late}, found
        )
    )


if __name__ == "__main__":
    main()
