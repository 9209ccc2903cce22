"""The tokenizer that a GGUF file describes, built from its vocabulary, and what it takes to be trusted.

transformers builds its own from the same metadata and ignores how the text is cut before merges
(`tokenizer.ggml.pre`), which token ends an answer, and that Gemma's pieces are merged by score.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.gguf import FOLDER, Header

NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # tokenizer.ggml.token_type
SPACE = "▁"
ENDS = ("eos", "eot", "eom")  # ids of tokens that end an answer: tokenizer.ggml.eot_token_id
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How byte-level vocabularies cut a text into words, by tokenizer.ggml.pre: a pattern (None: GPT-2's own),
# whether digits stand alone before it, whether a word in the vocabulary is taken whole, the normal form.
CUTS: dict[str, tuple[str | None, bool, bool, str | None]] = {
    "gpt-2": (None, False, False, None),
    "smollm": (None, True, False, None),
    "starcoder": (None, True, False, None),
    "refact": (None, True, False, None),
    "command-r": (None, True, False, None),
    "qwen2": (_WORDS % "", False, False, "NFC"),
    "deepseek-r1-qwen": (_WORDS % "", False, False, "NFC"),
    "llama-bpe": (_WORDS % "{1,3}", False, True, None),
    "llama3": (_WORDS % "{1,3}", False, True, None),
    "llama-v3": (_WORDS % "{1,3}", False, True, None),
    "smaug-bpe": (_WORDS % "{1,3}", False, True, None),
}
# Of these a text begins with BOS where the file does not say, as for llama.cpp; of pieces with scores too.
BEGUN = ("llama-bpe", "llama3", "llama-v3")
ROUND_TRIPS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a\ttab,\n\n\na blank line\r\nand 1234567890 + 3.14 = ?",
    "def f(x):\n    return {'a': [x ** 2, -1e-6]}  # comment\n",
    "Straße, naïve café, Ελληνικά, русский, 日本語, 한국어, العربية, 🙂👩‍👩‍👧",
    "\\boxed{\\frac{1}{2}} <b>HTML</b> & it's I'll WE'RE",
)


def tokenizer_of(header: Header, where: str = "model.id") -> PreTrainedTokenizerFast:
    """Built from the file, and held to it: see `check_tokenizer`. One that cannot be trusted: ConfigError."""
    meta = _Vocabulary(header, where)
    if meta.kind == "gpt2":
        backend = _byte_level(meta)
    elif meta.kind == "llama":
        backend = _by_score(meta)
    else:
        raise meta.refused(f"its tokenizer is of the kind {meta.kind!r}, and gpt2 and llama are read")
    _add_whole(backend, meta)
    named = {f"{name}_token": meta.token(name) for name in ("bos", "eos", "unk", "pad")}
    named["pad_token"] = named["pad_token"] or named["eos_token"]
    begun = meta.kind == "llama" or meta.of("pre") in BEGUN
    if header.metadata.get("tokenizer.ggml.add_bos_token", begun) and named["bos_token"]:
        bos = named["bos_token"]
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=header.setting("context_length"),
        **{name: text for name, text in named.items() if text is not None},
    )
    tokenizer.chat_template = header.metadata.get("tokenizer.chat_template")
    check_tokenizer(tokenizer, header, where)
    return tokenizer


def end_ids(header: Header) -> list[int]:
    """The tokens that end an answer, by the file; the first is the tokenizer's own."""
    ends = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    return list(dict.fromkeys(end for end in ends if end is not None))


def check_tokenizer(tokenizer: Any, header: Header, where: str) -> None:
    """Texts survive coding and decoding, every token keeps its number, a control token is one token, an
    answer ends as the chat template ends it. Otherwise ConfigError.
    """
    meta = _Vocabulary(header, where)
    if len(tokenizer) != len(meta.tokens):
        raise meta.refused(f"it has {len(tokenizer)} tokens, and the vocabulary {len(meta.tokens)}")
    for text in ROUND_TRIPS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        again = tokenizer.decode(ids, skip_special_tokens=False)
        if again != text:
            raise meta.refused(f"{text[:40]!r} comes back as {again[:40]!r}")
    control = [number for number, kind in enumerate(meta.types) if kind == CONTROL]
    texts = [meta.tokens[number] for number in control]
    read = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    for number, ids in zip(control, read, strict=True):
        if ids != [number]:
            raise meta.refused(f"its control token {meta.tokens[number]!r} is read as {len(ids)} tokens")
    ends = [meta.token(name) for name in ENDS]
    if not any(ends):
        raise meta.refused("it names no token that ends an answer")
    if tokenizer.chat_template:
        _check_end(tokenizer, header, meta)


def _check_end(tokenizer: Any, header: Header, meta: "_Vocabulary") -> None:
    said = "an answer of some words"
    chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": said}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:  # a template is a program: it may raise anything
        raise meta.refused(f"its chat template cannot be rendered: {error}") from error
    _, found, after = text.rpartition(said)
    if not found:
        raise meta.refused("its chat template leaves the answer out")
    written = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"][:1]
    whole = (CONTROL, USER)  # kinds of tokens that are no piece of a text
    if not written or meta.types[written[0]] not in whole or written[0] in end_ids(header):
        return
    known = ", ".join(repr(meta.tokens[end]) for end in end_ids(header))
    what = f"its chat template ends an answer with {meta.tokens[written[0]]!r}, and its settings with {known}"
    fix = (
        f"run `gguf-set-metadata {header.path} tokenizer.ggml.eos_token_id {written[0]}` of the package gguf"
    )
    raise meta.refused(what, fix)


