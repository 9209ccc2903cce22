"""A GGUF file as base model: weights come over as they were, and what would come over wrong is refused."""

import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")
import gguf
import torch
from gguf_files import CHATML, CONTROL, by_score, byte_level, tiny, trained, write
from huggingface_hub import constants
from support import lgrpo
from transformers import AutoTokenizer

from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, VerificationError
from lgrpo_lite.policy import dequantise
from lgrpo_lite.policy.dequantise import dequantised, digest, folder_of, record_of
from lgrpo_lite.policy.gguf import TYPES, on_hub, read_header
from lgrpo_lite.policy.gguf_config import check_gguf, config_of_header, llama3_factors
from lgrpo_lite.policy.gguf_tokenizer import ROUND_TRIPS, tokenizer_of


@pytest.fixture(scope="module")
def vocabulary():
    return trained()


@pytest.fixture(scope="module")
def settings(vocabulary):
    return byte_level(vocabulary)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings):
    """A tiny Llama in a file with nothing wrong."""
    model = tiny("llama", len(settings["tokenizer.ggml.tokens"]))
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf", model, "llama", settings)


def changed(tmp_path, settings, **more):
    """A file like `whole` with other settings; dots are written as two underscores."""
    other = {key.replace("__", "."): value for key, value in more.items()}
    model = tiny("llama", len(settings["tokenizer.ggml.tokens"]))
    return write(tmp_path / "changed.gguf", model, "llama", settings | other)


# ------------------------------------------------------------------------------------------- weights

ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
MODELS = {
    "llama": ("llama", {}),
    "llama with its own head": ("llama", {"tie_word_embeddings": False}),
    "llama 3": ("llama", {"rope_parameters": ROPE}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_over_with_the_same_logits(name, tmp_path, settings):
    architecture, more = MODELS[name]
    model = tiny(architecture, len(settings["tokenizer.ggml.tokens"]), **more)
    extra = {}
    if name == "llama 3":
        extra["rope_freqs.weight"] = np.array(llama3_factors(ROPE, model.config.head_dim), dtype=np.float32)
    path = write(tmp_path / "model.gguf", model, architecture, settings, extra=extra)
    header = read_header(path)
    again = dequantised(header, config_of_header(header)).eval()
    ids = torch.arange(40)[None] % model.config.vocab_size
    apart = (model(input_ids=ids).logits - again(input_ids=ids).logits).abs().max().item()
    assert apart < 1e-4 and header.stored_as == "F32" and not header.quantised


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "BF16"])
def test_blocks_are_dequantised_to_what_they_stand_for(kind, tmp_path, settings):
    model = tiny("qwen2", len(settings["tokenizer.ggml.tokens"]))
    header = read_header(write(tmp_path / "model.gguf", model, "qwen2", settings, kind=kind))
    again = dequantised(header, config_of_header(header))
    one = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    stored = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(one, stored), stored)
    assert np.array_equal(again.model.layers[1].mlp.up_proj.weight.detach().numpy(), expected)
    assert header.stored_as == kind and header.quantised == (kind != "BF16")


def test_the_table_of_types_is_that_of_the_package_gguf():
    theirs = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: theirs[number] for number in TYPES} == TYPES


# ------------------------------------------------------------------------------------------- tokenizers


def test_a_byte_level_tokenizer_reads_every_text_as_the_one_it_was_written_from(whole, vocabulary):
    tokenizer = tokenizer_of(read_header(whole))
    for text in [*ROUND_TRIPS, "a  12\n\n 3", CHATML]:
        assert tokenizer(text)["input_ids"] == vocabulary.encode(text).ids
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer("<|im_end|>")["input_ids"] == [2] and tokenizer.chat_template == CHATML


def test_pieces_are_merged_by_score_and_runs_of_blanks_first(tmp_path, settings):
    meta = by_score()
    path = write(tmp_path / "pieces.gguf", tiny("gemma3", len(meta["tokenizer.ggml.tokens"])), "gemma3", meta)
    tokenizer = tokenizer_of(read_header(path))
    said = tokenizer.convert_ids_to_tokens(tokenizer("sum   the thing\n\n🙂.")["input_ids"])
    octets = ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    assert said == ["<bos>", "s", "um", "▁▁▁", "the"[:1], "he", "▁t", "h", "ing", "\n\n", *octets, "."]
    assert tokenizer.pad_token == "<pad>" and tokenizer.chat_template is None


