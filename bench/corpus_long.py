"""One long corpus run under watch: is every row there once, and does any process grow with the corpus?

Memory is sampled from the kernel every two seconds, by groups of processes. *Private* is anonymous memory, a
page that forked processes share divided among them; *shared* is the object store's pages (and other shared
memory), divided in the same way, so that groups can be added. An engine's cache of keys and values is
reserved when it starts and becomes resident as its pages are first used: that growth ends with the cache.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUPS = (  # the first whose text is in a command line
    ("engine core and its workers", "VLLM::"),
    ("workers", "WorkerActor"),
    ("raylet, object store", "raylet/raylet"),
    ("Ray's other processes", "ray"),
)
OTHER, DRIVER = "other", "driver"
WARM_UP = 0.1
SAMPLES_KEPT = 60


@dataclass
class Sample:
    """One look at a tree of processes; sums by group, MB and CPU seconds since each process began."""

    seconds: float
    rows: int
    private: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    shared: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Watch:
    """Samples a process and all below it until left; ``engine_cores`` are those that engines are bound to.

    Args:
        pid: the root, whose group is the driver.
        rows: how many rows are done, asked at each sample.
        memory: whether memory is sampled too; it costs some milliseconds for each gigabyte.
    """

    def __init__(
        self, pid: int, rows: Callable[[], int] = lambda: 0, *, memory: bool = False, interval: float = 2.0
    ) -> None:
        self.samples: list[Sample] = []
        self.engine_cores: set[int] = set()
        self._root, self._rows, self._memory, self._interval = pid, rows, memory, interval
        self._stop = threading.Event()
        self._began, self._machine = time.monotonic(), machine_cpu()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._machine = machine_cpu() - self._machine

    def cpu_seconds(self) -> dict[str, float]:
        """The most that each group was seen to have used."""
        groups = {group for sample in self.samples for group in sample.cpu}
        return {g: round(max(sample.cpu.get(g, 0.0) for sample in self.samples), 2) for g in sorted(groups)}

    def foreign_seconds(self) -> float:
        """CPU seconds that the rest of the machine took meanwhile; known when the watch is over."""
        before = self.samples[0].cpu[DRIVER] if self.samples else 0.0
        return round(max(0.0, self._machine - sum(self.cpu_seconds().values()) + before), 2)

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(psutil.Error):
                self._look()
            self._stop.wait(self._interval)

    def _look(self) -> None:
        root = psutil.Process(self._root)
        sample = Sample(round(time.monotonic() - self._began, 2), self._rows())
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                group = DRIVER if process.pid == self._root else group_of(line)
                times = process.cpu_times()
                sample.cpu[group] += times.user + times.system
                if "VLLM::" in line:
                    self.engine_cores |= bound_cores(process.pid)
                if self._memory:
                    private, shared = memory_of(process.pid)
                    sample.private[group] += private
                    sample.shared[group] += shared
        self.samples.append(sample)


def group_of(command_line: str) -> str:
    """Which group a process below the driver belongs to."""
    return next((group for group, text in GROUPS if text in command_line), OTHER)


def machine_cpu() -> float:
    """CPU seconds that the whole machine has used, a host's theft included."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal)


def memory_of(pid: int) -> tuple[float, float]:
    """(private, shared) MB of a process, as this module's docstring has them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kilobytes["Pss_Anon"] / 1e3, kilobytes["Pss_Shmem"] / 1e3


def bound_cores(pid: int) -> set[int]:
    """The cores that a process's threads are held to, of those that may not run on all of ours."""
    cores: set[int] = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            allowed = os.sched_getaffinity(int(task))
            cores |= allowed if allowed < os.sched_getaffinity(0) else set()
    return cores


def slope(rows: Sequence[float], megabytes: Sequence[float]) -> tuple[float, float]:
    """Least squares: MB a million rows, and its standard error. NaN for fewer than three points.

    The error takes samples for independent; neighbours are not quite, so it is somewhat too small.
    """
    if len(rows) < 3 or min(rows) == max(rows):
        return float("nan"), float("nan")
    x, y = np.asarray(rows) / 1e6, np.asarray(megabytes)
    x = x - x.mean()
    rise = float(x @ y / (x @ x))
    rest = y - y.mean() - rise * x
    return rise, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def rows_between(seconds: Sequence[float], rows: Sequence[int]) -> list[float]:
    """Rows at each moment, where ``rows`` is only renewed now and then: in between, straight lines."""
    news = [0, *(place for place in range(1, len(rows)) if rows[place] != rows[place - 1])]
    return [float(n) for n in np.interp(seconds, [seconds[p] for p in news], [rows[p] for p in news])]