class _Vocabulary:
    """`tokenizer.ggml.*` of a file. A list that lacks, or of another length: ConfigError."""

    def __init__(self, header: Header, where: str):
        self.path = header.path
        self.where = where
        self.metadata: Mapping[str, Any] = header.metadata
        self.kind = str(self.of("model"))
        self.tokens: list[str] = self.of("tokens") or []
        self.types: list[int] = list(self.of("token_type") or [])
        for name in ("tokens", "token_type"):
            if not self.tokens or len(self.of(name) or []) != len(self.tokens):
                raise self.refused(f"its list tokenizer.ggml.{name} is not there or of another length")
        texts = all(isinstance(text, str) for text in self.tokens)
        if not texts or not all(isinstance(kind, int) for kind in self.types):
            raise self.refused("its tokens are no texts, or their types no numbers")

    def of(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def token(self, name: str) -> str | None:
        long = {"unk": "unknown", "pad": "padding"}.get(name, name)
        number = self.of(f"{long}_token_id")
        if number is None:
            return None
        if not isinstance(number, int) or number >= len(self.tokens):
            raise self.refused(f"its {name} token has the number {number} of {len(self.tokens)}")
        return self.tokens[number]

    def refused(self, reason: str, fix: str = FOLDER) -> ConfigError:
        return ConfigError(
            f"the tokenizer in {self.path} cannot be trusted: {reason}", where=self.where, fix=fix
        )


def _add_whole(backend: Tokenizer, meta: _Vocabulary) -> None:
    """Tokens that are found in a text before anything is merged; runs of spaces are left to the merges."""
    special, others = [], []
    for text, kind in zip(meta.tokens, meta.types, strict=True):
        if kind in (CONTROL, UNKNOWN):
            special.append(AddedToken(text, special=True, normalized=False))
        elif kind == USER and text.strip(" "):
            others.append(AddedToken(text, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(others)
    if backend.get_vocab_size() != len(meta.tokens):
        raise meta.refused("some of its tokens are there twice")


def _byte_level(meta: _Vocabulary) -> Tokenizer:
    """GPT-2's kind: merges of bytes, in words that a pattern cuts."""
    cut = str(meta.of("pre"))
    if cut not in CUTS:
        raise meta.refused(f"it cuts words by the rule {cut!r}, which is not among: {', '.join(CUTS)}")
    pattern, digits, whole_words, form = CUTS[cut]
    merges = [tuple(str(merge).split(" ", 1)) for merge in meta.of("merges") or []]
    made = {"".join(merge) for merge in merges}
    for text, kind in zip(meta.tokens, meta.types, strict=True):
        if kind == NORMAL and len(text) > 1 and text not in made:
            raise meta.refused(f"no merge makes its token {text!r}: tokenizer.ggml.merges is not whole")
    vocabulary = {text: number for number, text in enumerate(meta.tokens)}
    try:
        backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    except Exception as error:  # tokenizers raises Exception itself
        raise meta.refused(f"its merges do not fit its vocabulary: {error}") from error
    if form:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _by_score(meta: _Vocabulary) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours the pair is merged whose piece has the highest score, of two
    pairs that make the same piece the one with the longer left part; a run of blanks before anything else.
    """
    scores = meta.of("scores")
    if not scores or len(scores) != len(meta.tokens):
        raise meta.refused("its list tokenizer.ggml.scores is not there or of another length")
    texts = [_written(text, kind) for text, kind in zip(meta.tokens, meta.types, strict=True)]
    ranks: dict[str, tuple[bool, float]] = {}
    for text, kind, score in zip(texts, meta.types, scores, strict=True):
        if kind == NORMAL or (kind == USER and _run(text)):
            ranks[text] = (kind == USER, score)
    if len(set(ranks.values())) < len(ranks) // 2:
        raise meta.refused("its pieces have no scores, so nobody knows which are merged first")
    merges = []
    for text, rank in ranks.items():
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in ranks and right in ranks:
                merges.append((rank, len(left), len(right), left, right))
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    pairs = [merge[3:] for merge in merges]
    vocabulary = {text: number for number, text in enumerate(texts)}
    unknown = meta.token("unk")
    backend = Tokenizer(
        BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    blanks = normalizers.Replace(" ", SPACE)
    prefixed = meta.of("add_space_prefix") is not False
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), blanks])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = blanks
    backend.decoder = decoders.Sequence(steps)
    return backend


def _run(text: str) -> bool:
    """A run of blanks as SentencePiece has it, or of any other blank character."""
    return not text.replace(SPACE, " ").strip(" \t\n")


def _written(text: str, kind: int) -> str:
    """A run of blanks as the text is read, with ▁ for each."""
    return text.replace(" ", SPACE) if kind == USER and _run(text) else text
