"""PT's layers on a stream of their own: what OutputCo and the relative reward need beside FT's pass.

At alpha = 1 PT's layers are given FT's stream, and their keys and values in the cache are of that. Here a
request's tokens run through PT's layers alone, x <- x + A + M, with blocks of the cache that no other stream
reads (``own_steps``): a second pass, in the model's dtype, as stock vLLM computes PT. Nothing of it is
compiled: FT's pass is what an engine is started for.

Shape suffixes: T tokens, H hidden size.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from tuco_vllm.engine.compat import LinearBase, LinearMethodBase
from tuco_vllm.engine.rows_projection import Both
from tuco_vllm.engine.stock_layers import layer_arguments
from tuco_vllm.engine.wide_rows import twin


class OwnStream:
    """PT's layers, cut to rows (``stock_layers.query_rows``), for steps in which every token is a row.

    ``wide`` says that their rows are float32: then these are twins of them in the model's ``dtype``. After
    the weights have loaded.
    """

    def __init__(self, layers: list[Any], wide: bool, dtype: torch.dtype) -> None:
        self._layers = [_narrow(layer, dtype) if wide else layer for layer in layers]

    def __call__(self, x_TH: Tensor, positions: Tensor, rows_R: Tensor | None) -> Tensor:
        """The stream behind these layers ``[T, H]``; with ``rows_R`` of these rows only, in float32."""
        every_T = torch.arange(len(positions), device=positions.device)
        at_both = Both(positions, positions)
        for place, layer in enumerate(self._layers, 1):
            mlp_TH, done = layer(positions=at_both, **layer_arguments(x_TH, None, every_T))
            parts: Any = (x_TH, done.attention_RH, mlp_TH)
            if rows_R is not None and place == len(self._layers):
                parts = [part[rows_R].float() for part in parts]
            x_TH = parts[0] + parts[1] + parts[2]
        return x_TH


class _AsLoaded(LinearMethodBase):
    """A linear layer's product in its own dtype, by weights that nothing has been done to."""

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """They have been created."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, layer.weight, bias)


def _narrow(layer: Any, dtype: torch.dtype) -> Any:
    """A layer of the weights and the cache of one whose rows are float32, in ``dtype``."""
    own = twin(layer)
    for module in own.modules():
        if hasattr(module, "row_dtype"):
            module.wide, module.row_dtype = False, dtype
        if isinstance(module, LinearBase):
            module.quant_method = _AsLoaded()
    stock, attention = (_attention_of(each) for each in (layer, own))
    attention.attn = stock.attn
    attention.qkv_proj.quant_method = copy.copy(stock.qkv_proj.quant_method)
    attention.qkv_proj.quant_method.of_query = _AsLoaded()
    attention.rotary_emb.turn_rows = None
    return own


def _attention_of(layer: Any) -> Any:
    return next(child for child in layer.children() if hasattr(child, "qkv_proj"))
