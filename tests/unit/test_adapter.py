"""LoRA adapters are checked before weights load: what is no plain LoRA, what does not fit, whose base."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_checkpoint import write_model
from safetensors.numpy import load_file, save_file

from tuco_vllm import hub
from tuco_vllm.adapter import Adapter
from tuco_vllm.checkpoint_files import weight_samples
from tuco_vllm.config import expect_tokenizer, resolve_adapter, resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.score_requests import MoreScores, expect_streams

HIDDEN, WIDE, VOCAB = 16, 32, 512


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = write_model(tmp_path / "base")
    random = np.random.default_rng(1)
    shapes = {"self_attn.q_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)}
    tensors = {
        f"model.layers.{layer}.{name}.weight": random.standard_normal(shape, dtype=np.float32)
        for layer in range(2)
        for name, shape in shapes.items()
    }
    embedding = random.standard_normal((VOCAB, HIDDEN), dtype=np.float32)
    save_file({**tensors, "model.embed_tokens.weight": embedding}, directory / "model.safetensors")
    return directory


def halves(module: str, rank: int, inputs: int, outputs: int) -> dict[str, Any]:
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": np.ones((rank, inputs), np.float32),
        f"{name}.lora_B.weight": np.ones((outputs, rank), np.float32),
    }


def write_adapter(
    directory: Path, base: Path | None, tensors: dict[str, Any] | None = None, **stated
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    named = {} if base is None else {"base_model_name_or_path": str(base)}
    (directory / "adapter_config.json").write_text(json.dumps({**settings, **named, **stated}))
    if tensors is None:
        tensors = halves("model.layers.0.self_attn.q_proj", 4, HIDDEN, WIDE)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def refusal(ft: Path, pt: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        resolve_pair(pt, ft)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_adapter_brings_its_base(base, tmp_path):
    pair = resolve_pair(None, write_adapter(tmp_path / "a", base))
    assert pair.pt.directory == pair.ft.directory == base
    assert pair.ft.name == str(tmp_path / "a")
    assert pair.ft.adapter.rank == 4
    assert pair.note == ""
    assert pair.pt.fingerprint != pair.ft.fingerprint


def test_the_fingerprint_is_the_adapters_and_its_bases(base, tmp_path):
    one = resolve_pair(None, write_adapter(tmp_path / "a", base)).ft.fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert resolve_pair(None, tmp_path / "b").ft.fingerprint == one
    other = halves("model.layers.1.self_attn.q_proj", 4, HIDDEN, WIDE)
    assert resolve_pair(None, write_adapter(tmp_path / "a", base, other)).ft.fingerprint != one


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ({"peft_type": "IA3"}, "IA3, not LORA"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "whole modules"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "experts"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"alora_invocation_tokens": [5]}, "aLoRA"),
        ({"fan_in_fan_out": True}, "other way round"),
        ({"r": "4"}, "has r '4'"),
        ({"r": True}, "has r True"),
        ({"lora_alpha": None}, "lora_alpha"),
    ],
)
def test_what_is_no_plain_lora(base, tmp_path, stated, word):
    message = refusal(write_adapter(tmp_path / "a", base, **stated))
    assert word in message
    assert "merge" in message or "fetch" in message


@pytest.mark.parametrize(
    ("architecture", "taken"), [("LlamaForCausalLM", True), ("MistralForCausalLM", False)]
)
def test_embeddings_of_families_that_vllm_adapts(base, tmp_path, architecture, taken):
    """The others would end the engine at their first prompt."""
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    embeds = {f"{name}A": np.ones((4, VOCAB), np.float32), f"{name}B": np.ones((HIDDEN, 4), np.float32)}
    stated = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**stated, "architectures": [architecture]}))
    adapter = write_adapter(tmp_path / "a", base, embeds)
    if architecture == "LlamaForCausalLM":
        assert resolve_pair(None, adapter).ft.adapter.adapts("embed_tokens")
    else:
        assert "embedding or head" in refusal(adapter)


def test_another_adapters_tokenizer(base, tmp_path):
    ft = resolve_pair(None, write_adapter(tmp_path / "a", base)).ft
    other = resolve_adapter(write_adapter(tmp_path / "b", base), ft)[0]
    expect_tokenizer(other, ft)
    expect_tokenizer(None, ft)
    for directory in (other.directory, ft.directory):
        (directory / "chat_template.jinja").write_text("a")
    expect_tokenizer(other, ft)
    (other.directory / "chat_template.jinja").write_text("b")
    with pytest.raises(InputError, match=r"chat_template\.jinja of its own"):
        expect_tokenizer(other, ft)


def test_a_quantized_base_is_no_other_model(base, tmp_path):
    """QLoRA's adapters name it; PT is the whole one."""
    quantized = write_model(tmp_path / "quantized", quantization_config={"bits": 4})
    assert "is quantized" in resolve_pair(base, write_adapter(tmp_path / "a", quantized)).note


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_alone(base, tmp_path, start):
    assert resolve_pair(None, write_adapter(tmp_path / "a", base, init_lora_weights=start)).ft.adapter


