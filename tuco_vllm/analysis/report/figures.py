"""Figures as SVG elements that a page holds inline: boxes, lines with intervals, clouds of points.

Nothing in them is fetched or run, and no text of a stranger is taken for mathematics or markup.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from numpy.typing import ArrayLike

from tuco_vllm.analysis.report.document import visible

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tuco",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.formatter.limits": (-3, 5),
}
_WIDTH = 5.4
"""Inches of 72 points: on a phone letters are still of eight points."""
_COLORS = ("#1f77b4", "#d95f02", "#2a9d5c", "#b5338a", "#6a51a3", "#8c6d1f", "#555555", "#17a2b8")
_DASHES = ("-", "--", ":", "-.")
MOST_LINES = 8
_LETTERS = 26

_METADATA = ("Date", "Creator", "Format", "Type")
_TAG = re.compile(r"<[^>]*>")
_NUMBER = re.compile(r"(\d\.\d\d)\d+")
_ID = re.compile(r'((?: id="|href="#|url\(#))')


@dataclass(frozen=True)
class Box:
    """A distribution: its quantiles at 5, 25, 50, 75 and 95 %, its mean, and some of its points."""

    label: str
    quantiles: Sequence[float]
    mean: float
    points: ArrayLike


@dataclass(frozen=True)
class Line:
    """A curve ``[P]``, and perhaps its band."""

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


def boxes(rows: Sequence[Box], xlabel: str) -> str:
    """One box a row, the first on top."""
    with mpl.rc_context(_STYLE):
        figure, axes = _drawing(0.9 + 0.36 * len(rows))
        spread = np.random.default_rng(0)
        for place, row in enumerate(rows):
            color = _COLORS[place % len(_COLORS)]
            low, left, middle, right, high = row.quantiles
            points = np.asarray(row.points, np.float64)
            size, alpha = (6, 0.3) if len(points) > 100 else (14, 0.7)
            across = -place + spread.uniform(-0.28, 0.28, len(points))
            axes.scatter(points, across, s=size, alpha=alpha, color=color, linewidths=0, zorder=1)
            axes.plot([low, high], [-place, -place], color="#222", linewidth=1, zorder=2)
            axes.barh(
                -place,
                right - left,
                0.46,
                left,
                facecolor="#ffffffb0",
                edgecolor="#222",
                linewidth=1,
                zorder=3,
            )
            axes.plot([middle, middle], [-place - 0.23, -place + 0.23], color="#222", linewidth=2, zorder=4)
            axes.plot([row.mean], [-place], "D", markersize=4, color=color, markeredgecolor="#222", zorder=5)
        axes.set_yticks([-place for place in range(len(rows))], [_label(row.label) for row in rows])
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(xlabel)
        return _svg(figure)


def lines(
    curves: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    whole_x: bool = False,
) -> str:
    """Up to ``MOST_LINES`` curves, named below. ``whole_x``: x counts something."""
    with mpl.rc_context(_STYLE):
        drawn = curves[:MOST_LINES]
        figure, axes = _drawing(3.0 + 0.22 * ((len(drawn) + 1) // 2))
        for place, curve in enumerate(drawn):
            color, dash = _COLORS[place % len(_COLORS)], _DASHES[place % len(_DASHES)]
            x = np.asarray(curve.x, np.float64)
            marker = {"marker": "o", "markersize": 3.5} if len(x) <= 40 else {}
            axes.plot(x, np.asarray(curve.y), dash, color=color, label=_label(curve.label), **marker)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    x, np.asarray(curve.low), np.asarray(curve.high), color=color, alpha=0.15, linewidth=0
                )
        if whole_x:
            axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", integer=True, min_n_ticks=1))
        if log_x:
            axes.set_xscale("log")
            _plain(axes.xaxis)
        if log_y:
            axes.set_yscale("log")
            _plain(axes.yaxis)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend(figure, axes)
        return _svg(figure)


def clouds(groups: Sequence[Line], xlabel: str, ylabel: str) -> str:
    """Points of up to ``MOST_LINES`` groups."""
    with mpl.rc_context(_STYLE):
        drawn = groups[:MOST_LINES]
        figure, axes = _drawing(3.4 + 0.22 * ((len(drawn) + 1) // 2))
        for place, group in enumerate(drawn):
            color = _COLORS[place % len(_COLORS)]
            axes.scatter(
                np.asarray(group.x),
                np.asarray(group.y),
                s=9,
                alpha=0.45,
                color=color,
                linewidths=0,
                label=_label(group.label),
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend(figure, axes)
        return _svg(figure)


def _drawing(height: float) -> tuple[Drawing, Any]:
    figure = Drawing(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _plain(axis: Any) -> None:
    """Ticks of a logarithmic axis that people read: 1, 2, 5, 10, ..."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=9))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:,.5g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _legend(figure: Drawing, axes: Any) -> None:
    _, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        legend = figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, markerscale=1.5)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)


def _label(text: str) -> str:
    """A name for an axis or a legend; one that begins with an underscore would not be in it."""
    seen = visible(text)
    seen = seen if len(seen) <= _LETTERS else seen[: _LETTERS - 1] + "…"
    return f"\u200a{seen}" if seen.startswith("_") else seen


def _svg(figure: Drawing) -> str:
    """The drawing as an element: no prolog, no metadata, no addresses, as wide as its place."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks: the reader's will have them
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = re.sub(r"\s*<style.*?</style>", "", out.getvalue(), count=1, flags=re.DOTALL)
    text = _TAG.sub(lambda tag: _NUMBER.sub(r"\1", tag[0]), text[text.index("<svg") :])
    box = re.search(r'viewBox="[^"]*"', text)
    return f'<svg {box[0] if box else ""} role="img">' + text[text.index(">") + 1 :].strip()


def with_ids(svg: str, prefix: str) -> str:
    """The same drawing, its ids unlike another's on the page."""
    return _TAG.sub(lambda tag: _ID.sub(rf"\1{prefix}", tag[0]), svg)
