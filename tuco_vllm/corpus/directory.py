"""The output as the state of a job: whose it is, who writes it, how far it has come.

part-{unit}-{job}.parquet   a unit of the plan each; which of them are there is how far the job is
_SUCCESS                    all are
_tuco/job.json              the job's identity and its random id, what the survey found; created if absent
_tuco/job-0002.json         what --extend made of it
_tuco/plan/{job}.parquet    the units; {job}-2.parquet after --extend
_tuco/log/...               counts of parts, a cache (``unit_log.py``)
_tuco/epoch/..., heartbeat-1.json   who writes (``epoch.py``)
_tuco/tmp/, input-...       what is being written; copies of pipes, while a run lasts
_tuco/replaced/{job}        a job that --overwrite removed: what its last workers may still write goes too
_tuco/run.json              settings, counts, timings, for people (``run_record.py``)
"""

import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuco_vllm.corpus.columns import Survey
from tuco_vllm.corpus.epoch import Epoch, claimed, writer
from tuco_vllm.corpus.identity import Identity, difference, without_responses
from tuco_vllm.corpus.parts_there import examined, foreign, part_count, parts_there, runs_own
from tuco_vllm.corpus.plan import Plan
from tuco_vllm.corpus.unit import UnitDone
from tuco_vllm.corpus.unit_log import LOG, read_pieces, write_piece
from tuco_vllm.errors import InputError
from tuco_vllm.records import STATE, SUCCESS
from tuco_vllm.store import OutputError, Store
from tuco_vllm.store.local import SCRATCH

_JOB, _RUN = f"{STATE}/job.json", f"{STATE}/run.json"
_PLANS, _REPLACED = f"{STATE}/plan", f"{STATE}/replaced"

_NOT_IDENTITY = ("job", "units", "content", "plan", "first_inputs")
"""What else is in job.json."""

_PIECES = 64
"""More pieces of a log than these are made one when a run begins."""


