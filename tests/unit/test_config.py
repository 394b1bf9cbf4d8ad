"""Model pairs are refused before weights load, each with one line that names the mend."""

import json
from pathlib import Path

import pytest
from fake_checkpoint import SIZES, shard, write_model

from tuco_vllm.checkpoint_files import fingerprint
from tuco_vllm.config import PAIRED_SIZES, expect_row_dtype, resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.families import FAMILIES


def refusal(pt: str | Path, ft: str | Path, **settings) -> str:
    with pytest.raises(InputError) as caught:
        resolve_pair(pt, ft, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.fixture
def pt(tmp_path):
    return write_model(tmp_path / "pt")


@pytest.fixture
def ft(tmp_path):
    return write_model(tmp_path / "ft")


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_fitting_pair_resolves(tmp_path, architecture):
    pt = write_model(tmp_path / "pt", architecture, vocab_size=64, rope_theta=1e4, intermediate_size=32)
    ft = write_model(tmp_path / "ft", architecture, vocab_size=99, rope_theta=1e6, intermediate_size=48)
    pair = resolve_pair(str(pt), ft)
    assert (pair.pt.name, pair.pt.directory, pair.ft.directory) == (str(pt), pt, ft)
    assert pair.ft.architecture == architecture
    assert pair.ft.config["vocab_size"] == 99
    assert pair.pt.sizes == SIZES


def test_one_model_may_be_both(ft):
    pair = resolve_pair(ft, ft)
    assert pair.pt.fingerprint == pair.ft.fingerprint


def test_the_directory_is_absolute(ft, monkeypatch):
    monkeypatch.chdir(ft.parent)
    assert resolve_pair("ft", "./ft").ft.directory.is_absolute()


@pytest.mark.parametrize(
    "name", ["no-such-model", "./no/such", "/no/such/model", "~nobody-here/model", "a/b/c", ""]
)
def test_missing_path(ft, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = refusal(name, ft)
    assert message.startswith(f"PT {name}")
    assert "no such directory" in message or "no config.json" in message


def test_a_file_is_not_a_directory(pt, ft):
    assert "is a file: give the model's directory" in refusal(pt, ft / "model.safetensors")


def test_not_a_model_directory(ft, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty", ft)


@pytest.mark.parametrize("content", ["{", "", "[1]", "\x80"])
def test_broken_config(pt, ft, content):
    (ft / "config.json").write_bytes(content.encode("latin-1"))
    message = refusal(pt, ft)
    assert "config.json" in message
    assert message.endswith("fetch or save the model again")


def test_an_adapter_is_no_pt(pt, ft):
    (pt / "adapter_config.json").write_text("{}")
    assert "give it as FT" in refusal(pt, ft)


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None, "LlamaForCausalLM", {}])
def test_unsupported_family_lists_the_supported(pt, tmp_path, architectures):
    message = refusal(pt, write_model(tmp_path / "other", architectures=architectures))
    assert "not supported" in message
    assert all(name in message for name in FAMILIES)


def test_different_architectures(pt, tmp_path):
    ft = write_model(tmp_path / "mistral", "MistralForCausalLM", hidden_size=32)
    assert "architecture LlamaForCausalLM and MistralForCausalLM" in refusal(pt, ft)


@pytest.mark.parametrize("key", PAIRED_SIZES)
def test_sizes_that_must_match(pt, tmp_path, key):
    ft = write_model(tmp_path / "other", **{key: SIZES[key] * 2})
    assert f"({key} {SIZES[key]} and {SIZES[key] * 2})" in refusal(pt, ft)


@pytest.mark.parametrize("value", [None, 0, -1, 2.5, "16", True])
def test_a_size_that_is_no_size(pt, tmp_path, value):
    message = refusal(pt, write_model(tmp_path / "other", hidden_size=value))
    assert "config.json has hidden_size" in message


@pytest.mark.parametrize(
    "unstated", [(), ("head_dim",), ("num_key_value_heads",), ("head_dim", "num_key_value_heads")]
)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_unstated_sizes_are_what_transformers_takes(tmp_path, architecture, unstated):
    from transformers import AutoConfig

    family = FAMILIES[architecture]
    changes = {"hidden_size": 512, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 64}
    changes |= dict.fromkeys(unstated)
    if family.text_half:
        text = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
        changes = dict.fromkeys(SIZES) | {"text_config": text}
    model = write_model(tmp_path / "m", architecture, model_type=family.model_type, **changes)
    theirs = AutoConfig.from_pretrained(model).get_text_config()
    ours = resolve_pair(model, model).ft.sizes
    # Where a family's config has no head_dim, or None, its attention takes this.
    heads = {"head_dim": getattr(theirs, "head_dim", None) or 512 // 32}
    assert ours == {key: heads.get(key) or getattr(theirs, key) for key in PAIRED_SIZES}


def test_stated_nulls_are_what_transformers_takes(tmp_path):
    from transformers import AutoConfig

    model = write_model(tmp_path / "m", model_type="llama")
    stated = json.loads((model / "config.json").read_text()) | {"head_dim": None, "num_key_value_heads": None}
    (model / "config.json").write_text(json.dumps(stated))
    theirs = AutoConfig.from_pretrained(model)
    assert resolve_pair(model, model).ft.sizes == {key: getattr(theirs, key) for key in PAIRED_SIZES}


def test_quantized(pt, tmp_path):
    ft = write_model(tmp_path / "awq", quantization_config={"quant_method": "awq"})
    assert "quantized" in refusal(pt, ft)


def test_own_code_needs_permission(pt, tmp_path):
    ft = write_model(tmp_path / "code", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert "--trust-remote-code" in refusal(pt, ft)
    assert resolve_pair(pt, ft, trust_remote_code=True).ft.directory == ft


def test_only_safetensors_are_loaded(pt, ft):
    (ft / "model.safetensors").rename(ft / "pytorch_model.bin")
    message = refusal(pt, ft)
    assert "no model.safetensors but pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_shards(pt, ft):
    shard(ft)
    assert resolve_pair(pt, ft).ft.directory == ft
    (ft / "two.safetensors").unlink()
    assert "lacks the weight files two.safetensors" in refusal(pt, ft)


def test_a_single_file_beside_another_models_index(pt, ft):
    single = (ft / "model.safetensors").read_bytes()
    shard(ft)
    (ft / "model.safetensors").write_bytes(single)
    assert "stale" in refusal(pt, ft)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', "no json", '{"weight_map": []}'])
def test_broken_index(pt, ft, content):
    (ft / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(pt, ft)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_truncated_file(pt, ft, keep):
    file = ft / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(pt, ft)
    assert str(file) in message
    assert message.endswith("fetch or copy it again")


def test_a_file_with_bytes_to_spare(pt, ft):
    with (ft / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "header states" in refusal(pt, ft)


def test_a_file_of_another_kind(pt, ft):
    (ft / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "not a readable safetensors file" in refusal(pt, ft)


def test_a_copy_has_the_same_fingerprint(tmp_path):
    assert fingerprint(write_model(tmp_path / "a")) == fingerprint(write_model(tmp_path / "b"))


def test_the_fingerprint_sees_config_tokenizer_and_every_tensor(ft):
    file = ft / "model.safetensors"
    whole = file.read_bytes()
    seen = {fingerprint(ft)}
    tensor = 256 * 256 * 4
    for index in range(3):  # the middle value of each of three tensors
        changed = bytearray(whole)
        changed[len(whole) - tensor * index - tensor // 2] ^= 1
        file.write_bytes(changed)
        seen.add(fingerprint(ft))
    file.write_bytes(whole)
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        (ft / name).write_text('{"a": 1}')
        seen.add(fingerprint(ft))
    shard(ft)
    seen.add(fingerprint(ft))
    assert len(seen) == 8


def test_the_fingerprint_reads_a_sample_only(ft, monkeypatch):
    # A model of 100 GB must not be read whole: a value far from every tensor's middle goes unseen.
    before = fingerprint(ft)
    file = ft / "model.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    assert fingerprint(ft) == before


def test_rows_of_experts_cannot_be_float32(tmp_path):
    dense, experts = (write_model(tmp_path / name, f"{name}ForCausalLM") for name in ("Llama", "Mixtral"))
    pair = resolve_pair(experts, experts)
    for row_dtype in ("auto", "model"):
        expect_row_dtype(pair, row_dtype)
    with pytest.raises(InputError, match=r"Mixtral.* leave --row-dtype out, or"):
        expect_row_dtype(pair, "float32")
    expect_row_dtype(resolve_pair(dense, dense), "float32")
    with pytest.raises(InputError, match="row_dtype must be one of auto, float32, model, not 'float64'"):
        expect_row_dtype(pair, "float64")
