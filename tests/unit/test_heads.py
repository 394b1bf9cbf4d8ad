"""What only log-probabilities need is put aside, and comes back from a checkpoint, all of it or nothing."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tuco_vllm.engine.compat import PPMissingLayer
from tuco_vllm.engine.heads import HEAD, PutAside

WEIGHTS = {
    "model.embed_tokens.weight": torch.randn(5, 3),
    "model.norm.weight": torch.randn(3),
    "lm_head.weight": torch.randn(5, 3),
    "model.layers.0.norm.weight": torch.randn(3),
}
NAMES = {"embed_tokens": "model.embed_tokens", **HEAD}


def stock(*, tied: bool = False) -> nn.Module:
    model = nn.Module()
    model.model, model.lm_head = nn.Module(), nn.Linear(3, 5, bias=False)
    model.model.embed_tokens, model.model.norm = nn.Embedding(5, 3), nn.RMSNorm(3)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False)


def test_they_take_no_memory_and_come_back(tmp_path):
    model = stock()
    parameters = list(model.parameters())
    aside = PutAside(model, NAMES)
    assert not list(model.parameters())
    assert [parameter.numel() for parameter in parameters] == [0, 0, 0]
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for _ in range(2):
        aside.restore(tmp_path)
        found = dict(model.named_parameters())
        assert found.keys() == WEIGHTS.keys() - {"model.layers.0.norm.weight"}
        assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in found.items())


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_checkpoint_without_one_leaves_all_aside(tmp_path, name):
    model = stock()
    parameters = list(model.parameters())
    aside = PutAside(model, NAMES)
    save_file({key: value for key, value in WEIGHTS.items() if key != name}, tmp_path / "model.safetensors")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"has no {name.split('.')[-2]}"):
            aside.restore(tmp_path)
        assert isinstance(model.lm_head, PPMissingLayer)
        assert [parameter.numel() for parameter in parameters] == [0, 0, 0]


def test_a_head_that_is_the_embedding_stays_with_it(tmp_path):
    model = stock(tied=True)
    embedding = model.model.embed_tokens.weight.clone()
    aside = PutAside(model, HEAD)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    save_file({key: WEIGHTS[key] for key in ("model.norm.weight",)}, tmp_path / "model.safetensors")
    aside.restore(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
