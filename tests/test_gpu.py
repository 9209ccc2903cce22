"""What only a CUDA device can show: half-precision products, variable-length
attention, activations in pinned memory.
"""

import pytest
import torch
from test_layout import made
from test_logprob import certain, double, exact, naive
from test_logprob import made as head_made
from transformers import Qwen2Config, Qwen2ForCausalLM

from lgrpo_lite.layout import split
from lgrpo_lite.ops.logprob import Head, logprobs
from lgrpo_lite.policy import attention
from lgrpo_lite.policy.prove import probe, usable_layouts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3), (torch.float16, 5e-3)], ids=str
)
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_is_that_of_float64(dtype, near, bias):
    hidden, head, ids, (g, _) = head_made(130, 64, 9001, dtype, bias=bias)
    there = Head(head.weight.cuda(), None if head.bias is None else head.bias.cuda())
    leaf = hidden.cuda().requires_grad_()
    logp, entropy = logprobs(leaf, there, ids.cuda(), 0.7)
    truth_leaf = hidden.double().requires_grad_()
    truth, spread = naive(truth_leaf, double(head), ids, 0.7)
    torch.testing.assert_close(logp.cpu().double(), truth, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(entropy.cpu().double(), spread, rtol=1e-3, atol=1e-3)
    (mine,) = torch.autograd.grad((logp * g.cuda().float()).sum(), leaf)
    (theirs,) = torch.autograd.grad((truth * g).sum(), truth_leaf)
    assert (mine.cpu().double() - theirs).norm() <= near * theirs.norm()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)], ids=str)
def test_almost_sure_tokens(dtype, bound):
    hidden, weight, ids = certain(dtype)
    truth, _ = exact(hidden, weight, ids)
    leaf = hidden.cuda().requires_grad_()
    logprobs(leaf, weight.cuda(), ids.cuda())[0].sum().backward()
    assert ((leaf.grad.cpu().double() - truth).norm(dim=1) / truth.norm(dim=1)).max() <= bound


@pytest.mark.parametrize("varlen", [False, True])
def test_layouts_agree_in_bfloat16(varlen):
    policy = made(Qwen2Config, Qwen2ForCausalLM, torch.bfloat16, head_dim=32)
    policy.model.cuda()
    usable, refused = usable_layouts(policy)
    assert usable == ("rows", "packed", "shared"), refused
    assert policy.varlen == attention.has_varlen()
    policy.varlen = varlen and policy.varlen
    grads = []
    for layout in usable:
        policy.model.zero_grad(set_to_none=True)
        (_, micro), *_ = split(probe(64), 10**9, (layout,))
        policy.logprobs(micro).logp.sum().backward()
        grads.append(torch.cat([p.grad.flatten().float() for p in policy.trainable()]))
    for other in grads[1:]:
        assert (other - grads[0]).norm() <= 0.05 * grads[0].norm()


def test_offloading_takes_memory_off_the_device():
    peaks = []
    for offload in (False, True):
        policy = made(Qwen2Config, Qwen2ForCausalLM, torch.bfloat16, num_hidden_layers=8)
        policy.model.cuda()
        policy.offload = offload
        (_, micro), *_ = split(probe(64, ((60, 60),) * 8), 10**9)
        torch.cuda.reset_peak_memory_stats()
        policy.logprobs(micro).logp.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]
