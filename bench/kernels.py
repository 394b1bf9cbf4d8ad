"""What the fused kernels cost: bytes over time against a copy of this device, and against what they replace.

    python bench/kernels.py [--device cuda] [--kernels dual_rms_norm] [--rows 1,2048] [--hidden 4096]

Physics. None of the kernels computes enough to matter, so each is bound by the bytes it must move, its floor:
``dual_rms_norm`` 5 M H B (M rows of H numbers of B bytes; 2 reads, 3 writes), ``add_rms_norm`` 3 M H B,
``accumulate_contribution`` M H (4 B + 16) (4 reads, two float32 sums read and written), ``steer_residual``
5 M H B. ``reach`` is floor / time relative to the bandwidth of a copy of as many bytes, measured in the same
run: 1 is all there is. Few rows are bound by launches instead, which are counted: by the profiler on CUDA,
elsewhere as the torch operations of the unfused form.

Method. Contenders take turns, A B C A B C ..., on the same data: ``ours`` (on a CPU, the twin), ``unfused``
torch, ``compiled`` (torch.compile of that), and on CUDA, for the norms, vLLM's ``fused_add_rms_norm`` once a
model (it overwrites h and x; the copies that a second model would need are not counted). On CUDA a turn is
timed by events, after a write that empties the L2 cache. p20, p50 and p80 of the turns.

Other scripts here have this folder first in ``sys.path``, where transformers, looking for Hugging Face's
package ``kernels``, finds this file and imports it. So importing it must stay cheap and cannot fail: what
it needs beyond torch is imported where it runs.
"""

import argparse
import contextlib
import importlib
import json
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EPS = 1e-5
LLAMA_3_8B = {"hidden": 4096, "tokens": 2048, "rows": 8}
SIZES = {
    "cuda": ([1, 8, 64, 512, 2048, 16384], [2048, 4096, 8192, 16384]),
    "cpu": ([1, 64, 512], [2048, 4096]),
}
Call = Callable[[], Any]


