"""The driver of a job: what is to be done, what is done already, and every scored chunk into its part.

Rows are committed in the order in which they are read, so the state of a job is one number: how many rows
its parts hold. A job that was interrupted, in whatever way, goes on after them. Nobody else writes.
"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc

from tuco_vllm import __version__
from tuco_vllm.config import ModelPair
from tuco_vllm.corpus.board import EngineFacts
from tuco_vllm.corpus.chunks import SCORED_COLUMNS, ScoredChunk, Source, split
from tuco_vllm.corpus.columns import Columns, Survey, survey
from tuco_vllm.corpus.duplicates import find_duplicates
from tuco_vllm.corpus.identity import job_identity
from tuco_vllm.corpus.inputs import InputFile, find_inputs
from tuco_vllm.corpus.job import Counts, JobDirectory
from tuco_vllm.corpus.pipes import copied, remove_other_copies
from tuco_vllm.corpus.progress import ProgressLine, StartLine
from tuco_vllm.corpus.publish import OutputError
from tuco_vllm.corpus.run_record import EngineTally, RunRecord
from tuco_vllm.corpus.writer import PartWriter
from tuco_vllm.errors import InputError
from tuco_vllm.interruption import rows_to_save
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.records import SCHEMA_VERSION
from tuco_vllm.score_requests import NO_MORE, MoreScores

_BYTES_A_TOKEN = 4
"""Of English; of other scripts fewer. It tells thousands of tokens from millions, and needs no more."""


class ScoringPipeline(Protocol):
    """What the driver uses of ``pipeline.Pipeline``."""

    def scored(self, source: Source) -> Iterator[ScoredChunk]:
        """Every row of ``source``, in order."""

    def facts(self) -> EngineFacts:
        """What the engines hold, once there is one."""

    def engine_starts(self) -> dict[int, str]:
        """Engine number -> how far its start is, or how it went, in words."""

    def engine_states(self) -> dict[int, str]:
        """Engine number -> "starting" or "ready"."""


@dataclass(frozen=True)
class ScoreJob:
    """What is to be scored and how it is to lie in ``out``; defaults are the command line's."""

    inputs: tuple[str, ...]
    out: Path
    file_format: str = "auto"
    columns: Columns = field(default_factory=Columns)
    chat_template: str = "auto"
    system_prompt: str | None = None
    on_long: str = "error"
    max_model_len: int | None = None
    dtype: str = "auto"
    row_dtype: str = "auto"
    limit: int | None = None
    layers: bool = True
    prompt: bool = True
    more: MoreScores = NO_MORE
    rows_per_file: int = 10_000
    overwrite: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()

    def encoder(self, tokenizer: Any, vocab_size: int | None) -> PromptEncoder:
        """The job's prompts -> ids of FT's tokens, of any length until an engine says what it holds."""
        return PromptEncoder(
            tokenizer,
            vocab_size=vocab_size,
            chat_template=self.chat_template,
            system_prompt=self.system_prompt,
            on_long=self.on_long,
        )

    def identity_settings(self, template_sha256: str | None) -> dict[str, Any]:
        """The settings that a row's output depends on, as JSON values."""
        return {
            "chat_template": "none" if self.chat_template == "none" else template_sha256,
            "template_on_strings": self.chat_template not in ("auto", "none"),
            "system_prompt": self.system_prompt,
            "on_long": self.on_long,
            "max_model_len": self.max_model_len,
            "dtype": self.dtype,
            "row_dtype": self.row_dtype,
            "columns": asdict(self.columns),
            "limit": self.limit,
            "layers": self.layers,
            "prompt": self.prompt,
            "trace": self.more.trace,
            # Named only where they are asked for: jobs that began before there were any can go on.
            **{name: True for name in ("output_co", "relative_reward") if getattr(self.more, name)},
        }


def score_corpus(
    job: ScoreJob,
    pair: ModelPair,
    open_pipeline: Callable[[int], AbstractContextManager[ScoringPipeline]],
) -> None:
    """Score the job's rows, or those that an earlier run has left; nothing, if that run is complete.

    ``open_pipeline`` is called once everything else has been checked, and only if there are rows to score:
    with about how many tokens these are.

    Raises InputError for whatever the caller can mend, EngineError when engines die for good, OutputError
    when the output cannot be written. In each case, and at Ctrl-C, finished rows stay and a repeated call
    goes on.
    """
    with copied(find_inputs(job.inputs, job.file_format, out=job.out), job.out) as files:
        _score_files(files, job, pair, open_pipeline)


def _score_files(
    files: list[InputFile],
    job: ScoreJob,
    pair: ModelPair,
    open_pipeline: Callable[[int], AbstractContextManager[ScoringPipeline]],
) -> None:
    tokenizer = load_tokenizer(pair.ft.tokenizer_directory, trust_remote_code=job.trust_remote_code)
    encoder = job.encoder(tokenizer, pair.ft.config.get("vocab_size"))
    identity = job_identity(files, pair, job.identity_settings(encoder.template_sha256))
    directory = JobDirectory(job.out)
    if not job.overwrite and directory.is_finished(identity):
        return
    content = survey(files, job.columns, job.limit)
    if job.more.relative_reward and not content.responses:
        raise InputError("--relative-reward is of responses, and no row has one: leave it out")
    with directory.locked(), ExitStack() as stack:
        if not job.overwrite and directory.is_finished(identity):  # by a run that held the lock till now
            return
        remove_other_copies(files, job.out)
        done = Counts() if job.overwrite else directory.committed()
        source = Source(tuple(files), job.columns, content.extras, skip=done.rows, limit=job.limit)
        begun = time.monotonic()
        facts = EngineFacts.unknown(job.dtype)
        states: Callable[[], dict[int, str]] = dict
        chunks: Iterator[ScoredChunk] = iter(())
        if done.rows < content.rows:
            pipeline = stack.enter_context(open_pipeline(_tokens_left(source, content.rows)))
            chunks = pipeline.scored(source)
            with StartLine(pipeline.engine_starts):
                first = next(chunks)
            chunks, begun = chain([first], chunks), time.monotonic() - first.ready_seconds
            facts, states = pipeline.facts(), pipeline.engine_states
        # Engines have started and a row is scored: nothing of an earlier run is removed before.
        directory.begin(identity, overwrite=job.overwrite)
        run = _Run(job, pair, facts, encoder.template_sha256, content, done, directory)
        with rows_to_save():
            run.write(chunks, states, begun)


