"""A layer of the Transformers backend that the executor does not know is refused, before weights load.

And one that it knows is, called as its own model calls it, what it was.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bare_modules import bare
from torch import nn
from transformers import SmolLM3Config, SmolLM3Model
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

from tuco_vllm.engine.backend_layers import give_form
from tuco_vllm.engine.compat import QKVParallelLinear, RMSNorm
from tuco_vllm.engine.stock_layers import OwnForm

LLAMAS = ("input_layernorm", "post_attention_layernorm")


class Layer(nn.Module):
    """What vLLM's backend makes of a layer, ``changes`` aside; None leaves a part of attention out."""

    def __init__(self, norms: tuple[str, ...] = LLAMAS, **changes: Any) -> None:
        super().__init__()
        for name in norms:
            self.add_module(name, bare(RMSNorm))
        qkv = bare(QKVParallelLinear, total_num_heads=4, head_size=8, v_head_size=8)
        parts = {
            "qkv_proj": qkv,
            "o_proj": nn.Identity(),
            "attn": bare(nn.Module, attn_type="decoder"),
        } | changes
        self.self_attn = bare(
            SmolLM3Attention, **{key: part for key, part in parts.items() if part is not None}
        )

    def forward(self, hidden_states: Any, **others: Any) -> Any:
        return hidden_states, others


def model_of(layer: nn.Module, rope_type: Any = "default") -> Any:
    """A model of the backend's with this layer."""
    decoder = bare(SmolLM3Model, config=SmolLM3Config(num_hidden_layers=1))
    decoder.layers = nn.ModuleList([layer])
    decoder.rotary_emb = bare(nn.Identity, rope_type=rope_type)
    return SimpleNamespace(model=decoder)


@pytest.mark.parametrize(
    ("layer", "rope", "named"),
    [
        (Layer(norms=LLAMAS[:1]), "default", "Layer does not fit .* it has the RMS norms input_layernorm$"),
        (
            Layer(norms=(*LLAMAS, "post_feedforward_layernorm")),
            "default",
            "RMS norms input_layernorm, ",
        ),
        (Layer(norms=()), "default", r"RMS norms \(none\)"),
        (Layer(qkv_proj=None), "default", "an attention of attn, o_proj$"),
        (Layer(gate=nn.Identity()), "default", "an attention of attn, gate, o_proj, qkv_proj"),
        (Layer(qkv_proj=nn.Linear(2, 2)), "default", "no projection of q, k and v of one width"),
        (Layer(qkv_proj=bare(QKVParallelLinear, head_size=8, v_head_size=4)), "default", "of one width"),
        (
            Layer(q_norm=bare(RMSNorm, weight=torch.ones(8)), k_norm=bare(RMSNorm)),
            "default",
            "norms of single query heads",
        ),
        (Layer(attn=bare(nn.Module, attn_type="encoder_only")), "default", "no causal attention"),
        (Layer(), "dynamic", r"rope \(dynamic\) whose angles depend"),
        (Layer(), {"full_attention": "longrope", "sliding_attention": "default"}, r"rope \(longrope\)"),
    ],
)
def test_a_wrong_structure_is_refused(layer, rope, named):
    with pytest.raises(ValueError, match=named):
        give_form(model_of(layer, rope))
    assert not isinstance(layer, OwnForm)


@pytest.mark.parametrize(
    "layer",
    [
        Layer(),
        Layer(norms=("post_attention_layernorm", "post_feedforward_layernorm")),
        Layer(q_norm=bare(RMSNorm, weight=torch.ones(32)), k_norm=bare(RMSNorm)),
    ],
    ids=["Llama's norms", "OLMo 2's norms", "norms of q and k"],
)
def test_its_own_model_finds_it_as_it_was(layer):
    give_form(model_of(layer))
    assert isinstance(layer, OwnForm)
    assert layer("x", attention_mask="m", position_ids="p") == (
        "x",
        {"attention_mask": "m", "position_ids": "p"},
    )


def test_vllms_own_models_are_left_alone():
    layer = Layer()
    give_form(SimpleNamespace(model=SimpleNamespace(layers=[layer])))
    assert type(layer) is Layer
