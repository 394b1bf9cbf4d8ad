"""What a report is made of: sections with words, figures and tables; and how strangers' texts are shown."""

import csv
import io
import math
import unicodedata
from dataclasses import dataclass, field

from tuco_vllm.analysis.statistics import Estimate

Value = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows of values; in its CSV an Estimate is three columns, its value, ``_low`` and ``_high``."""

    name: str
    """Its CSV's, without the ending."""
    headings: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    caption: str = ""
    shown: int = 40
    """So many rows are in the HTML; the others in the CSV only, and that is said."""

    def csv(self) -> str:
        """Numbers in ten digits; what is not known is empty."""
        estimates = {
            place for row in self.rows for place, value in enumerate(row) if isinstance(value, Estimate)
        }
        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(
            name
            for place, heading in enumerate(self.headings)
            for name in ([heading, f"{heading}_low", f"{heading}_high"] if place in estimates else [heading])
        )
        for row in self.rows:
            written: list[str] = []
            for place, value in enumerate(row):
                if place in estimates:
                    known = (
                        value if isinstance(value, Estimate) else Estimate(math.nan, math.nan, math.nan, 0)
                    )
                    written += map(_digits, (known.value, known.low, known.high))
                else:
                    written.append(_digits(value))
            lines.writerow(written)
        return out.getvalue()

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, so that they are set to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.headings)
        return [not any(isinstance(value, str) for value in column) for column in columns]


@dataclass(frozen=True)
class Figure:
    """An SVG element, and what it shows."""

    svg: str
    caption: str


@dataclass
class Section:
    """A part of the report. With ``left_out`` it is only named, with that reason."""

    name: str
    title: str
    words: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    left_out: str = ""


def shown(value: Value) -> str:
    """A value for people."""
    if value is None or value == "":
        return "–"
    if isinstance(value, Estimate):
        if math.isnan(value.low):
            return shown(value.value)
        ends = (value.value, value.low, value.high)
        places = _places(max(map(abs, ends)), (value.high - value.low) / 2)
        middle, low, high = (f"{each:,.{places}f}" for each in ends)
        return f"{middle} [{low}, {high}]"
    if isinstance(value, str):
        return visible(value)
    return f"{value:,}" if isinstance(value, int) else _rounded(value)


def _places(size: float, half: float) -> int:
    """Decimals of an interval: a digit of its half width, and three of small numbers."""
    least = 3 if size < 10 else 1 if size < 100 else 0
    if half <= 0 or not math.isfinite(half):
        return least
    return min(8, max(least, math.ceil(-math.log10(half) - 1e-6)))


def _rounded(value: float) -> str:
    """Three digits or more of numbers of that size; TuCo of light fine-tunes is in the thousandths."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-5 <= size < 1e7:
        return f"{value:.2e}"
    places = 3 if 0.1 <= size < 10 else max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{places}f}"


def visible(text: str, most: int = 400) -> str:
    """A text that strangers wrote: on few lines, and nothing in it invisible or a command to a terminal."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(map(_visible, cut))


def _visible(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return ascii(letter)[1:-1]
    return letter


def _digits(value: Value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
