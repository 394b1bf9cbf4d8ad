"""Tiny random LoRA adapters of tiny bases, each beside the whole model that PEFT merges it into.

The merged model is what the oracle takes for FT. It is held in float32 whatever the base's dtype, so that it
is the base's weights plus the adapter's product, not rounded again.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
"""Phi 3's names of them."""


class Made(NamedTuple):
    """An adapter's directory, and that of what it makes of its base."""

    adapter: str
    merged: str


def make_adapter(
    base: str, directory: Path, seed: int, *, strength: float = 0.5, dtype: str = "float32", **config: Any
) -> Made:
    """An adapter of ``base`` whose B A is of the order ``strength`` of its weights.

    ``config`` is LoraConfig's; all linear layers at rank 8 where it says nothing.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names = FUSED if any(name.endswith("qkv_proj") for name, _ in model.named_modules()) else LAYERS
    settings = LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": names, **config})
    wrapped = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                narrow = strength if "B" in name.split("lora_")[1] else 1.0
                noise *= narrow / min(parameter.shape[-1], max(parameter.shape)) ** 0.5
                parameter.copy_(noise.to(getattr(torch, dtype)))  # as the engine will hold it
    wrapped.save_pretrained(directory / "adapter")
    wrapped.merge_and_unload().save_pretrained(directory / "merged")
    return Made(str(directory / "adapter"), str(directory / "merged"))
