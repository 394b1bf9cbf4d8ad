"""Runs one engine in its own process; saves what flows through FT's layers, and vLLM's compile-cache key.

python stream_dump.py {stock|tuco} SPEC.json OUT.pt
"""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # hooks reach the model

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


def main(which: str, spec_file: str, out_file: str) -> None:
    from vllm import LLM

    spec = json.loads(Path(spec_file).read_text())
    overrides = {"architectures": ["TucoForCausalLM"], "tuco_pt": spec["pt"]} if which == "tuco" else {}
    llm = LLM(
        spec["ft"],
        runner="pooling",
        hf_overrides=overrides,
        max_model_len=256,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
        **spec["engine_args"],
    )
    seen: list[dict[str, torch.Tensor]] = []

    def hook(model: nn.Module) -> None:
        model = model.model
        for index, layer in enumerate(model.layers):
            for name in ("self_attn", "mlp"):

                def keep(_: nn.Module, args: Any, output: torch.Tensor, key: str = f"{index}.{name}") -> None:
                    seen[-1][key] = output.clone()  # later fused kernels may write into it

                getattr(layer, name).register_forward_hook(keep)

    llm.apply_model(hook)
    for prompt in spec["prompts"]:
        seen.append({})
        llm.encode(
            [{"prompt_token_ids": prompt}],
            pooling_task="classify" if which == "tuco" else "embed",
            use_tqdm=False,
        )
    torch.save({"seen": seen, "compile_key": llm.llm_engine.vllm_config.compute_hash()}, out_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # an in-process engine leaves threads behind
