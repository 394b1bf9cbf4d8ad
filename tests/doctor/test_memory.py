"""``tuco doctor --gpu-memory``: what is counted, answered and advised. ``parity/test_doctor_memory.py`` holds
the counts to an engine's."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from fake_checkpoint import SIZES, write_model
from readme.blocks import README, blocks_of

from tuco_vllm import cli, hub
from tuco_vllm.doctor import memory
from tuco_vllm.doctor.memory import GIB, Footprint
from tuco_vllm.errors import InputError

LLAMA_3_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def shapes_of_llama(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    wide, narrow = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    inner, shapes = config["intermediate_size"], {}
    for layer in range(config["num_hidden_layers"]):
        parts = {"q_proj": (wide, wide), "k_proj": (narrow, wide), "v_proj": (narrow, wide)}
        parts |= {"o_proj": (wide, wide), "gate_proj": (inner, wide), "up_proj": (inner, wide)}
        parts |= {"down_proj": (wide, inner), "input_layernorm": (wide,), "post_attention_layernorm": (wide,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    vocabulary = (config["vocab_size"], wide)
    return shapes | {
        "model.embed_tokens.weight": vocabulary,
        "lm_head.weight": vocabulary,
        "model.norm.weight": (wide,),
    }


@pytest.fixture
def eight_billion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A pair with the configuration of Llama 3 8B, and the shapes of its headers."""
    monkeypatch.setattr(memory, "tensor_shapes", lambda checkpoint: shapes_of_llama(LLAMA_3_8B))
    pt, ft = (str(write_model(tmp_path / side, **LLAMA_3_8B)) for side in ("pt", "ft"))
    return pt, ft


def test_llama_3_8b_is_what_its_model_card_says(eight_billion, capsys) -> None:
    pt, ft = eight_billion
    assert cli.main(["doctor", "--pt", pt, "--ft", ft, "--gpu-memory", "80"]) == 0
    said = capsys.readouterr().out
    assert "FT, embedding and layers             13.98 GiB" in said  # 8.03e9 parameters, without the head
    assert "PT's layers                          13.00 GiB" in said
    assert (
        "cache, both models                   256.0 KiB a token" in said
    )  # 2 models, 2, 32 layers, 8 x 128, 16 bits
    [block] = [block for block in blocks_of(README.read_text()) if "--gpu-memory" in block.commands[0].text]
    assert said == block.commands[0].printed  # not run there: that pair is on the hub


def test_a_pair_that_does_not_fit_is_told_what_would_help(eight_billion, capsys) -> None:
    pt, ft = eight_billion
    question = ["doctor", "--pt", pt, "--ft", ft, "--gpu-memory"]
    assert cli.main([*question, "24"]) == 2
    out, error = capsys.readouterr()
    assert out.count(": no, 0 tokens") == 2
    assert "--tensor-parallel-size 2 on 2 such GPUs fits" in error
    assert "LoRA adapter would share its base's weights, 14.0 GiB" in error
    assert "--max-model-len" not in error
    assert cli.main([*question, "36", "--max-model-len", "200000"]) == 2
    advised = int(capsys.readouterr().err.partition("--max-model-len ")[2].split()[0])
    assert cli.main([*question, "36", "--max-model-len", str(advised)]) == 0
    assert ", 1 sequences" in capsys.readouterr().out
    assert cli.main([*question, "36", "--max-model-len", str(advised + 256)]) == 2
    capsys.readouterr()
    assert cli.main([*question, "3"]) == 2
    assert "tensor-parallel-size" not in capsys.readouterr().err  # eight of them are too small as well


def test_key_value_heads_are_not_cut() -> None:
    need = Footprint(0, 0, 0, 0, 0, per_token=1024, step=0, heads=8, kv_heads=2)
    assert [need.per_token_on_each(gpus) for gpus in (1, 2, 4)] == [1024, 512, 512]
    assert need.tokens(10, generates=False, gpus=2) == int((10 * GIB * 0.92 - 2 * GIB) / 512)


