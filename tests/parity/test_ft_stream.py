"""FT's own stream inside the scoring engine is stock vLLM's, bit for bit, up to its pruned last layer.

Two engines, hooks on every FT attention and MLP. The last layer computes its R rows alone, so there the
comparison is of the final hidden row, within the tolerance.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import tolerances
import torch


@pytest.mark.parametrize("pair_name", ["llama", "mistral_windowed_ft", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ft_stream_is_stock_vllm(pair_name: str, dtype: str, pair_dirs, tmp_path: Path) -> None:
    pt, ft = pair_dirs(pair_name, dtype)
    prompts = tiny_models.prompts(5, seed=7)
    spec = {"pt": pt, "ft": ft, "prompts": prompts, "engine_args": {"dtype": dtype, "enforce_eager": True}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    dumps = {}
    for which in ("stock", "tuco"):
        out = tmp_path / f"{which}.pt"
        script = Path(__file__).with_name("stream_dump.py")
        run = subprocess.run(
            [sys.executable, str(script), which, str(tmp_path / "spec.json"), str(out)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        dumps[which] = torch.load(out)

    last = tiny_models.SHAPE["num_hidden_layers"] - 1
    for stock, ours in zip(dumps["stock"], dumps["tuco"], strict=True):
        for layer in range(last):
            for name in ("self_attn", "mlp"):
                assert torch.equal(stock[f"{layer}.{name}"], ours[f"{layer}.{name}"]), f"layer {layer} {name}"
        for name in ("self_attn", "mlp"):
            row, expected = ours[f"{last}.{name}"].float(), stock[f"{last}.{name}"][-1:].float()
            assert row.shape == expected.shape
            assert (row - expected).abs().sum() <= tolerances.FINAL_HIDDEN[dtype] * expected.abs().sum()
