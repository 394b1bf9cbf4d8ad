"""What ``corpus.py`` measured, as tables for people."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from corpus_driver import TOKENS_PER_SECOND
from rich.table import Table

Record = dict[str, Any]


def turns_table(cell: Record) -> Table:
    """One cell for people."""
    title = (
        f"{cell['pair']} pair, {cell['rows']:,} prompts of {cell['tokens']}+ tokens, {cell['rounds']} rounds"
    )
    for name, ratio in cell["ratios"].items():
        title += f"\n{name}: {ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f})"
    for item in cell["floors"]:
        title += f"; floor {item['floor']:.2f} {'met' if item['met'] else 'NOT MET'}, goal {item['goal']:.2f}"
    if cell["same_cores"] is False:
        title += "\nNOT COMPARABLE: the sides' engines ran on different cores"
    if not cell["all_engines_scored"]:
        title += "\nNO MEASURE OF SEVERAL ENGINES: one was still starting at the end; take more --seconds"
    layout = Table(title=title, title_justify="left", caption_justify="left")
    if len(cell["turns"].keys() - {"0"}) > 1:
        layout.caption = "engines of one machine share its cores: each has a part, beside everything else"
    layout.add_column("engines")
    words = ("seconds", "wall s", "foreign CPU s", "engines' cores", "rows by engine", "rows/s", "tokens/s")
    for heading in words:
        layout.add_column(heading, justify="right")
    for side, turns in cell["turns"].items():
        clocks = ("seconds", "wall", "foreign_cpu_seconds")
        layout.add_row(
            "bare" if side == "0" else side,
            *(f"{median(turn[clock] for turn in turns):.1f}" for clock in clocks),
            str(turns[-1]["engine_cores"]),
            str(turns[-1]["rows_by_engine"]),
            f"{cell['rows_per_second'][side]:,.1f}",
            f"{cell['tokens_per_second'][side]:,.0f}",
        )
    return layout


def stages_table(stages: Record) -> Table:
    """Costs on one core for people."""
    cores = ", ".join(f"{costs['worker_cores']:.3f} ({tokens}+ tokens)" for tokens, costs in stages.items())
    caption = f"cores of a worker beside an engine of {TOKENS_PER_SECOND:,} tokens/s (assumed): {cores}"
    title = "CPU on one core, no engine; MB of prompt text"
    layout = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    layout.add_column("stage")
    for tokens in stages:
        layout.add_column(f"{tokens}+ tokens: µs a row", justify="right")
        layout.add_column("MB/s", justify="right")
    for stage in next(iter(stages.values()))["microseconds_a_row"]:
        numbers = [(c["microseconds_a_row"][stage], c["MB_per_second"][stage]) for c in stages.values()]
        layout.add_row(stage, *(f"{number:,.1f}" for pair in numbers for number in pair))
    return layout


def driver_table(found: Sequence[Record]) -> Table:
    """The driver beside some numbers of engines, for people."""
    title = "the driver beside engines that sleep; cores: CPU seconds a second"
    layout = Table(title=title, title_justify="left")
    headings = ("engines", "rows/s", "µs a row", "ceiling", "cores", "idle", "Ray's servers' cores", "MB")
    for heading in headings:
        layout.add_column(heading, justify="right")
    for each in found:
        cost = each["driver_microseconds_a_row"]
        met = ", ".join(f"{c['ceiling']} {'met' if c['met'] else 'NOT MET'}" for c in each["ceilings"])
        cores, idle = each["cores"], each["cores_idle"]["driver"]
        own = (cores["driver"], idle, cores["Ray's servers"], each["driver_MB"])
        layout.add_row(str(each["engines"]), f"{each['rows_per_second']:,}", str(cost), met, *map(str, own))
    return layout
