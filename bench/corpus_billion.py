"""What do a job's own books cost when it has a billion rows: plan, log, resume, status, in seconds and bytes?

The job is made up. Its files are surveys of 1,024,000 rows, which become 100 units each, and a part is one
byte; the log has a piece for every 128 units, which is ten seconds of 64 engines that do 2,000 rows a
second. Nine tenths of the parts are there. All that looks at this is what ``tuco score`` and ``tuco status``
do to a real one, but for reading the inputs (once a job) and the closing table (which reads the parts). Each
step has a process of its own, and its memory is counted from after the imports.
"""

import io
import json
import os
import re
import sys
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from corpus_runs import in_own_process
from provenance import REPOSITORY

from tuco_vllm.analysis import tables
from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.columns import Columns, FoundColumns
from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.identity import Identity, job_identity
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.plan import FileSurvey, Plan, surveyed
from tuco_vllm.corpus.unit import Counts, UnitDone
from tuco_vllm.demo import FT, PT
from tuco_vllm.records import RUN_FILE, STATE, part_name
from tuco_vllm.store import Store, store_at

FILE_ROWS, MARK_ROWS, UNIT_ROWS, ROW_BYTES = 1_024_000, 256, 10_000, 80
UNITS_A_FILE = 100
LOG_UNITS = 128
DONE = 0.9
_WRITERS = 16
Seconds = dict[str, float]


def billion(units: int, folder: Path | None) -> dict[str, Any]:
    """Costs of a made-up job of so many units, in a directory or, without one, on an S3 server of moto's."""
    where = str(folder) if folder else _object_store()
    steps = {step.__name__: in_own_process(step, where, units) for step in (begun, resumed, status)}
    seconds = {name: value for step in steps.values() for name, value in step["seconds"].items()}
    files = len(made_up_files(units))
    return {
        "files": files,
        "units": files * UNITS_A_FILE,
        "rows": files * FILE_ROWS,
        "share_done": DONE,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "bytes": steps["begun"]["bytes"],
        "log_pieces": steps["begun"]["log_pieces"],
        "MB": {name: step["MB"] for name, step in steps.items()},
        "status_says": steps["status"]["says"],
    }


def begun(where: str, units: int) -> dict[str, Any]:
    """Plan the job, begin it, and have nine tenths of it done."""
    memory, seconds = Memory(), Seconds()
    files = made_up_files(units)
    surveys = [made_up_survey(number) for number, _ in enumerate(files)]
    store = store_at(where)
    directory = JobDirectory(store)
    with timed(seconds, "bring the surveys together"):
        content, surveys = surveyed(files, Columns(), each=lambda *_: surveys)
    with timed(seconds, "plan"):
        plan = Plan.of(surveys, UNIT_ROWS, 1 << 40)
    with directory.epoch():
        with timed(seconds, "begin"):
            job = directory.begin(_identity(files), content, plan)
        grown = memory.grown()
        done = [_done(plan, number) for number in range(int(DONE * len(plan)))]
        _put_parts(store, [part_name(each.unit, job) for each in done])
        with timed(seconds, "log, all pieces"):
            for first in range(0, len(done), LOG_UNITS):
                directory.log(done[first : first + LOG_UNITS])
    counts = {"rows_total": plan.rows, "rows_committed": Counts.of(done).rows}
    store.replace(RUN_FILE, json.dumps({"counts": counts}).encode())
    log = store.list(f"{STATE}/log")
    seconds["log, a piece"] = seconds["log, all pieces"] / len(log)
    sizes = {
        "marks of the surveys, in memory": sum(8 * len(each.records + each.offsets) for each in surveys),
        "plan": sum(store.list(f"{STATE}/plan").values()),
        "log": sum(log.values()),
        "job.json": store.list(STATE)[f"{STATE}/job.json"],
    }
    return {"seconds": seconds, "bytes": sizes, "log_pieces": len(log), "MB": grown}


