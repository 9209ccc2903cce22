"""The head: against float64, against the naive computation in the same type, and
for tokens that are almost sure.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.ops.logprob import Head, logprobs
from lgrpo_lite.ops.tiles import COLUMNS, tile_of

F16 = (torch.bfloat16, torch.float16)


def naive(hidden, head, ids, temperature):
    z = hidden @ head.weight.T
    if head.bias is not None:
        z = z + head.bias
    z = z * head.scale
    if head.softcap:
        z = head.softcap * torch.tanh(z / head.softcap)
    logp = (z / temperature).log_softmax(-1)
    return logp.gather(1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def made(n, d, v, dtype, *, bias=False, scale=1.0, softcap=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g).to(dtype)
    weight = (torch.randn(v, d, generator=g) * 3 / d**0.5).to(dtype)
    b = torch.randn(v, generator=g).to(dtype) if bias else None
    return (
        hidden,
        Head(weight, b, scale, softcap),
        torch.randint(v, (n,), generator=g),
        torch.randn(2, n, generator=g).double(),
    )


def double(head, *, grad=False):
    move = lambda t: None if t is None else t.double().requires_grad_(grad)  # noqa: E731
    return Head(move(head.weight), move(head.bias), head.scale, head.softcap)


FORMS = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 3, 70]),
        "d": st.sampled_from([1, 7, 33]),
        "v": st.sampled_from([1, 2, 77, 500, COLUMNS + 9]),
        "bias": st.booleans(),
        "scale": st.sampled_from([1.0, 0.25]),
        "softcap": st.sampled_from([None, 5.0]),
        "seed": st.integers(0, 99),
    }
)


@given(form=FORMS, temperature=st.sampled_from([1.0, 0.7, 1.3]), rows=st.sampled_from([None, 1, 64]))
def test_log_prob_entropy_and_every_gradient_in_float64(form, temperature, rows):
    hidden, head, ids, (g, h) = made(**form, dtype=torch.float64)
    hidden.requires_grad_()
    truth, spread = naive(hidden, head, ids, temperature)
    logp, entropy = logprobs(hidden, head, ids, temperature, rows=rows)
    near = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(logp, truth, **near)
    torch.testing.assert_close(entropy, spread, **near)
    (own,) = torch.autograd.grad((logp * g).sum(), hidden)
    torch.testing.assert_close(own, *torch.autograd.grad((truth * g).sum(), hidden), **near)

    learning = double(head, grad=True)
    everything = [t for t in (hidden, learning.weight, learning.bias) if t is not None]
    truth, spread = naive(hidden, learning, ids, temperature)
    logp, entropy = logprobs(hidden, learning, ids, temperature, rows=rows, entropy_grad=True)
    expected = torch.autograd.grad((truth * g).sum() + (spread * h).sum(), everything)
    for mine, theirs in zip(
        torch.autograd.grad((logp * g).sum() + (entropy * h).sum(), everything), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        bare, spread_too = logprobs(hidden, head, ids, temperature, rows=rows)
    torch.testing.assert_close(bare, truth, **near)
    torch.testing.assert_close(spread_too, spread, **near)


@pytest.mark.parametrize("dtype", [torch.float32, *F16], ids=str)
@pytest.mark.parametrize(("d", "v"), [(7, 77), (33, 1000), (64, COLUMNS + 809), (256, 500)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_no_worse_than_the_naive_computation_in_the_same_type(dtype, d, v, temperature, bias):
    worse = {"logp": [0.0, 0.0], "loss": [0.0, 0.0], "gradient": [0.0, 0.0]}
    for seed in range(4):
        hidden, head, ids, (g, _) = made(130, d, v, dtype, bias=bias, seed=seed)
        truth_hidden = hidden.double().requires_grad_()
        truth, _ = naive(truth_hidden, double(head), ids, temperature)
        (truth_grad,) = torch.autograd.grad((truth * g).sum(), truth_hidden)
        for which, function in enumerate((logprobs, naive)):
            leaf = hidden.clone().requires_grad_()
            logp, _ = function(leaf, head, ids, temperature)
            (grad,) = torch.autograd.grad((logp * g.to(logp.dtype)).sum(), leaf)
            worse["logp"][which] += (logp.double() - truth).square().sum().item()
            worse["loss"][which] += ((logp.double() - truth) * g).square().sum().item()
            worse["gradient"][which] += (grad.double() - truth_grad).square().sum().item()
    for name, (mine, theirs) in worse.items():
        # both round the same products; 5 % is the noise of that
        assert math.sqrt(mine) <= 1.05 * math.sqrt(theirs), name


def certain(dtype, n=256, d=64, v=1000):
    """Tokens with 1 - p from 1e-7 to 1e-1: hidden states scaled along their token's weight by bisection."""
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64)
    ids = torch.randint(v, (n,), generator=g)
    wanted = torch.logspace(-7, -1, n, dtype=torch.float64)
    low, high = torch.zeros(n, dtype=torch.float64), torch.full((n,), 4.0, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        rest = 1 - (middle[:, None] * weight[ids] @ weight.T).softmax(-1).gather(1, ids[:, None])[:, 0]
        low, high = torch.where(rest > wanted, middle, low), torch.where(rest > wanted, high, middle)
    return (low[:, None] * weight[ids]).to(dtype), weight.to(dtype), ids


def exact(hidden, weight, ids):
    """∂logp/∂h and 1 - p in float64, by the tokens that were not given."""
    h, w = hidden.double(), weight.double()
    z = h @ w.T
    others = z.scatter(1, ids[:, None], -torch.inf)
    rest = (others.logsumexp(-1) - z.gather(1, ids[:, None])[:, 0]).sigmoid()
    return rest[:, None] * (w[ids] - others.softmax(-1) @ w), rest


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.02)], ids=str
)
@pytest.mark.parametrize("learning", [False, True])
def test_the_gradient_of_a_token_that_is_almost_sure(dtype, bound, learning):
    hidden, weight, ids = certain(dtype)
    truth, rest = exact(hidden, weight, ids)
    assert rest.min() < 2e-7
    hidden.requires_grad_()
    logp, _ = logprobs(hidden, weight.requires_grad_(learning), ids)
    logp.sum().backward()
    worst = ((hidden.grad.double() - truth).norm(dim=1) / truth.norm(dim=1)).max().item()
    assert worst <= bound
    torch.testing.assert_close(logp.double(), torch.log1p(-rest), rtol=4 * bound, atol=0)


