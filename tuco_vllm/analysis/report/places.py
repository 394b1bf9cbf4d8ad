"""Sections on where TuCo arises: layer by layer, and token by token of the responses."""

from collections.abc import Callable

import numpy as np

from tuco_vllm.analysis.report.cells import Cells, of_moments
from tuco_vllm.analysis.report.data import PLACES
from tuco_vllm.analysis.report.document import Figure, Section, Table, Value
from tuco_vllm.analysis.report.figures import MOST_LINES, Line, lines
from tuco_vllm.analysis.report.groups import drawn, lead, named
from tuco_vllm.analysis.report.sums import Moments, Sums
from tuco_vllm.records import LAYERS

_FEWEST = 5
"""Responses of at least that length that a point of the curve needs, where there are as many."""
_NO_LISTS = "the runs hold no lists of layers (--no-layers, or nothing was scored)"


def layers(cells: Cells) -> Section:
    """beta_l, norms and cosines after each layer, by group."""
    section = Section("layers", "Where in the model it arises")
    sums = cells.runs.layers
    if not any(sums.values()):
        section.left_out = _NO_LISTS
        return section
    missing = [name for name in LAYERS if not sums[name]]
    if missing:
        section.words.append(f"Left out, for the runs do not have them: {', '.join(missing)}.")
    section.words.append(
        f"Means over the rows of a group; the band is one standard deviation. Curves are those of the "
        f"{MOST_LINES} largest groups. β after the last layer is TuCo; the largest β bounds how far apart "
        "the two models' states are (paper, Prop. 4.2)."
    )
    curves = {
        "beta": ("β up to the layer", "Share of fine-tuning after each layer", False),
        "ftc_norms": ("‖FTC‖₁ of the layer", "What fine-tuning adds in each layer", True),
        "ptc_norms": ("‖PTC‖₁ of the layer", "What the pre-trained layers add", True),
        "cosines": (
            "cosine of the sums",
            "Whether fine-tuning pushes with the pre-trained layers (1) or against",
            False,
        ),
    }
    for title, shown in drawn(cells):
        for name, (label, caption, is_log) in curves.items():
            if any(len(sums[name].of(cell).n) for cell in shown):
                band = name in ("beta", "cosines")
                found = [
                    _curve(cells, cell, sums[name].of(cell), band=band, first=1)
                    for cell in _largest(cells, shown)
                ]
                svg = lines(found, "layers passed", label, log_y=is_log, whole_x=True)
                section.figures.append(Figure(svg, f"{caption}{title}"))
    section.tables.append(_table(cells, sums))
    return section


def _largest(cells: Cells, shown: list[int]) -> list[int]:
    return sorted(shown, key=lambda cell: -cells.spreads[cell].n)


def _curve(cells: Cells, cell: int, moments: Moments, *, band: bool, first: int) -> Line:
    x = np.arange(first, first + len(moments.n))
    low, high = (moments.mean - moments.sd, moments.mean + moments.sd) if band else (None, None)
    return Line(cells.name(cell), x, moments.mean, low, high)


def _table(cells: Cells, sums: dict[str, Sums]) -> Table:
    names = [name for name in ("beta", *LAYERS) if sums[name]]
    rows: list[tuple[Value, ...]] = []
    for series in range(len(cells.runs.series)):
        for cell in cells.all_of(series):
            moments = {name: sums[name].of(cell) for name in names}
            for layer in range(max(len(each.n) for each in moments.values())):
                numbers: list[Value] = []
                for each in moments.values():
                    there = layer < len(each.n)
                    numbers += [float(each.mean[layer]), float(each.sd[layer])] if there else [None, None]
                counts = [int(each.n[layer]) for each in moments.values() if layer < len(each.n)]
                rows.append((*named(cells, cell), layer + 1, max(counts), *numbers))
    pairs = [heading for name in names for heading in (name, f"{name} sd")]
    return Table("layers", (*lead(cells), "layer", "n", *pairs), rows, shown=0)


def positions(cells: Cells) -> Section:
    """TuCo by the position of the token in the response."""
    section = Section("positions", "TuCo along the response")
    sums = cells.runs.positions
    if not sums:
        section.left_out = "no row has a scored response"
        return section
    section.words.append(
        "Mean TuCo of the forward pass that produced the response's token at this position (0 is the "
        f"prompt's own TuCo), with 95 % intervals, where at least {_FEWEST} responses are as long. Later "
        f"positions have fewer, and other, responses: the table has n. It ends at token {PLACES:,}."
    )
    for title, shown in drawn(cells):
        curves = [curve for cell in _largest(cells, shown) if (curve := _mean_curve(cells, cell))]
        if curves:
            section.figures.append(
                Figure(
                    lines(curves, "token of the response", "mean TuCo", whole_x=True),
                    f"TuCo along the response{title}",
                )
            )
    rows: list[tuple[Value, ...]] = []
    for series in range(len(cells.runs.series)):
        for cell in cells.all_of(series):
            moments = sums.of(cell)
            for place, (n, mean, sd) in enumerate(zip(moments.n, moments.mean, moments.sd, strict=True)):
                if n:
                    rows.append(
                        (*named(cells, cell), place, int(n), of_moments(int(n), float(mean), float(sd)))
                    )
    section.tables += _responses(cells)
    section.tables.append(Table("positions", (*lead(cells), "token", "n", "TuCo"), rows, shown=0))
    return section


def _mean_curve(cells: Cells, cell: int) -> Line | None:
    moments = cells.runs.positions.of(cell)
    if not len(moments.n):
        return None
    kept = np.flatnonzero(moments.n >= min(_FEWEST, int(moments.n.max())))
    found = [of_moments(int(moments.n[p]), float(moments.mean[p]), float(moments.sd[p])) for p in kept]
    ends: Callable[[str], list[float]] = lambda end: [getattr(each, end) for each in found]  # noqa: E731
    return Line(cells.name(cell), kept, ends("value"), ends("low"), ends("high"))


def _responses(cells: Cells) -> list[Table]:
    query = (
        "SELECT cell, count(*), avg(response_tuco), stddev_samp(response_tuco), avg(response_tokens),"
        " avg(tuco) FROM rows WHERE tuco IS NOT NULL AND response_tuco IS NOT NULL GROUP BY cell"
        " ORDER BY cell"
    )
    rows: list[tuple[Value, ...]] = [
        (*named(cells, cell), n, of_moments(n, mean, sd), sd, tokens, prompt)
        for cell, n, mean, sd, tokens, prompt in cells.runs.all(query)
    ]
    headings = (*lead(cells), "n", "mean over the response", "sd", "response tokens", "at the prompt")
    return (
        [Table("responses", headings, rows, "TuCo of responses: each row's mean over its tokens", shown=25)]
        if rows
        else []
    )