def resumed(where: str, units: int) -> dict[str, Any]:
    """What a resume does until it knows what is left; twice, since the first leaves the log in one piece."""
    memory, seconds = Memory(), Seconds()
    files = made_up_files(units)
    identity = _identity(files)
    for log in ("many pieces", "one piece"):
        directory = JobDirectory(store_at(where))
        with timed(seconds, f"resume, log in {log}"):
            with timed(seconds, f"resume, log in {log}: whose it is"):
                if not directory.holds(identity) or directory.is_finished:
                    raise RuntimeError("the job is not there")
            with timed(seconds, f"resume, log in {log}: plan"):
                _, plan = directory.plan()
            with directory.epoch():
                with timed(seconds, f"resume, log in {log}: what is done"):
                    done = directory.done(plan)
                counts = Counts.of(done.values())
                left = next(number for number in range(len(plan)) if number not in done)
        if (len(done), counts.rows) != (left, plan.unit(left).row) or directory.notes:
            raise RuntimeError(f"{len(done)} units are done, the first that is not is {left}")
    return {"seconds": seconds, "MB": memory.grown()}


def status(where: str, _: int) -> dict[str, Any]:
    """What ``tuco status`` does, but for the closing table."""
    memory, seconds, said = Memory(), Seconds(), io.StringIO()
    with timed(seconds, "status"), redirect_stdout(said), patch.object(tables, "print_summary"):
        store = store_at(where)
        tables.print_status(store, JobDirectory(store).running())
    says = said.getvalue().strip().removeprefix(f"{where}: ")
    return {"seconds": seconds, "says": says, "MB": memory.grown()}


def made_up_files(units: int) -> list[InputFile]:
    """Files for so many units, or some more."""
    names = [f"corpus-{number:05}.jsonl" for number in range(0, units, UNITS_A_FILE)]
    return [InputFile(f"/corpus/{name}", name, "jsonl", FILE_ROWS * ROW_BYTES, 1) for name in names]


def made_up_survey(number: int) -> FileSurvey:
    """As ``survey_file`` gives it, of short rows with a prompt each. No two are equal, or a plan would be
    packed too well."""
    found = FoundColumns(Columns().asked_for)
    found.add_record({"prompt": "a"})
    marks = np.arange(0, FILE_ROWS + 1, MARK_ROWS)
    most = MARK_ROWS * ROW_BYTES
    sizes = np.random.default_rng(number).integers(most // 2, most, len(marks))
    records, offsets = array("q", marks.tolist()), array("q", [0, *np.cumsum(sizes)[:-1].tolist()])
    return FileSurvey(FILE_ROWS, found, False, records, offsets, by_number=False)


def _identity(files: list[InputFile]) -> Identity:
    return job_identity(files, resolve_pair(str(PT), str(FT)), ScoreJob((), "").identity_settings(None))


def _done(plan: Plan, number: int) -> UnitDone:
    unit = plan.unit(number)
    return UnitDone(number, unit.rows, 0, unit.rows * 15 + unit.offset % 1000, 1)


def _put_parts(store: Store, names: list[str]) -> None:
    """Of a directory without fsync: their cost is the workers'."""
    if store.folder is not None:
        for name in names:
            (store.folder / name).write_bytes(b"-")
        return
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda name: store.create(name, b"-"), names))


def _object_store() -> str:
    """The URL of an empty place on an S3 server, which ends with this process."""
    here = Path(__file__).parent  # moto imports another ``responses`` than ours
    elsewhere = [path for path in sys.path if Path(path).resolve() != here]
    with patch.object(sys, "path", [str(REPOSITORY / "tests"), *elsewhere]):
        from object_store import BUCKET, environment, server

        os.environ.update(environment(server()))
    return f"s3://{BUCKET}/billion"


@contextmanager
def timed(seconds: Seconds, name: str) -> Iterator[None]:
    """Note how long this takes."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


class Memory:
    """Resident MB of this process at first, and the most since then."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak till now
        self._first = self._peak()

    def grown(self) -> dict[str, float]:
        """What it had at first, and how much more it had at its peak."""
        return {"before": self._first, "more_at_most": round(self._peak() - self._first, 1)}

    def _peak(self) -> float:
        line = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        return round(int(line[1]) / 1e3, 1) if line else float("nan")