class Watch(TorchDispatchMode):
    """Multiply-adds of matrix products, and the largest tensor any operation made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:] if func.overloadpacket is torch.ops.aten.mm else args[1:3]
            self.products += a.shape[0] * a.shape[1] * b.shape[1]
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.nbytes)
        return out


def test_two_products_with_the_vocabulary_for_any_loss_and_no_table_of_logits():
    n, d, v, rows = 512, 16, 3 * COLUMNS + 5, 64  # the weight itself is smaller than a tile
    hidden, head, ids, (g, _) = made(n, d, v, torch.float32)
    hidden.requires_grad_()
    with Watch() as watch:
        logp, _ = logprobs(hidden, head, ids, rows=rows)
        sequence = logp.view(8, 64).mean(1).exp()  # a loss that is no sum over tokens
        (sequence * sequence.detach().cos() + (logp * g.float()).view(8, 64).sum(1)).sum().backward()
    assert watch.products == 2 * n * d * v
    assert watch.largest == rows * COLUMNS * 4
    with Watch() as watch, torch.no_grad():
        logprobs(hidden, head, ids, rows=rows)
    assert watch.products == n * d * v


def test_what_waits_for_the_backward_pass_is_as_large_as_hidden():
    hidden, head, ids, _ = made(100, 16, 5000, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        logprobs(hidden.requires_grad_(), head, ids)
    assert sum(kept) == 100 * 16 + 100


def test_peak_memory_grows_by_the_size_of_hidden():
    def peak(n, d=128, v=2 * COLUMNS):
        hidden, head, ids, (g, _) = made(n, d, v, torch.float32)
        hidden.requires_grad_()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            (logprobs(hidden, head, ids, rows=64)[0] * g.float()).sum().backward()
        alive = most = 0
        events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            alive += event.nbytes()
            most = max(most, alive)
        return most

    small, large = peak(1024), peak(4096)
    assert small < 2 * 64 * COLUMNS * 4 + 3 * 1024 * 128 * 4  # a tile, and a few times hidden
    assert large - small < 3 * 3072 * 128 * 4  # and not 3072 rows of logits


def test_one_bad_row_stays_one_row():
    hidden, head, ids, _ = made(5, 8, 50, torch.float32)
    clean = logprobs(hidden, head, ids)[0]
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = hidden.clone()
        spoilt[2, 3] = bad
        spoilt.requires_grad_()
        logp, _ = logprobs(spoilt, head, ids)
        logp.nansum().backward()
        assert not logp[2].isfinite()
        others = [0, 1, 3, 4]
        assert torch.equal(logp[others], clean[others])
        assert spoilt.grad[others].isfinite().all()


def test_nothing_to_score():
    hidden, head, ids, _ = made(0, 8, 50, torch.float32)
    for needs in (False, True):
        leaf = hidden.clone().requires_grad_()
        logp, entropy = logprobs(leaf, Head(head.weight.clone().requires_grad_(needs)), ids)
        assert logp.shape == entropy.shape == (0,)
        logp.sum().backward()
        assert leaf.grad.shape == (0, 8)


def test_masked_tokens_of_the_vocabulary():
    hidden, head, ids, (g, _) = made(20, 8, 50, torch.float64, bias=True)
    head.bias[10:30] = -math.inf
    ids = ids % 10
    leaf = hidden.requires_grad_()
    for bonus in (False, True):
        logp, entropy = logprobs(leaf, head, ids, entropy_grad=bonus)
        kept = Head(
            torch.cat([head.weight[:10], head.weight[30:]]), torch.cat([head.bias[:10], head.bias[30:]])
        )
        truth, spread = naive(leaf, kept, ids, 1.0)
        torch.testing.assert_close(logp, truth)
        torch.testing.assert_close(entropy, spread)
        mine, theirs = (torch.autograd.grad((x * g).sum(), leaf)[0] for x in (logp, truth))
        torch.testing.assert_close(mine, theirs)


def test_mixed_types_are_computed_in_the_wider_one():
    hidden, head, ids, _ = made(20, 8, 50, torch.bfloat16)
    mixed, _ = logprobs(hidden, head.weight.float(), ids)
    torch.testing.assert_close(
        mixed.double(), naive(hidden.double(), double(head), ids, 1.0)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": torch.zeros(2, 4)}, "hidden has width 4, the head 8"),
        ({"ids": torch.tensor([0, 50])}, "token ids 0..50 for a head of 50 tokens"),
        ({"ids": torch.tensor([-1, 3])}, "token ids -1..3"),
        ({"hidden": torch.zeros(2, 8, device="meta")}, "hidden is on meta, the head on cpu"),
    ],
)
def test_what_does_not_fit_says_so(change, says):
    given = {"hidden": torch.zeros(2, 8), "ids": torch.tensor([1, 2])} | change
    with pytest.raises(ValueError, match=says):
        logprobs(given["hidden"], torch.zeros(50, 8), given["ids"])


def test_a_quantised_head_is_refused():
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(64, 128, bias=False, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(128, 64), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    with pytest.raises(ConfigError, match="quantised"):
        logprobs(torch.zeros(2, 64), layer, torch.tensor([1, 2]))


@given(
    vocabulary=st.integers(1, 300_000),
    rows=st.one_of(st.none(), st.integers(1, 9999)),
    size=st.integers(1, 1 << 28),
)
def test_tiles_keep_to_their_size(vocabulary, rows, size):
    high, wide = tile_of(vocabulary, rows, size)
    assert 1 <= wide <= vocabulary
    assert high == rows if rows else high * wide * 4 <= max(size, 64 * COLUMNS * 4)
