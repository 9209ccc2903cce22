"""How base weights are held and loaded: five kinds, saved quantised or not, and what may
be done with a policy on them.
"""

import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from support import lgrpo, tiny_recipe
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines.vllm_fit import serving_dtype
from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.export.export import export_merged
from lgrpo_lite.policy import load
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.load import compute_dtype, empty_base, load_base, locate, settle
from lgrpo_lite.policy.memory import layers_of, recompute
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import gradient
from lgrpo_lite.types import Group, Outcome, Rollout, Score

CPU = torch.device("cpu")
# (weights, type it computes in on a CPU, mean |Δ log-prob| from fp32 on sampled answers)
KINDS = [
    ("fp32", torch.float32, 0.0), ("fp16", torch.float16, 0.005), ("bf16", torch.bfloat16, 0.02),
    ("int8", torch.float32, 0.03), ("nf4", torch.float32, 0.2),
]  # fmt: skip
WEIGHTS = [kind for kind, *_ in KINDS]


def stirred(policy: Policy) -> Policy:
    """B is zero at the start, and A would have no gradient."""
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=drawn) * 0.02)
    return policy


def loaded(*overrides: str) -> Policy:
    return stirred(Policy.load(tiny_recipe(*overrides)))


def grads(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.trainable()])


@pytest.fixture(scope="module")
def answers():
    """Sampled answers of the fp32 policy, with their prompts."""
    run = build(tiny_recipe())
    with run.engine.serving(run.policy) as sampler:
        return list(zip(run.eval_prompts, sampler.generate(run.eval_prompts, 2, run.sampling), strict=True))


@pytest.fixture(scope="module")
def batch(answers):
    return for_scoring([(prompt, completion) for prompt, row in answers for completion in row])


@pytest.fixture(scope="module")
def groups(answers):
    """The answers with made-up rewards, so that all of them teach."""
    return [
        Group(p, tuple(Rollout(p, c, Score(float(i % 2), Outcome.ok)) for i, c in enumerate(row)))
        for p, row in answers
    ]


@pytest.fixture(scope="module")
def exact(batch):
    """Log-probs in fp32."""
    return loaded("model.weights=fp32").logprobs(batch).logp.detach()


# ------------------------------------------------------------------------------------------- five kinds of weights


@pytest.mark.parametrize(("weights", "dtype", "near"), KINDS)
def test_every_kind_of_weights_scores_and_learns(batch, exact, weights, dtype, near):
    policy = loaded(f"model.weights={weights}")
    assert policy.dtype == dtype
    assert {p.dtype for p in policy.trainable()} == {torch.float32}
    assert all("lora_" in name for name, p in policy.model.named_parameters() if p.requires_grad)
    logp = policy.logprobs(batch).logp
    assert logp.isfinite().all() and (logp <= 0).all()
    assert (logp - exact).abs().mean() <= near
    (policy.loss_scale * logp.mean()).backward()
    dead = [
        n
        for n, p in policy.model.named_parameters()
        if "lora_" in n and not (p.grad.isfinite().all() and p.grad.any())
    ]
    assert dead == []


@pytest.mark.parametrize("weights", WEIGHTS)
def test_recomputing_draws_the_same_dropout_and_gives_the_same_gradient(batch, weights):
    policy, found = loaded(f"model.weights={weights}", "model.lora.dropout=0.2"), []
    policy.model.train()
    for count in (0, len(layers_of(policy.base))):
        recompute(policy.base, count)
        policy.model.zero_grad()
        torch.manual_seed(5)
        (policy.loss_scale * policy.logprobs(batch).logp.mean()).backward()
        found.append(grads(policy))
    assert found[0].isfinite().all() and found[0].any()
    assert torch.equal(*found)


