"""Records -> figures: TuCo by group of prompts, and against the number of examples."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

Record = dict[str, Any]

BY_GROUP = ("5.2", "5.3-attacks")
BY_SHOTS = {
    "5.3-many-shot": ("many-shot: examples before the request", 1.0),
    "5.5": ("refusals before the request", None),
}


def draw(found: list[Record], folder: Path) -> None:
    """A PNG of either kind for each pair that has records."""
    own = {(record["part"], record["pair"]): record for record in found if record["bench"] == "paper"}
    for pair in sorted({pair for _, pair in own}):
        groups = {
            name: group
            for part in BY_GROUP
            if (part, pair) in own
            for name, group in own[part, pair]["groups"].items()
        }
        if groups:
            _save(boxes(groups), folder / f"paper-groups-{pair}.png")
        curves = {part: own[part, pair]["curves"] for part in BY_SHOTS if (part, pair) in own}
        if curves:
            _save(shots(curves), folder / f"paper-shots-{pair}.png")


def boxes(groups: dict[str, Any]) -> Figure:
    """A box a group: quartiles, and 5 % to 95 %."""
    figure = Figure(figsize=(7.5, 0.6 + 0.32 * len(groups)), layout="constrained")
    axes = figure.subplots()
    keys = ("whislo", "q1", "med", "q3", "whishi")
    told = [
        {"label": f"{name} (n = {group['n']})", **dict(zip(keys, group["quantiles"], strict=True))}
        for name, group in groups.items()
    ]
    axes.bxp(told[::-1], orientation="horizontal", showfliers=False, widths=0.6)
    axes.set_xlabel("TuCo at the prompt's last token: quartiles, 5 % to 95 %")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def shots(curves: dict[str, Any]) -> Figure:
    """Means with their intervals; of §5.5 relative to no examples, so that both measures fit one axis."""
    figure = Figure(figsize=(5.5 * len(curves), 4.2), layout="constrained")
    for axes, (part, own) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        label, is_absolute = BY_SHOTS[part]
        for (name, points), marker in zip(own.items(), "osD^", strict=False):
            base = 1.0 if is_absolute else next(iter(points.values()))[0]
            known = {float(x): value for x, value in points.items() if None not in value[:3]}
            values = [value[0] / base for value in known.values()]
            reach = [
                [(v[0] - v[1]) / base for v in known.values()],
                [(v[2] - v[0]) / base for v in known.values()],
            ]
            axes.errorbar(list(known), values, yerr=reach, marker=marker, markersize=4, capsize=2, label=name)
        if is_absolute:
            axes.set_xscale("log", base=2)
        axes.set_xlabel(label)
        axes.set_ylabel("mean TuCo, 95 %" if is_absolute else "mean ÷ that without examples, 95 %")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    return figure


def _save(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=120)
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)  # a quarter of the bytes
