"""What does a row cost the process that hands units to workers, and does that grow with their number?

Physics. Rows do not come by the driver. It gives out a unit and hears of it; once a second it asks each
engine how far it is, every ten seconds it writes a piece of the log, and Ray's threads in it have their own
clocks. So its cost a row depends on how long a unit takes, and workers here take as long as an engine of
30,000 tokens/s (an assumption, of an H200 and a pair of 8B models) with 10,000 rows of 15 tokens: five
seconds. They sleep meanwhile, so two cores have room for 64 of them. All else is ``tuco score``:
``score_corpus`` over ``Workers``. ``idle`` is what the same processes take while there is nothing to do: of
one engine's rows it is most of the cost.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from corpus_model import ceiling
from corpus_sleeper import TOKENS, Sleeper

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import driver
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus
from tuco_vllm.corpus.unit import Unit
from tuco_vllm.corpus.worker import Report, Work
from tuco_vllm.demo import FT, PT
from tuco_vllm.records import part_name

TOKENS_PER_SECOND = 30_000
UNIT_ROWS = 10_000
UNITS_EACH = 12
IDLE_SECONDS = 10.0
MOST_MICROSECONDS = 2.0
"""Of the driver's CPU a row of 15+ tokens, at any number of engines."""

Stamp = tuple[float, dict[str, float]]
"""A moment, and the CPU seconds till then by group of processes."""


class Watched(driver.Workers):
    """Workers, and what the clocks said while all of them had units."""

    def __init__(self, engines: int, unit_seconds: float) -> None:
        arguments: tuple[Any, Any] = unit_seconds, None  # what Sleeper takes
        super().__init__(Cluster(engines), *arguments)

    def __enter__(self) -> Self:
        self.entered = time.monotonic()
        return super().__enter__()

    def scored(self, work: Work, units: Iterable[Unit]) -> Iterator[Report | None]:
        while {*self.states().values()} != {"ready"}:
            self.turn()
        self.ready = time.monotonic()
        self.idle = [look(begins=True)]
        while time.monotonic() < self.ready + IDLE_SECONDS:
            self.turn()
        self.idle.append(look(begins=False))
        waiting, nothing = list(units), cast(Work, None)  # to unpickle a Work costs a process 60 MB
        for unit in waiting:  # at the end of a job its parts are listed
            Path(work.store.where, part_name(unit.number, work.job)).write_bytes(b"-")
        engines = len(self.states())
        window = engines, len(waiting) - 2 * engines
        self.stamps: list[Stamp] = []
        done = 0
        for report in super().scored(nothing, waiting):
            yield report
            done += report is not None
            if report is not None and done in window:
                self.stamps.append(look(begins=done == engines))
        self.over = time.monotonic()


def driver_costs(engines: int, directory: Path, quick: bool = False) -> dict[str, Any]:
    """The driver's CPU at so many engines, while all of them have units; for a process of its own."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # Ray's workers find Sleeper there
    path, units = directory / f"units{engines}.parquet", engines * UNITS_EACH
    few = pa.DictionaryArray.from_arrays(np.zeros(UNIT_ROWS, np.int8), ["a"])
    pq.write_table(pa.table({"prompt": pa.chunked_array([few] * units)}), path)
    seconds = UNIT_ROWS * TOKENS / TOKENS_PER_SECOND / (10 if quick else 1)
    job = ScoreJob((str(path),), str(directory / f"out{engines}"))
    with patch.object(driver, "WorkerActor", Sleeper):
        workers = Watched(engines, seconds)
        score_corpus(job, resolve_pair(str(PT), str(FT)), lambda _: workers, engines=engines)
        ended = time.monotonic()
    rows, window = (units - 3 * engines) * UNIT_ROWS, workers.stamps[1][0] - workers.stamps[0][0]
    cores = cores_between(*workers.stamps)
    cost = cores["driver"] * window / rows * 1e6
    return {
        "engines": engines,
        "rows": rows,
        "seconds": round(window, 1),
        "rows_per_second": round(rows / window),
        "driver_microseconds_a_row": round(cost, 3),
        "cores": cores,
        "cores_idle": cores_between(*workers.idle),
        "driver_MB": round(psutil.Process().memory_info().rss / 1e6),
        "seconds_until_all_are_ready": round(workers.ready - workers.entered, 1),
        "seconds_from_the_last_unit_to_the_end": round(ended - workers.over, 1),
        "ceilings": []
        if quick
        else [ceiling(f"driver's microseconds a row, engines: {engines}", cost, MOST_MICROSECONDS)],
    }


def cores_between(before: Stamp, after: Stamp) -> dict[str, float]:
    """CPU seconds a second, by group of processes."""
    seconds = after[0] - before[0]
    return {name: round((after[1][name] - before[1][name]) / seconds, 4) for name in after[1]}


def look(*, begins: bool) -> Stamp:
    """Now, and CPU seconds of this process, of Ray's servers below it, and of all others below it.

    What looking takes is left out of a time that ``begins`` with one look and ends with another.
    """
    now = time.monotonic(), time.process_time()
    others = {"Ray's servers": 0.0, "workers": 0.0}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times, name = process.cpu_times(), process.name()
            group = "Ray's servers" if name in ("raylet", "gcs_server") else "workers"
            others[group] += times.user + times.system
    if begins:
        now = time.monotonic(), time.process_time()
    return now[0], {"driver": now[1], **others}
