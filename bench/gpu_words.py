"""Records of gpu.py in lines for people."""

from collections.abc import Iterator
from typing import Any

from gpu_plan import Cell


def in_lines(cell: Cell, record: dict[str, Any]) -> Iterator[str]:
    """What one cell found."""
    yield f"{cell}:"
    for line in WORDS[cell.kind](record):
        yield f"    {line}"


def _machine(record: dict[str, Any]) -> Iterator[str]:
    for side, rate in record["matmul_tflops"].items():
        yield f"matrix product {side}: {_range(rate)} TFLOP/s"
    yield f"copy: {_range(record['copy_gb_per_s'])} GB/s"


def _scoring(record: dict[str, Any]) -> Iterator[str]:
    for name, speed in record["tokens_per_s"].items():
        mfu = record["mfu"].get(name)
        ratio = record["over_stock"].get(name)
        yield (
            f"{name}: {speed:,} tokens/s"
            + (f", MFU {mfu:.3f}" if mfu is not None else "")
            + (f", ÷ stock {_range(ratio)}" if ratio else "")
        )
    if "of_bound" in record:
        yield f"bound {record['bound']:.3f}, tuco reaches {record['of_bound']:.3f} of it"
    if "tuco_over_hugging_face" in record:
        yield f"tuco ÷ hugging face {_range(record['tuco_over_hugging_face'])}"


def _generation(record: dict[str, Any]) -> Iterator[str]:
    for load, speed in record["output_tokens_per_s"].items():
        ratios = {slow: record["ratios"].get(f"{load} / {slow}") for slow in ("stock", "1 alpha")}
        over = "".join(f", ÷ {slow} {_range(ratio)}" for slow, ratio in ratios.items() if ratio)
        yield f"{load}: {speed:,} output tokens/s{over}"


def _memory(record: dict[str, Any]) -> Iterator[str]:
    for role, found in record["engines"].items():
        agrees = "agrees" if found["agrees"] else "DIFFERS"
        per_token, expected = found["bytes_per_token"], found["by_arithmetic"]
        yield f"{role}: {per_token:,.0f} bytes a token, by arithmetic {expected:,} ({agrees})"


def _profile(record: dict[str, Any]) -> Iterator[str]:
    for name, found in record["profiles"].items():
        groups = ", ".join(f"{group} {time:.1f}" for group, time in found["groups_ms"].items())
        yield f"{name}: {found['span_ms']:.1f} ms, of which idle {found['gaps_ms']:.1f}; {groups}"


def _kernels(record: dict[str, Any]) -> Iterator[str]:
    yield "share of the copy's bandwidth, by rows"
    for kernel in dict.fromkeys(one["kernel"] for one in record["kernels"]):
        own = {one["rows"]: one["reach"] for one in record["kernels"] if one["kernel"] == kernel}
        found = "; ".join(
            f"{rows}: " + ", ".join(f"{name} {share:.2f}" for name, share in reach.items())
            for rows, reach in own.items()
        )
        yield f"{kernel} {found}"


def _range(values: dict[str, float]) -> str:
    return f"{values['median']:,} ({values['min']:,} - {values['max']:,})"


WORDS = {
    "machine": _machine,
    "scoring": _scoring,
    "references": _scoring,
    "generation": _generation,
    "memory": _memory,
    "profile": _profile,
    "profile generation": _profile,
    "kernels": _kernels,
}
