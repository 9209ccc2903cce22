"""packed and shared are for softmax attention over keys that are placed, and for nothing else."""

import copy
from typing import Any

import pytest
import torch
import transformers
from support import tiny_recipe
from torch import nn

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.layout import split
from lgrpo_lite.policy import attention, layouts, structure
from lgrpo_lite.policy import probe as probe_module
from lgrpo_lite.policy.layouts import usable_layouts
from lgrpo_lite.policy.memory import layers_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.probe import in_float32, probe
from lgrpo_lite.policy.prove import prove

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 16}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# a name of transformers without "Config", and what makes it small
HYBRIDS = {
    "Qwen3_5Text": DELTA,
    "Qwen3Next": DELTA | EXPERTS | {"shared_expert_intermediate_size": 16},
    "GraniteMoeHybrid": MAMBA | {"shared_intermediate_size": 48, "layer_types": ["mamba", "mamba", "attention", "mamba"], "num_local_experts": 0},
    "Lfm2": {"full_attn_idxs": [1, 3]},
    "Jamba": {"mamba_dt_rank": 4, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1} | EXPERTS,
    "FalconH1": MAMBA | {"mamba_d_ssm": 64},
    "Bamba": MAMBA | {"attn_layer_indices": [1]},
    "Mamba": {"state_size": 8, "time_step_rank": 4},
    "Mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "OlmoHybrid": DELTA,
    "NemotronH": {"layers_block_type": ["mamba", "attention", "mlp", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16},
    "Zamba2": {"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 16, "num_mem_blocks": 1, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "MiniMax": EXPERTS,
    "RecurrentGemma": {"lru_width": 32},
}  # fmt: skip


def model_of(name: str, dtype=torch.float32, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | more)
    base = transformers.AutoModelForCausalLM.from_config(config)
    return base.to(dtype).requires_grad_(False)


def policy_of(base) -> Policy:
    return Policy(base, None, temperature=1.0, dtype=base.dtype)


@pytest.fixture
def without(monkeypatch):
    """Takes guards away, as if nothing were known there."""

    def blind(*guards: str) -> None:
        if "config" in guards:
            monkeypatch.setattr(structure, "KINDS", ())
        if "modules" in guards:
            monkeypatch.setattr(structure, "ALONG_A_ROW", ())
            for kind in transformers.PreTrainedModel.__subclasses__():
                monkeypatch.setattr(kind, "_is_stateful", False)
        if "calls" in guards:
            monkeypatch.setattr(layouts, "unattended", lambda base, attended: None)

    return blind


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_model_that_is_not_softmax_attention_alone_stays_with_rows_and_is_told_why(name):
    usable, refused = usable_layouts(policy_of(model_of(name, **HYBRIDS[name])))
    assert usable == ("rows",) and set(refused) == {"packed", "shared"}
    assert "of 4 layers are " in refused["packed"] and "no softmax attention" in refused["packed"]


WITHOUT_CONFIG = {"MiniMax": "2 of 4 layers (MiniMaxDecoderLayer) do not attend"}


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_config_that_says_nothing_of_its_layers_changes_nothing(name, without):
    without("config")
    usable, refused = usable_layouts(policy_of(model_of(name, **HYBRIDS[name])))
    assert usable == ("rows",) and WITHOUT_CONFIG.get(name, "has a Conv1d") in refused["shared"]


@pytest.mark.parametrize("name", ["Qwen3_5Text", "GraniteMoeHybrid", "Lfm2", "Jamba", "OlmoHybrid"])
def test_layers_that_do_not_attend_by_the_plan_are_counted(name, without):
    without("config", "modules")
    usable, refused = usable_layouts(policy_of(model_of(name, **HYBRIDS[name])))
    assert usable == ("rows",) and " of 4 layers (" in refused["shared"]
    assert "do not attend through transformers' AttentionInterface" in refused["shared"]


@pytest.mark.parametrize("name", HYBRIDS)
def test_what_runs_into_the_next_sequence_is_seen_without_any_name(name, without):
    """The gradient alone: whatever a layer is called, and whatever it holds."""
    without("config", "modules", "calls")
    usable, _ = usable_layouts(policy_of(model_of(name, **HYBRIDS[name])))
    assert usable == ("rows",)


class Remembers(nn.Module):
    """A state of its own: the mean of all tokens before, and the MLP after it."""

    def __init__(self, mlp: nn.Module, share: float):
        super().__init__()
        self.mlp = mlp
        self.share = share

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return self.mlp(x + self.share * x.cumsum(1) / count)


@pytest.mark.parametrize("share", [1.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_nobody_knows_is_seen_however_little_it_remembers(share, dtype):
    base = model_of("Llama", dtype)
    layer = layers_of(base)[1]
    layer.mlp = Remembers(layer.mlp, share)
    usable, refused = usable_layouts(policy_of(base))
    assert usable == ("rows",)
    assert "tokens of other sequences" in refused["packed"] and "of other sequences" in refused["shared"]


def test_layers_of_no_known_make_stay_with_rows(monkeypatch):
    monkeypatch.setattr(structure, "layers_of", lambda base: [])
    _, refused = usable_layouts(policy_of(model_of("Llama")))
    assert refused["packed"] == "what the layers of LlamaForCausalLM are made of is not known"


def test_a_hybrid_is_refused_where_packed_is_asked_for_and_named_where_it_is_not():
    p = policy_of(model_of("GraniteMoeHybrid", **HYBRIDS["GraniteMoeHybrid"]))
    why = "3 of 4 layers are linear_attention, no softmax attention: what they read along a row"
    with pytest.raises(ConfigError, match=f"cannot be laid out as 'packed': {why}") as error:
        prove(p, tiny_recipe("memory.layout=packed"))
    assert error.value.exit_code == 2
    notes = prove(p, tiny_recipe())
    assert [note for note in notes if note.startswith(f"memory.layout: shared is not used: {why}")]


@pytest.mark.parametrize("name", ["GptOss", "Gemma2", "Llama"])
def test_trying_layouts_changes_nothing_of_the_model(name):
    """torch's attention, which is tried, knows no sinks and no soft caps."""
    p = policy_of(model_of(name, num_hidden_layers=2))
    for key, parameter in p.base.named_parameters():
        if key.endswith("sinks"):
            parameter.data.fill_(2.0)
    before = p.logprobs(probe(64)).logp
    usable, refused = usable_layouts(p)
    assert (usable == ("rows",)) == (name != "Llama")
    assert name == "Llama" or "soft-caps and sinks" in refused["packed"]
    assert torch.equal(p.logprobs(probe(64)).logp, before)


# ------------------------------------------------------------------------------------------- in float32


@pytest.mark.parametrize("name", ["Qwen2", "Granite", "Mixtral"])
def test_in_float32_a_16_bit_policy_gives_what_its_numbers_give_in_float32(name, monkeypatch):
    base = model_of(name, torch.bfloat16, num_hidden_layers=2)
    p, exact = policy_of(base), policy_of(copy.deepcopy(base).float())
    before = {key: value.clone() for key, value in base.state_dict().items()}
    batch = probe(64)
    ids = batch.input_ids[None]
    forward = base.lm_head.forward
    monkeypatch.setattr(probe_module, "PIECE", 24)  # 64 are no whole number of them
    with in_float32(p):
        wide = p.logprobs(batch).logp
        logits = p.model(input_ids=ids).logits
    torch.testing.assert_close(wide, exact.logprobs(batch).logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, exact.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert base.lm_head.forward == forward and p.model(input_ids=ids).logits.dtype == torch.bfloat16
    assert (p.logprobs(batch).logp - wide).abs().mean() > 1e-3  # in 16 bits it is another
    for key, value in base.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


def test_a_4_bit_policy_computes_in_float32_too(monkeypatch):
    monkeypatch.setattr("lgrpo_lite.policy.policy.compute_dtype", lambda weights, device: torch.bfloat16)
    monkeypatch.setattr("lgrpo_lite.policy.load.compute_dtype", lambda weights, device: torch.bfloat16)
    p = Policy.load(tiny_recipe("model.weights=nf4"))
    monkeypatch.undo()
    exact = Policy.load(tiny_recipe("model.weights=nf4"))
    batch = probe(p.base.get_output_embeddings().weight.shape[0])
    with in_float32(p):
        wide = p.logprobs(batch).logp
    truth = exact.logprobs(batch).logp
    narrow = (p.logprobs(batch).logp - truth).abs().mean()
    assert (wide - truth).abs().mean() < 0.2 * narrow


def test_attention_that_is_a_little_wrong_in_16_bits_is_refused(monkeypatch):
    """A scale 1 % too large is 0.01 nats: within what 16 bits may differ, far from what float32 may."""
    real = attention.attend

    def scaled(module, query, *rest, plan=None, **options):
        return real(module, query if plan is None else 1.01 * query, *rest, plan=plan, **options)

    monkeypatch.setattr(attention, "attend", scaled)
    transformers.AttentionInterface.register(attention.NAME, scaled)
    try:
        usable, refused = usable_layouts(policy_of(model_of("Llama", torch.bfloat16)))
    finally:
        transformers.AttentionInterface.register(attention.NAME, real)
    assert usable == ("rows",)
    assert refused["packed"].startswith("its log-probs differ from those of `rows` by 0.0")
    assert refused["packed"].endswith("in float32")


# ------------------------------------------------------------------------------------------- masks, parts, positions

LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "head_dim": 4, "num_key_value_heads": 4,
}  # fmt: skip
INDEXED = {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 8}
CHOOSING: dict[str, Any] = LATENT | INDEXED | EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize("name", ["DeepseekV32", "GlmMoeDsa"])
def test_a_model_that_chooses_its_keys_is_seen_though_the_probe_is_shorter_than_the_choice(name, without):
    without("config")
    p = policy_of(model_of(name, **CHOOSING))
    usable, refused = usable_layouts(p)
    assert usable == ("rows",)
    assert refused["packed"] == "what 'indices' does to the model's attention is for the layout `rows`"


def test_a_mask_of_the_model_s_own_is_not_passed_over():
    """One that says the same as ours in the probe need not say it later."""

    def masked(module, inputs, options):
        width = options["hidden_states"].shape[1] if "hidden_states" in options else inputs[0].shape[1]
        if options.get("plan") is not None:
            options["attention_mask"] = torch.zeros(1, 1, width, width)
        return inputs, options

    base = model_of("Llama")
    attending: Any = layers_of(base)[1].self_attn
    attending.register_forward_pre_hook(masked, with_kwargs=True)
    _, refused = usable_layouts(policy_of(base))
    assert refused["shared"] == "a mask that the model makes for itself is for the layout `rows`"


LLAMA4: dict[str, Any] = EXPERTS | {"intermediate_size_mlp": 48, "num_hidden_layers": 2}


def test_a_model_that_names_a_part_it_does_not_have_is_read():
    """Llama 4 says that its body is `language_model`, and has it as `model`."""
    p = policy_of(model_of("Llama4Text", **LLAMA4))
    assert p.base.base_model is p.base
    prove(p, tiny_recipe("memory.checkpointing=false"))
    assert p.layouts == ("rows", "packed", "shared")


ROPES = {
    "Phi3": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    "Llama": {"rope_type": "dynamic", "factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("name", ROPES)
def test_sequences_that_would_change_the_positions_of_others_are_refused(name):
    """As soon as one of a pass is longer, the others' log-probs are others, and the sampler's of its beginning."""
    rope = {"rope_theta": 1e4, **ROPES[name]}
    p = policy_of(
        model_of(name, rope_parameters=rope, max_position_embeddings=99, original_max_position_embeddings=99)
    )
    alone, beside = probe(64, ((6, 9),)), probe(64, ((6, 9), (60, 41)))
    assert (p.logprobs(alone).logp - p.logprobs(beside).logp[:9]).abs().max() > 1e-3
    fits = ("memory.checkpointing=false", "model.max_prompt_tokens=60", "model.max_new_tokens=40")
    prove(p, tiny_recipe(*fits))
    with pytest.raises(ConfigError, match="more than 99 tokens this model turns all positions") as error:
        prove(p, tiny_recipe(*fits, "model.max_new_tokens=41"))
    assert error.value.fix == "lower model.max_prompt_tokens and model.max_new_tokens to 100 together"


# ------------------------------------------------------------------------------------------- windows


def test_a_window_is_decided_for_each_batch():
    """Where no sequence is longer, all layouts give what rows give; else only rows are taken."""
    p = policy_of(model_of("Gemma3Text", sliding_window=40, sliding_window_pattern=2))
    notes = prove(p, tiny_recipe())
    assert p.layouts == ("rows", "packed", "shared") and p.window == 40
    assert any("only for a batch without a longer sequence: it attends to 40 tokens back" in n for n in notes)
    fits, exceeds = probe(64, ((20, 21), (20, 9), (5, 4))), probe(64, ((20, 22), (20, 9), (5, 4)))
    assert p.layouts_for(fits) == p.layouts and p.layouts_for(exceeds) == ("rows",)
    truth = p.logprobs(fits).logp
    for layout in ("packed", "shared"):
        ((order, micro),) = split(fits, 10**9, (layout,))
        logp = p.logprobs(micro).logp
        torch.testing.assert_close(logp, truth[fits.tokens_of(order)], rtol=1e-5, atol=1e-5)
        with pytest.raises(NotImplementedError, match="sliding windows"):
            p.logprobs(split(exceeds, 10**9, (layout,))[0][1])
