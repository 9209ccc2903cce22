"""The head alone: time, peak memory and error of log-prob and gradient, beside the same with other libraries.

    python bench/loss.py                  152k tokens, width 2048, 2048 positions; half an hour on two cores
    python bench/loss.py --quick          a small shape, a minute

Each round runs every implementation once, forward and backward; a ratio is taken inside a round. `two
matmuls` are the two products with the vocabulary alone, in the same tiles and type. Peers that are not
installed are left out and named.
"""

import argparse

import head_peers
import measure
import torch
from torch import Tensor

from lgrpo_lite.ops.logprob import logprobs
from lgrpo_lite.ops.tiles import tile_of

# on a CPU: no such kernel; minutes of compiling for the same arithmetic as liger_eager
SLOW = ("cce_exact", "liger")


def own(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor) -> Tensor:
    return -(g * logprobs(hidden, weight, ids, temperature)[0]).sum()


def two_matmuls(hidden: Tensor, weight: Tensor) -> None:
    """What no implementation can go below: h Wᵀ, and a tile of that times W."""
    rows, columns = tile_of(len(weight))
    with torch.no_grad():
        tile, total = (
            hidden.new_empty(rows * columns),
            hidden.new_empty(min(rows, len(hidden)), hidden.shape[1]),
        )
        for part in hidden.split(rows):
            for w in weight.split(columns):
                z = torch.mm(part, w.T, out=tile[: len(part) * len(w)].view(len(part), len(w)))
                total[: len(part)].addmm_(z, w)


def accuracy(peers: dict[str, head_peers.Peer], dtype: torch.dtype) -> dict[str, float]:
    """Worst token's relative error of the gradient where 1 - p runs from 1e-7 to 1e-1."""
    hidden, weight, ids = head_peers.certain(1024, 64, 4096)
    hidden, weight, ids = (t.to(measure.device()) for t in (hidden.to(dtype), weight.to(dtype), ids))
    g = torch.ones(len(hidden), device=hidden.device)
    truth, _ = head_peers.truth(hidden, weight, ids, 1.0, g)
    worst = {}
    for name, peer in peers.items():
        mine = head_peers.gradient(peer, hidden, weight, ids, 1.0, g).double()
        worst[name] = ((mine - truth).norm(dim=1) / truth.norm(dim=1)).max().item()
    return worst


def compare(
    peers: dict[str, head_peers.Peer], n: int, d: int, v: int, dtype: torch.dtype, rounds: int
) -> dict[str, dict]:
    where = measure.device()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator).to(dtype).to(where).requires_grad_()
    weight = (torch.randn(v, d, generator=generator) * 0.02).to(dtype).to(where)
    ids = torch.randint(v, (n,), generator=generator).to(where)
    # Liger: one number a sequence
    g = torch.randn(n // 256, 1, generator=generator).expand(-1, 256).flatten().to(where)

    def run(peer: head_peers.Peer):
        def call() -> None:
            peer(hidden, weight, ids, 1.0, g).backward()
            hidden.grad = None

        return call

    calls = {"two matmuls": lambda: two_matmuls(hidden, weight)} | {
        name: run(peer) for name, peer in peers.items()
    }
    table = measure.ratios(measure.interleaved(calls, rounds, warmup=0 if n * d > 1e6 else 1), "own")
    for name in peers:
        table[name]["peak_bytes"] = measure.peak_bytes(calls[name])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--peers", help="which to time, comma-separated; default: all that are installed")
    args = parser.parse_args()
    n, d, v = (512, 256, 32768) if args.quick else (2048, 2048, 151936)
    settings = {"tokens": n, "width": d, "vocabulary": v, "rounds": args.rounds}
    for name in args.dtypes.split(","):
        dtype = getattr(torch, name)
        works, missing = head_peers.available(measure.device().type, dtype)
        for peer, reason in missing.items():
            print(f"left out: {peer}: {reason}")
        if measure.device().type == "cpu":
            works = {peer: f for peer, f in works.items() if peer not in SLOW}
        worst = accuracy({"own": own} | works, dtype)
        timed = {peer: f for peer, f in works.items() if not args.peers or peer in args.peers.split(",")}
        table = compare({"own": own} | timed, n, d, v, dtype, args.rounds)
        print(f"{name}, {n} x {d} x {v}   {'own is 1':>12} {'range':>16} {'peak MiB':>10} {'error':>9}")
        for peer, row in table.items():
            peak = f"{row['peak_bytes'] / 2**20:10.0f} {worst[peer]:9.1e}" if peer in worst else ""
            print(f"{peer:32} {row['median']:12.2f} {row['min']:8.2f}-{row['max']:.2f}  {peak}")
        for peer, error in worst.items():
            table.setdefault(peer, {})["worst_gradient_error"] = error
            if peer not in timed and peer != "own":
                print(f"{peer:32} {'not timed':>12} {error:39.1e}")
        print(measure.keep("loss", settings, {name: table}, trial=args.quick))


if __name__ == "__main__":
    main()