@pytest.mark.parametrize(
    "tensors",
    [
        halves("model.layers.0.self_attn.q_proj", 4, HIDDEN, HIDDEN),
        halves("model.layers.0.self_attn.q_proj", 8, HIDDEN, WIDE),  # the config says 4
        halves("model.layers.2.self_attn.q_proj", 4, HIDDEN, WIDE),  # there are two layers
        halves("model.layers.0.self_attn.k_proj", 4, HIDDEN, WIDE),
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((4, HIDDEN), np.float32)},
        {},
    ],
)
def test_what_does_not_fit_its_base(base, tmp_path, tensors):
    message = refusal(write_adapter(tmp_path / "a", base, tensors))
    assert "does not fit" in message or "no LoRA tensors" in message


def test_tensors_that_are_no_halves(base, tmp_path):
    whole = {"base_model.model.model.norm.weight": np.ones(HIDDEN, np.float32)}
    good = halves("model.layers.0.self_attn.q_proj", 4, HIDDEN, WIDE)
    assert "no part of a LoRA" in refusal(write_adapter(tmp_path / "a", base, {**good, **whole}))


def test_a_copy_of_the_bases_embedding_is_none_of_its_own(base, tmp_path):
    name = "base_model.model.model.embed_tokens"
    embeds = {
        f"{name}.lora_embedding_A": np.ones((4, VOCAB), np.float32),
        f"{name}.lora_embedding_B": np.ones((HIDDEN, 4), np.float32),
    }
    copy = {f"{name}.base_layer.weight": np.ones((VOCAB, HIDDEN), np.float32)}
    adapter = resolve_pair(None, write_adapter(tmp_path / "a", base, {**embeds, **copy})).ft.adapter
    assert adapter.adapts("embed_tokens")
    assert not adapter.adapts("lm_head")
    longer = {f"{name}.base_layer.weight": np.ones((VOCAB + 1, HIDDEN), np.float32)}
    assert "no part of a LoRA" in refusal(write_adapter(tmp_path / "a", base, {**embeds, **longer}))


def test_patterns_and_scales(base, tmp_path):
    down = halves("model.layers.1.mlp.down_proj", 9, WIDE, HIDDEN)
    tensors = {**halves("model.layers.0.self_attn.q_proj", 4, HIDDEN, WIDE), **down}
    patterns = {"rank_pattern": {"down_proj": 9}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}}
    place = write_adapter(tmp_path / "a", base, tensors, **patterns)
    adapter = resolve_pair(None, place).ft.adapter
    query, down_proj = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert adapter.rank == 9
    assert (adapter.scale(query), adapter.scale(down_proj)) == (2.0, pytest.approx(3 / 9))
    rooted = Adapter("a", place, {**adapter.config, "use_rslora": True})
    assert (rooted.scale(query), rooted.scale(down_proj)) == (4.0, pytest.approx(3 / math.sqrt(9)))


