"""A job from its inputs to its mark of success: what is to be done, what is done already, how it goes.

    inputs -> survey -> plan of units -> workers (a unit each) -> parts

Rows go from a worker to its part; only counts come by here. So the state of a job is which parts there are.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from tuco_vllm import __version__
from tuco_vllm.config import ModelPair
from tuco_vllm.corpus.columns import Survey
from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.duplicates import Duplicates, find_duplicates
from tuco_vllm.corpus.epoch import Epoch
from tuco_vllm.corpus.identity import Identity, job_identity
from tuco_vllm.corpus.inputs import InputFile, find_inputs
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.pipes import copied, remove_other_copies
from tuco_vllm.corpus.plan import Plan
from tuco_vllm.corpus.planning import arranged, extended, planned, tokens_left
from tuco_vllm.corpus.progress import ProgressLine, StartLine
from tuco_vllm.corpus.run_record import EngineTally, RunRecord
from tuco_vllm.corpus.unit import Counts, Unit, UnitDone
from tuco_vllm.corpus.worker import EngineFacts, Report, Work
from tuco_vllm.errors import InputError
from tuco_vllm.interruption import rows_to_save
from tuco_vllm.prompts import load_tokenizer
from tuco_vllm.records import SCHEMA_VERSION, part_name
from tuco_vllm.store import OutputError, Store, refusals, store_at

_LOG_SECONDS = 10.0
"""How often what is done is written down: a resume looks into the parts that are not in the log."""


class ScoringWorkers(Protocol):
    """What is used here of ``driver.Workers``."""

    def facts(self) -> EngineFacts:
        """What the engines hold, once there is one."""

    def starts(self) -> dict[int, str]:
        """Engine number -> how far its start is, or how it went, in words."""

    def states(self) -> dict[int, str]:
        """Engine number -> "ready", "isolating", "starting", "waiting" or "gone"."""

    def in_hand(self) -> list[UnitDone]:
        """How far the units are that are being done."""

    def scored(self, work: Work, units: Iterable[Unit]) -> Iterator[Report | None]:
        """What became of each unit, as they are done; None now and then."""


OpenWorkers = Callable[[int], AbstractContextManager[ScoringWorkers]]
"""Called with about how many tokens there are to score."""


def score_corpus(job: ScoreJob, pair: ModelPair, open_workers: OpenWorkers, *, engines: int = 1) -> None:
    """Score the job's rows, or those that an earlier run has left; nothing, if that run is complete.

    ``open_workers`` is called once everything else has been checked, and only if there are rows to score.
    So many ``engines`` share a small corpus.

    Raises InputError for whatever the caller can mend, EngineError when engines die for good, OutputError
    when the output cannot be written. In each case, and at Ctrl-C, finished parts stay and a repeated call
    goes on.
    """
    store = store_at(job.out)
    with copied(find_inputs(job.inputs, job.file_format, out=job.out), store) as files:
        tokenizer = load_tokenizer(pair.ft.tokenizer_directory, trust_remote_code=job.trust_remote_code)
        template_sha256 = job.encoder(tokenizer, None).template_sha256
        directory = JobDirectory(store)
        task = _task(files, directory, job, pair, template_sha256, engines)
        if task is None:
            return
        with directory.epoch() as epoch, ExitStack() as stack:
            done = _left_by_others(task, directory, job)
            if task.anew and not job.overwrite:  # the survey stays, whatever becomes of the engines
                directory.begin(task.identity, task.content, task.plan)
            facts, workers = EngineFacts.unknown(job.dtype), None
            if task.plan.rows and len(done) < len(task.plan):
                tokens = tokens_left(task.files, job, task.content, task.plan, done)
                workers = stack.enter_context(open_workers(tokens))
                with StartLine(workers.starts, workers.states):
                    facts = workers.facts()
            if job.overwrite:  # engines have started: nothing of an earlier run is removed before
                directory.overwrite()
                directory.begin(task.identity, task.content, task.plan)
            work = Work(
                store,
                directory.job_id,
                tuple(task.files),
                job.columns,
                task.content.extras,
                (pair.ft, *job.other_fts),
                _metadata(job, pair, template_sha256),
                responses=task.content.responses,
                layers=job.layers,
                prompt=job.prompt,
                more=job.more,
            )
            run = _Run(job, _details(job, pair, facts), task.plan, directory, epoch, done)
            with rows_to_save():
                run.score(work, workers, stack)


@dataclass(frozen=True)
class _Task:
    """What is known of a job before anything is written."""

    files: list[InputFile]
    identity: Identity
    anew: bool
    extended: bool
    content: Survey
    plan: Plan
    known: dict[str, Any] | None
    """The job that is there."""


def _task(
    files: list[InputFile],
    directory: JobDirectory,
    job: ScoreJob,
    pair: ModelPair,
    template_sha256: str | None,
    engines: int,
) -> _Task | None:
    """What is to be done; None where all is."""
    directory.store.look()
    known = None if job.overwrite else directory.job()
    files, new = arranged(files, known, extend=job.extend)
    settings = job.identity_settings(template_sha256)
    identity = job_identity(files, pair, settings)
    anew = job.overwrite or not directory.holds(identity)
    if new and not job.extend:
        more = f"{len(new)} more files are given" if len(new) > 1 else f"one more is given, {new[0].path}"
        raise InputError(f"{job.out} holds this job of {len(files)} files, and {more}: --extend adds to it")
    if not (anew or new) and directory.is_finished and directory.is_whole():
        return None
    if (anew or new) and (holder := directory.running(0)) is not None:  # a survey may take long
        raise InputError(f"{job.out} is being written by {holder}")
    content, plan = planned(files, job, engines) if anew else directory.plan()
    if new:
        plan = extended(files, new, job, content, plan, engines)
        files = [*files, *new]
        identity = job_identity(files, pair, settings)
    return _Task(files, identity, anew, bool(new), content, plan, known)


def _left_by_others(task: _Task, directory: JobDirectory, job: ScoreJob) -> dict[int, UnitDone]:
    """The units that earlier runs have done, once nobody else writes; with the job's new inputs in it."""
    if not job.overwrite and directory.job() != task.known:
        raise InputError(f"another run has written into {job.out} meanwhile: repeat the command")
    if task.extended:
        directory.extend(task.identity["inputs"], task.plan)
    remove_other_copies(task.files, directory.store)
    done = {} if task.anew else directory.done(task.plan)
    for note in directory.notes:
        print(f"tuco: {note}", file=sys.stderr)
    return done


