"""Figures of a run: every prompt's TuCo by group, and where in the model it arises."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tuco_vllm.analysis.groups import Group


def save_groups(groups: list[Group], path: Path, title: str) -> None:
    """Write a PNG. Left: one dot a prompt, bars at the means. Right: mean beta_l over depth."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    dots, curves = figure.subplots(1, 2)
    spread = np.random.default_rng(0)
    for place, group in enumerate(groups):
        color = f"C{place}"
        across = -place + spread.uniform(-0.25, 0.25, len(group.tuco))
        dots.scatter(group.tuco, across, s=14, alpha=0.6, color=color, linewidths=0)
        dots.plot([group.tuco.mean()] * 2, [-place - 0.38, -place + 0.38], color=color, linewidth=2.5)
        depth = np.arange(1, group.beta.shape[1] + 1)
        curves.plot(depth, group.beta.mean(axis=0), marker="o", markersize=4, color=color, label=group.name)
    dots.set_yticks([-place for place in range(len(groups))], [group.name for group in groups])
    dots.set_xlabel("TuCo (share of fine-tuning at the prompt's last token)")
    curves.set_xlabel("layers passed")
    curves.set_xticks(depth)
    curves.set_ylabel("mean β up to that layer")
    curves.legend(frameon=False, fontsize="small")
    for axes in (dots, curves):
        axes.grid(axis="x" if axes is dots else "both", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)
