"""Cells of bench/score.py and of bench/gpu.py for people."""

from statistics import median
from typing import Any

from rich.table import Table


def table(cell: dict[str, Any]) -> Table:
    """A cell for people."""
    lengths = "-".join(map(str, sorted(set(cell["lengths"]))))
    layout = Table(
        title=f"{cell['shape']}, {cell['prompts']} prompts of {lengths} tokens, {cell['dtype']}, "
        f"{cell['rounds']} rounds",
        title_justify="left",
    )
    layout.add_column("contender")
    for heading in (
        "wall s",
        "min - max",
        "CPU s",
        "foreign s",
        "÷ stock",
        "min - max",
        "by CPU",
        "tokens/s",
    ):
        layout.add_column(heading, justify="right")
    for name, seconds in cell["seconds"].items():
        wall, speed = seconds["wall"], cell["speed"][name]
        layout.add_row(
            name,
            f"{median(wall):.3f}",
            f"{min(wall):.3f} - {max(wall):.3f}",
            f"{median(seconds['cpu']):.3f}",
            f"{median(seconds['foreign']):.2f}",
            f"{speed['median']:.3f}",
            f"{speed['min']:.3f} - {speed['max']:.3f}",
            f"{cell['speed_by_cpu'][name]['median']:.3f}",
            f"{cell['tokens'] / median(wall):,.0f}",
        )
    return layout


def verdict(cell: dict[str, Any]) -> str:
    """Bound and floors in words."""
    share = cell["speed"]["tuco"]["median"] / cell["bound"]
    lines = [f"bound {cell['bound']:.3f} of stock by FLOPs; tuco reaches {share:.3f} of the bound"]
    if over := cell.get("tuco_over_hf_causal_lms"):
        lines.append(f"tuco / hf_causal_lms {over['median']:.2f}")
    for item in cell["floors"]:
        met = "met" if item["met"] else "NOT MET"
        lines.append(f"{item['name']} {item['value']:.2f}, floor {item['floor']:.2f}: {met}")
    return "\n".join(lines) + "\n"


def gpu_table(record: dict[str, Any]) -> Table:
    """A record of bench/gpu.py: a cell with its predictions, a step's kernels, engines, or a check."""
    cell = [
        f"{key} {record[key]}" for key in ("step_tokens", "prompt", "requests", "output") if key in record
    ]
    names = [str(record[key]) for key in ("model", "of", "kind", "way", "check") if key in record]
    layout = Table(title=" ".join(names) + ": " * bool(cell) + ", ".join(cell), title_justify="left")
    if record["kind"] == "trace":
        for heading in (f"of {record['busy_ms']:.2f} ms, in {record['step_ms']:.2f}", "ms", "calls"):
            layout.add_column(heading)
        for name, milliseconds, calls in record["kernels"]:
            layout.add_row(name, f"{milliseconds:.3f}", str(calls))
    elif "over_stock" in record:
        for heading in ("", "tokens/s", "predicted", "÷ stock", "min - max", "predicted", "budgets"):
            layout.add_column(heading)
        predicted = record["predicted_tokens_per_s"]
        for way, ratio in record["over_stock"].items():
            layout.add_row(
                way,
                f"{record['tokens_per_s'][way]:,}",
                f"{predicted[way]:,}",
                f"{ratio['median']:.3f}",
                f"{ratio['min']:.3f} - {ratio['max']:.3f}",
                f"{predicted[way] / predicted['stock']:.3f}",
                ", ".join(
                    f"{one['name']} {one['value']:.3f}, floor {one['floor']:.2f}, goal {one['goal']:.3f}"
                    for one in record["budgets"]
                    if one["name"].startswith(way)
                ),
            )
    else:
        for key in ("engines", "device", "exit", "seconds"):
            if key in record:
                layout.add_row(key, str(record[key]))
    return layout
