"""Of a checkpoint that reads images too, only the text half is loaded, under a text model's names."""

import pytest
import torch

from tuco_vllm.engine.weights import text_half


@pytest.mark.parametrize(
    ("name", "loaded_as"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("vision_tower.vision_model.head.weight", None),
        ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", None),
        ("model.multi_modal_projector.mm_soft_emb_norm.weight", None),
    ],
)
def test_names(name, loaded_as):
    kept = [kept for kept, _ in text_half([(name, torch.zeros(1))])]
    assert kept == ([] if loaded_as is None else [loaded_as])
