"""How an engine may run on a CUDA device, and what an engine says it runs on.

A mode is an attention backend, CUDA graphs or none, and what goes with them. FLASH_ATTN takes 16 bits only;
TRITON_ATTN takes float32 too, whose bounds are a thousand times closer. An engine costs most of a minute, so
each file runs a pairwise cover, and its tests share the engines.

Without a device a mode is that of a CPU engine (``--dry-gpu``): what only a device has is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tiny_models
import torch

CAPTURED = [1, 2, 4, 8, 16, 32, 64]
"""Batch sizes in tokens that graphs are captured for: few, so that an engine starts soon."""

BETWEEN = (1, 2, 3, 5, 9, 17, 33)
"""Batch sizes that are, but for two, replayed with pad rows."""


def has_gpu() -> bool:
    return torch.cuda.is_available()


@dataclass(frozen=True)
class Mode:
    """One way to run. ``graphs`` is "eager" or a cudagraph_mode; ``asynchronous`` None is vLLM's default."""

    backend: str
    graphs: str
    dtype: str
    pair: str
    asynchronous: bool | None = None
    chunk: int = 96
    sequences: int = 64
    """At once. Where the largest captured sizes have more tokens, they have fewer rows than tokens."""

    @property
    def id(self) -> str:
        scheduling = {None: "default", True: "async", False: "sync"}[self.asynchronous]
        sizes = f"chunk{self.chunk}-seqs{self.sequences}"
        return f"{self.backend}-{self.graphs}-{self.dtype}-{self.pair}-{scheduling}-{sizes}"

    @property
    def eager(self) -> bool:
        return self.graphs == "eager"

    def resolved_graphs(self, *, generates: bool) -> str:
        """What a pair's engine makes of ``graphs``. PT's attention cannot be in a full graph: an engine that
        scores has piecewise ones, and one that generates full ones of steps without PT."""
        if self.eager or not has_gpu():
            return "NONE"
        return self.graphs if generates else "PIECEWISE"

    @property
    def on_a_cpu(self) -> tuple[Any, ...]:
        """What decides, without a device, how numbers come about."""
        return self.eager, self.dtype, self.sequences

    def engine_args(self, **more: Any) -> dict[str, Any]:
        """vLLM's engine arguments, with ``more`` over them."""
        args: dict[str, Any] = {
            "dtype": self.dtype,
            "enforce_eager": self.eager,
            "max_model_len": tiny_models.MAX_LEN,
            "max_num_batched_tokens": self.chunk,  # below a prompt's length: prefill comes in chunks
            "max_num_seqs": self.sequences,
            "block_size": 32,  # small blocks, so that short prompts hit the prefix cache
            "enable_prefix_caching": True,
            "kv_cache_memory_bytes": 256 << 20,
            "async_scheduling": self.asynchronous,
            "disable_log_stats": False,
            "seed": 0,
        }
        if has_gpu():
            args |= {"attention_backend": self.backend, "gpu_memory_utilization": 0.2}
            if not self.eager:
                args["compilation_config"] = {
                    "cudagraph_mode": self.graphs,
                    "cudagraph_capture_sizes": CAPTURED,
                }
        return args | more


def to_run(modes: Sequence[Mode]) -> list[Mode]:
    """All of ``modes``; without a device, the first of those that compute alike on a CPU."""
    if has_gpu():
        return list(modes)
    first: dict[tuple[Any, ...], Mode] = {}
    for mode in modes:
        first.setdefault(mode.on_a_cpu, mode)
    return list(first.values())


def inspect(worker: Any) -> dict[str, Any]:
    """What an engine's worker really is; called there (``LLMEngine.collective_rpc``)."""
    from vllm.compilation.counter import compilation_counter

    runner = worker.model_runner
    config = runner.vllm_config.compilation_config
    manager = getattr(runner, "cudagraph_manager", None)
    layers = [layer for layer in config.static_forward_context.values() if hasattr(layer, "attn_backend")]
    return {
        "runner": [base.__module__ for base in type(runner).__mro__],
        "graphs": (config if manager is None else manager).cudagraph_mode.name,
        "captured": compilation_counter.num_cudagraph_captured,
        "backends": sorted({layer.attn_backend.get_name() for layer in layers}),
        "rows_layers": sum("TucoRows" in layer.attn_backend.__name__ for layer in layers),
    }


def assert_runs_as(mode: Mode, engine: Any, *, asynchronous: bool, layers: int) -> None:
    """``engine`` (an LLMEngine) runs on Model Runner V2, with the backend, graphs and scheduling of ``mode``.

    ``layers`` is how many attention layers of it query rows only.
    """
    [found] = engine.collective_rpc(inspect)
    generates = engine.model_config.runner_type == "generate"
    assert found["graphs"] == mode.resolved_graphs(generates=generates)
    assert found["rows_layers"] == layers
    if not has_gpu():  # on a CPU vLLM has one backend, runner V1, and no asynchronous scheduling
        return
    assert engine.vllm_config.scheduler_config.async_scheduling is asynchronous
    assert "vllm.v1.worker.gpu.model_runner" in found["runner"], f"not the V2 runner: {found['runner']}"
    assert found["backends"] == [mode.backend]
    assert (found["captured"] > 0) == (not mode.eager)
