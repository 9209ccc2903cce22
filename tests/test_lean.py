"""A network that keeps less: the numbers of PEFT's and transformers' own code, on every kind
of weights and in every layout.
"""

import copy
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support import tiny_recipe
from test_layout import SMALL
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import silu
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lgrpo_lite.export.merge import merged_tensors
from lgrpo_lite.layout import LAYOUT, Segment, split
from lgrpo_lite.ops import lean as ops
from lgrpo_lite.policy import attention, lean
from lgrpo_lite.policy.memory import Saved, recompute
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import probe

WEIGHTS = ("nf4", "int8", "bf16", "fp16", "fp32")


def loaded(weights: str, own: bool, *overrides: str) -> Policy:
    """tiny-math with an adapter that does something. own: as PEFT and transformers would run it."""
    with patch.object(lean, "install", (lambda net: None) if own else lean.install):
        policy = Policy.load(tiny_recipe(f"model.weights={weights}", *overrides))
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=drawn) * 0.05)
    assert attention.install(policy.base) is None
    return policy


@cache
def pair(weights: str, *overrides: str) -> tuple[Policy, Policy]:
    """(lean, own)"""
    return loaded(weights, False, *overrides), loaded(weights, True, *overrides)


@cache
def exact(weights: str) -> Policy:
    """PEFT's own path on the same numbers, in float32."""
    _, own = pair(weights)
    return Policy(copy.deepcopy(own.model).float(), None, temperature=own.temperature, dtype=torch.float32)


def pass_of(policy: Policy, layout: str = "rows", recomputed: int = 0):
    """Log-probs, a loss of them and of the entropy, and its gradients."""
    recompute(policy.base, recomputed)
    policy.model.zero_grad(set_to_none=True)
    (_, micro), *rest = split(probe(256, ((20, 20), (20, 25), (9, 30))), 10**9, (layout,))
    assert not rest
    torch.manual_seed(3)
    logp = policy.logprobs(micro).logp
    loss = (logp * torch.arange(len(logp)).cos()).mean()
    (policy.loss_scale * loss).backward()
    grads = torch.cat([p.grad.flatten() for p in policy.trainable()]) / policy.loss_scale
    return logp.detach().float(), loss.detach().float(), grads


def apart(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm().detach() / truth.norm().detach())


# ------------------------------------------------------------------------------------------- a network


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("layout", list(LAYOUT))
@pytest.mark.parametrize("weights", WEIGHTS)
def test_log_probs_loss_and_gradients_are_those_of_today(weights, layout, recomputed):
    ours, own = (pass_of(policy, layout, recomputed) for policy in pair(weights))
    if pair(weights)[0].dtype == torch.float32:
        assert max(map(apart, ours, own)) < 1e-6
        return
    truth = pass_of(exact(weights), layout)
    for mine, today, right in zip(ours, own, truth, strict=True):
        assert apart(mine, right) <= 1.1 * apart(today, right) + 1e-6


@pytest.mark.parametrize("weights", WEIGHTS)
def test_recomputing_and_cpu_memory_change_no_bit(weights):
    policy, _ = pair(weights)
    whole, again = pass_of(policy), pass_of(policy, recomputed=2)
    policy.offload = True
    away = pass_of(policy)
    policy.offload = False
    for other in (again, away):
        assert all(map(torch.equal, whole, other))


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_without_its_adapter_it_is_the_base_bit_for_bit(weights):
    ours, own = pair(weights)
    batch = probe(256)
    with ours.reference(), own.reference():
        base = ours.logprobs(batch).logp
        assert torch.equal(base, own.logprobs(batch).logp)
    assert apart(base, ours.logprobs(batch).logp) > 0.01


def test_dropout_draws_what_it_drew():
    policies = pair("fp32", "model.lora.dropout=0.3")
    ours, own = map(pass_of, policies)
    assert max(map(apart, ours, own)) < 1e-6
    assert apart(ours[2], pass_of(pair("fp32")[0])[2]) > 0.1
    again = pass_of(policies[0], recomputed=3)
    assert all(map(torch.equal, ours, again))


def test_it_samples_the_same_tokens():
    asked = {
        "input_ids": torch.arange(2, 12)[None],
        "max_new_tokens": 24,
        "do_sample": False,
        "eos_token_id": None,
    }
    ours, own = (policy.model.eval().generate(**asked) for policy in pair("fp32"))
    for policy in pair("fp32"):
        policy.model.train()
    assert torch.equal(ours, own) and ours.shape[1] == 34


