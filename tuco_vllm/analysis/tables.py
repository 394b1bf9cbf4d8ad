"""A run's Parquet and run.json -> the table that closes it, and how far it is while it goes on.

Rows, errors and why, repeated ids, tokens, engines, the distribution of TuCo. Older runs' run.json lacks some
fields: what is missing is not shown.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuco_vllm.analysis.parts import part_names
from tuco_vllm.analysis.rounding import rounding_warning
from tuco_vllm.analysis.summary import Summary, summarise
from tuco_vllm.records import RUN_FILE, STATE, SUCCESS
from tuco_vllm.store import Store

_REASONS_SHOWN = 5
_MEANS = {"output_co": "OutputCo", "relative_reward": "relative reward"}
"""Columns of which the closing table has the mean, and their names there."""
_TEXT_SHOWN = 150
"""Letters of a reason or an id: three lines of a table in 80 columns."""


def print_summary(store: Store, console: Console | None = None) -> Summary:
    """Print a run's closing table on stdout."""
    console = console or Console()
    summary = summarise(store)
    run = read_run(store)
    table = Table(title=Text(store.where), title_justify="left", show_header=False)
    table.add_column(style="bold", max_width=32)  # a cluster's names are long
    table.add_column(justify="right")
    table.add_row("rows", f"{summary.rows:,}")
    table.add_row("errors", f"{summary.errors:,}")
    for reason, count in summary.reasons.most_common(_REASONS_SHOWN):
        table.add_row(f"  {count:,} x", _short(reason))
    if quarantined := _field(run, "counts").get("quarantined"):
        table.add_row("quarantined rows", f"{quarantined:,}")
    if (duplicates := _field(run, "duplicate_ids")).get("ids"):
        table.add_row("duplicate ids", f"{duplicates['ids']:,} in {duplicates.get('rows', 0):,} rows")
        for name, count in duplicates.get("examples", ()):
            table.add_row(f"  {count:,} x", _short(str(name)))
    table.add_row("prompt tokens", f"{summary.prompt_tokens:,}")
    if seconds := _field(run, "timings").get("score_seconds"):
        table.add_row("tokens/s", f"{summary.prompt_tokens / seconds:,.0f}")
        table.add_row("scoring time", str(timedelta(seconds=round(seconds))))
    _add_engines(table, run.get("engines") or ())
    for name, value in summary.tuco.items():
        table.add_row(f"TuCo {name}", f"{value:.4f}")
    if summary.responses:
        table.add_row("responses", f"{summary.responses:,}")
    for name, value in summary.response_tuco.items():
        table.add_row(f"response TuCo {name}", f"{value:.4f}")
    for name, value in summary.means.items():
        table.add_row(f"{_MEANS[name]}, mean", f"{value:.4f}")
    if not summary.exact:
        table.caption = "quantiles are a t-digest's: of so many scores about right"
    console.print(table)
    engine = _field(run, "engine")
    dtypes = str(engine.get("dtype")), str(engine.get("row_dtype", engine.get("dtype")))
    if summary.tuco and (warning := rounding_warning(*dtypes, summary.tuco["50%"])):
        console.print(Text(warning, style="yellow"))
    return summary


def _add_engines(table: Table, engines: Sequence[Mapping[str, Any]]) -> None:
    """A row for each engine, where there are several."""
    if len(engines) < 2:
        return
    table.add_row("engines", f"{len(engines):,} (tokens/s while busy)")
    several_nodes = len({engine.get("node") for engine in engines}) > 1
    for number, engine in enumerate(engines):
        name = str(engine.get("name") or f"engine {number}")
        if several_nodes and engine.get("node"):
            name += f" on {engine['node']}"
        facts = [f"{engine.get('rows', 0):,} rows"]
        if seconds := engine.get("busy_seconds"):
            facts.append(f"{engine.get('prompt_tokens', 0) / seconds:,.0f} tokens/s")
        if (utilisation := engine.get("utilisation")) is not None:
            facts.append(f"{utilisation:.0%} busy")
        if engine.get("starts", 1) > 1:
            facts.append(f"{engine['starts']} starts")
        table.add_row(Text(f"  {name}"), Text(", ".join(facts)))


def _engines_line(engines: Sequence[Mapping[str, Any]]) -> str:
    """How many engines are ready, and in which state the others are."""
    states = Counter(str(engine.get("state")) for engine in engines)
    ready = states.pop("ready", 0)
    others = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"engines: {ready} of {len(engines)} ready" + (f" ({others})" if others else "")


def _short(text: str) -> Text:
    """A text that strangers wrote, for a cell: on few lines, nothing in it a command to the terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    words = " ".join(plain.split())
    cut = words if len(words) <= _TEXT_SHOWN else words[: _TEXT_SHOWN - 1] + "…"
    return Text(cut, justify="left", overflow="fold")


def _field(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in run.json; empty where there is none."""
    value = run.get(name)
    return value if isinstance(value, dict) else {}


def print_status(store: Store, running: str | None) -> None:
    """Print how far a run is, a line on stdout, how its engines are, and the table of what it has committed.

    ``running``: the process that writes there now, in words; None if there is none.
    """
    run = read_run(store)
    counts, timings = _field(run, "counts"), _field(run, "timings")
    begins = running is not None and run.get("state", "running") != "running"  # run.json is the last run's
    # What a killed run had in hand it will do again.
    rows = counts.get("rows" if running is not None and not begins else "rows_committed", 0)
    total = counts.get("rows_total", 0)
    rate = timings.get("rows_per_second", 0.0)
    if begins:
        state = f"running ({running}), its engines are starting"
    elif running is not None:
        left = timedelta(seconds=round((total - rows) / rate)) if rate else "?"
        state = f"running ({running}), {left} left"
    elif store.read(SUCCESS) is not None:
        state = "finished"
    else:
        reason = f" ({run['error']})" if run.get("error") else ""
        job = _object(store, f"{STATE}/job.json")
        mend = "the same command (without --overwrite) resumes it"
        if job and "job" not in job:
            mend = "it is an earlier version's: start anew with --overwrite"
        state = f"stopped before its end{reason}; {mend}"
    parts = part_names(store)
    if not (counts or parts or state == "finished"):  # so far there was no engine
        print(f"{store.where}: {state.removesuffix(', ? left')}: nothing is scored yet")
        return
    tokens = timings.get("prompt_tokens_per_second", 0.0)
    rates = f"{rate:,.1f} rows/s, {tokens:,.0f} tokens/s, {counts.get('errors', 0):,} errors"
    print(f"{store.where}: {state}: {rows:,}/{total:,} rows, {rates}")
    if running is not None and not begins and (engines := run.get("engines")):
        print(_engines_line(engines))
    if parts:
        print_summary(store)


def read_run(store: Store) -> dict[str, Any]:
    """A run's run.json; empty where there is none that can be read."""
    return _object(store, RUN_FILE)


def _object(store: Store, name: str) -> dict[str, Any]:
    try:
        value = json.loads(store.read(name) or b"")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
