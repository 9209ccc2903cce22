"""What the layers of a model are made of, by its modules and its config: no list of models.

packed and shared place several sequences in one row and tell softmax attention which keys belong to
whom (attention.py). Whatever else reads along a row, a state or a convolution, would read across the
border of two sequences.
"""

from collections import Counter
from collections.abc import Callable, Set
from typing import Any

from torch import nn

from lgrpo_lite.policy.memory import layers_of

KINDS = ("layer_types", "layers_block_type")  # where a config says what each of its layers is
PLACED = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})
ALONE = frozenset({"moe", "mlp"})  # layers in which no token reads another
ALONG_A_ROW = (nn.modules.conv._ConvNd, nn.RNNBase)


def is_text(base: Any) -> Callable[[str], bool]:
    """Whether text passes through the module or parameter of that name: it is of the decoder or the head, not
    of a tower of images or sounds.
    """
    passed = (base.get_decoder(), base.get_output_embeddings())
    paths = [path for path, module in base.named_modules() if any(module is one for one in passed)]
    return lambda name: any(path in ("", name) or name.startswith(f"{path}.") for path in paths)


def unplaced(base: Any) -> str | None:
    """Why a row of `base` can hold one sequence only, by its structure; None: nothing in it says so.

    A layer of a kind that is not known here counts as one that reads along a row.
    """
    config = base.config.get_text_config()
    kinds: list[str] = []
    for name in KINDS:
        kinds = kinds or list(getattr(config, name, None) or [])
    foreign = Counter(kind for kind in kinds if kind not in PLACED | ALONE)
    if foreign:
        count = f"{foreign.total()} of {len(kinds)} layers are {' or '.join(sorted(foreign))}"
        leak = "what they read along a row runs from one sequence into the next"
        return f"{count}, no softmax attention: {leak}"
    layers = layers_of(base)
    if not layers:
        return f"what the layers of {type(base).__name__} are made of is not known"
    for layer in layers:
        for name, module in layer.named_modules():
            if isinstance(module, ALONG_A_ROW):
                holder = f"{type(layer).__name__} has a {type(module).__name__} ({name})"
                return f"a {holder}, which reads across the border of two sequences in a row"
    stateful = [type(m).__name__ for m in base.modules() if getattr(type(m), "_is_stateful", False)]
    if stateful:
        return f"{stateful[0]} keeps a state along a row, which runs from one sequence into the next"
    return None


def turning(base: Any) -> int | None:
    """Tokens of a sequence beyond which it turns the positions of all others in its pass too, and those of
    its own beginning as it grows: of the kinds of RoPE that look at the longest. None: no such number.
    """
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        kind = str(one.get("rope_type"))
        if kind == "longrope":
            limits.append(one.get("original_max_position_embeddings"))
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min((limit for limit in limits if limit), default=None)


def unattended(base: Any, attended: Set[int]) -> str | None:
    """Which layers did not attend by the plan, given the ids of the modules that did; None: all did."""
    layers = layers_of(base)
    without = [layer for layer in layers if not any(id(module) in attended for module in layer.modules())]
    if not without:
        return None
    kinds = sorted({type(layer).__name__ for layer in without})
    share = f"{len(without)} of {len(layers)} layers ({', '.join(kinds)})"
    return f"{share} do not attend through transformers' AttentionInterface: what they read is not known"