@pytest.mark.parametrize("weights", ["nf4", "bf16"])
def test_what_is_saved_and_merged_is_the_same_to_the_byte(weights, tmp_path):
    for name, policy in zip(("ours", "own"), pair(weights), strict=True):
        policy.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == files
    assert all(
        (tmp_path / "ours" / name).read_bytes() == (tmp_path / "own" / name).read_bytes() for name in files
    )
    merged = [dict(merged_tensors(policy.model, torch.float32)) for policy in pair(weights)]
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(tensor, merged[1][name]) for name, tensor in merged[0].items())
    other = loaded(weights, False, "seed=5")
    other.restore(tmp_path / "own")
    assert torch.equal(other.logprobs(probe(256)).logp, pair(weights)[0].logprobs(probe(256)).logp)


def test_a_merged_layer_or_a_second_adapter_goes_peft_s_way():
    policies = [copy.deepcopy(policy.model) for policy in pair("fp32")]
    ids = torch.arange(12)[None]
    for model in policies:
        torch.manual_seed(0)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    ours, own = (model(input_ids=ids).logits for model in policies)
    assert apart(ours, own) < 1e-6
    for model in policies:
        model.base_model.set_adapter("default")
        model.merge_adapter()
    ours, own = (model(input_ids=ids).logits for model in policies)
    assert apart(ours, own) < 1e-6


def test_a_network_goes_as_soon_as_nothing_holds_it():
    """No module refers to itself, so gigabytes do not wait for the garbage collector."""
    import gc
    import weakref

    policy = loaded("bf16", False)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(policy.base.model.layers[0].mlp)
        del policy
        assert gone() is None
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------- which modules


def adapted(config, model, dtype=torch.float32, **lora):
    torch.manual_seed(0)
    base = model(config(**SMALL | {"initializer_range": 0.2})).to(dtype).requires_grad_(False)
    told = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return get_peft_model(base, LoraConfig(**told | lora))


def changed(net: nn.Module) -> list[str]:
    """Kinds of modules that are lean now."""
    parts = (lean._Adapted, lean._GatedMlp, lean._Norm)
    return [part.__name__ for part in parts if any(isinstance(module, part) for module in net.modules())]


EVERY = ["_Adapted", "_GatedMlp", "_Norm"]


@pytest.mark.parametrize(
    ("config", "model", "lora", "lean_ones"),
    [
        (Qwen2Config, Qwen2ForCausalLM, {}, EVERY),
        (Qwen3Config, Qwen3ForCausalLM, {}, EVERY),
        (LlamaConfig, LlamaForCausalLM, {"target_modules": ["q_proj", "down_proj"]}, EVERY),
        (GraniteConfig, GraniteForCausalLM, {}, EVERY),
        (Phi3Config, Phi3ForCausalLM, {}, ["_Adapted", "_Norm"]),  # gate and up are one layer
        (CohereConfig, CohereForCausalLM, {}, ["_Adapted", "_GatedMlp"]),  # LayerNorm
        (Gemma2Config, Gemma2ForCausalLM, {}, ["_Adapted"]),  # GELU, and norms with 1 + weight
        (Qwen2Config, Qwen2ForCausalLM, {"use_dora": True}, ["_GatedMlp", "_Norm"]),
        (Qwen2Config, Qwen2ForCausalLM, {"lora_bias": True}, ["_GatedMlp", "_Norm"]),
        (LlamaConfig, LlamaForCausalLM, {"target_modules": ["embed_tokens"]}, ["_GatedMlp", "_Norm"]),
    ],
)
def test_only_what_computes_the_same_is_changed(config, model, lora, lean_ones):
    nets = [adapted(config, model, **lora) for _ in range(2)]
    for _ in range(2):
        lean.install(nets[0])
        assert changed(nets[0]) == lean_ones
    assert repr(nets[0]) == repr(nets[1])
    ids = (torch.arange(40) * 7 % 64).view(2, 20)
    found = []
    for net in nets:
        logits = net(input_ids=ids).logits
        logits.log_softmax(-1)[..., 5].sum().backward()
        found.append(
            (logits.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]))
        )
    assert max(map(apart, *found)) < 1e-6


