"""Two checkpoints into one model: names of FT's and PT's tensors -> parameters of ScoringModel.

vLLM streams FT's checkpoint, then every source in ``secondary_weights``: PT's, with ``PT_PREFIX`` before
each name. Rows layers (all of PT's, FT's last) keep q apart from k and v, so they have a mapper of their
own; FT's other layers use the stock one. What a score does not need is not loaded: final norms, heads, and
PT's embedding (which is why PT's vocabulary may differ).
"""

import re
from collections.abc import Iterable, Iterator

from torch import Tensor

from tuco_vllm.engine.compat import DefaultModelLoader, WeightsMapper

PT_PREFIX = "pt."

_ROWS_MAPPER = WeightsMapper(
    orig_to_new_stacked={
        ".k_proj": (".kv_proj", "k"),
        ".v_proj": (".kv_proj", "v"),
        ".gate_proj": (".gate_up_proj", 0),
        ".up_proj": (".gate_up_proj", 1),
    },
)
_UNUSED = re.compile(r"^(model\.norm\.|lm_head\.)|rotary_emb\.")


def pt_source(directory: str) -> DefaultModelLoader.Source:
    """PT's checkpoint as vLLM's loader wants it; safetensors only."""
    return DefaultModelLoader.Source(
        directory,
        revision=None,
        prefix=PT_PREFIX,
        fall_back_to_pt=False,
        allow_patterns_overrides=SAFETENSORS,
    )


SAFETENSORS = ["model*.safetensors"]
"""The only weight files opened, for both models (pickles run code; ``consolidated*`` has other names)."""


def parameter_names(
    weights: Iterable[tuple[str, Tensor]], stock_mapper: WeightsMapper, num_layers: int
) -> Iterator[tuple[str, Tensor]]:
    """Rename the tensors of both checkpoints; drop those that scoring does not use."""
    last = f"model.layers.{num_layers - 1}."
    for name, tensor in weights:
        is_pt = name.startswith(PT_PREFIX)
        name = name.removeprefix(PT_PREFIX)
        if _UNUSED.search(name) or (is_pt and name.startswith("model.embed_tokens.")):
            continue
        mapper = _ROWS_MAPPER if is_pt or name.startswith(last) else stock_mapper
        if is_pt:
            name = name.replace("model.layers.", "model.pt_layers.", 1)
        yield from mapper.apply([(name, tensor)])
