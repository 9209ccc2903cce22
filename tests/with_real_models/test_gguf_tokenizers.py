"""Tokenizers that are built from what a GGUF file holds, beside the real ones: every text is read as the same tokens."""

import json
import os
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.gguf import Header, read_header
from lgrpo_lite.policy.gguf_tokenizer import ROUND_TRIPS, tokenizer_of

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("LGRPO_REAL_MODELS")
BITS = ["a", "  ", " ", "\n", "\t", "1", "123", "é", "e\u0301", "日", "🙂", "the", "ing", "\u200d", "<b>", '"', "'s", "'LL",
        "\r", "ß", "ا", "<think>", "<|im_end|>"]  # fmt: skip
# how llama.cpp calls the rule for words, the token that ends an answer, the one that ends a text, whether BOS is put
BYTE_LEVEL = {
    "qwen2_5": ("qwen2", 151645, 151643, False),
    "qwen3": ("qwen2", 151645, 151643, False),
    "llama3_1": ("llama-bpe", 128009, 128001, True),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Pages, code, and pieces of both in any order."""
    rng = random.Random(0)
    files = [*ROOT.glob("docs/*.md"), *ROOT.glob("lgrpo_lite/*/*.py")]
    mixed = ["".join(rng.choices(BITS, k=rng.randrange(1, 40))) for _ in range(2000)]
    return [*(file.read_text("utf-8") for file in files), *ROUND_TRIPS, *mixed]


def header_of(folder: Path, cut: str, end: int, bos: bool) -> Header:
    """What llama.cpp's converter writes of a tokenizer."""
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    tokens = {number: text for text, number in whole["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, 1)
    for added in whole["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = 3 if added["special"] else 4
    merges = whole["model"]["merges"]
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 10**9,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": [tokens[number] for number in range(len(tokens))],
        "tokenizer.ggml.token_type": [types[number] for number in range(len(tokens))],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 128000 if bos else None,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": bos,
        "tokenizer.chat_template": settings["chat_template"],
    }
    return Header(folder, metadata, {})


def same(one, other: Tokenizer, texts: list[str]) -> None:
    assert [text for text in texts if one(text)["input_ids"] != other.encode(text).ids] == []


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_byte_level_vocabulary_reads_as_the_original(name, tokenizers, texts):
    cut, end, end_of_text, bos = BYTE_LEVEL[name]
    original = Tokenizer.from_file(str(tokenizers / name / "tokenizer.json"))
    same(tokenizer_of(header_of(tokenizers / name, cut, end, bos)), original, texts)
    with pytest.raises(ConfigError, match="its chat template ends an answer with"):
        tokenizer_of(header_of(tokenizers / name, cut, end_of_text, bos))


def test_gemmas_vocabulary_reads_as_the_original(gemma, tokenizers, texts):
    """The file holds pieces and scores, and the original pieces and merges."""
    same(
        tokenizer_of(read_header(Path(gemma))),
        Tokenizer.from_file(str(tokenizers / "gemma3" / "tokenizer.json")),
        texts,
    )