TOKENIZERS = {
    "a rule for words that nobody knows": ({"tokenizer__ggml__pre": "mystery"}, "by the rule 'mystery'"),
    "no rule for words": ({"tokenizer__ggml__pre": None}, "by the rule 'None'"),
    "another kind": ({"tokenizer__ggml__model": "t5"}, "of the kind 't5'"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is not there"),
    "no types": ({"tokenizer__ggml__token_type": None}, "tokenizer.ggml.token_type is not there"),
    "types of another length": (
        {"tokenizer__ggml__token_type": [1, 1]},
        "token_type is not there or of another",
    ),
    "no merges": ({"tokenizer__ggml__merges": None}, "no merge makes its token"),
    "a merge of numbers": ({"tokenizer__ggml__merges": [1]}, "no merge makes its token"),
    "tokens that are numbers": ({"tokenizer__ggml__tokens": [1] * 400}, "its tokens are no texts"),
    "types that are texts": ({"tokenizer__ggml__token_type": ["1"] * 400}, "their types no numbers"),
    "an end that is a text": ({"tokenizer__ggml__eos_token_id": "2"}, "eos token has the number 2 of 400"),
    "another end beyond it": ({"tokenizer__ggml__eot_token_id": 99999}, "eot token has the number 99999"),
    "no end": ({"tokenizer__ggml__eos_token_id": None}, "no token that ends an answer"),
    "an end beyond the vocabulary": ({"tokenizer__ggml__eos_token_id": 99999}, "has the number 99999"),
    "an end that is not the template's": (
        {"tokenizer__ggml__eos_token_id": 0},
        "ends an answer with '<|im_end|>', and its settings with '<|endoftext|>'",
    ),
    "a template that raises": (
        {"tokenizer__chat_template": "{{ raise_exception('no') }}"},
        "cannot be rendered: no",
    ),
    "a template without the answer": ({"tokenizer__chat_template": "hello"}, "leaves the answer out"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_trusted_is_refused_with(name, tmp_path, settings):
    more, words = TOKENIZERS[name]
    header = read_header(changed(tmp_path, settings, **more))
    with pytest.raises(ConfigError, match=r"the tokenizer in .* cannot be trusted") as error:
        tokenizer_of(header)
    assert words in error.value.what and len(error.value.lines()) == 3


def test_a_text_that_does_not_come_back_is_a_fault_of_the_tokenizer(tmp_path, settings):
    """A byte is missing from the vocabulary: what was that letter is gone."""
    tokens = [text if text != "ð" else "\ufffd" for text in settings["tokenizer.ggml.tokens"]]
    merges = [merge for merge in settings["tokenizer.ggml.merges"] if "ð" not in merge]
    more = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__merges": merges}
    with pytest.raises(ConfigError, match="comes back as"):
        tokenizer_of(read_header(changed(tmp_path, settings, **more)))


def test_another_end_is_named_with_the_command_that_mends_the_file(tmp_path, settings):
    path = changed(tmp_path, settings, tokenizer__ggml__eos_token_id=0)
    with pytest.raises(ConfigError) as error:
        tokenizer_of(read_header(path))
    assert (
        error.value.fix == f"run `gguf-set-metadata {path} tokenizer.ggml.eos_token_id 2` of the package gguf"
    )
    mended = changed(tmp_path, settings, tokenizer__ggml__eos_token_id=0, tokenizer__ggml__eot_token_id=2)
    assert tokenizer_of(read_header(mended)).eos_token == "<|endoftext|>"


def test_merges_that_are_not_all_there_are_refused(tmp_path, settings):
    """Every text would survive coding and decoding, in smaller pieces than the model has learned."""
    merges = settings["tokenizer.ggml.merges"]
    with pytest.raises(ConfigError, match=r"no merge makes its token .* is not whole"):
        tokenizer_of(read_header(changed(tmp_path, settings, tokenizer__ggml__merges=merges[:-1])))
    other = {"tokenizer__ggml__merges": [*merges, "zz yy"]}
    with pytest.raises(ConfigError, match="merges do not fit"):
        tokenizer_of(read_header(changed(tmp_path, settings, **other)))


def test_an_end_is_the_template_s_whatever_kind_of_token_it_is(tmp_path, settings):
    """A finetune adds `<|im_end|>` as an ordinary added token, and its end of text stays the base's."""
    kinds = [4 if text == "<|im_end|>" else 3 if text in CONTROL else 1 for text in settings["tokenizer.ggml.tokens"]]  # fmt: skip
    more = {"tokenizer__ggml__token_type": kinds, "tokenizer__ggml__eos_token_id": 0}
    with pytest.raises(ConfigError, match=r"ends an answer with '<\|im_end\|>', and its settings with"):
        tokenizer_of(read_header(changed(tmp_path, settings, **more)))


@pytest.mark.parametrize(("cut", "said", "first"), [("llama-bpe", None, 1), ("llama-bpe", False, None), ("gpt-2", None, None), ("gpt-2", True, 1)])  # fmt: skip
def test_a_text_begins_with_bos_where_llama_cpp_begins_with_it(cut, said, first, tmp_path, settings):
    more = {"tokenizer__ggml__pre": cut, "tokenizer__ggml__add_bos_token": said}
    tokenizer = tokenizer_of(read_header(changed(tmp_path, settings, **more)))
    assert tokenizer("")["input_ids"] == ([] if first is None else [first])


def test_pieces_without_scores_are_refused(tmp_path):
    meta = by_score()
    meta["tokenizer.ggml.scores"] = [-1000.0] * len(meta["tokenizer.ggml.tokens"])
    path = write(tmp_path / "pieces.gguf", tiny("gemma3", len(meta["tokenizer.ggml.tokens"])), "gemma3", meta)
    with pytest.raises(ConfigError, match="nobody knows which are merged first"):
        tokenizer_of(read_header(path))


# ------------------------------------------------------------------------------------------- files that are no good

FILES = {
    "one of three parts": ({"split__count": 3}, "is one of 3 parts"),
    "an adapter": ({"general__type": "adapter"}, "no model but: adapter"),
    "another scale of positions": ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type"),
    "experts": ({"llama__expert_count": 8}, "would be lost: llama.expert_count"),
    "a window of attention": ({"llama__attention__sliding_window": 64}, "llama.attention.sliding_window"),
    "half-turned heads": ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count"),
    "no number of layers": ({"llama__block_count": None}, "names no block_count"),
    "no constant of its norms": ({"llama__attention__layer_norm_rms_epsilon": None}, "norm_rms_epsilon"),
    "a base of its positions that is a text": ({"llama__rope__freq_base": "1e4"}, "llama.rope.freq_base"),
    "heads layer by layer": ({"llama__attention__head_count_kv": [2, 1]}, "llama.attention.head_count_kv"),
    "tokens without a row": ({"tokenizer__ggml__tokens": ["a"] * 401}, "has 401 tokens and embeds 400"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_model_that_would_come_over_wrong_is_refused(name, tmp_path, settings):
    more, words = FILES[name]
    with pytest.raises(ConfigError) as error:
        check_gguf(str(changed(tmp_path, settings, **more)), "here")
    assert words in error.value.what and error.value.where == "here"


def test_a_family_that_was_never_held_to_known_weights_is_refused(tmp_path, settings):
    path = write(
        tmp_path / "old.gguf", tiny("llama", 400), "llama", settings | {"general.architecture": None}
    )
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0bloom"))
    with pytest.raises(ConfigError, match="of the architecture 'bloom' is not read"):
        check_gguf(str(path), "here")


def test_a_tensor_without_a_place_in_the_model_is_no_silence(tmp_path, settings):
    bias = {"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)}
    model = tiny("llama", len(settings["tokenizer.ggml.tokens"]))
    header = read_header(write(tmp_path / "bias.gguf", model, "llama", settings, extra=bias))
    with pytest.raises(ConfigError, match="has 22 tensors, and the model 21 weights"):
        dequantised(header, config_of_header(header))


def test_a_weight_of_another_shape_than_the_settings_say_is_refused(tmp_path, settings):
    header = read_header(changed(tmp_path, settings, llama__attention__head_count_kv=None))
    with pytest.raises(
        ConfigError, match=r"k_proj.weight as \(32, 64\), and by its settings it is \(64, 64\)"
    ):
        dequantised(header, config_of_header(header))


def test_what_lies_beside_a_file_is_not_loaded(tmp_path, settings):
    path = changed(tmp_path, settings)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    header = read_header(path)
    assert dequantised(header, config_of_header(header)).num_parameters() == header.numbers


def test_factors_of_positions_that_no_rule_explains_are_refused(tmp_path, settings):
    factors = {"rope_freqs.weight": np.array([1, 2, 1, 2, 1, 2, 1, 2], dtype=np.float32)}
    model = tiny("llama", len(settings["tokenizer.ggml.tokens"]))
    path = write(tmp_path / "rope.gguf", model, "llama", settings, extra=factors)
    with pytest.raises(ConfigError, match="factors that are not those of a Llama 3"):
        check_gguf(str(path), "here")


def test_a_file_that_is_cut_anywhere_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    begin = min(tensor.begin for tensor in read_header(whole).tensors.values())
    for length in [*range(0, begin, begin // 15), begin, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ConfigError):
            check_gguf(str(path), "here")


def test_bytes_that_are_other_bytes_end_in_an_error_of_ours_or_in_a_header(whole, tmp_path):
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "broken.gguf"
    for _ in range(40):
        broken = bytearray(content)
        for at in rng.integers(0, 6000, size=3):
            broken[at] = rng.integers(256)
        path.write_bytes(broken)
        with suppress(LgrpoError):
            check_gguf(str(path), "here")


def test_lists_inside_lists_without_end_are_refused(tmp_path):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    path = tmp_path / "deep.gguf"
    path.write_bytes(head + struct.pack("<IQ", 9, 1) * 20_000)
    with pytest.raises(ConfigError, match="is broken"):
        check_gguf(str(path), "here")


PLACES = {
    "a file that is not there": ("{}/none.gguf", "no file"),
    "a folder with a file's name": ("{}/folder.gguf", "is a folder, not a GGUF file"),
    "a text": ("{}/text.gguf", "does not begin with the letters GGUF"),
    "nothing": ("{}/empty.gguf", "the file is empty"),
}


@pytest.mark.parametrize("name", PLACES)
def test_validate_and_plan_refuse(name, tmp_path, capsys):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty.gguf").touch()
    place, words = PLACES[name]
    for verb in ("validate", "plan"):
        assert lgrpo(verb, "tiny-math", f"model.id={place.format(tmp_path)}") == 2
        assert words in capsys.readouterr().err


def test_validate_and_plan_take_a_whole_file(whole, capsys):
    assert lgrpo("validate", "tiny-math", f"model.id={whole}") == 0
    assert lgrpo("plan", "tiny-math", f"model.id={whole}", "--gpu", "8GB") == 0
    assert "fits" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- the folder that is made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lgrpo-lite" / "gguf"


def test_weights_that_read_no_plain_text_are_refused_and_nothing_is_kept(whole, cache):
    with pytest.raises(VerificationError, match=r"does not come over: it gives a plain text -\d"):
        folder_of(str(whole))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_file_is_converted_once_and_again_when_its_bytes_change(whole, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(dequantise, "LEAST", -1e9)  # random weights read nothing
    path = tmp_path / "model.gguf"
    shutil.copy(whole, path)
    folder = folder_of(str(path))
    record = record_of(folder)
    assert record is not None and record["sha256"] == digest(path) and record["stored_as"] == "F32"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert folder_of(str(path)) == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
    assert generation["eos_token_id"] == 2 and generation["bos_token_id"] == 1
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert folder_of(str(path)) != folder and len([one for one in cache.iterdir() if one.is_dir()]) == 2


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _another(path):
    path.write_text(path.read_text().replace('"eos_token_id": 2', '"eos_token_id": 0'))


DAMAGES = {
    "weights that are gone": ("model.safetensors", Path.unlink),
    "weights that are cut": ("model.safetensors", _cut),
    "a tokenizer that is cut": ("tokenizer.json", _cut),
    "generation settings that are gone": ("generation_config.json", Path.unlink),
    "a template that is gone": ("chat_template.jinja", Path.unlink),
    "another end of answers": ("generation_config.json", _another),
    "a record that is cut": (dequantise.RECORD, _cut),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_made_again(name, whole, cache, monkeypatch):
    monkeypatch.setattr(dequantise, "LEAST", -1e9)
    folder = folder_of(str(whole))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    file, damage = DAMAGES[name]
    damage(folder / file)
    left = cache / f".{folder.name}-killed"  # of a process that was killed while it made it
    left.mkdir()
    assert folder_of(str(whole)) == folder and not left.exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_two_that_want_a_file_at_once_have_it_made_once(whole, cache, monkeypatch):
    monkeypatch.setattr(dequantise, "LEAST", -1e9)
    made = []
    real = dequantise.dequantised
    monkeypatch.setattr(dequantise, "dequantised", lambda *given: (made.append(1), real(*given))[1])
    with ThreadPoolExecutor(2) as both:
        folders = list(both.map(lambda _: folder_of(str(whole)), range(2)))
    assert folders[0] == folders[1] and len(made) == 1


def test_a_cache_that_cannot_be_written_is_named(whole, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFault, match="cannot be kept: Not a directory") as error:
        folder_of(str(whole))
    assert "XDG_CACHE_HOME" in error.value.fix


def test_a_file_of_the_hub_is_found_in_its_cache(whole, tmp_path, cache, monkeypatch):
    commit = "c" * 40
    repository = tmp_path / "hub" / "models--me--tiny"
    (repository / "snapshots" / commit / "sub").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copy(whole, repository / "snapshots" / commit / "sub" / "tiny.gguf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(dequantise, "LEAST", -1e9)
    assert on_hub("me/tiny/sub/tiny.gguf") == ("me/tiny", "sub/tiny.gguf")
    record = record_of(folder_of("me/tiny/sub/tiny.gguf", None, "here"))
    assert record is not None and record["file"] == "me/tiny/sub/tiny.gguf"
    with pytest.raises(ConfigError, match=r"cannot load me/tiny/other\.gguf"):
        folder_of("me/tiny/other.gguf", None, "here")