def check_rows(out: Path, name: str) -> dict[str, int]:
    """Stream over a run's parts: rows, errors, tokens. Raises RuntimeError unless ids are NAME:0, NAME:1, ...

    A part says at which row it begins. They are counted in order, so each is there once; of a run that was
    stopped, some before the last may be missing.
    """
    found, row = {"rows": 0, "errors": 0, "prompt_tokens": 0, "parts": 0}, 0
    for path in sorted(out.glob("part-*.parquet")):
        part = pq.ParquetFile(path)
        first = int(part.schema_arrow.metadata[b"tuco.first_row"])
        if first < row:
            raise RuntimeError(f"{path.name} begins at row {first}, the part before it ends at {row}")
        row = first
        found["parts"] += 1
        for batch in part.iter_batches(columns=["id", "error", "prompt_tokens"]):
            wanted = [f"{name}:{number}" for number in range(row, row + len(batch))]
            if batch["id"].to_pylist() != wanted:
                raise RuntimeError(f"{path.name}: ids are not {wanted[0]} to {wanted[-1]}")
            row += len(batch)
            found["rows"] += len(batch)
            found["errors"] += len(batch) - batch["error"].null_count
            found["prompt_tokens"] += pc.sum(batch["prompt_tokens"]).as_py() or 0
    return found


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output on our stderr; if we are stopped meanwhile, it is stopped too."""
    process = subprocess.Popen(command, stdout=2, **options)
    try:
        yield process
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def long_run(command: list[str], out: Path, name: str, rows: int, minutes: float | None) -> dict[str, Any]:
    """Run ``tuco score`` over ``rows`` rows of the file ``name``, or for so many minutes, under watch."""
    run_file = out / "_tuco" / "run.json"

    def rows_done() -> int:
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(run_file.read_text())["counts"]["rows"])
        return 0

    began, stopped = time.monotonic(), False
    with running(command) as process, Watch(process.pid, rows_done, memory=True) as watch:
        try:
            process.wait(minutes * 60 if minutes else None)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGTERM)
            process.wait()
    wall = time.monotonic() - began
    found = check_rows(out, name)
    run = json.loads(run_file.read_text())
    if not stopped and (process.returncode, found["rows"]) != (0, rows):
        raise RuntimeError(f"tuco score ended with {process.returncode} after {found['rows']} of {rows} rows")
    seconds = run["timings"]["score_seconds"]
    rate = run["counts"]["rows"] / seconds
    return {
        "rows_asked": rows,
        **found,
        "every_id_once": True,
        "exit_code": process.returncode,
        "stopped_after_minutes": minutes if stopped else None,
        "projected_hours_for_all": round(rows / rate / 3600, 2) if stopped else None,
        "wall_seconds": round(wall, 1),
        "score_seconds": seconds,
        "rows_per_second": round(rate, 1),
        "tokens_per_second": round(run["counts"]["prompt_tokens"] / seconds),
        "cpu_seconds": watch.cpu_seconds(),
        "foreign_cpu_seconds": watch.foreign_seconds(),
        "engine_cores": sorted(watch.engine_cores),
        **growth(watch.samples),
    }


def growth(samples: Sequence[Sample]) -> dict[str, Any]:
    """Memory by group: after the first tenth of the rows, at the end, and its slope in between."""
    working = [sample for sample in samples if sample.rows]
    if not working:
        return {"memory": {}, "memory_samples": {}}
    rows = rows_between([s.seconds for s in working], [s.rows for s in working])
    # At the end processes go, one after the other, before run.json says so for the last time: no trend.
    news = sorted({sample.rows for sample in working})
    before_end = [place for place, done in enumerate(rows) if done <= news[-2:][0] and done < rows[-1]]
    warm = [place for place in before_end if rows[place] >= WARM_UP * rows[-1]]
    shown = before_end[:: max(1, len(before_end) // SAMPLES_KEPT)]
    memory, kept = {}, {}
    for kind in ("private", "shared"):
        for group in sorted({group for sample in working for group in getattr(sample, kind)}):
            values = [getattr(sample, kind).get(group, 0.0) for sample in working]
            if not warm or max(values) < 0.1:
                continue
            rise, error = slope([rows[place] for place in warm], [values[place] for place in warm])
            memory[f"{group}, {kind}"] = {
                "after_warm_up_MB": round(values[warm[0]], 1),
                "at_the_end_MB": round(values[warm[-1]], 1),
                "slope_MB_per_million_rows": round(rise, 2),
                "standard_error": round(error, 2),
            }
            kept[f"{group}, {kind}"] = [round(values[place], 1) for place in shown]
    return {"memory": memory, "memory_samples": {"rows": [round(rows[place]) for place in shown], **kept}}


def plot(record: dict[str, Any], path: Path) -> None:
    """Memory over rows done, one line a group: private solid, shared dashed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    samples = dict(record["memory_samples"])
    millions = [rows / 1e6 for rows in samples.pop("rows", [])]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    colors: dict[str, Any] = {}
    for name, values in sorted(samples.items(), key=lambda item: -max(item[1])):
        group, _, kind = name.rpartition(", ")
        color = colors.setdefault(group, f"C{len(colors)}")
        axes.plot(millions, values, color=color, linestyle="-" if kind == "private" else "--", label=name)
    axes.set(xlabel="million rows done", ylabel="MB (log scale)", yscale="log")
    axes.set_title("tuco score: resident memory by group of processes", fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if colors:  # a run may be too short for a sample
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
