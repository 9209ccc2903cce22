"""Tiny random models in the shapes that people bring, saved as they come from the Hub."""

from pathlib import Path

import torch
import transformers

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [],
}  # fmt: skip
LLAMA_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
EYES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4, "head_dim": 16, "projection_dim": 32,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
GEMMA = {"sliding_window": 64, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
HYBRID = {
    "layer_types": ["mamba", "mamba", "attention", "mamba"], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 16, "shared_intermediate_size": 48,
    "num_local_experts": 0,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

# the name of its config and model in transformers, and what makes it small beside SMALL
SHAPES = {
    "qwen2.5": ("Qwen2", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "llama3": ("Llama", "LlamaForCausalLM", {"rope_parameters": LLAMA_ROPE}),
    "gemma3-text": ("Gemma3Text", "Gemma3ForCausalLM", GEMMA),
    "gemma3": ("Gemma3", "Gemma3ForConditionalGeneration", GEMMA),
    "qwen2.5-vl": ("Qwen2_5_VL", "Qwen2_5_VLForConditionalGeneration", MROPE),
    "llava": ("Llava", "LlavaForConditionalGeneration", {"model_type": "llama"}),
    "mistral3": ("Mistral3", "Mistral3ForConditionalGeneration", {"model_type": "mistral"}),
    "smolvlm": ("SmolVLM", "SmolVLMForConditionalGeneration", {"model_type": "llama"}),
    "qwen3.5": ("Qwen3_5", "Qwen3_5ForConditionalGeneration", DELTA),
    "granite-hybrid": ("GraniteMoeHybrid", "GraniteMoeHybridForCausalLM", HYBRID),
    "gpt-oss": ("GptOss", "GptOssForCausalLM", EXPERTS | {"sliding_window": 32}),
    "mixtral": ("Mixtral", "MixtralForCausalLM", EXPERTS),
}
QWEN_IDS = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
TOWERS = {
    "qwen2.5-vl": {"vision_config": QWEN_VISION | {"fullatt_block_indexes": [1], "window_size": 16}, **QWEN_IDS},
    "llava": {"vision_config": EYES | {"model_type": "clip_vision_model"}, "image_token_index": 3},
    "mistral3": {"vision_config": EYES | {"model_type": "pixtral"}, "image_token_index": 3},
    "smolvlm": {"vision_config": EYES, "image_token_id": 3},
    "gemma3": {"vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 3, "boi_token_index": 4, "eoi_token_index": 5},
    "qwen3.5": {"vision_config": QWEN_VISION, **QWEN_IDS},
}  # fmt: skip


def config_of(shape: str, tokenizer):
    """Its config, with as many tokens as the tokenizer has and the same ends."""
    kind, _, more = SHAPES[shape]
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = SMALL | {"vocab_size": len(tokenizer)} | ends | more
    config = getattr(transformers, f"{kind}Config")
    if shape not in TOWERS:
        return config(**text)
    return config(text_config=text, **TOWERS[shape])


def model_of(shape: str, tokenizer):
    torch.manual_seed(0)
    return getattr(transformers, SHAPES[shape][1])(config_of(shape, tokenizer))


def saved(shape: str, folder: Path, tokenizer, dtype: torch.dtype = torch.bfloat16, **options) -> Path:
    """The model in `folder` with tokenizer, generation settings and, where it sees, its processor's."""
    model = model_of(shape, tokenizer).to(dtype)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, do_sample=True, temperature=0.6, top_p=0.9, top_k=20
    )
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    if shape in TOWERS:
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "none of this is read"}')
    return folder
