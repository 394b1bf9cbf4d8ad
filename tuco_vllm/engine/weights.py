"""Two checkpoints into one model: vLLM streams FT's, then every source in ``secondary_weights``: PT's, with
``PT_PREFIX`` before each name. Each goes to its stock model's own loader."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from tuco_vllm.checkpoint_files import text_name
from tuco_vllm.engine.compat import DefaultModelLoader

PT_PREFIX = "pt."

SAFETENSORS = ["model*.safetensors"]
"""The only weight files opened, for both models (pickles run code; ``consolidated*`` has other names)."""


def pt_source(directory: str) -> DefaultModelLoader.Source:
    """PT's checkpoint as vLLM's loader wants it; safetensors only."""
    return DefaultModelLoader.Source(
        directory,
        revision=None,
        prefix=PT_PREFIX,
        fall_back_to_pt=False,
        allow_patterns_overrides=SAFETENSORS,
    )


def load_pair(weights: Iterable[tuple[str, Tensor]], model: nn.Module, ft: str, pt: str) -> set[str]:
    """Load both models, submodules of ``model`` by these names. Returns the parameters filled."""
    filled: set[str] = set()
    for is_pt, tensors in groupby(weights, lambda item: item[0].startswith(PT_PREFIX)):
        side, prefix = (pt, PT_PREFIX) if is_pt else (ft, "")
        stock: Any = model.get_submodule(side)
        own = ((name.removeprefix(prefix), tensor) for name, tensor in tensors)
        filled |= {f"{side}.{name}" for name in stock.load_weights(text_half(own))}
    return filled


def text_half(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's tensors under a text model's names, without those of a vision tower, if it has one."""
    for name, tensor in weights:
        if (own := text_name(name)) is not None:
            yield own, tensor