@pytest.mark.slow
def test_fp16_gradients_are_those_of_fp32_and_underflow_without_the_scale(groups):
    """The loss of a step of 10^4 times as many tokens: its gradients lie below the smallest number of fp16."""

    def of(weights: str, scale: float | None = None):
        run = build(tiny_recipe(f"model.weights={weights}"))
        run.policy.loss_scale = scale or run.policy.loss_scale
        stirred(run.policy)
        whole = run.objective.batch(groups)
        gradient(run, replace(whole, coef=1e-4 * whole.coef))
        return grads(run.policy), run.objective.lambda_grad

    (full, lam), (scaled, lam_scaled), (plain, _) = of("fp32"), of("fp16"), of("fp16", 1.0)
    assert (scaled - full).norm() < 0.05 * full.norm()
    # λ lives in float32, and its scale is taken out too
    assert lam_scaled == pytest.approx(lam, rel=1e-3) and lam != 0
    assert (plain - full).norm() > 0.3 * full.norm()
    assert not scaled.eq(0).any() and plain.eq(0).float().mean() > 0.1


# ------------------------------------------------------------------------------------------- GPUs we do not have

CUDA = torch.device("cuda", 0)


@pytest.fixture(params=[(7, 5), (8, 6)], ids=str)
def card(request, monkeypatch):
    """The compute capability of a GPU that torch says is here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce RTX")
    return request.param


def test_a_gpu_without_bfloat16_computes_in_float16(card):
    wanted = torch.float16 if card < (8, 0) else torch.bfloat16
    assert {compute_dtype(weights, CUDA) for weights in ("nf4", "int8")} == {wanted}
    plain = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert {weights: compute_dtype(weights, CUDA) for weights in plain} == plain


def test_vllm_does_not_serve_4_bits_on_a_gpu_without_bfloat16(card):
    """Its 4-bit layers would compute in bfloat16 beside a trainer that computes in float16."""
    assert serving_dtype("fp16") == torch.float16
    if card >= (8, 0):
        assert serving_dtype("nf4") == torch.bfloat16
        return
    with pytest.raises(
        EnvironmentFault, match="RTX has no bfloat16, in which vLLM's 4-bit layers compute"
    ) as error:
        serving_dtype("nf4", "r.yaml:3")
    assert (error.value.exit_code, error.value.where) == (3, "r.yaml:3")
    assert error.value.fix == "set rollout.engine=transformers, or model.weights=fp16"


class Stream:
    """As much of a CUDA stream as waits, and says so."""

    def __init__(self, name: str, said: list[str]):
        self.name, self.said = name, said

    def wait_stream(self, other: "Stream") -> None:
        self.said.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("weights", ["nf4", "int8", "bf16"])
def test_weights_are_loaded_on_the_default_stream(card, monkeypatch, weights):
    """bitsandbytes quantises there. vLLM leaves a stream of its own as the current one."""
    said: list[str] = []
    own, default = Stream("own", said), Stream("default", said)

    @contextmanager
    def current(stream):
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    fetch = load.fetch

    def on_the_cpu(from_pretrained, model, where, **options):
        if from_pretrained.__self__ is AutoModelForCausalLM:
            said.append("load")
            options |= {"device_map": {"": CPU}} if "device_map" in options else {}
        return fetch(from_pretrained, model, where, **options)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: own)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: default)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *a, **k: said.append("copy") or self)
    monkeypatch.setattr(load, "fetch", on_the_cpu)
    load_base(tiny_recipe(f"model.weights={weights}").model, CUDA)
    done = ["load"] if weights in ("nf4", "int8") else ["load", "copy"]
    assert said == ["default waits for own", "on default", *done, "off default", "own waits for default"]


def test_nf4_is_quantised_twice_and_computes_as_the_recipe_says():
    base = load_base(tiny_recipe("model.weights=nf4").model, CPU)
    held = {n: p for n, p in base.named_parameters() if p.dtype == torch.uint8}
    assert len(held) == 7 * len(layers_of(base)) and not any("lm_head" in n or "embed" in n for n in held)
    for parameter in held.values():
        assert parameter.quant_state.quant_type == "nf4" and parameter.quant_state.nested
        assert (
            parameter.quant_state.absmax.dtype == torch.uint8
            and parameter.quant_state.state2.absmax.dtype == torch.float32
        )
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("weights", ["fp32", "nf4"])
@pytest.mark.parametrize("rank", [4, 16])
def test_rslora_divides_by_the_root_of_the_rank(weights, rank):
    plain, rooted = (
        loaded(f"model.weights={weights}", f"model.lora.rank={rank}", f"model.lora.rslora={on}")
        for on in (0, 1)
    )
    for one, other in zip(
        *([m for m in p.model.modules() if isinstance(m, LoraLayer)] for p in (plain, rooted)), strict=True
    ):
        assert (one.scaling["default"], other.scaling["default"]) == (32 / rank, 32 / math.sqrt(rank))
        torch.testing.assert_close(
            other.get_delta_weight("default"), math.sqrt(rank) * one.get_delta_weight("default")
        )


ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("weights", ["fp32", "int8", "nf4"])
@pytest.mark.parametrize(
    ("targets", "named"), [("all-linear", ALL), ("[q_proj, down_proj]", {"q_proj", "down_proj"})]
)
def test_adapters_go_where_the_recipe_says(weights, targets, named):
    policy = loaded(f"model.weights={weights}", f"model.lora.targets={targets}")
    found = [name.rpartition(".")[2] for name, m in policy.model.named_modules() if isinstance(m, LoraLayer)]
    assert set(found) == named and len(found) == len(named) * len(layers_of(policy.base))


def test_targets_that_no_layer_has_are_refused():
    with pytest.raises(ConfigError, match="no adapter fits") as error:
        loaded("model.lora.targets=[qkv]")
    assert error.value.exit_code == 2 and "model.lora.targets" in error.value.where


# ------------------------------------------------------------------------------------------- saved quantised

SAVED = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.bfloat16),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """tiny-math as transformers saves it after quantising."""
    root, source = tmp_path_factory.mktemp("saved"), locate("builtin:tiny-math")
    for name, settings in SAVED.items():
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=settings, dtype=torch.float32
        )
        model.save_pretrained(root / name)
        AutoTokenizer.from_pretrained(source).save_pretrained(root / name)
    return {name: root / name for name in SAVED}


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_a_model_saved_quantised_has_the_bits_of_one_quantised_while_loading(saved, batch, weights):
    before, now = (
        loaded(f"model.weights={weights}"),
        loaded(f"model.id={saved[weights]}", f"model.weights={weights}"),
    )
    assert now.dtype == torch.float32  # not the type it was saved with
    assert torch.equal(now.logprobs(batch).logp, before.logprobs(batch).logp)
    assert fingerprint(now.model) == fingerprint(before.model)


@pytest.mark.parametrize(
    ("kind", "weights", "fix"),
    [
        *(
            (kind, weights, f"set model.weights={kind}")
            for kind in ("nf4", "int8")
            for weights in WEIGHTS
            if weights != kind
        ),
        *(("fp4", weights, "use the model it was made from") for weights in ("nf4", "bf16")),
    ],
)
def test_another_setting_than_it_was_saved_with_is_refused_by_name(saved, kind, weights, fix):
    with pytest.raises(ConfigError, match=f"was saved as {kind}, the recipe wants {weights}") as error:
        loaded(f"model.id={saved[kind]}", f"model.weights={weights}")
    assert error.value.exit_code == 2 and error.value.fix == fix and "model.id" in error.value.where


@pytest.mark.parametrize("weights", ["nf4", "int8", "bf16"])
@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_another_way_of_quantising_is_refused_by_name(tmp_path, method, weights):
    folder = copied(tmp_path)
    edit(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ConfigError, match=f"was saved as {method}, the recipe wants {weights}") as error:
        loaded(f"model.id={folder}", f"model.weights={weights}")
    assert error.value.fix == "use the model it was made from"


def copied(folder: Path) -> Path:
    """A model folder of one's own."""
    shutil.copytree(locate("builtin:tiny-math"), folder / "model")
    return folder / "model"


