"""The blocks of each family of models as numbers: what is a row here can be planned. No torch here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Settings = Mapping[str, Any]  # of config.json


class Linear(NamedTuple):
    """A linear layer of a block; layers of one `source` read the same tensor."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    source: str

    @property
    def numbers(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Block:
    """`rest`: elements of each parameter that is in no linear layer: norms, biases, experts, a convolution.
    `attends`: whether it keeps keys and values of every token.
    """

    linears: tuple[Linear, ...]
    rest: tuple[int, ...]
    attends: bool = True

    @property
    def numbers(self) -> int:
        """Of all linear layers."""
        return sum(linear.numbers for linear in self.linears)


@dataclass(frozen=True, slots=True)
class Family:
    """What a model type adds to Llama's block; a text names the key of its config that decides.

    `defaults`: what transformers fills in where a config.json leaves it out.
    `unmeasured`: what a plan says of the family, since no pass of it was measured.
    """

    qkv_bias: bool | str = "attention_bias"
    o_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    head_norms: bool = False
    fused: bool = False
    norms: int = 2  # of a block, each as wide as the hidden state
    query_gate: bool = False  # the query layer gives a gate for each head too
    experts: bool = False  # they stand in place of the MLP, as parameters and no linear layers
    defaults: Settings = field(default_factory=dict)
    unmeasured: str = ""


_GEMMA = {"vocab_size": 256000, "head_dim": 256, "tie_word_embeddings": True, "max_position_embeddings": 8192}
_OF_2B = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
          "num_key_value_heads": 4}  # fmt: skip
_SLIDING = (
    "what a pass keeps is counted as of a Llama block with four norms, and was not measured; layers that look"
    " back over a window are counted with the keys and values of all tokens"
)
_LINEAR = (
    "layers of linear attention are counted as layers of attention in a pass, which was not measured, and"
    " take no layout but rows"
)
_EXPERTS = (
    "what its experts keep of a pass is counted as of an MLP of those that a token takes, and was not"
    " measured; they are trained by no adapter and stay in 16 bits under nf4 and int8"
)
FAMILIES = {
    "llama": Family(mlp_bias="mlp_bias"),
    "granite": Family(mlp_bias="mlp_bias"),
    "smollm3": Family(mlp_bias="mlp_bias"),
    "mistral": Family(False, False),
    "phi3": Family(False, False, fused=True),
    "qwen2": Family(True, False),
    "qwen3": Family(head_norms=True),
    "gemma": Family(
        defaults=_GEMMA | {"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
                           "num_attention_heads": 16, "num_key_value_heads": 16, "attention_bias": False},
        unmeasured="what a pass keeps is counted as of a Llama block, and was not measured",
    ),
    "gemma2": Family(norms=4, defaults=_GEMMA | _OF_2B, unmeasured=_SLIDING),
    "gemma3_text": Family(
        head_norms=True,
        norms=4,
        defaults=_GEMMA | _OF_2B | {"vocab_size": 262208, "max_position_embeddings": 131072},
        unmeasured=_SLIDING,
    ),
    "gpt_oss": Family(
        experts=True,
        defaults={"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
                  "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
                  "head_dim": 64, "max_position_embeddings": 131072, "attention_bias": True,
                  "num_local_experts": 128, "num_experts_per_tok": 4, "tie_word_embeddings": False},
        unmeasured=_EXPERTS,
    ),
    "qwen3_5_text": Family(
        head_norms=True,
        query_gate=True,
        defaults={"vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288,
                  "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
                  "head_dim": 256, "max_position_embeddings": 32768, "linear_conv_kernel_dim": 4,
                  "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
                  "linear_num_value_heads": 32, "full_attention_interval": 4, "tie_word_embeddings": False},
        unmeasured=_LINEAR,
    ),
}  # fmt: skip
# Models for text and images, by their own type: what is loaded beside the language model; None: nothing.
LOADED_BESIDE = {"gemma3": "vision", "qwen3_5": None}


def heads_of(c: Settings) -> tuple[int, int, int]:
    """Query heads, heads of keys and values, and the width of one."""
    heads = c["num_attention_heads"]
    kv_heads = c.get("num_key_value_heads") or heads
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    return heads, kv_heads, head_dim


def blocks_of(family: Family, c: Settings) -> tuple[Block, ...]:
    """Every block of the model, in order."""
    attending = _block(family, c)
    kinds = {"linear_attention": attending}
    if "linear_num_value_heads" in c:
        kinds["linear_attention"] = _linear_attention(family, c)
    return tuple(kinds.get(kind, attending) for kind in layer_types(c))


