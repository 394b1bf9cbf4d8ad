"""Fixtures of these tests."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from tuco_vllm.analysis.report import figures
from tuco_vllm.analysis.report.build import Wishes, tables_folder, write_report


class Report:
    """A written report: its page, its tables, and what was printed."""

    def __init__(self, out: Path, printed: str) -> None:
        self.out, self.printed = out, printed
        self.page = out.read_text(encoding="utf-8")

    def table(self, name: str) -> list[dict[str, str]]:
        """A CSV table's rows."""
        return list(csv.DictReader(io.StringIO((tables_folder(self.out) / f"{name}.csv").read_text("utf-8"))))

    def rows(self, name: str, *keys: str) -> dict:
        """A CSV table's rows by the values of these columns."""
        found = {}
        for row in self.table(name):
            key = row[keys[0]] if len(keys) == 1 else tuple(row[each] for each in keys)
            assert key not in found
            found[key] = row
        return found

    @property
    def names(self) -> set[str]:
        """The CSV tables that there are."""
        return {path.stem for path in tables_folder(self.out).glob("*.csv")}

    def left_out(self) -> str:
        """The list of sections that are left out."""
        return self.page.partition('id="left-out"')[2]


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Write a report of these runs, with these wishes; its figures are empty unless it is ``drawn``."""

    def write(*runs, out="report.html", drawn=False, **wishes) -> Report:
        if not drawn:
            monkeypatch.setattr(figures, "_svg", lambda figure: "<svg></svg>")
        printed = io.StringIO()
        path = tmp_path / out
        write_report(list(map(str, runs)), path, Wishes(**wishes), Console(file=printed, width=100))
        return Report(path, printed.getvalue())

    return write
