"""GGUF files of tiny models, written by the package gguf under llama.cpp's names and conventions."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

TEXT = [Path(__file__).read_text("utf-8"), "What is 12 + 9? The answer is 21.\n" * 20]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def trained() -> Tokenizer:
    """A byte-level vocabulary of a few hundred tokens, with digits alone, as SmolLM's."""
    tokenizer = Tokenizer(models.BPE())
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level(tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings tokenizer.* of a vocabulary that was trained."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda text: vocabulary[text])
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if text in CONTROL else 1 for text in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def by_score() -> dict[str, Any]:
    """A vocabulary as SentencePiece's BPE has it: pieces with scores, bytes for everything else."""
    pieces = ["▁t", "he", "▁the", "in", "▁a", "ing", "▁s", "um"]
    letters = sorted(set("▁thesumingaw") | {"."})
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    runs = ["\n\n", "  ", "   "]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    tokens = [*special, *runs, *octets, *pieces, *letters]
    types = [3, 3, 3, 2] + [4] * len(runs) + [6] * 256 + [1] * (len(pieces) + len(letters))
    scores = [-1000.0] * (len(special) + len(runs)) + [0.0] * 256
    scores += [-float(k) for k in range(len(pieces) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def tiny(architecture: str, vocabulary: int, **settings: Any) -> Any:
    """A random model, its norms and biases too."""
    more: dict[str, Any] = {"vocab_size": vocabulary, "head_dim": 16, **settings}
    if architecture == "gemma3":
        more |= {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}
    config = AutoConfig.for_model(NAMES[architecture], **(SMALL | more))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def write(
    path: Path,
    model: Any,
    architecture: str,
    settings: dict[str, Any],
    *,
    kind: str = "F32",
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """`settings` win over those of the model; one that is None is left out."""
    config = model.config
    rope = config.rope_parameters
    theta = (rope.get("full_attention") or rope)["rope_theta"]
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": theta,
    }
    if architecture == "gemma3":
        own["attention.sliding_window"] = config.sliding_window
    writer = gguf.GGUFWriter(path, architecture)
    whole = {"general.type": "model", "general.name": "tiny"}
    whole |= {f"{architecture}.{key}": value for key, value in own.items()} | settings
    for key, value in whole.items():
        _set(writer, key, value)
    for name, array in {**_tensors(model, architecture), **(extra or {})}.items():
        stored = gguf.GGMLQuantizationType[kind] if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(array, stored) if kind != "F32" and array.ndim > 1 else array
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _set(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        adders[type(value)](key, value)


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """As llama.cpp's converter writes them: the heads of a Llama in another order, Gemma's norms plus one."""
    config = model.config
    number = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        projection = name.split(".")[-2]
        if architecture == "llama" and projection in heads:
            count = heads[projection]
            split = array.reshape(count, 2, array.shape[0] // count // 2, -1)
            array = split.swapaxes(1, 2).reshape(array.shape)
        if architecture == "gemma3" and "norm" in name:
            array = array + 1
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        tensors[found] = np.ascontiguousarray(array)
    return tensors
