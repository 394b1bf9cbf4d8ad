"""The whole report: its sections in order, the HTML file, CSV tables beside it, a table on the terminal."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text

from tuco_vllm import __version__
from tuco_vllm.analysis.report import columns, groups, overview, places
from tuco_vllm.analysis.report.cells import Cells, Comparison, compare
from tuco_vllm.analysis.report.data import read_runs
from tuco_vllm.analysis.report.document import Figure, Section, shown, visible
from tuco_vllm.analysis.report.figures import with_ids
from tuco_vllm.analysis.report.flagged import flagged
from tuco_vllm.analysis.report.side_by_side import pair, side_by_side
from tuco_vllm.analysis.report.words import main_finding
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Flags
from tuco_vllm.store import OutputError

_MARK = b'<meta name="generator" content="tuco report">'
_TABLES = "tuco-report-tables.txt"
"""In the folder of CSV tables: which of its files are a report's."""
_PRINTED = 20


@dataclass(frozen=True)
class Wishes:
    """What a person asks of a report."""

    group: str | None = None
    """The column that makes groups; None: ``group`` if there is one, else all rows are one."""
    against: str | None = None
    """The baseline group; None: the largest."""
    by: str | None = None
    """A column of numbers to hold TuCo against."""
    texts: bool = True
    """Whether prompts are shown."""
    flags: Flags | None = None
    """A calibration, of which the shares flagged are shown."""


def write_report(runs: Sequence[str], out: Path, wishes: Wishes, console: Console | None = None) -> None:
    """Read finished runs (directories or URLs), write ``out`` and the folder of tables, print the main table.

    Raises InputError for what cannot be read and an ``out`` that is not ours to overwrite, OutputError where
    it cannot be written.
    """
    try:
        expect_ours(out)
    except OSError as error:  # a name too long, no right to look
        raise InputError(f"--out {error.filename}: {error.strerror}: name another file") from error
    with read_runs(runs, wishes.group, wishes.by) as data:
        cells = Cells(data, wishes.against)
        comparisons, pairings = compare(cells), pair(cells)
        sections = [
            overview.rows(cells, wishes.texts),
            groups.distribution(cells),
            groups.separation(cells, comparisons),
            groups.length(cells),
            places.layers(cells),
            places.positions(cells),
            columns.by_column(cells),
            columns.output_co(cells),
            columns.reward(cells),
            flagged(cells, wishes.flags),
            side_by_side(cells, pairings),
            overview.outliers(cells, wishes.texts),
            overview.provenance(cells),
        ]
        finding = main_finding(cells, comparisons, pairings)
        page = _page(cells, finding, sections, out)
        _write(out, page, sections)
        _print(cells, comparisons, finding[0], out, console or Console())


def expect_ours(out: Path) -> None:
    """Raise InputError unless ``out`` and its tables may be written: nothing there, or an earlier report."""
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file in it, say {out / 'report.html'}")
    if out.exists():
        if not out.is_file():
            raise InputError(f"--out {out} is a pipe or a device: name a file")
        with out.open("rb") as file:
            if _MARK not in file.read(2000):
                raise InputError(f"--out {out} is no report of ours: name another file")
    folder = tables_folder(out)
    if (
        os.path.lexists(folder)
        and not (folder / _TABLES).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise InputError(f"{folder}, where the tables would go, is no report's: name another --out")


def tables_folder(out: Path) -> Path:
    """Where the CSV tables of a report lie."""
    return out.with_name(f"{out.name.removesuffix('.html')}-tables")


def _page(cells: Cells, finding: list[str], sections: list[Section], out: Path) -> str:
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    jinja.filters |= {"shown": shown, "visible": visible}
    number = 0
    for section in sections:
        for place, figure in enumerate(section.figures):
            number += 1
            svg = Markup(with_ids(figure.svg, f"f{number}-"))
            section.figures[place] = Figure(svg, visible(figure.caption))
        section.title, section.left_out = visible(section.title), visible(section.left_out)
        section.words = [visible(words, 2000) for words in section.words]
        section.tables = [replace(table, caption=visible(table.caption)) for table in section.tables]
    grouped = f" by {visible(cells.runs.group, 60)}" if cells.runs.group else ""
    return jinja.get_template("report.html.jinja").render(
        title=f"TuCo{grouped}",
        version=__version__,
        places=[visible(source.store.where) for source in cells.runs.sources],
        finding=[visible(words, 2000) for words in finding],
        warnings=[visible(words, 2000) for words in overview.warnings(cells)],
        sections=sections,
        folder=visible(tables_folder(out).name),
    )


def _write(out: Path, page: str, sections: list[Section]) -> None:
    """The tables first; what an earlier report left of its own goes."""
    folder = tables_folder(out)
    try:
        folder.mkdir(exist_ok=True)
        listed = folder / _TABLES
        if listed.exists():
            for name in listed.read_text(errors="replace").splitlines():
                if name.endswith(".csv") and "/" not in name:
                    (folder / name).unlink(missing_ok=True)
        tables = {f"{t.name}.csv": t.csv() for s in sections if not s.left_out for t in s.tables if t.name}
        listed.write_text("".join(f"{name}\n" for name in tables))
        for name, text in tables.items():
            (folder / name).write_text(text, encoding="utf-8")
        beside = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            beside.write_text(page, encoding="utf-8")
            os.replace(beside, out)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or out}: {error.strerror or error}") from error


def _print(cells: Cells, comparisons: list[Comparison], finding: str, out: Path, console: Console) -> None:
    """The groups of each run, what was found, and where the report is."""
    of_cell = {each.cell: each for each in comparisons}
    several = len(cells.runs.series) > 1
    table = Printed(title="TuCo by group" if cells.runs.group else "TuCo", title_justify="left")
    for heading in (*(("run",) if several else ()), "group"):
        table.add_column(heading, overflow="fold", max_width=32)
    baseline = visible(cells.name(comparisons[0].baseline), 24) if comparisons else ""
    numbers = ["rows", "mean"] + ([f"AUC vs {baseline}", "equal length"] if comparisons else [])
    for heading in numbers:
        table.add_column(Text(heading), justify="right")
    listed = [(series, cell) for series in range(len(cells.runs.series)) for cell in cells.of(series)]
    for series, cell in listed[:_PRINTED]:
        s = cells.spreads[cell]
        names = [cells.series_name(series)] * several + [cells.name(cell)]
        row: list[str | Text] = [f"{s.n:,}", shown(s.mean)]
        if found := of_cell.get(cell):
            row += [Text(shown(found.auc), no_wrap=True), shown(found.matched.value)]
        table.add_row(*(Text(visible(name, 80)) for name in names), *row)
    if more := len(listed) - _PRINTED + cells.left_out():
        table.caption = f"{more:,} more in the report" if more > 0 else None
    if listed:
        console.print(table)
    console.print(Text(visible(finding, 2000)))
    console.print(Text(f"Report: {out}    Tables: {tables_folder(out)}/*.csv"), soft_wrap=True)