class JobDirectory:
    """One job's output. Nothing is written but by the run that is in ``epoch``.

    ``notes`` is what a person should know of what was found.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.notes: list[str] = []
        self._epoch: Epoch | None = None
        self._pieces = 0
        self._id: str | None = None
        self._checked = (
            False  # whether the place is known to be ours; a job's parts are looked at by ``done``
        )

    def holds(self, identity: Identity) -> bool:
        """Whether this very job is here, finished or not.

        Raises InputError where the place cannot be used, is another's, or has the half-done job of an earlier
        version.
        """
        self._checked = True
        self.store.look()
        job = self.job()
        if job is None:
            self._expect_ours(has_job=False)
            return False
        old = {name: value for name, value in job.items() if name not in _NOT_IDENTITY}
        if old.get("schema_version") == "1" and identity["schema_version"] != "1":
            old = without_responses(old, identity["schema_version"])  # still a table of the same scores
        differs = difference(old, identity)
        if differs is not None:
            raise InputError(
                f"{self.store.where} holds another job ({differs}): choose another --out, "
                "or start anew with --overwrite"
            )
        if "job" not in job and not self.is_finished:
            raise InputError(
                f"{self.store.where} holds a half-done run of an earlier version: start anew with --overwrite"
            )
        return True

    @property
    def is_finished(self) -> bool:
        """Whether the job is marked complete."""
        return self.store.read(SUCCESS) is not None

    def is_whole(self) -> bool:
        """Whether the job's parts are all there, as their sizes or footers say. Nothing is changed.

        Of earlier versions' jobs nothing is known. Raises InputError for a part of another job.
        """
        if "job" not in self._begun():
            return True
        plan = self.plan()[1]
        found, torn, stale = self._examined(plan)
        return not (torn or stale) and len(found) == part_count(len(plan))

    def job(self) -> dict[str, Any] | None:
        """What job.json says; None where there is no job."""
        data = self.store.read(_JOB)
        if data is None:
            return None
        try:
            job = dict(json.loads(data))
            for name in sorted(self._extensions()):
                if (added := json.loads(self.store.read(name) or b"{}")).get("job") == job["job"]:
                    job |= added
            return job
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"cannot read {self.store.where}/{_JOB}: {error}") from error

    @property
    def job_id(self) -> str:
        """The random id of the job that is here, in the names of its parts."""
        if self._id is None:
            self._id = str(self._begun()["job"])
        return self._id

    def plan(self) -> tuple[Survey, Plan]:
        """What the job's inputs hold, and its units. Raises InputError where that is lost."""
        job = self._begun()
        if "job" not in job:
            raise InputError(
                f"{self.store.where} holds a run of an earlier version: choose another --out, or start anew "
                "with --overwrite"
            )
        name = job.get("plan") or f"{_PLANS}/{job['job']}.parquet"
        try:
            return Survey.from_json(job["content"]), Plan.from_parquet(self.store.read(name) or b"")
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{self.store.where}/{name} is missing or torn: start anew with --overwrite"
            ) from error

    @contextmanager
    def epoch(self, patience: float | None = None) -> Iterator[Epoch]:
        """Be the run that writes here; what dead runs left half-written is removed.

        Raises InputError where another run's heartbeat moves within ``patience`` seconds, where nobody can
        write, and where not even --overwrite may: among results that no run wrote.
        """
        if not self._checked:
            self.store.look()
            self._expect_ours(has_job=self.job() is not None)
        left = self.store.list(SCRATCH)
        with claimed(self.store, patience) as epoch:
            self._epoch, self._pieces = epoch, 0
            try:
                self.store.delete(*left)
                yield epoch
            finally:
                self._epoch = None

    def running(self, patience: float | None = None) -> str | None:
        """The process that writes here now, in words, if any; of another host's it takes seconds to tell."""
        return writer(self.store, patience)

    def overwrite(self) -> None:
        """Remove the job that is here, if any, and only what a run made. What a kill leaves is a job too."""
        self._owned().check()
        store, job = self.store, self.job()
        self._expect_ours(has_job=job is not None)
        if job and "job" in job:
            store.create(f"{_REPLACED}/{job['job']}", b"")
        store.delete(SUCCESS)
        store.delete(*runs_own(store.list()))
        store.delete(_JOB)
        store.delete(_RUN, *self._extensions(), *store.list(_PLANS), *store.list(LOG))
        self._id = None

    def begin(self, identity: Identity, content: Survey, plan: Plan) -> str:
        """Make the place this job's; returns the job's id. Raises OutputError where another run has begun."""
        self._owned().check()
        job = secrets.token_hex(4)
        mine = f"{_PLANS}/{job}.parquet"
        self.store.create(mine, plan.to_parquet())
        record = {**identity, "job": job, "units": len(plan), "content": content.to_json()}
        data = json.dumps(record, indent=1).encode()
        if not self.store.create(_JOB, data) and self.store.read(_JOB) != data:
            self.store.delete(mine)
            raise OutputError(
                f"another run has begun in {self.store.where}: the same command goes on from there"
            )
        self.store.delete(*(name for name in self.store.list(_PLANS) if name != mine))
        self._id = job
        return job

    def extend(self, inputs: list[Any], plan: Plan) -> None:
        """Let the job have these inputs, and the units of ``plan``: its own, and more behind them."""
        self._owned().check()
        job = self._begun()
        numbers = (int(Path(name).stem.removeprefix("job-")) for name in self._extensions())
        number = 1 + max(numbers, default=1)
        plan_name = f"{_PLANS}/{job['job']}-{number}.parquet"
        self.store.replace(plan_name, plan.to_parquet())
        first = job.get("first_inputs") or len(job["inputs"])
        record = {
            "job": job["job"],
            "inputs": inputs,
            "first_inputs": first,
            "units": len(plan),
            "plan": plan_name,
        }
        self.store.delete(SUCCESS)
        name, data = f"{STATE}/job-{number:04}.json", json.dumps(record, indent=1).encode()
        if not self.store.create(name, data) and self.store.read(name) != data:
            raise OutputError(f"another run has extended the job in {self.store.where}: repeat the command")

    def done(self, plan: Plan) -> dict[int, UnitDone]:
        """The units whose parts are there.

        An empty or torn part (of a power cut) is removed and counts as absent, and so is the mark of success
        where a part is missing. Raises InputError for a part of another job.
        """
        self._owned().check()
        found, torn, stale = self._examined(plan)
        if len(found) < part_count(len(plan)) and self.is_finished:
            self.store.delete(SUCCESS)
            self.notes.append("the job was marked complete and is not: what is missing is scored again")
        self.notes += [f"{name} is empty or torn: its rows are scored again" for name in torn]
        self.store.delete(*torn, *stale)
        return found

    def log(self, done: Iterable[UnitDone]) -> None:
        """Write down that these units are done."""
        write_piece(self.store, self._owned().number, self._pieces, self.job_id, done)
        self._pieces += 1

    def logged(self) -> dict[int, UnitDone]:
        """The units that were written down as done."""
        known, names = read_pieces(self.store, self.job_id)
        if self._epoch is not None and len(names) > _PIECES:
            self.log(known.values())
            self.store.delete(*names)
        return known

    def finish(self) -> None:
        """Mark the job complete. Raises OutputError where it is not."""
        self._owned().check()
        units = self._begun()["units"]
        there = parts_there(self.store, self.job_id, units, self._replaced())
        self.store.delete(*there.stale)
        missing = part_count(units) - len(there.parts)
        if missing:
            raise OutputError(
                f"{missing} of {part_count(units)} parts are missing in {self.store.where}: "
                "the same command (without --overwrite) scores them again"
            )
        self.store.create(SUCCESS, b"")

    def _extensions(self) -> list[str]:
        return [name for name in self.store.list(STATE) if fnmatch(name, f"{STATE}/job-*.json")]

    def _owned(self) -> Epoch:
        if self._epoch is None:
            raise RuntimeError("only the run of an epoch writes")
        return self._epoch

    def _begun(self) -> dict[str, Any]:
        job = self.job()
        if job is None:
            raise InputError(f"{self.store.where} holds no tuco run: name the --out of a tuco score")
        return job

    def _expect_ours(self, *, has_job: bool) -> None:
        """Raise InputError where the place holds what no run wrote."""
        name = foreign(self.store.list(), self._replaced(), has_job=has_job)
        if name is not None:
            raise InputError(
                f"{self.store.where} holds results that no tuco run wrote ({name}): choose another --out"
            )

    def _replaced(self) -> set[str]:
        return {Path(name).name for name in self.store.list(_REPLACED)}

    def _examined(self, plan: Plan) -> tuple[dict[int, UnitDone], list[str], list[str]]:
        """The units that are done, and the names of torn parts and of replaced jobs' parts."""
        there = parts_there(self.store, self.job_id, len(plan), self._replaced())
        known, proved, torn = examined(self.store, self.job_id, plan, there, self.logged())
        if proved and self._epoch is not None:
            self.log(proved.values())
        return known | proved, torn, there.stale
