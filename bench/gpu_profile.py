"""Where the time of a step goes: kernels by group, and how long the device waited for the next.

``WorkerTrace`` is mixed into vLLM's worker (``worker_extension_cls``), so that torch.profiler runs in the
process that launches the kernels. On a GPU it records those alone; elsewhere each operation's own CPU time.
"""

import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

GROUPS = {
    "cache writes": r"reshape_and_cache|cache_kernel|concat_and_cache",
    "our kernels": r"_accumulate_contribution|_dual_rms_norm_kernel|_steer_residual|tuco::",
    "attention": r"flash|fmha|attention|attn",
    "matrix products": r"gemm|nvjet|cutlass|cublas|matmul|splitk|aten::(addmm|b?mm|linear)|onednn|mkldnn",
    "norms": r"rms_?norm|layer_?norm|rsqrt",
    "other fused": r"triton_|_fused_|cpp_fused",
    "copies": r"memcpy|memset|aten::(copy_|_to_copy|clone)",
}
"""Regular expressions of kernels' names; the first that fits counts. FlashAttention is built on CUTLASS, and
one of vLLM's cache kernels is named for flash: hence the order."""


def group_of(kernel: str) -> str:
    """The group of a kernel or operation, ``rest`` where none fits."""
    for group, names in GROUPS.items():
        if re.search(names, kernel, re.IGNORECASE):
            return group
    return "rest"


def summary(events: Iterable[tuple[str, float, float]]) -> dict[str, Any]:
    """(name, start, end) in microseconds -> milliseconds by group, the greatest by name, busy and idle.

    ``busy`` is the time in which at least one ran, ``span`` from the first start to the last end, ``gaps``
    the difference: the device waited, for the CPU as a rule.
    """
    groups: dict[str, float] = {}
    names: dict[str, list[float]] = {}
    busy = reached = 0.0
    first: float | None = None
    for name, start, end in sorted(events, key=lambda event: event[1]):
        first = start if first is None else first
        reached = max(reached, start)
        busy += max(0.0, end - reached)
        reached = max(reached, end)
        groups[group_of(name)] = groups.get(group_of(name), 0.0) + end - start
        total = names.setdefault(name, [0.0, 0])
        total[0] += end - start
        total[1] += 1
    span = reached - first if first is not None else 0.0
    top = sorted(names.items(), key=lambda item: -item[1][0])[:15]
    return {
        "groups_ms": {name: round(time / 1e3, 3) for name, time in sorted(groups.items(), key=_by_time)},
        "busy_ms": round(busy / 1e3, 3),
        "span_ms": round(span / 1e3, 3),
        "gaps_ms": round((span - busy) / 1e3, 3),
        "top_ms": [[group_of(name), name[:120], round(t / 1e3, 3), count] for name, (t, count) in top],
    }


def _by_time(item: tuple[str, float]) -> float:
    return -item[1]


class WorkerTrace:
    """Methods that gpu.py calls in an engine's worker (``collective_rpc``)."""

    def bench_trace_start(self) -> None:
        """Record from here."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        on_gpu = torch.cuda.is_available()
        self.bench_profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
        self.bench_profile.start()

    def bench_trace_stop(self) -> dict[str, Any]:
        """``summary`` of what ran since."""
        import torch

        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        self.bench_profile.stop()
        if not on_gpu:
            totals = [(total.key, total.self_cpu_time_total) for total in self.bench_profile.key_averages()]
            ends = list(accumulate(time for _, time in totals))
            return summary((name, end - time, end) for (name, time), end in zip(totals, ends, strict=True))
        kernels = torch.autograd.DeviceType.CUDA
        return summary(
            (event.name, event.time_range.start, event.time_range.end)
            for event in self.bench_profile.events()
            if event.device_type == kernels
        )

    def bench_kv_bytes(self) -> dict[str, Any]:
        """Bytes a token of the engine's KV cache, by its own configuration."""
        runner: Any = getattr(self, "model_runner")  # noqa: B009 - the worker's, which this is mixed into
        config = runner.kv_cache_config
        per_token, layers, backends = 0.0, 0, set()
        for group in config.kv_cache_groups:
            spec = group.kv_cache_spec
            single = getattr(spec, "kv_cache_specs", None)  # a group of several specs names each layer's
            pages = [one.page_size_bytes for one in single.values()] if single else None
            pages = pages or [spec.page_size_bytes] * len(group.layer_names)
            per_token += sum(pages) / spec.block_size
            layers += len(pages)
            backends.add(type(spec).__name__)
        return {
            "bytes_per_token": per_token,
            "layers": layers,
            "groups": len(config.kv_cache_groups),
            "blocks": config.num_blocks,
            "specs": sorted(backends),
        }