def _tokens_left(source: Source, rows: int) -> int:
    """About how many tokens the rows after ``source.skip`` have: as those that the corpus begins with."""
    first = next(replace(source, skip=0).chunks())
    prompts_chats_responses = first.columns[1:4]
    size = sum(pc.sum(pc.binary_length(texts)).as_py() or 0 for texts in prompts_chats_responses)
    return round(size / first.num_rows * (rows - source.skip) / _BYTES_A_TOKEN)


class _Run:
    """What is kept between the first chunk and the mark of success."""

    def __init__(
        self,
        job: ScoreJob,
        pair: ModelPair,
        facts: EngineFacts,
        template_sha256: str | None,
        content: Survey,
        done: Counts,
        directory: JobDirectory,
    ) -> None:
        self._job, self._content, self._counts, self._directory = job, content, done, directory
        self._tally = EngineTally()
        details = _details(job, pair, facts)
        self._record = RunRecord(directory.run_file, content.rows, done, details, self._tally)
        self._writer = PartWriter(
            job.out,
            content.extras,
            _metadata(job, pair, facts, template_sha256),
            rows_per_file=job.rows_per_file,
            first_part=len(directory.parts()),
            layers=job.layers,
            prompt=job.prompt,
            responses=content.responses,
            more=job.more,
        )

    def write(
        self, chunks: Iterator[ScoredChunk], states: Callable[[], dict[int, str]], begun: float
    ) -> None:
        """Write every chunk and, at the end, what makes the job complete.

        ``begun``: when scoring began, by time.monotonic(). An error leaves all that is done in a part.
        """
        record, writer, counts = self._record, self._writer, self._counts
        record.begun = begun
        record.save("running", counts, 0)
        try:
            with ProgressLine(self._content.rows, counts, states, begun) as progress:
                for chunk in chunks:
                    if self._count(chunk):  # before their part is there: a job goes on counting from this
                        record.save("running", counts, writer.rows_committed)
                    self._tally.add(chunk, states())
                    if writer.write(chunk.table):
                        record.save("running", counts, writer.rows_committed)
                    record.save_now_and_then(counts, writer.rows_committed)
                    progress.show(counts)
                progress.show(counts, last=True)
            if counts.rows != self._content.rows:
                raise InputError(
                    f"the input changed while it was read: it had {self._content.rows} rows, "
                    f"now {counts.rows}"
                )
            # A corpus without rows still becomes a table, with its schema.
            writer.commit(even_empty=counts.rows == 0)
            if self._job.columns.id is not None:
                record.duplicates = find_duplicates(self._directory.parts())
            self._directory.finish()
            record.save("finished", counts, writer.rows_committed)
        except BaseException as error:
            writer.rescue()
            state, reason = "failed", str(error) or type(error).__name__
            if isinstance(error, KeyboardInterrupt):
                state, reason = "interrupted", "interrupted"
            with suppress(OutputError):  # the error that stopped the job is the one to report
                record.save(state, counts, writer.rows_committed, reason)
            raise

    def _count(self, chunk: ScoredChunk) -> bool:
        """Returns whether rows were set aside."""
        counts, table = self._counts, chunk.table
        if chunk.first != counts.rows:  # a row lost or done twice; nothing of it may be written
            raise RuntimeError(f"the pipeline gave rows from {chunk.first} on, not from {counts.rows}")
        errors = table["error"]
        (_, set_aside), _ = split(table, SCORED_COLUMNS)
        numbers = [counts.rows + place for place, flag in enumerate(set_aside.to_pylist()) if flag]
        counts.set_aside += numbers
        counts.rows += table.num_rows
        counts.errors += table.num_rows - errors.null_count
        counts.prompt_tokens += pc.sum(table["prompt_tokens"]).as_py() or 0
        return bool(numbers)


def _metadata(
    job: ScoreJob, pair: ModelPair, facts: EngineFacts, template_sha256: str | None
) -> dict[str, str]:
    return {
        "tuco.schema_version": SCHEMA_VERSION,
        "tuco.version": __version__,
        "tuco.pt": pair.pt.name,
        "tuco.ft": pair.ft.name,
        "tuco.pt_fingerprint": pair.pt.fingerprint,
        "tuco.ft_fingerprint": pair.ft.fingerprint,
        "tuco.dtype": facts.dtype,
        "tuco.row_dtype": facts.row_dtype,
        "tuco.vllm_version": facts.vllm_version,
        "tuco.chat_template_sha256": template_sha256 or "",
        "tuco.command": shlex.join(job.command).encode(errors="replace").decode(),
    }


def _details(job: ScoreJob, pair: ModelPair, facts: EngineFacts) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(job).items() if name not in ("out", "command", "more")}
    return {
        "command": shlex.join(job.command),
        "settings": settings | job.more._asdict(),
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
        "versions": {"vllm": facts.vllm_version, "ray": facts.ray_version},
    }