def edit(path: Path, **more) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


# ------------------------------------------------------------------------------------------- export


def policy_to_export(*overrides: str):
    run = build(tiny_recipe("data.eval.limit=16", *overrides))
    stirred(run.policy)
    return run


@pytest.mark.parametrize("base", ["auto", "original"])
def test_an_int8_policy_is_merged_and_verified(tmp_path, base):
    """LLM.int8 rounds its activations too, which no merged model does: near, not equal."""
    run = policy_to_export("model.weights=int8")
    out, check = export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts, base=base)
    assert check.passed and check.mean_logit_diff < 0.3 and check.same_top > 0.9
    assert check.tolerance == (0.3 if base == "auto" else None)
    assert AutoConfig.from_pretrained(out).dtype == torch.float32


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_a_policy_on_a_model_saved_quantised_is_merged_into_plain_weights(tmp_path, saved, weights):
    run = policy_to_export(f"model.id={saved[weights]}", f"model.weights={weights}")
    out, check = export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts)
    assert check.passed and (check.max_logit_diff < 1e-3 or weights == "int8")
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(plain.config, "quantization_config")
    assert {p.dtype for p in plain.parameters()} == {torch.float32}


@pytest.mark.parametrize("weights", ["nf4", "int8"])
def test_a_model_saved_quantised_has_no_original_to_merge_into(tmp_path, saved, weights):
    run = policy_to_export(f"model.id={saved[weights]}", f"model.weights={weights}")
    with pytest.raises(ConfigError, match=f"was saved as {weights}") as error:
        export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts, base="original")
    assert error.value.exit_code == 2 and list(tmp_path.iterdir()) == []


