"""A run's Parquet -> the table that closes it: rows, errors and why, tokens, the distribution of TuCo."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tuco_vllm.records import STATE, SUCCESS

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_REASONS_SHOWN = 5
_STEPS = 1_000_000
"""TuCo lies in [0, 1]: a histogram this fine gives quantiles to 1e-6 in 8 MB, whatever the number of rows."""


@dataclass
class Summary:
    """What the committed parts of a run hold."""

    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Error texts, numbers in them replaced by N, with their counts."""
    tuco: dict[str, float] = field(default_factory=dict)
    """"min", "5%", ... "95%", "max"; empty where nothing was scored."""


def summarise(directory: Path) -> Summary:
    """Read a run's parts, a batch at a time."""
    summary = Summary()
    histogram = np.zeros(_STEPS + 1, dtype=np.int64)
    low, high = np.inf, -np.inf
    for path in _parts(directory):
        with pq.ParquetFile(path) as part:
            for batch in part.iter_batches(columns=["prompt_tokens", "tuco", "error"]):
                summary.rows += batch.num_rows
                summary.prompt_tokens += sum(batch["prompt_tokens"].drop_null().to_pylist())
                reasons = batch["error"].drop_null().to_pylist()
                summary.errors += len(reasons)
                summary.reasons.update(re.sub(r"\d+", "N", reason) for reason in reasons)
                scores = batch["tuco"].drop_null().to_numpy(zero_copy_only=False)
                if len(scores):
                    steps = np.rint(scores * _STEPS).astype(np.int64)
                    histogram += np.bincount(steps, minlength=_STEPS + 1)
                    low, high = min(low, scores.min()), max(high, scores.max())
    if histogram.any():
        summary.tuco = {"min": float(low), **_quantiles(histogram), "max": float(high)}
    return summary


def print_summary(directory: Path, console: Console | None = None) -> Summary:
    """Print a run's closing table on stdout."""
    console = console or Console()
    summary = summarise(directory)
    timings = read_run(directory).get("timings", {})
    table = Table(title=str(directory), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("rows", f"{summary.rows:,}")
    table.add_row("errors", f"{summary.errors:,}")
    for reason, count in summary.reasons.most_common(_REASONS_SHOWN):
        table.add_row(f"  {count:,} x", reason)
    table.add_row("prompt tokens", f"{summary.prompt_tokens:,}")
    if seconds := timings.get("score_seconds"):
        table.add_row("tokens/s", f"{summary.prompt_tokens / seconds:,.0f}")
        table.add_row("scoring time", str(timedelta(seconds=round(seconds))))
    for name, value in summary.tuco.items():
        table.add_row(f"TuCo {name}", f"{value:.4f}")
    console.print(table, markup=False)
    return summary


def print_status(directory: Path, running: str | None) -> None:
    """Print how far a run is, one line on stdout, and the table of what it has committed.

    ``running``: the process that writes there now, in words; None if there is none.
    """
    run = read_run(directory)
    counts, timings = run.get("counts", {}), run.get("timings", {})
    rows, total = counts.get("rows", 0), counts.get("rows_total", 0)
    rate = timings.get("rows_per_second", 0.0)
    if running is not None:
        left = timedelta(seconds=round((total - rows) / rate)) if rate else "?"
        state = f"running ({running}), {left} left"
    elif (directory / SUCCESS).exists():
        state = "finished"
    else:
        reason = f" ({run['error']})" if run.get("error") else ""
        state = f"stopped before its end{reason}; the same command resumes it"
    tokens = timings.get("prompt_tokens_per_second", 0.0)
    rates = f"{rate:,.1f} rows/s, {tokens:,.0f} tokens/s, {counts.get('errors', 0):,} errors"
    print(f"{directory}: {state}: {rows:,}/{total:,} rows, {rates}")
    if _parts(directory):
        print_summary(directory)


def read_run(directory: Path) -> dict[str, Any]:
    """A run's run.json; empty where there is none that can be read."""
    try:
        run = json.loads((directory / STATE / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _parts(directory: Path) -> list[Path]:
    return sorted(directory.glob("part-[0-9]*.parquet"))


def _quantiles(histogram: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    """The value that a share q of all lies at or below (nearest rank)."""
    upto = histogram.cumsum()
    ranks = {q: max(1, int(np.ceil(q * upto[-1]))) for q in QUANTILES}
    return {f"{q:.0%}": int(np.searchsorted(upto, rank)) / _STEPS for q, rank in ranks.items()}
