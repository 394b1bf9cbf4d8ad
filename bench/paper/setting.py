"""Where a replication reads and writes, and the ``tuco`` commands that it runs as a user would.

What is in the work folder is not made again: prompt sets are files, and ``tuco score``, ``tuco sweep`` and
``tuco build outcomes`` resume by themselves.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Row = dict[str, Any]
Floats = NDArray[np.float64]


class Absent(Exception):
    """A file of others' data is not there: that part of the replication is left out."""


@dataclass(frozen=True)
class Setting:
    """One pair, the data, and how much of it."""

    pair: str
    """Its name in records: "smollm2" or "toy"."""
    pt: Path
    ft: Path
    data: Path
    """Holds ``prompts/`` and ``text/`` as the project's developers have them."""
    work: Path
    scale: float = 1.0
    """Sizes are multiplied by it: 0.05 is a try whether all works."""

    def rows(self, full: int, least: int = 4) -> int:
        return min(full, max(least, round(full * self.scale)))

    @property
    def longest(self) -> int:
        """Tokens that FT's context has."""
        return int(json.loads((self.ft / "config.json").read_text())["max_position_embeddings"])

    def given(self, name: str) -> Path:
        """A file of the data. Raises Absent."""
        path = self.data / name
        if not path.exists():
            raise Absent(f"{name} is not in the folder of --data")
        return path

    def file(self, name: str, make: Callable[[], Iterable[Row]]) -> Path:
        """JSONL of rows in the work folder, never written twice: jobs know their inputs by time and size."""
        path = self.work / name
        if not path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{name}.part")
            scratch.write_text("".join(json.dumps(row) + "\n" for row in make()), encoding="utf-8")
            scratch.rename(path)
        return path

    def built(self, kind: str, name: str, inputs: Path, *options: str) -> list[Row]:
        """The rows that ``tuco build`` makes."""
        path = self.work / name
        if not path.exists():
            self.tuco("build", kind, str(inputs), "--out", str(path), *options)
        return read_jsonl(path)

    def scored(self, name: str, rows: Iterable[Row], *options: str) -> "Scores":
        """``tuco score`` of rows with ``id``, ``group`` and whatever tells one row from another."""
        inputs, out = self.file(f"{name}.jsonl", lambda: rows), self.work / f"{name}-scores"
        pair = ("--pt", str(self.pt), "--ft", str(self.ft), "--id-column", "id")
        self.tuco("score", str(inputs), "--out", str(out), *pair, "--no-prompt", *options)
        parts = sorted(out.glob("part-*.parquet"))
        return Scores([row for part in parts for row in pq.read_table(part).to_pylist()])

    def tuco(self, *arguments: str) -> None:
        """A command of ours, its words on stderr."""
        print("tuco", *arguments[:2], "...", file=sys.stderr, flush=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tuco_vllm", *arguments]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


class Scores:
    """Scored rows, by the group that they were given."""

    def __init__(self, rows: list[Row]) -> None:
        self.errors = sum(row["error"] is not None for row in rows)
        self.rows = [row for row in rows if row["error"] is None]
        self.by_group: dict[str, list[Row]] = {}
        for row in self.rows:
            self.by_group.setdefault(row["group"], []).append(row)

    def of(self, group: str, column: str = "tuco") -> Floats:
        """A column of a group's rows."""
        return np.array([row[column] for row in self.by_group.get(group, [])], dtype=np.float64)

    def pairs(self, group: str, other: str, column: str = "tuco") -> tuple[Floats, Floats]:
        """A column of two groups' rows of the same behaviours, each once in either."""
        left, right = (
            {row["behaviour"]: row[column] for row in self.by_group.get(name, [])} for name in (group, other)
        )
        both = [name for name in left if name in right]
        return np.array([left[name] for name in both]), np.array([right[name] for name in both])

    def drops(self, group: str, other: str) -> Floats:
        """How much TuCo falls from each row of one group to the same behaviour's in another."""
        before, after = self.pairs(group, other)
        return before - after


def read_jsonl(path: Path) -> list[Row]:
    """Its objects; lines end at "\\n" only."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def chat(text: str) -> list[Row]:
    """One user turn."""
    return [{"role": "user", "content": text}]


def regrouped(rows: Iterable[Row], group: str) -> list[Row]:
    """Rows under a group's name, their ids within it."""
    return [{**row, "id": f"{group}:{row['id']}", "group": group} for row in rows]
