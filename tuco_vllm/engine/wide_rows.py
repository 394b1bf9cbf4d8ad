"""Rows in float32 beside weights and tokens of 16 bits: what of a layer on rows must be another for it.

A light fine-tune changes less in a layer's output than bfloat16 rounds off in computing it, and as L1 norms
add up what is rounded, in either direction, such a TuCo comes out too high. So a scoring engine computes what
its scores are made of in float32: PT's layers on the rows, and FT's on the rows a second time, beside the run
over all tokens that makes the stream. Weights, stream, keys and values stay the model's; queries and
attention's output are rounded to its dtype, since its caches are read in no other.

The second run shares the first one's weights and cache. It costs reading FT's weights once more a step, and
on a CPU, where vLLM packs the weights of the first run, memory for one more copy of FT.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import add_rms_norm, row_linear

from tuco_vllm.engine.compat import (
    GemmaRMSNorm,
    LinearBase,
    LinearMethodBase,
    Phi3LongRoPEScaledRotaryEmbedding,
    RMSNorm,
    VllmConfig,
)


class Float32Method(LinearMethodBase):
    """A linear layer's product with 16-bit weights, as they were loaded, in float32."""

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """They have been created."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """They stay as they are."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Float32, whatever ``x`` is."""
        return row_linear(x.float(), layer.weight, bias)


class _Float32Norm:
    """A norm of a query's heads; that of the keys beside it is stock."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            stock: Any = super()
            return stock.forward(x)
        plus_one = isinstance(self, GemmaRMSNorm)
        heads = x.reshape(-1, x.shape[-1])
        weight, eps = self.weight.float(), self.variance_epsilon
        return add_rms_norm(None, heads, weight, eps, plus_one=plus_one).view(x.shape)


def widen(layer: Any, attention: Any) -> None:
    """Let all of a layer on rows but its cut projection take and give float32."""
    for module in layer.modules():
        if isinstance(module, LinearBase) and module is not attention.qkv_proj:
            module.quant_method = Float32Method()
    for child in attention.children():
        if type(child) in (RMSNorm, GemmaRMSNorm):
            mix(child, _Float32Norm)


def float32_rope(rope: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """(positions ``[R]``, heads ``[R, Q]`` float32) -> the heads turned, by the rope's own angles.

    One table in float32 for all layers that share a rope.
    """
    if not hasattr(rope, "in_float32"):
        wide = twin(rope)
        for name, buffer in rope.named_buffers(recurse=False):
            if buffer is not None:
                setattr(wide, name, buffer.float())
        rope.in_float32 = wide
    wide = rope.in_float32
    if isinstance(wide, Phi3LongRoPEScaledRotaryEmbedding):
        return lambda positions, heads: wide(positions, heads, heads[:, : wide.head_size])[0]
    # By name: what a custom op of vLLM's calls was bound to the rope that this one was copied from.
    return lambda positions, heads: wide.forward_native(positions, heads, None)[0]


def sharing_cache(attn: Any, vllm_config: VllmConfig) -> Any:
    """Attention over the keys and values that ``attn`` has written; it writes none."""
    shared = twin(attn)
    shared.impl = copy.copy(attn.impl)
    shared.layer_name = f"{attn.layer_name}.rows"
    shared.kv_sharing_target_layer_name = attn.layer_name
    shared.impl.kv_sharing_target_layer_name = attn.layer_name
    vllm_config.compilation_config.static_forward_context[shared.layer_name] = shared
    return shared


def twin(module: Any) -> Any:
    """A module of the same parameters, which can be changed without the other: only tensors are shared."""
    made = copy.copy(module)
    made._parameters, made._buffers = dict(module._parameters), dict(module._buffers)
    made._modules = {name: child and twin(child) for name, child in module._modules.items()}
    return made


def part_of(product: Any, start: int | None = None, stop: int | None = None) -> nn.Module:
    """A linear layer's outputs from ``start`` to ``stop``: views of its weight and bias, in a module."""
    part = nn.Module()
    for name in ("weight", "bias"):
        whole = getattr(product, name)
        cut = None if whole is None else nn.Parameter(whole.data[start:stop], requires_grad=False)
        part.register_parameter(name, cut)
    return part


def mix(module: Any, mixin: type) -> None:
    """Give a module's class the methods of ``mixin``, whose ``super()`` is what it was."""
    stock = type(module)
    module.__class__ = type(f"{mixin.__name__.strip('_')}Of{stock.__name__}", (mixin, stock), {})
