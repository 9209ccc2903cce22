"""Plan and simulated card side by side: every moment of runs of 3B to 14B shapes on 24
GB. No GPU; a quarter of an hour.

    OMP_NUM_THREADS=1 python bench/moments.py [--only 3B]

The card is tests/card.py: the trainer's passes over FakeTensors in a ledger with the rules of CUDA's
allocator. Stored for docs/memory.md; tests/test_card.py demands that both say the same.
"""

import argparse
import sys
from pathlib import Path

import measure

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from simulated_run import AWAY, CELLS, LONGEST, OFFLOADED, SimulatedRun, recipe_of

from lgrpo_lite.plan.plan import plan

GIB = 2**30
SIZE = 24 * GIB


def row(model: str, answers: int, *more: str) -> dict:
    recipe = recipe_of(model, answers, *more)
    said = plan(recipe, SIZE)
    run = SimulatedRun(recipe, SIZE)
    moments = {
        name: {"plan": said.peak(name) / GIB, "card": seen.peak / GIB, "full": seen.full}
        for name, seen in run.all().items()
    }
    return {
        "model": model, "answers": answers, "more": list(more), "fits": said.fits, "binds": said.worst, "moments": moments,
        "recomputed": said.recomputed, "layers": said.layers, "at_once": said.at_once, "offloaded": said.offloaded / GIB,
        "shrunk": run.run.notices,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name has this in it")
    args = parser.parse_args()
    for model, answers, *more in [*CELLS, *LONGEST, *((*cell, *OFFLOADED) for cell in AWAY)]:
        if args.only in model:
            found = row(model, answers, *more)
            print(f"{model}, {answers}: {found}", flush=True)
            measure.keep("moments", {"card_gib": SIZE / GIB}, {f"{model}, {answers}": found})


if __name__ == "__main__":
    main()
