"""The driver of one engine: source rows -> token ids -> scores -> parts, in input order.

Rows are committed in the order in which they are read, so the state of a job is one number: how many rows
its parts hold. A job that was interrupted, in whatever way, goes on after them.

Only this file knows that there is one engine in this process: readers, encoder, writer and job directory
know nothing of engines.
"""

import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuco_vllm import __version__
from tuco_vllm.config import ModelPair
from tuco_vllm.corpus.columns import Columns, Survey, survey
from tuco_vllm.corpus.identity import job_identity
from tuco_vllm.corpus.inputs import InputFile, find_inputs
from tuco_vllm.corpus.job import JobDirectory
from tuco_vllm.corpus.progress import ProgressLine
from tuco_vllm.corpus.publish import OutputError
from tuco_vllm.corpus.rows import SourceRow, source_rows
from tuco_vllm.corpus.run_record import RunRecord
from tuco_vllm.corpus.writer import PartWriter
from tuco_vllm.prompts import PromptEncoder, PromptError, load_tokenizer
from tuco_vllm.records import SCHEMA_VERSION, ScoredRow

if TYPE_CHECKING:
    from tuco_vllm.api import TucoLLM

_ERRORS_HELD = 10_000
"""Rows that cannot be scored wait for the scores before them; after this many in a row the engine's queue is
emptied first, which bounds what is held in memory."""


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
    limit: int | None = None
    layers: bool = True
    prompt: bool = True
    rows_per_file: int = 10_000
    overwrite: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()

    def encoder(self, tokenizer: Any) -> PromptEncoder:
        """The job's prompts -> token ids, of any length until an engine says what it holds."""
        return PromptEncoder(
            tokenizer,
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
            "columns": asdict(self.columns),
            "limit": self.limit,
            "layers": self.layers,
            "prompt": self.prompt,
        }


def score_corpus(job: ScoreJob, pair: ModelPair, start_engine: Callable[[], "TucoLLM"]) -> None:
    """Score the job's rows, or those that an earlier run has left; nothing, if that run is complete.

    ``start_engine`` is called once everything else has been checked, and the engine is closed at the end.

    Raises InputError for whatever the caller can mend, EngineError when the engine dies, OutputError when
    the output cannot be written. In each case, and at Ctrl-C, finished rows stay and a repeated call goes on.
    """
    files = find_inputs(job.inputs, job.file_format, out=job.out)
    tokenizer = load_tokenizer(pair.ft.directory, trust_remote_code=job.trust_remote_code)
    encoder = job.encoder(tokenizer)
    identity = job_identity(files, pair, job.identity_settings(encoder.template_sha256))
    directory = JobDirectory(job.out)
    if not job.overwrite and directory.is_finished(identity):
        return
    content = survey(files, job.columns, job.limit)
    with directory.locked():
        if not job.overwrite and directory.is_finished(identity):  # by a run that held the lock till now
            return
        with start_engine() as llm:
            encoder.max_model_len = llm.max_model_len
            directory.begin(identity, overwrite=job.overwrite)
            _score(job, pair, files, content, directory, encoder, llm)


def _score(
    job: ScoreJob,
    pair: ModelPair,
    files: list[InputFile],
    content: Survey,
    directory: JobDirectory,
    encoder: PromptEncoder,
    llm: "TucoLLM",
) -> None:
    """Everything between an engine that stands and the mark of success."""
    counts = directory.committed()
    record = RunRecord(directory.run_file, content.rows, counts, _details(job, pair, llm))
    writer = PartWriter(
        job.out,
        content.extras,
        _metadata(job, pair, llm, encoder),
        rows_per_file=job.rows_per_file,
        first_part=len(directory.parts()),
        layers=job.layers,
        prompt=job.prompt,
    )
    rows = source_rows(files, job.columns, content.extras, skip=counts.rows, limit=job.limit)
    record.save("running", counts, 0)
    try:
        with ProgressLine(content.rows, counts) as progress:
            for row in _scored(rows, encoder, llm):
                counts.rows += 1
                counts.errors += row.error is not None
                counts.prompt_tokens += row.prompt_tokens or 0
                if writer.write(row):
                    record.save("running", counts, writer.rows_committed)
                record.save_now_and_then(counts, writer.rows_committed)
                progress.show(counts)
            progress.show(counts, last=True)
        # A corpus without rows still becomes a table, with its schema.
        writer.commit(even_empty=counts.rows == 0)
        directory.finish()
        record.save("finished", counts, writer.rows_committed)
    except BaseException as error:
        writer.rescue()
        state, reason = "failed", str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            state, reason = "interrupted", "interrupted"
        with suppress(OutputError):  # the error that stopped the job is the one to report
            record.save(state, counts, writer.rows_committed, reason)
        raise


def _scored(rows: Iterable[SourceRow], encoder: PromptEncoder, llm: "TucoLLM") -> Iterator[ScoredRow]:
    """Every row in order, with its score or its error."""
    waiting: deque[ScoredRow] = deque()
    rows = iter(rows)
    exhausted = False

    def scorable() -> Iterator[tuple[ScoredRow, list[int]]]:
        nonlocal exhausted
        errors = 0
        for source in rows:
            row, token_ids = _encode(source, encoder)
            waiting.append(row)
            if token_ids is not None:
                errors = 0
                yield row, token_ids
            elif (errors := errors + 1) == _ERRORS_HELD:
                return
        exhausted = True

    while not exhausted:
        for row, score in llm.score_stream(scorable()):
            while waiting[0] is not row:
                yield waiting.popleft()
            waiting.popleft()
            row.score, row.prompt_tokens = score, score.num_prompt_tokens
            yield row
        yield from waiting
        waiting.clear()


def _encode(source: SourceRow, encoder: PromptEncoder) -> tuple[ScoredRow, list[int] | None]:
    """The row as it will be written, still without score, and what to score: None if it has an error."""
    text = source.prompt if isinstance(source.prompt, str) else None
    row = ScoredRow(source.id, text, None, None, source.error, source.extra)
    if row.error is not None or source.prompt is None:
        return row, None
    try:
        encoded = encoder.encode(source.prompt)
    except PromptError as error:
        row.error = str(error).encode(errors="replace").decode()  # a template may quote what is not text
        return row, None
    row.prompt, row.templated = encoded.text, encoded.templated
    return row, encoded.token_ids


def _metadata(job: ScoreJob, pair: ModelPair, llm: "TucoLLM", encoder: PromptEncoder) -> dict[str, str]:
    return {
        "tuco.schema_version": SCHEMA_VERSION,
        "tuco.version": __version__,
        "tuco.pt": pair.pt.name,
        "tuco.ft": pair.ft.name,
        "tuco.pt_fingerprint": pair.pt.fingerprint,
        "tuco.ft_fingerprint": pair.ft.fingerprint,
        "tuco.dtype": llm.dtype,
        "tuco.vllm_version": llm.vllm_version,
        "tuco.chat_template_sha256": encoder.template_sha256 or "",
        "tuco.command": shlex.join(job.command),
    }


def _details(job: ScoreJob, pair: ModelPair, llm: "TucoLLM") -> dict[str, Any]:
    return {
        "command": shlex.join(job.command),
        "settings": {name: value for name, value in asdict(job).items() if name not in ("out", "command")},
        "models": {
            role: {"name": checkpoint.name, "fingerprint": checkpoint.fingerprint}
            for role, checkpoint in (("pt", pair.pt), ("ft", pair.ft))
        },
        "engine": {"dtype": llm.dtype, "max_model_len": llm.max_model_len, "num_layers": llm.num_layers},
        "versions": {"vllm": llm.vllm_version},
    }