class Clamped(nn.Module):
    """Like gpt-oss: nothing is seen of it on small numbers."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x))


class Wide(nn.Module):
    """The product with the weight in float32."""

    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * wide).to(x.dtype)


class Switched(Clamped):
    """Asks for something that no usual MLP has."""

    limit = 7.0

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.limit


@pytest.mark.parametrize("kind", [Clamped, Wide, Switched])
def test_a_module_that_does_a_little_more_is_left_alone(kind):
    module = kind()
    lean.install(module)
    assert type(module) is kind


def test_a_norm_that_learns_or_a_forward_of_its_own_is_left_alone():
    net = adapted(LlamaConfig, LlamaForCausalLM)
    norm, mlp = net.base_model.model.model.norm, net.base_model.model.model.layers[0].mlp
    norm.weight.requires_grad_()
    mlp.forward = type(mlp).forward.__get__(mlp)
    lean.install(net)
    assert not isinstance(norm, lean._Norm) and not isinstance(mlp, lean._GatedMlp)
    assert isinstance(net.base_model.model.model.layers[1].mlp, lean._GatedMlp)


# ------------------------------------------------------------------------------------------- bytes


def expected(shape: dict, width: int) -> int:
    """Bytes of one layer for each token in `rows`, all linear layers adapted."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    return width * (4 * hidden + 3 * inner + 2 * hidden + 2 * hidden * groups // heads) + 4 * (2 + heads)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_layer_keeps_what_the_formula_says(weights):
    """Two passes, one with one layer more recomputed: the difference is that layer without its input."""
    found = []
    for policy in pair(weights):
        sizes = []
        for recomputed in (1, 2):
            recompute(policy.base, recomputed)
            with Saved(policy.model) as saved:
                policy.logprobs(probe(256, ((20, 20),) * 4))
            sizes.append(saved.bytes)
        config, width = policy.base.config, policy.dtype.itemsize
        found.append((sizes[0] - sizes[1]) / (4 * 39) + width * config.hidden_size)
    ours, own = found
    heads = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
             "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads}  # fmt: skip
    assert ours == expected(heads, width)
    assert ours < (0.6 if width == 2 else 0.9) * own


@pytest.mark.parametrize("varlen", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_of_qwen_3b_keeps_half_of_what_it_kept(dtype, varlen):
    """On shapes alone, packed. 188 KiB a token and layer were kept in 16 bits before."""
    shape = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    }
    tokens, sizes = 256, []
    for layers in (1, 2):
        with torch.device("meta"):
            base = Qwen2ForCausalLM(Qwen2Config(**shape, num_hidden_layers=layers, vocab_size=64)).to(dtype)
            net = get_peft_model(base.requires_grad_(False), LoraConfig(r=32, target_modules="all-linear"))
        lean.install(net)
        assert attention.install(base) is None
        plan = attention.plan([Segment(0, tokens, 0, 0)]).to(torch.device("cpu"), varlen=varlen)
        with FakeTensorMode(allow_non_fake_inputs=True):
            for name, meta in [*net.named_parameters(), *net.named_buffers()]:
                kind = torch.float32 if "lora_" in name else meta.dtype
                made = torch.empty(meta.shape, dtype=kind)
                above, _, leaf = name.rpartition(".")
                parameter = isinstance(meta, nn.Parameter)
                setattr(
                    net.get_submodule(above),
                    leaf,
                    nn.Parameter(made, meta.requires_grad) if parameter else made,
                )
            ids = torch.zeros(1, tokens, dtype=torch.long)
            with Saved(net) as saved:
                out = base.model(
                    input_ids=ids,
                    position_ids=ids,
                    plan=plan,
                    attention_mask=torch.zeros(1, 1, 1, 1),
                    use_cache=False,
                )
            out.last_hidden_state.sum().backward()
        sizes.append(saved.bytes)
    layer, width = (sizes[1] - sizes[0]) // tokens, dtype.itemsize
    # what attention gives out of rows is copied for o_proj
    gathered = 0 if varlen else width * shape["hidden_size"]
    assert layer == expected(shape, width) + gathered
    assert width == 4 or layer <= 0.6 * 188 * 1024


# ------------------------------------------------------------------------------------------- the pieces


