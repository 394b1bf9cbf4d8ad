"""What `tuco doctor` says of a pair's files, template and steering."""

from pathlib import Path
from shutil import copytree

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from tuco_vllm.config import resolve_pair
from tuco_vllm.doctor.pair_checks import Steered, shared_tensors, stream_error, template_facts
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompts import load_tokenizer


def changed(source: str, target: Path, change) -> str:
    """A copy of a model with other tensors."""
    copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return str(target)


def test_frozen_tensors_are_named_by_layers(pair_dirs, tmp_path) -> None:
    _, ft = pair_dirs("llama", "float32")
    up = "model.layers.{}.mlp.up_proj.weight"

    def train(tensors) -> None:
        for name, tensor in tensors.items():
            if name not in (up.format(0), up.format(2), "model.norm.weight"):
                tensor[-1] += 1.0  # the last row alone: a look at the first would not notice

    shared = shared_tensors(resolve_pair(ft, changed(ft, tmp_path / "ft", train)))
    assert sorted(shared.equal) == ["model.layers.0.mlp.up_proj.weight", up.format(2), "model.norm.weight"]
    lines = shared.summary()
    assert lines[0].startswith("3 of ")
    assert "  model.layers.0,2.mlp.up_proj.weight" in lines
    assert "  model.norm.weight" in lines


def test_a_vocabulary_that_grew_is_no_difference_of_training(pair_dirs, tmp_path) -> None:
    _, ft = pair_dirs("llama", "float32")
    name = "model.embed_tokens.weight"

    def grow(tensors) -> None:
        tensors[name] = torch.cat([tensors[name], tensors[name][:3]])

    shared = shared_tensors(resolve_pair(ft, changed(ft, tmp_path / "ft", grow)))
    assert shared.only_in_one == [name]
    assert not shared.different
    assert any("two shapes" in line for line in shared.summary())


def test_template_facts(pair_dirs) -> None:
    _, ft = pair_dirs("llama", "float32")
    tokenizer, other = load_tokenizer(Path(ft)), load_tokenizer(Path(ft))
    facts = template_facts(tokenizer, tokenizer)
    assert any("a chat becomes" in fact for fact in facts)
    assert not any("tokenizers differ" in fact for fact in facts)
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert any("ignores add_generation_prompt" in fact for fact in template_facts(tokenizer, other))
    other.chat_template = "{{ raise_exception('no') }}"
    assert any("refuses a single user turn" in fact for fact in template_facts(tokenizer, other))
    other.chat_template = None
    other.add_tokens(["東京"])
    facts = template_facts(tokenizer, other)
    assert any("no chat template" in fact for fact in facts)
    assert any("tokenizers differ" in fact for fact in facts)


def test_layers_only_add_to_the_stream(pair_dirs) -> None:
    oracle = Oracle(*pair_dirs("llama", "float32"))
    assert stream_error(oracle, tiny_models.prompts(1)[0]) < 1e-12
    layer = oracle.ft.layers[1]
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    # A stream that is scaled between two layers: layer 1 reads something else than layer 0 wrote.
    assert stream_error(oracle, tiny_models.prompts(1)[0]) > 1e-3


@pytest.mark.parametrize(
    ("steered", "said"),
    [
        (Steered(True, 1e-7, 1e-2), ("holds", "holds")),
        (Steered(False, 1e-7, 1e-2), ("DOES NOT HOLD", "holds")),
        (Steered(True, 1e-2, 1e-2), ("holds", "CANNOT BE TOLD")),
    ],
)
def test_identities_are_judged(steered, said) -> None:
    for line, words in zip(steered.summary(), said, strict=True):
        assert words in line