def rms_norm(s: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """vLLM's native form."""
    return ((s * torch.rsqrt(s.pow(2).mean(-1, keepdim=True) + EPS)).to(dtype) * weight).to(dtype)


def unfused_dual(h: Tensor, x: Tensor, ft: Tensor, pt: Tensor) -> tuple[Tensor, ...]:
    s = h.float() + x.float()
    return rms_norm(s, ft, x.dtype), rms_norm(s, pt, x.dtype), s.to(x.dtype)


def unfused_add(h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(h.float() + x.float(), weight, x.dtype)


def unfused_accumulate(
    inputs: list[Tensor], cum_ptc: Tensor, cum_ftc: Tensor, rows: Tensor
) -> tuple[Tensor, ...]:
    ft_attention, ft_mlp = inputs[2][rows], inputs[3][rows]
    ptc = inputs[0].float() + inputs[1].float()
    ftc = ft_attention.float() + ft_mlp.float() - ptc
    vectors = ptc, ftc, cum_ptc + ptc, cum_ftc + ftc
    return *vectors[2:], torch.stack([vector.abs().sum(-1) for vector in vectors], -1)


def unfused_steer(delta: Tensor, alpha: Tensor, rows: Tensor, outputs: list[Tensor]) -> None:
    pt_attention, pt_mlp, ft_attention = (output.float() for output in outputs)
    mlp = delta[rows]
    ftc = (ft_attention + mlp.float()) - (pt_attention + pt_mlp)
    steered = (mlp.float() - (1 - alpha)[:, None] * ftc).to(delta.dtype)
    delta[rows] = torch.where((alpha != 1)[:, None], steered, mlp)


def contenders(kernel: str, count: int, hidden: int, dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Name -> a call on data of ``count`` rows, the same for all."""
    import tuco_kernels

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    h, x, third, fourth = (made(count, hidden) for _ in range(4))
    ft, pt = made(hidden), made(hidden)
    rows = torch.arange(count, device=device)
    sums = [torch.zeros(count, hidden, device=device) for _ in range(2)]
    if kernel == "dual_rms_norm":
        ours, unfused, arguments = tuco_kernels.dual_rms_norm, unfused_dual, (h, x, ft, pt)
        calls = {"ours": lambda: ours(*arguments, EPS, EPS)}
    elif kernel == "add_rms_norm":
        ours, unfused, arguments = tuco_kernels.add_rms_norm, unfused_add, (h, x, ft)
        calls = {"ours": lambda: ours(*arguments, EPS)}
    elif kernel == "accumulate_contribution":
        inputs, norms = [h, x, third, fourth], torch.zeros(count, 1, 7, device=device)
        unfused, arguments = unfused_accumulate, (inputs, *sums, rows)
        taken = {"attention_rows_R": rows, "mlp_rows_R": rows}
        calls = {"ours": lambda: tuco_kernels.accumulate_contribution(*inputs, *sums, norms, 0, **taken)}
    else:
        # alpha near 1: hundreds of turns on the same delta must not overflow
        alpha, outputs = torch.full((count,), 0.999, device=device), [x, third, fourth]
        unfused, arguments = unfused_steer, (h, alpha, rows, outputs)
        calls = {"ours": lambda: tuco_kernels.steer_residual(h, alpha, rows, *outputs)}
    torch._dynamo.reset()
    compiled = torch.compile(unfused, dynamic=False)
    calls |= {"unfused": lambda: unfused(*arguments), "compiled": lambda: compiled(*arguments)}
    if kernel.endswith("rms_norm") and device == "cuda":
        with contextlib.suppress(ImportError):
            importlib.import_module("vllm._C")  # registers torch.ops._C
        if hasattr(torch.ops._C, "fused_add_rms_norm"):
            own = h.clone(), x.clone()
            calls["vllm"] = lambda: [
                torch.ops._C.fused_add_rms_norm(*own, weight, EPS) for weight in arguments[2:]
            ]
    return calls


def floor_bytes(kernel: str, count: int, hidden: int, dtype: torch.dtype) -> int:
    """Bytes that must be read or written (module docstring)."""
    size = dtype.itemsize
    per_number = {
        "dual_rms_norm": 5 * size,
        "add_rms_norm": 3 * size,
        "accumulate_contribution": 4 * size + 16,
        "steer_residual": 5 * size,
    }
    return count * hidden * per_number[kernel]


KERNELS = ("dual_rms_norm", "add_rms_norm", "accumulate_contribution", "steer_residual")


class Operations(TorchDispatchMode):
    """Counts the torch operations that compute, and the bytes that each reads and writes."""

    count, moved = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func.name().startswith("aten::empty")):
            self.count += 1
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.moved += sum(t.nbytes for t in tensors if isinstance(t, Tensor))
        return result


def launches(call: Call, device: str) -> tuple[int, int | None]:
    """Launches of one call, and the bytes that its operations move where they can be told apart."""
    if device == "cpu":
        with Operations() as operations:
            call()
        return operations.count, operations.moved
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_device for event in profile.events()), None


def seconds(call: Call, device: str, cache: Tensor | None) -> float:
    """One turn."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    cache.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def measure(kernel: str, count: int, hidden: int, options: argparse.Namespace) -> dict[str, Any]:
    """One cell: all contenders and the copy, in turns."""
    dtype = getattr(torch, options.dtype)
    floor = floor_bytes(kernel, count, hidden, dtype)
    calls = contenders(kernel, count, hidden, dtype, options.device)
    source = torch.zeros(floor // 2, dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    cache = None if options.device == "cpu" else torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-3, options.turns):
        for name, call in calls.items():
            taken = seconds(call, options.device, cache)
            if turn >= 0:  # the rest compile and warm up
                times[name].append(taken)
    share = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    spread = {
        name: torch.tensor(t, dtype=torch.float64).quantile(share).tolist() for name, t in times.items()
    }
    return {
        "kernel": kernel,
        "rows": count,
        "hidden": hidden,
        "dtype": options.dtype,
        "device": options.device,
        "implementation": "triton" if options.device == "cuda" else "torch twin",
        "floor_bytes": floor,
        "seconds_p20_p50_p80": spread,
        "reach": {name: round(spread["copy"][1] / t[1], 4) for name, t in spread.items()},
    }


def per_layer(device: str) -> list[dict[str, Any]]:
    """Launches and bytes of one layer of Llama-3-8B in bfloat16, before and after, each place where used."""
    hidden, tokens, rows = LLAMA_3_8B.values()
    uses = (
        ("PT's input norm, all tokens", "add_rms_norm", tokens),
        ("PT's second norm, rows", "add_rms_norm", rows),
        ("last layer's input norms, both models", "dual_rms_norm", tokens),
        ("contributions and norms, rows", "accumulate_contribution", rows),
        ("steering of all tokens", "steer_residual", tokens),
    )
    lines = []
    for place, kernel, count in uses:
        calls = contenders(kernel, count, hidden, torch.bfloat16, device)
        before, moved = launches(calls["unfused"], device)
        after = launches(calls["ours"], device)[0] if device == "cuda" else 1
        floor = floor_bytes(kernel, count, hidden, torch.bfloat16)
        lines.append(
            {"place": place, "kernel": kernel, "rows": count}
            | {"launches": [before, after], "bytes": [moved, floor]}
        )
    return lines


def main() -> None:
    """Measure every cell: tables and a last line of JSON on stdout, records in bench/results."""
    import provenance
    from rich.console import Console
    from rich.table import Table

    options = parse()
    recorded = not options.smoke
    origin: dict[str, Any] = {}
    if recorded:
        origin = provenance.provenance() | {"triton": metadata.version("triton")}
        origin["gpu"] = torch.cuda.get_device_name() if options.device == "cuda" else None
    console = Console(width=110, highlight=False)
    layer = per_layer(options.device)
    table = Table(
        title="one layer of Llama-3-8B, bfloat16: launches and MB, before -> after", title_justify="left"
    )
    for heading in ("place", "kernel", "rows", "launches", "MB"):
        table.add_column(heading)
    for line in layer:
        moved = ["?" if count is None else f"{count / 1e6:.2f}" for count in line["bytes"]]
        before, after = line["launches"]
        table.add_row(
            line["place"], line["kernel"], str(line["rows"]), f"{before} -> {after}", " -> ".join(moved)
        )
    console.print(table)
    cells = []
    for kernel in options.kernels:
        for hidden in options.hidden:
            for count in options.rows:
                cells.append(measure(kernel, count, hidden, options))
                reach = ", ".join(f"{name} {value:.2f}" for name, value in cells[-1]["reach"].items())
                console.print(f"{kernel} {count} x {hidden}: share of the copy's bandwidth: {reach}")
                if recorded:
                    provenance.append("kernels", {"bench": "kernels", **cells[-1], "provenance": origin})
    keys = ("kernel", "rows", "hidden", "reach")
    summary = {"bench": "kernels", "recorded": recorded, "device": options.device, "per_layer": layer}
    print(json.dumps(summary | {"cells": [{key: cell[key] for key in keys} for cell in cells]}), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--device", choices=SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", type=lambda text: text.split(","), default=list(KERNELS))
    parser.add_argument("--rows", type=numbers, help="M, e.g. 1,2048")
    parser.add_argument("--hidden", type=numbers, help="H, e.g. 4096")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--smoke", action="store_true", help="two small cells a kernel, nothing recorded")
    options = parser.parse_args()
    if unknown := set(options.kernels) - set(KERNELS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    rows, hidden = SIZES[options.device]
    options.rows, options.hidden = options.rows or rows, options.hidden or hidden
    if options.smoke:
        options.rows, options.hidden, options.turns = [1, 16], [2048], 3
    return options


if __name__ == "__main__":
    main()