def numbers(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain_adapter(x, y, a, b, scaling):
    return (y.to(a.dtype) + x.to(a.dtype) @ a.T @ b.T * scaling).to(y.dtype)


def plain_norm(x, weight, eps):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def plain_swiglu(gate, up):
    return silu(gate) * up


@given(
    tokens=st.lists(st.integers(1, 5), min_size=1, max_size=2), inputs=st.integers(1, 6), outputs=st.integers(1, 6),
    rank=st.integers(1, 4), rows=st.integers(1, 8),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_derivatives_are_right(tokens, inputs, outputs, rank, rows):
    x, y, up = numbers(0, *tokens, inputs), numbers(1, *tokens, outputs), numbers(4, *tokens, inputs)
    a, b, weight = numbers(2, rank, inputs), numbers(3, outputs, rank), numbers(5, inputs).detach()
    with patch.object(ops, "ROWS", rows):
        assert torch.autograd.gradcheck(lambda *given: ops.adapter(*given, 1.7), (x, y, a, b))
        assert torch.autograd.gradcheck(
            lambda *given: ops.adapter(*given, 1.7), (x.detach(), y.detach(), a, b)
        )
        assert torch.autograd.gradcheck(ops.swiglu, (x, up))
        assert torch.autograd.gradcheck(lambda x: ops.rms_norm(x, weight, 1e-2), (x,))


@given(
    tokens=st.integers(0, 70), inputs=st.integers(1, 40), outputs=st.integers(1, 40), rank=st.integers(1, 9),
    rows=st.sampled_from([1, 7, 32, 1024]), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    turned=st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_values_and_gradients_are_those_of_the_plain_code(tokens, inputs, outputs, rank, rows, dtype, turned):
    """turned: tensors and gradients that do not lie row after row."""

    def laid(seed, *shape):
        made = numbers(seed, *shape, dtype=torch.float32).detach().to(dtype)
        return (made.T.contiguous().T if turned else made).requires_grad_()

    def outcome(function, *given):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in given]
        out = function(*leaves)
        towards = laid(9, *out.shape).detach()
        return (out, *torch.autograd.grad(out, leaves, towards))

    x, y, up = laid(0, tokens, inputs), laid(1, tokens, outputs), laid(2, tokens, inputs)
    a, b = numbers(3, rank, inputs, dtype=torch.float32), numbers(4, outputs, rank, dtype=torch.float32)
    weight = laid(5, 1, inputs)[0].detach()
    near = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    with patch.object(ops, "ROWS", rows):
        for ours, plain, tensors in (
            (lambda *g: ops.adapter(*g, 0.5), lambda *g: plain_adapter(*g, 0.5), (x, y, a, b)),
            (ops.swiglu, plain_swiglu, (x, up)),
            (lambda x: ops.rms_norm(x, weight, 1e-6), lambda x: plain_norm(x, weight, 1e-6), (x,)),
        ):
            for mine, usual in zip(outcome(ours, *tensors), outcome(plain, *tensors), strict=True):
                torch.testing.assert_close(mine, usual, **near)


def test_sixteen_bits_are_rounded_where_they_were():
    """Of swiglu and the norm no bit differs, forwards; of swiglu none backwards either."""
    gate, up, weight = (
        numbers(s, 300, 24, dtype=torch.float32).detach().to(torch.bfloat16) for s in (0, 1, 2)
    )
    results = []
    for swiglu, norm in ((ops.swiglu, ops.rms_norm), (plain_swiglu, plain_norm)):
        g, u = gate.clone().requires_grad_(), up.clone().requires_grad_()
        product = swiglu(g, u)
        results.append((product, norm(gate, weight[0], 1e-6), *torch.autograd.grad(product, (g, u), weight)))
    assert all(map(torch.equal, *results))


def test_no_float32_copy_of_all_tokens_is_made():
    """What autograd keeps: the 16-bit input itself, which several adapters share."""
    x = numbers(0, 4096, 64, dtype=torch.float32).detach().to(torch.bfloat16).requires_grad_()
    a, b = (
        nn.Parameter(numbers(s, *shape, dtype=torch.float32).detach())
        for s, shape in ((1, (4, 64)), (2, (64, 4)))
    )
    held = nn.ParameterList([a, b])
    with Saved(held) as saved:
        outs = [ops.adapter(x, torch.zeros_like(x), a, b, 1.0) for _ in range(3)]
    assert saved.bytes == x.nbytes
    assert {out.dtype for out in outs} == {torch.bfloat16}
