"""FT's own stream inside the scoring engine is stock vLLM's, bit for bit, up to its pruned last layer.

Two engines of this process, hooks on every FT attention and MLP. The last layer computes its R rows alone, so
there the comparison is of the final hidden row, within the tolerance.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tolerances
import torch
from torch import Tensor, nn
from vllm import LLM

pytestmark = pytest.mark.usefixtures("in_process")


def start(which: str, pt: str, ft: str, dtype: str) -> LLM:
    """An engine of "stock" vLLM, or of "tuco"."""
    overrides = {"architectures": ["TucoForCausalLM"], "tuco_pt": pt} if which == "tuco" else {}
    return LLM(
        ft,
        runner="pooling",
        hf_overrides=overrides,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=tiny_models.MAX_LEN,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
    )


def stream(llm: LLM, prompts: list[list[int]], task: str) -> list[dict[str, Tensor]]:
    """For each prompt what every attention and MLP of FT gives, by layer and name."""
    seen: list[dict[str, Tensor]] = []

    def hook(model: nn.Module) -> None:
        ft = getattr(model.model, "ft", model)
        for index, layer in enumerate(ft.model.layers):
            for name in ("self_attn", "mlp"):

                def keep(_: nn.Module, args: Any, output: Tensor, key: str = f"{index}.{name}") -> None:
                    seen[-1][key] = output.clone()  # later fused kernels may write into it

                getattr(layer, name).register_forward_hook(keep)

    llm.apply_model(hook)
    for prompt in prompts:
        seen.append({})
        llm.encode([{"prompt_token_ids": prompt}], pooling_task=task, use_tqdm=False)
    return seen


@pytest.mark.parametrize(
    ("pair_name", "dtype"),
    [
        ("llama", "float32"),
        ("mistral_windowed_ft", "float32"),
        ("qwen3", "float32"),
        ("llama", "bfloat16"),
        ("gemma2", "bfloat16"),
        pytest.param("granite", "bfloat16", marks=pytest.mark.slow),
        pytest.param("mistral_windowed_ft", "bfloat16", marks=pytest.mark.slow),
        pytest.param("qwen3", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_ft_stream_is_stock_vllm(pair_name: str, dtype: str, pair_dirs) -> None:
    pt, ft = pair_dirs(pair_name, dtype)
    prompts = tiny_models.prompts(5, seed=7)
    streams = {}
    for which, task in (("stock", "embed"), ("tuco", "classify")):
        llm = start(which, pt, ft, dtype)
        streams[which] = stream(llm, prompts, task)
        llm.llm_engine.engine_core.shutdown()
    last = max(int(key.partition(".")[0]) for key in streams["stock"][0])
    for stock, ours in zip(streams["stock"], streams["tuco"], strict=True):
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
    keys = []
    for eps in (1e-5, 1e-5, 0.1):
        (changing / "config.json").write_text(json.dumps(config | {"rms_norm_eps": eps}))
        llm = start("tuco", str(changing), ft, "float32")
        keys.append(llm.llm_engine.vllm_config.compute_hash())
        llm.llm_engine.engine_core.shutdown()
    assert keys[0] == keys[1] != keys[2]