def layer_types(c: Settings) -> list[str]:
    """Of each layer, as transformers names them."""
    """Of each layer, as transformers names them."""
    named = c.get("layer_types")
    if named:
        return list(named)
    every = c.get("full_attention_interval")
    if every is None:
        return ["full_attention"] * c["num_hidden_layers"]
    kinds = []
    for layer in range(1, c["num_hidden_layers"] + 1):
        kinds.append("linear_attention" if layer % every else "full_attention")
    return kinds


def _block(family: Family, c: Settings) -> Block:
    heads, _, head_dim = heads_of(c)
    linears = (*_attention(family, c), *([] if family.experts else _mlp(family, c)))
    rest = [c["hidden_size"]] * family.norms
    if family.head_norms:
        rest += [head_dim] * 2
    rest += [linear.outputs for linear in linears if linear.bias]
    if family.experts:
        rest += [heads, *_experts(c)]  # a sink for each head
    return Block(linears, tuple(rest))


def _linear_attention(family: Family, c: Settings) -> Block:
    """Qwen3.5's gated delta rule."""
    hidden, values = c["hidden_size"], c["linear_num_value_heads"]
    key = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    value = values * c["linear_value_head_dim"]
    linears = [
        Linear("linear_attn.in_proj_qkv", hidden, 2 * key + value, False, "attention"),
        Linear("linear_attn.in_proj_z", hidden, value, False, "attention"),
        Linear("linear_attn.in_proj_b", hidden, values, False, "attention"),
        Linear("linear_attn.in_proj_a", hidden, values, False, "attention"),
        Linear("linear_attn.out_proj", value, hidden, False, "heads"),
    ]
    convolution = (2 * key + value) * c["linear_conv_kernel_dim"]
    rest = [hidden] * family.norms + [convolution, values, values, c["linear_value_head_dim"]]
    return Block((*linears, *_mlp(family, c)), tuple(rest), attends=False)


def _experts(c: Settings) -> list[int]:
    """gpt-oss's: router, both layers of every expert, and a bias of each."""
    hidden, inner, count = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    up, down = 2 * inner * hidden, inner * hidden
    return [count * hidden, count, count * up, count * 2 * inner, count * down, count * hidden]


def _has(bias: bool | str, c: Settings) -> bool:
    return bool(c.get(bias)) if isinstance(bias, str) else bias


def _attention(family: Family, c: Settings) -> Iterator[Linear]:
    heads, kv_heads, head_dim = heads_of(c)
    hidden = c["hidden_size"]
    query, key = heads * head_dim, kv_heads * head_dim
    widths = {"qkv": query + 2 * key} if family.fused else {"q": query, "k": key, "v": key}
    if family.query_gate:
        widths["q"] = 2 * query
    bias = _has(family.qkv_bias, c)
    for name, width in widths.items():
        yield Linear(f"self_attn.{name}_proj", hidden, width, bias, "attention")
    yield Linear("self_attn.o_proj", query, hidden, _has(family.o_bias, c), "heads")


def _mlp(family: Family, c: Settings) -> Iterator[Linear]:
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    widths = {"gate_up": 2 * inner} if family.fused else {"gate": inner, "up": inner}
    bias = _has(family.mlp_bias, c)
    for name, width in widths.items():
        yield Linear(f"mlp.{name}_proj", hidden, width, bias, "mlp")
    yield Linear("mlp.down_proj", inner, hidden, bias, "inner")


def vision_of(config: Settings, hidden: int) -> list[int]:
    """Elements of each parameter of Gemma 3's SigLIP tower, and of the layer behind it."""
    c = SIGLIP | (config.get("vision_config") or {})
    width, inner, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    patches = (c["image_size"] // patch) ** 2
    sizes = [c["num_channels"] * patch**2 * width, width, patches * width, width, width]
    layer = [width * width, width] * 4 + [width * inner, inner, inner * width, width] + [width] * 4
    sizes += layer * c["num_hidden_layers"]
    if c["vision_use_head"]:  # attention with a probe, and an MLP
        sizes += [width, 3 * width * width, 3 * width, width * width, width]
        sizes += [width, width, width * inner, inner, inner * width, width]
    return [*sizes, width * hidden, width]


SIGLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_channels": 3,
          "image_size": 224, "patch_size": 16, "vision_use_head": False}  # fmt: skip
