"""A decoder layer whose structure the executor does not know is refused by name, before weights load."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bare_modules import bare
from torch import nn
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

from tuco_vllm.engine.compat import (
    GemmaRMSNorm,
    QKVParallelLinear,
    RMSNorm,
    RotaryEmbeddingBase,
    current_platform,
)
from tuco_vllm.engine.layer_structure import expect_rotation
from tuco_vllm.engine.rows import last_tokens
from tuco_vllm.engine.rows_projection import cut_projections
from tuco_vllm.engine.stock_layers import keep_rows, query_rows
from tuco_vllm.engine.stock_models import decoder_of

CONFIG: Any = SimpleNamespace(
    model_config=SimpleNamespace(max_model_len=64, dtype=torch.float32),
    kernel_config=SimpleNamespace(ir_op_priority=SimpleNamespace(fused_add_rms_norm=["native"])),
)


class Layer(nn.Module):
    """What all families' decoder layers have, ``changes`` aside; None leaves a part out."""

    def __init__(self, norms: int = 2, norm: type[nn.Module] = RMSNorm, **changes: Any) -> None:
        super().__init__()
        for place in range(norms):
            setattr(self, f"norm_{place}", bare(norm))
        qkv = bare(QKVParallelLinear, num_heads=4, head_size=8, v_head_size=8, quant_method=None)
        rope = bare(RotaryEmbeddingBase, cos_sin_cache=torch.zeros(64, 8))
        parts = {"qkv_proj": qkv, "rotary_emb": rope, "attn": SimpleNamespace(attn_type="decoder")} | changes
        self.self_attn = bare(nn.Module, **{key: part for key, part in parts.items() if part is not None})

    def forward(self, positions: Any, hidden_states: Any, residual: Any) -> None: ...


class AddsItself(Layer):
    def forward(self, positions: Any, hidden_states: Any) -> None: ...  # type: ignore[override]


class AttendsTwice(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.cross_attn = Layer().self_attn


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Layer(norms=3), "Layer does not fit TuCo's executor: it has 3 RMS norms, not 2 or 4"),
        (Layer(norm=nn.LayerNorm), "it has 0 RMS norms"),
        (AddsItself(), "AddsItself does not fit .* it takes positions, hidden_states, not"),
        (AttendsTwice(), "it has 2 attentions"),
        (Layer(qkv_proj=nn.Linear(2, 2)), "it has 0 attentions with one projection"),
        (Layer(qkv_proj=bare(QKVParallelLinear, head_size=8, v_head_size=4)), "values of another width"),
        (Layer(rotary_emb=None), "no rotary embedding of a known kind"),
        (Layer(rotary_emb=nn.Identity()), "no rotary embedding of a known kind"),
        (Layer(attn=SimpleNamespace(attn_type="encoder_only")), "no causal attention"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_wrong_structure_is_refused(layer, named):
    with pytest.raises(ValueError, match=named):
        query_rows(layer, CONFIG, last_tokens)


def test_a_rope_too_short_names_the_mend():
    layer = Layer(rotary_emb=bare(RotaryEmbeddingBase, cos_sin_cache=torch.zeros(40, 8)))
    with pytest.raises(ValueError, match=r"covers 40 positions.* set max_model_len to 40 or less"):
        query_rows(layer, CONFIG, last_tokens)


@pytest.mark.parametrize(
    ("dtype", "rotary_dim", "refused"),
    [
        (torch.bfloat16, 32, False),
        (torch.bfloat16, 24, True),
        (torch.float16, 8, True),
        (torch.float32, 24, False),
    ],
)
def test_a_rope_that_would_write_beyond_its_tensors_is_refused(dtype, rotary_dim, refused, monkeypatch):
    monkeypatch.setattr(current_platform, "is_cpu", lambda: True)
    model = Layer(rotary_emb=bare(RotaryEmbeddingBase, rotary_dim=rotary_dim, head_size=32))
    with (
        pytest.raises(ValueError, match=rf"turn {rotary_dim} of a head's 32 .* set dtype to float32")
        if refused
        else nullcontext()
    ):
        expect_rotation(model, dtype)


@pytest.mark.parametrize("layer", [Layer(), Layer(norms=4, norm=GemmaRMSNorm)])
def test_a_layer_is_opened_once(layer):
    keep_rows(layer)
    with pytest.raises(ValueError, match="it has 0 RMS norms"):
        keep_rows(layer)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"Linear does not fit TuCo's executor: it has no model\.layers"):
        decoder_of(nn.Linear(2, 2))


def test_no_uncompiled_step_replaces_a_table_that_compiled_code_reads():
    """gpt-oss' table is float32; vLLM's rope puts one of the keys' dtype in its place when it first runs."""
    qkv = bare(QKVParallelLinear, num_heads=1, head_size=32, quant_method=None)
    stock = bare(RotaryEmbedding, head_size=32, rotary_dim=32, is_neox_style=True, use_aiter=False)
    stock.register_buffer("cos_sin_cache", torch.randn(64, 32))
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64, dtype=torch.bfloat16))
    attention = bare(nn.Module, qkv_proj=qkv, rotary_emb=stock)
    cut_projections(attention, config, wide=False)
    rope = attention.rotary_emb
    before = rope.cos_sin_cache
    keys = torch.randn(3, 32, dtype=torch.bfloat16)
    turned = rope.forward_native(torch.arange(3), keys, None)[0]
    assert rope.cos_sin_cache is before
    assert stock.cos_sin_cache is before, "of FT's layers, which share it"
    assert turned.dtype == before.dtype == torch.bfloat16
