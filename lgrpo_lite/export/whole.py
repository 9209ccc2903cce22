"""The merged tensors as the whole that the base was: its own names, and what training left alone as given."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from lgrpo_lite.errors import VerificationError
from lgrpo_lite.export.given import Given
from lgrpo_lite.export.merge import layer_of, plain_name
from lgrpo_lite.policy.structure import is_text

Named = tuple[str, Tensor]


def whole(base: Any, tensors: Iterator[Named], given: Given, *, as_given: bool = True) -> Iterator[Named]:
    """Every tensor of the base, under the name it was given with.

    tensors: (name of a parameter of `base`, merged). One that is in its own type what was given is written as
    it was given, bit for bit, unless `as_given` is false: then all of them keep their type. What text does
    not pass through, loaded or not, is always as it was given: it learned nothing. Tensors of one layer are
    turned back together, since an expert's may be a part of all experts'. Where names of `base` cannot be
    turned back: VerificationError.
    """
    names = _Names(base, given)
    left = set(given.files)
    text = is_text(base)
    learned = (one for one in tensors if text(one[0]))
    for _, layer in groupby(learned, key=lambda one: layer_of(one[0])):
        for name, tensor in names.back(dict(layer)).items():
            left.discard(name)
            tensor = tensor.contiguous()
            yield name, _kept(name, tensor, given) if as_given else tensor
        given.close()
    for name in sorted(left):
        yield name, given.tensor(name).contiguous()


def _kept(name: str, tensor: Tensor, given: Given) -> Tensor:
    """As it was given, where nothing was learned."""
    if name not in given.files or given.shape(name) != tuple(tensor.shape):
        return tensor
    before = given.tensor(name)
    return before if torch.equal(before.to(tensor.dtype), tensor) else tensor


class _Names:
    """transformers' renaming of this checkpoint, read off its names, and backwards."""

    def __init__(self, base: Any, given: Given):
        self.base = base
        self.given = given
        self.prefix = f"{base.base_model_prefix}."
        tied = getattr(base, "all_tied_weights_keys", None) or {}
        self.tied = {plain_name(one): plain_name(other) for one, other in tied.items()}
        mapping = get_model_conversion_mapping(base)
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        parameters = dict.fromkeys((plain_name(name) for name, _ in base.named_parameters()), True)
        self.found = set()  # parameters that stand in the checkpoint
        for name in given.files:
            read_as, _ = rename_source_key(name, renamings, converters, base.base_model_prefix, parameters)
            self.found.add(read_as)
        self.used = [one for one in mapping if one.was_used()]

    def back(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Under the checkpoint's names; tied tensors as often as the checkpoint has them."""
        for one, other in self.tied.items():
            if other in tensors and one not in tensors and one in self.found:
                tensors[one] = tensors[other].clone()
        before = getattr(self.base, "_weight_conversions", None)
        self.base._weight_conversions = self.used
        try:
            turned = revert_weight_conversion(self.base, tensors)
        except (NotImplementedError, ValueError) as error:
            what = f"the weights of {type(self.base).__name__} cannot be written as they were given: {error}"
            raise VerificationError(what, where="export merged", fix="export adapter instead") from error
        finally:
            self.base._weight_conversions = before
        return {self._own(name): tensor for name, tensor in turned.items()}

    def _own(self, name: str) -> str:
        """The checkpoint of a bare model has no prefix."""
        bare = name.removeprefix(self.prefix)
        return bare if name not in self.given.files and bare in self.given.files else name
