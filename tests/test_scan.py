"""Decayed scans and traces against the sums they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lgrpo_lite.objective import trace
from lgrpo_lite.objective.weight import prefix_share
from lgrpo_lite.ops.scan import CHUNK, decayed_scan

DECAYS = st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0])
LENGTHS = st.lists(st.integers(1, 3 * CHUNK + 5), min_size=1, max_size=4)


@given(length=st.integers(1, 5 * CHUNK), decay=DECAYS, seed=st.integers(0, 99))
def test_scan_is_the_recurrence(length, decay, seed):
    x = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    state, expected = torch.zeros(2, dtype=torch.float64), []
    for t in range(length):
        state = x[:, t] + decay * state
        expected.append(state)
    torch.testing.assert_close(decayed_scan(x, decay), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


@given(
    lengths=LENGTHS,
    decay=DECAYS,
    style=st.sampled_from(["recent", "both"]),
    floor=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_traces_are_their_matrix(lengths, decay, style, floor, seed):
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    x = torch.randn(len(seq), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = trace.accumulate(x, seq, decay=decay, style=style, floor=floor)
    sums = trace.column_sums(seq, decay=decay, style=style, floor=floor)
    for s in range(len(lengths)):
        w = matrix(lengths[s], decay, style, floor)
        torch.testing.assert_close(y[seq == s], w @ x[seq == s], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sums[seq == s], w.sum(0), rtol=1e-10, atol=1e-10)


def matrix(length: int, decay: float, style: str, floor: float) -> torch.Tensor:
    """W[t, j] written out."""
    t, j = torch.arange(length)[:, None], torch.arange(length)
    base = torch.tensor(decay, dtype=torch.float64)
    recent = base ** (t - j).clamp(min=0)
    weights = recent if style == "recent" else torch.maximum(recent, (base**j).expand(length, length))
    return torch.where(t >= j, weights.clamp(min=floor), 0.0)


@pytest.mark.parametrize("style", ["recent", "both"])
def test_no_credit_crosses_sequences(style):
    seq = torch.tensor([0, 0, 0, 1, 1])
    x = torch.zeros(5, dtype=torch.float64)
    x[2] = 1.0
    assert trace.accumulate(x, seq, decay=0.9, style=style)[3:].tolist() == [0.0, 0.0]


class Elements(TorchDispatchMode):
    """Counts the elements that operations produce: the work of elementwise code, whatever the machine."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.made += sum(
            x.numel()
            for x in (out if isinstance(out, tuple | list) else [out])
            if isinstance(x, torch.Tensor)
        )
        return out


@pytest.mark.parametrize("style", ["recent", "both"])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_work_of_a_trace_is_linear_in_the_tokens(style, floor):
    def work(length):
        x, seq = torch.zeros(length, requires_grad=True), torch.zeros(length, dtype=torch.long)
        with Elements() as counted:
            trace.accumulate(x, seq, decay=0.99, style=style, floor=floor).sum().backward()
            trace.column_sums(seq, decay=0.99, style=style, floor=floor)
        return counted.made

    assert work(8192) / work(4096) < 2.1
    assert work(8192) < 8192 * 500


def test_prefix_share_reads_every_token_once():
    class Read(list):
        reads = 0

        def __iter__(self):
            for token in super().__iter__():
                Read.reads += 1
                yield token

    prefix_share([Read(range(1000)) for _ in range(8)])
    assert Read.reads == 8000
