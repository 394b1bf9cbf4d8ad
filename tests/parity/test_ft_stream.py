"""FT's own stream inside the scoring engine is stock vLLM's, bit for bit, up to its pruned last layer.

Two engines, hooks on every FT attention and MLP. The last layer computes its R rows alone, so there the
comparison is of the final hidden row, within the tolerance.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tolerances
import torch


def dump(which: str, spec: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Run ``stream_dump`` and load what it saved."""
    spec_file, out = directory / "spec.json", directory / f"{which}.pt"
    spec_file.write_text(json.dumps(spec))
    script = Path(__file__).with_name("stream_dump.py")
    command = [sys.executable, str(script), which, str(spec_file), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(out)


@pytest.mark.parametrize(
    ("pair_name", "dtype"),
    [
        ("llama", "float32"),
        ("mistral_windowed_ft", "float32"),
        ("qwen3", "float32"),
        ("llama", "bfloat16"),
        pytest.param("mistral_windowed_ft", "bfloat16", marks=pytest.mark.slow),
        pytest.param("qwen3", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_ft_stream_is_stock_vllm(pair_name: str, dtype: str, pair_dirs, tmp_path: Path) -> None:
    pt, ft = pair_dirs(pair_name, dtype)
    prompts = tiny_models.prompts(5, seed=7)
    spec = {"pt": pt, "ft": ft, "prompts": prompts, "engine_args": {"dtype": dtype, "enforce_eager": True}}
    dumps = {which: dump(which, spec, tmp_path)["seen"] for which in ("stock", "tuco")}
    last = tiny_models.SHAPE["num_hidden_layers"] - 1
    for stock, ours in zip(dumps["stock"], dumps["tuco"], strict=True):
        for layer in range(last):
            for name in ("self_attn", "mlp"):
                assert torch.equal(stock[f"{layer}.{name}"], ours[f"{layer}.{name}"]), f"layer {layer} {name}"
        for name in ("self_attn", "mlp"):
            row, expected = ours[f"{last}.{name}"].float(), stock[f"{last}.{name}"][-1:].float()
            assert row.shape == expected.shape
            assert (row - expected).abs().sum() <= tolerances.FINAL_HIDDEN[dtype] * expected.abs().sum()


def test_pt_is_part_of_the_compile_key(pair_dirs, tmp_path: Path) -> None:
    """PT's eps is a constant of the compiled graph, and vLLM's cache key knows FT's config only."""
    pt, ft = pair_dirs("llama", "float32")
    changing = tmp_path / "pt"  # one path: a path alone may enter the key
    shutil.copytree(pt, changing)
    config = json.loads((changing / "config.json").read_text())
    spec = {"pt": str(changing), "ft": ft, "prompts": []}
    spec["engine_args"] = {"dtype": "float32", "enforce_eager": True}
    keys = []
    for eps in (1e-5, 0.1):
        (changing / "config.json").write_text(json.dumps(config | {"rms_norm_eps": eps}))
        keys.append(dump("tuco", spec, tmp_path)["compile_key"])
    assert keys[0] != keys[1]
