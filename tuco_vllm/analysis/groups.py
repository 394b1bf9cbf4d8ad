"""Scores by a column of the input: what a set of prompts has in common, and how well TuCo tells two apart."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tuco_vllm.analysis.statistics import auc

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """The scored rows of one value of the column: TuCo ``[N]`` and beta_l after each layer ``[N, L]``."""

    name: str
    tuco: Floats
    beta: Floats
    """beta_l = |F_l| / (|P_l| + |F_l|), paper §4.4; its last column is TuCo."""


def read_groups(directory: Path, column: str) -> list[Group]:
    """A run's scored rows by ``column``, in order of first appearance. Rows with an error are left out."""
    names = [column, "tuco", "cum_ptc_norms", "cum_ftc_norms"]
    parts = sorted(str(path) for path in directory.glob("part-[0-9]*.parquet"))
    table = ds.dataset(parts, format="parquet").to_table(columns=names, filter=ds.field("error").is_null())
    rows: dict[str, list[int]] = {}
    for index, name in enumerate(table[column].to_pylist()):
        rows.setdefault(str(name), []).append(index)
    tuco = table["tuco"].to_numpy()
    ptc = np.array(table["cum_ptc_norms"].to_pylist())
    ftc = np.array(table["cum_ftc_norms"].to_pylist())
    total = ptc + ftc
    beta = np.divide(ftc, total, out=np.zeros_like(total), where=total > 0)
    return [Group(name, tuco[index], beta[index]) for name, index in rows.items()]


def print_groups(groups: list[Group], baseline: str, console: Console | None = None) -> None:
    """One line a group; the last column tells each group from ``baseline`` by TuCo, with a 95 % interval."""
    against = next(group for group in groups if group.name == baseline)
    table = Table(title="TuCo by group", title_justify="left")
    table.add_column("group")
    for heading in ("prompts", "mean", "sd", "median", f"AUC vs {baseline}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        scores = group.tuco
        figures = (scores.mean(), scores.std(ddof=1), np.median(scores))
        shown = ""
        if group is not against:
            area = auc(scores, against.tuco)
            shown = f"{area.value:.2f} [{area.low:.2f}, {area.high:.2f}]"
        table.add_row(group.name, str(len(scores)), *(f"{figure:.3f}" for figure in figures), shown)
    (console or Console()).print(table)