def test_a_pt_that_is_the_base_by_its_weights(base, tmp_path):
    """Under another name, and in other files."""
    shutil.copytree(base, tmp_path / "copy")
    assert resolve_pair(tmp_path / "copy", write_adapter(tmp_path / "a", base)).note == ""


def test_a_pt_that_is_another_model(base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] += 1e-3
    save_file(tensors, other / "model.safetensors")
    message = refusal(write_adapter(tmp_path / "a", base), other)
    assert f"was trained on {base}" in message
    assert "leave PT out" in message


def test_a_base_that_is_not_at_hand_is_taken_on_trust(base, tmp_path, monkeypatch):
    def fetch(*_: Any, **settings: Any) -> str:
        assert settings["local_files_only"], "the hub was asked for a base that the user has given"
        raise OSError("not in the cache")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    note = resolve_pair(base, write_adapter(tmp_path / "a", Path("org/base"))).note
    assert "taken on trust" in note
    assert "org/base" in note


def test_an_adapter_without_a_base(base, tmp_path):
    adapter = write_adapter(tmp_path / "a", None)
    assert "does not name its base" in refusal(adapter)
    assert resolve_pair(base, adapter).note == ""


def test_pickles_are_not_loaded(base, tmp_path):
    adapter = write_adapter(tmp_path / "a", base)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refusal(adapter)


def test_an_adapter_and_a_whole_model_in_one_directory(base, tmp_path):
    shutil.copytree(base, tmp_path / "both")
    assert "part the two" in refusal(write_adapter(tmp_path / "both", base))


def test_families_without_adapters(base, tmp_path):
    write_model(tmp_path / "moe", "MixtralForCausalLM")
    assert "Mixtral" in refusal(write_adapter(tmp_path / "a", tmp_path / "moe"))


def test_a_whole_model_needs_its_pt(base):
    assert "PT is missing" in refusal(base)


def test_another_adapter_of_the_pairs_base(base, tmp_path):
    pair = resolve_pair(None, write_adapter(tmp_path / "a", base))
    assert resolve_adapter(write_adapter(tmp_path / "b", base), pair.pt)[0].name == str(tmp_path / "b")
    with pytest.raises(InputError, match="is no adapter"):
        resolve_adapter(base, pair.pt)


def test_its_own_tokenizer_goes_first(base, tmp_path):
    adapter = write_adapter(tmp_path / "a", base)
    assert resolve_pair(None, adapter).ft.tokenizer_directory == base
    (adapter / "tokenizer.json").write_text("{}")
    assert resolve_pair(None, adapter).ft.tokenizer_directory == adapter


def test_samples_do_not_depend_on_files(base, tmp_path):
    tensors = load_file(base / "model.safetensors")
    parts = tmp_path / "parts"
    shutil.copytree(base, parts)
    (parts / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[:2], names[2:])):
        save_file({name: tensors[name] for name in part}, parts / f"{number}.safetensors")
        places.update(dict.fromkeys(part, f"{number}.safetensors"))
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert weight_samples(parts) == weight_samples(base)


@pytest.mark.parametrize(
    ("module", "more"),
    [("embed_tokens", MoreScores(output_co=True)), ("lm_head", MoreScores(relative_reward=True))],
)
def test_streams_of_pt_that_there_are_not(tmp_path, module, more):
    name = f"base_model.model.{module}" if module == "lm_head" else f"base_model.model.model.{module}"
    half = "lora_A.weight" if module == "lm_head" else "lora_embedding_A"
    place = write_adapter(tmp_path / "a", None, {f"{name}.{half}": np.ones((4, 8), np.float32)})
    adapter = Adapter("a", place, {})
    with pytest.raises(InputError, match="the adapter a changes"):
        expect_streams(adapter, more)
    expect_streams(adapter, MoreScores(trace=True))
    expect_streams(None, more)