@dataclass
class _Run:
    """What is kept between the first unit and the mark of success."""

    job: ScoreJob
    details: dict[str, Any]
    plan: Plan
    directory: JobDirectory
    epoch: Epoch
    done: dict[int, UnitDone]

    def __post_init__(self) -> None:
        self._counts = Counts.of(self.done.values())
        self._tally = EngineTally()
        self._unlogged: list[UnitDone] = []
        self._logged = time.monotonic()

    def score(self, work: Work, workers: ScoringWorkers | None, stack: ExitStack) -> None:
        """Have the units done that are left and, at the end, what makes the job complete.

        ``stack`` ends the workers. An error leaves all parts that are done, and a log that says so.
        """
        directory = self.directory
        record = RunRecord(directory.store, self.plan.rows, self._counts, self.details, self._tally)
        try:
            record.save("running", self._counts)
            if workers is not None:
                self._score(work, workers, record)
            elif not self.plan.rows:
                self._write_no_rows(work)
            self._log()
            record.scored()
            stack.close()
            if self.job.columns.id is not None:
                record.duplicates = _duplicates(directory.store, self._parts_of_one_ft(work.job))
            # A finished job's counts stay, whatever happens from here on.
            record.save("running", self._counts)
            directory.finish()
            record.save("finished", self._counts)
        except BaseException as error:
            state, reason = "failed", str(error) or type(error).__name__
            if isinstance(error, KeyboardInterrupt):
                state, reason = "interrupted", "interrupted"
            if isinstance(error, OutputError):  # a run that took over may have removed what this one wrote
                with suppress(InputError):  # a store that is gone cannot be asked
                    self.epoch.check()
            with suppress(OutputError):  # the error that stopped the job is the one to report
                self._log()
                if not self.epoch.lost():  # else it is another run's
                    record.save(state, self._counts, error=reason)
            raise

    def _score(self, work: Work, workers: ScoringWorkers, record: RunRecord) -> None:
        counts = self._counts
        left = (self.plan.unit(n) for n in range(len(self.plan)) if n not in self.done)
        with ProgressLine(self.plan.rows, counts, workers.states) as progress:
            for report in workers.scored(work, left):
                if self.epoch.lost():
                    self.epoch.check()
                if report is not None:
                    counts.add(report.done)
                    self._unlogged.append(report.done)
                    self._tally.add(report)
                self._tally.states = workers.states()
                seen = counts.with_(workers.in_hand())
                if time.monotonic() - self._logged > _LOG_SECONDS:
                    self._log()
                    record.save("running", counts, seen)
                progress.show(seen)
            progress.show(counts, last=True)

    def _parts_of_one_ft(self, job_id: str) -> list[str]:
        """Each row once: it lies in a part for each fine-tune."""
        units = map(self.plan.unit, range(len(self.plan)))
        return [part_name(unit.number, job_id) for unit in units if unit.ft == 0]

    def _log(self) -> None:
        if self._unlogged:
            self.directory.log(self._unlogged)
        self._unlogged, self._logged = [], time.monotonic()

    def _write_no_rows(self, work: Work) -> None:
        """A corpus without rows still becomes a table, with its schema."""
        unit, store = Unit(0, 0, 0, 0, 0, 0), work.store
        with store.scratch() as path:
            with work.part(path, unit, EngineFacts.unknown(self.job.dtype)) as part, refusals(path):
                part.close()
            store.publish(path, part_name(unit.number, work.job))


def _duplicates(store: Store, parts: Sequence[str]) -> Duplicates | None:
    """None where there is no room to count them: all rows are scored nevertheless."""
    import duckdb

    try:
        return find_duplicates(store.open(name) for name in parts)
    except duckdb.Error as error:
        print(f"tuco: ids that repeat were not counted: {' '.join(str(error).split())}", file=sys.stderr)
        return None


def _metadata(job: ScoreJob, pair: ModelPair, template_sha256: str | None) -> dict[str, str]:
    return {
        "tuco.schema_version": SCHEMA_VERSION,
        "tuco.version": __version__,
        "tuco.pt": pair.pt.name,
        "tuco.pt_fingerprint": pair.pt.fingerprint,
        "tuco.chat_template_sha256": template_sha256 or "",
        "tuco.command": shlex.join(job.command).encode(errors="replace").decode(),
    }


def _details(job: ScoreJob, pair: ModelPair, facts: EngineFacts) -> dict[str, Any]:
    return {
        "command": shlex.join(job.command),
        "settings": job.settings(),
        "models": {
            role: {"name": checkpoint.name, "fingerprint": checkpoint.fingerprint}
            for role, checkpoint in (("pt", pair.pt), ("ft", pair.ft))
        },
        "engine": {
            "dtype": facts.dtype,
            "row_dtype": facts.row_dtype,
            "max_model_len": facts.max_model_len,
            "num_layers": facts.num_layers,
        },
        "versions": {"vllm": facts.vllm_version},
    }