@pytest.mark.parametrize("gpus", range(1, 9))
def test_gpus_divide_the_heads(gpus: int) -> None:
    need = Footprint(gpus * 4 * GIB, 0, 0, 0, 0, per_token=1024, step=0, heads=12, kv_heads=1)
    found = need.gpus_for(7.0, 1)  # 4.4 GiB are left of each
    assert found == {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 6}.get(gpus)


def test_the_head_of_a_tied_model_is_its_embedding() -> None:
    shapes = shapes_of_llama({**LLAMA_3_8B, "num_hidden_layers": 0})
    config = {"tie_word_embeddings": True}
    tied, own = (
        memory._elements(shapes, SimpleNamespace(config=stated)) for stated in (config, {"vocab_size": 1})
    )
    assert tied == own._replace(last=4096)
    assert own.last == 4096 + 128256 * 4096


def test_only_the_text_half_counts() -> None:
    shapes = {"model.language_model.layers.0.mlp.up_proj.weight": (4, 8), "vision_tower.a.weight": (900, 9)}
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (7,)
    assert memory._elements(shapes, SimpleNamespace(config={})) == (32, 0, 0)


def test_ranks_are_vllms() -> None:
    from tuco_vllm.engine.compat import MaxLoRARanks

    assert tuple(sorted(get_args(MaxLoRARanks))) == memory.LORA_RANKS


def test_a_hub_model_is_counted_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its weights is fetched."""
    folder = write_model(tmp_path / "commit", **SIZES)
    (folder / "model.safetensors").unlink()
    asked = []

    def headers(repository: str, revision: str) -> SimpleNamespace:
        asked.append((repository, revision))
        tensor = SimpleNamespace(shape=[3, 5])
        return SimpleNamespace(files_metadata={"one": SimpleNamespace(tensors={"a": tensor})})

    monkeypatch.setattr(hub, "get_safetensors_metadata", headers)
    checkpoint = SimpleNamespace(name="org/name@v1", directory=folder)
    assert memory.tensor_shapes(checkpoint) == {"a": (3, 5)}
    assert asked == [("org/name", "commit")]
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        memory.tensor_shapes(SimpleNamespace(name=str(folder), directory=folder))
    monkeypatch.setattr(hub, "get_safetensors_metadata", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match="hf download org/name"):
        memory.tensor_shapes(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["--gpu-memory", "80"], "give --pt and --ft"),
        (["--ft", "F", "--prompts", "p.txt", "--gpu-memory", "80"], "reads no prompts"),
        (["--pt", "P", "--ft", "F", "--max-model-len", "8"], "goes with --gpu-memory"),
        (["--pt", "P", "--ft", "F", "--gpu-memory", "0"], "not a size in GiB"),
        (["--pt", "P", "--ft", "F", "--gpu-memory", "inf"], "not a size in GiB"),
        (["--pt", "P", "--ft", "F", "--gpu-memory", "large"], "not a size in GiB"),
    ],
)
def test_options_that_do_not_go_together(arguments, mend, capsys) -> None:
    assert cli.main(["doctor", *arguments]) == 2
    assert mend in capsys.readouterr().err


def test_a_length_that_nobody_states_is_asked_for(tmp_path: Path, capsys) -> None:
    model = str(write_model(tmp_path / "model"))
    question = ["doctor", "--pt", model, "--ft", model, "--gpu-memory", "80"]
    assert cli.main(question) == 2
    assert "give --max-model-len" in capsys.readouterr().err
    assert cli.main([*question, "--max-model-len", "100"]) == 0


def test_neither_torch_nor_vllm_is_loaded(tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "model", max_position_embeddings=100))
    code = (
        "import sys; from tuco_vllm.cli import main\n"
        f"assert main(['doctor', '--pt', {model!r}, '--ft', {model!r}, '--gpu-memory', '8']) == 0\n"
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
