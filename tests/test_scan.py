"""Decayed scans and traces against the sums they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgrpo_lite.objective import trace
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
