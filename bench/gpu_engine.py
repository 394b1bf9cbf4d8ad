"""What runs in the process of one of gpu.py's engines: the engine, its turns, and one traced step."""

import ctypes
import os
import signal
import time
from statistics import median
from typing import Any, NamedTuple

WISHES = {
    "scored": [(1.0, True)],
    "steered": [(0.5, False)],
    "mixed": [((index + 0.5) / 64, False) for index in range(64)],
}
"""(alpha, scored) of the requests, in turn; of other ways nothing is said."""


class Cell(NamedTuple):
    """One thing to measure. Cells of one model and kind share their engines."""

    model: str
    kind: str
    step_tokens: int
    prompt: int
    requests: int
    """Of a turn; those that generate are all at once."""
    output: int = 0


ENGINE: Any = None
"""Of a process that has one: it runs what follows, down to ``traced_step``."""


def begin() -> None:
    """End with the parent, whatever ends it; and leave stdout to it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.dup2(2, 1)


def start(arguments: dict[str, Any]) -> dict[str, Any]:
    """Build the engine; what it took, by its own account."""
    global ENGINE
    import torch
    from vllm import EngineArgs, LLMEngine

    begun = time.perf_counter()
    ENGINE = LLMEngine.from_engine_args(EngineArgs(**arguments))
    cache = ENGINE.vllm_config.cache_config
    return {
        "start_seconds": round(time.perf_counter() - begun, 1),
        "kv_bytes_per_token": arguments["kv_cache_memory_bytes"] / cache.num_gpu_blocks / cache.block_size,
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


def device_rates() -> tuple[float, float]:
    """FLOP/s of a large bfloat16 product, and bytes/s that a copy reads and writes."""
    import torch

    import kernels

    on, side, size = ("cuda", 8192, 1 << 28) if torch.cuda.is_available() else ("cpu", 256, 1 << 22)
    a, b = (torch.randn(side, side, device=on).bfloat16() for _ in range(2))
    old, new, cache = (torch.zeros(size, dtype=torch.uint8, device=on) for _ in range(3))
    calls = (lambda: a @ b, lambda: new.copy_(old))
    product, copy = (median(kernels.seconds(call, on, cache) for _ in range(20)) for call in calls)
    return 2 * side**3 / product, 2 * size / copy


def turn(prompts: list[list[int]], cell: Cell, way: str, traced: int = -1) -> Any:
    """Seconds for all prompts; or what ``traced_step`` says of one step."""
    from vllm import PoolingParams, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from tuco_vllm.engine.generator import with_steering
    from tuco_vllm.steering import Steering

    ENGINE.engine_core.engine_core.scheduler.max_num_scheduled_tokens = cell.step_tokens
    params: Any = PoolingParams(task="embed" if way == "stock" else "classify")
    if cell.output:
        params = SamplingParams(temperature=0.0, max_tokens=cell.output, ignore_eos=True, detokenize=False)
        params.output_kind = RequestOutputKind.FINAL_ONLY
    asked = [with_steering(params, Steering(*wish)) for wish in WISHES.get(way, [])] or [params]
    for index, prompt in enumerate(prompts):
        ENGINE.add_request(str(index), {"prompt_token_ids": prompt}, asked[index % len(asked)])
    results, found, steps, begun = [], None, 0, time.perf_counter()
    while ENGINE.has_unfinished_requests():
        found, outputs = traced_step() if steps == traced else (found, ENGINE.step())
        results += [one.outputs for one in outputs if one.finished]
        steps += 1
    seconds = time.perf_counter() - begun
    if len(results) != len(prompts) or not all(as_asked(one, cell, way) for one in results):
        raise RuntimeError(f"{way}: results are missing, short, not finite, or scored otherwise than asked")
    return seconds if traced < 0 else found


def as_asked(outputs: Any, cell: Cell, way: str) -> bool:
    """Of one request's."""
    if not cell.output:
        # vLLM makes up equal weights for both: FTC is 0, and the cosine, the last column, is none.
        numbers = outputs.data if way == "stock" else outputs.data[..., :-1]
        return bool(numbers.isfinite().all())
    tokens, rows = outputs[0].token_ids, outputs[0].routed_experts
    return len(tokens) == cell.output and (len(rows) == cell.output if way == "scored" else rows is None)


def traced_step() -> tuple[dict[str, Any], list[Any]]:
    """One step under torch.profiler: milliseconds by the clock and on the device, its largest kernels."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile():  # the first one takes seconds
        pass
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        begun = time.perf_counter()
        outputs = ENGINE.step()
        if on_gpu:
            torch.cuda.synchronize()
        taken = 1e3 * (time.perf_counter() - begun)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    kernels = [one for one in seen.key_averages() if one.device_type == kind]  # else launches count too
    rows = [(one.key[:90], round(getattr(one, own) / 1e3, 3), one.count) for one in kernels]
    rows.sort(key=lambda row: -row[1])
    return {"step_ms": taken, "busy_ms": sum(row[1] for row in rows), "kernels": rows[:12]}, outputs