def test_the_refused_original_is_told_as_such(tmp_path, saved):
    run = policy_to_export(f"model.id={saved['nf4']}", "model.weights=nf4", "export.base=original")
    with pytest.raises(ConfigError) as error:
        export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts, base="original")
    assert "original" in error.value.what and "export.base" in error.value.where
    assert error.value.fix != "set model.weights=nf4"


def test_a_run_that_cannot_export_is_refused_before_it_trains(tmp_path, saved):
    model = [f"model.id={saved['nf4']}", "model.weights=nf4", "export.base=original"]
    small = [
        "train.steps=1",
        "rollout.prompts_per_step=1",
        "data.eval.limit=1",
        "eval.k=1",
        "model.max_new_tokens=8",
    ]
    assert (
        lgrpo("recipe", "tiny-math", *model, *small, "--runs", tmp_path, "--name", "late", "--ui", "none")
        == 2
    )
    assert not (tmp_path / "late" / "metrics.jsonl").exists()


# ------------------------------------------------------------------------------------------- without weights

OWN = {
    "repetition_penalty": 5.0,
    "top_p": 0.1,
    "top_k": 1,
    "temperature": 0.1,
    "do_sample": True,
    "eos_token_id": [256, 257],
}


@pytest.mark.parametrize("own", ["as it is", "its own sampling", "none"])
@pytest.mark.parametrize("weights", ["fp32", "nf4"])
def test_a_model_without_weights_is_settled_like_one_with(tmp_path, own, weights):
    folder = copied(tmp_path)
    path = folder / "generation_config.json"
    if own == "its own sampling":
        edit(path, **OWN)
    elif own == "none":
        path.unlink()
    model = tiny_recipe(f"model.id={folder}", f"model.weights={weights}").model
    empty, full = empty_base(model, torch.float32), load_base(model, CPU)
    assert all(p.is_meta for p in empty.parameters())
    assert not any(b.is_meta for b in empty.buffers())
    assert {n: b.tolist() for n, b in empty.named_buffers()} == {
        n: b.tolist() for n, b in full.named_buffers()
    }
    empty.tie_weights()  # whoever puts weights in does
    assert {n for n, _ in empty.named_parameters()} == {n for n, _ in full.named_parameters()}
    settled = settle(empty, torch.float32).generation_config
    assert settled.to_dict() == full.generation_config.to_dict()
    assert settled.eos_token_id is not None and settled.top_k is None and settled.repetition_penalty is None


def test_a_model_saved_quantised_is_checked_without_weights_too(saved):
    model = tiny_recipe(f"model.id={saved['int8']}", "model.weights=nf4").model
    with pytest.raises(ConfigError, match="was saved as int8"):
        empty_base(model, torch.float32)
