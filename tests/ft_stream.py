"""FT's own stream in the scoring engine beside stock vLLM's: two engines of this process and hooks."""

from typing import Any

import tiny_models
import tolerances
import torch
from torch import Tensor, nn
from vllm import LLM

PARTS = ("self_attn", "mlp")


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
    """For each prompt what every attention and MLP of FT gives in the first run, by layer and name.

    A 16-bit engine runs FT's layers a second time, on the rows in float32 (engine/wide_rows.py).
    """
    seen: list[dict[str, Tensor]] = []

    def hook(model: nn.Module) -> None:
        ft = getattr(model.model, "ft", model)
        for index, layer in enumerate(ft.model.layers):
            for name in PARTS:

                def keep(_: nn.Module, args: Any, output: Any, key: str = f"{index}.{name}") -> None:
                    if key not in seen[-1]:
                        whole = output[0] if isinstance(output, tuple) else output
                        seen[-1][key] = whole.flatten(0, -2).clone()  # later fused kernels may write into it

                getattr(layer, name).register_forward_hook(keep)

    llm.apply_model(hook)
    for prompt in prompts:
        seen.append({})
        llm.encode([{"prompt_token_ids": prompt}], pooling_task=task, use_tqdm=False)
    return seen


def assert_stream_is_stock(pt: str, ft: str, dtype: str, of_last: tuple[str, ...] = PARTS) -> None:
    """``of_last`` are the parts of the last layer that our engine calls as stock vLLM does."""
    prompts = tiny_models.prompts(5, seed=7)
    streams = {}
    for which, task in (("stock", "embed"), ("tuco", "classify")):
        llm = start(which, pt, ft, dtype)
        streams[which] = stream(llm, prompts, task)
        llm.llm_engine.engine_core.shutdown()
    last = max(int(key.partition(".")[0]) for key in streams["stock"][0])
    for stock, ours in zip(streams["stock"], streams["tuco"], strict=True):
        for layer in range(last):
            for name in PARTS:
                assert torch.equal(stock[f"{layer}.{name}"], ours[f"{layer}.{name}"]), f"layer {layer} {name}"
        for name in of_last:
            row, expected = ours[f"{last}.{name}"].float(), stock[f"{last}.{name}"][-1:].float()
            assert row.shape == expected.shape
            assert (row - expected).abs().sum() <= tolerances.FINAL_HIDDEN[dtype] * expected.abs().sum()
