"""What does a row cost a worker beside its engine, on one core: all of it, and its stages by themselves?

A cost is CPU seconds, so what else runs on the machine does not count; ``wall`` stands beside it, which for
the part holds the disk's fsync. ``worker`` is all that happens between records and part in a process whose
engine answers at once; that is the stages, and threads, queues and a call of the engine for each prompt
besides. The survey is not in it: that is paid once a job.
"""

import gzip
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.chunks import UnitReader
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.feeder import Feeder
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.part import PartWriter
from tuco_vllm.corpus.plan import Plan, surveyed
from tuco_vllm.corpus.run import score_corpus
from tuco_vllm.corpus.stages import scored, tokenised
from tuco_vllm.corpus.unit import Unit, UnitDone
from tuco_vllm.corpus.worker import EngineFacts, Report, Work, Worker
from tuco_vllm.demo import FT, PT
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.store import LocalStore

REPEATS = 3
UNIT_ROWS = 10_000


class NoEngine:
    """Has what a worker uses of an engine; every prompt is done at the next step, with random norms."""

    dtype = row_dtype = "float32"
    vllm_version, max_model_len, max_num_seqs = "none", 1 << 20, 1 << 20

    def __init__(self, layers: int) -> None:
        self.num_layers = layers
        self._norms = cycle(torch.rand(4096, layers, 7).unbind())
        self._waiting: list[str] = []
        self._names = 0

    def submit(self, asked: Any) -> str:
        self._names += 1
        self._waiting.append(str(self._names))
        return self._waiting[-1]

    def step(self) -> list[tuple[str, Any]]:
        names, self._waiting = self._waiting, []
        return list(zip(names, self.score(names), strict=True))

    def score(self, prompts: Sequence[Any]) -> list[Any]:
        return list(islice(self._norms, len(prompts)))

    def close(self) -> None:
        pass


class LocalWorkers:
    """A job's worker in this process, around no engine: what a run leaves, without the time of a run.

    ``seconds`` is what all units took, of CPU and by the wall.
    """

    def __init__(self, ft: Path, layers: int) -> None:
        self._encoder, self._engine = make_encoder(ft), NoEngine(layers)
        self.seconds = 0.0, 0.0

    def __enter__(self) -> Self:
        self._feeder = Feeder(lambda: self._engine)
        return self

    def __exit__(self, *_: object) -> None:
        self._feeder.close()

    def scored(self, work: Work, units: Iterable[Unit]) -> Iterator[Report]:
        worker = Worker(self._feeder, self._encoder, self.facts(), work)
        cpu, wall = time.process_time(), time.perf_counter()
        yield from (Report(worker.score(unit)) for unit in units)
        self.seconds = time.process_time() - cpu, time.perf_counter() - wall

    def facts(self) -> EngineFacts:
        return EngineFacts.of(self._engine)

    def starts(self) -> dict[int, str]:
        return {}

    def states(self) -> dict[int, str]:
        return {0: "ready"}

    def in_hand(self) -> list[UnitDone]:
        return []


def make_encoder(ft: Path) -> PromptEncoder:
    """Raw strings -> token ids, as a job with default settings has them."""
    return PromptEncoder(load_tokenizer(ft))


def plan_of(path: Path) -> tuple[UnitReader, Plan]:
    """The reader and the units of one file, as a job makes them."""
    files = find_inputs([str(path)], out=path.parent / "out")
    content, surveys = surveyed(files, Columns())
    return UnitReader(files, Columns(), content.extras), Plan.of(surveys, UNIT_ROWS, 1 << 40)


def chunks_of(reader: UnitReader, plan: Plan) -> list[pa.Table]:
    """All source chunks of a corpus."""
    return [chunk for number in range(len(plan)) for chunk in reader.chunks(plan.unit(number))]


def vocabulary(data: Path | None) -> dict[str, int]:
    """Word -> its tokens after a space, by the demo pair's tokenizer, which all pairs here use."""
    if data is None:
        lines = (PT.parent / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        text = " ".join(json.loads(line).get("prompt", "") for line in lines)
    else:
        text = " ".join(
            path.read_text(encoding="utf-8")[: 1 << 20] for path in sorted(data.glob("text/*.txt"))
        )
    words = sorted(set(text.split()))[:: 1 + len(set(text.split())) // 50_000]
    if not words:
        raise SystemExit(f"{data} holds no text/*.txt")
    ids = load_tokenizer(FT)([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return {word: len(tokens) for word, tokens in zip(words, ids, strict=True)}


def write_lines(prompts: Iterator[str] | Sequence[str], path: Path) -> None:
    """A JSONL file of prompts; also ``.gz``."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


def stage_costs(prompts: Sequence[str], layers: int, directory: Path) -> dict[str, Any]:
    """Costs of rows like ``prompts``, for a model of ``layers``. It keeps its process on one core."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    pa.set_cpu_count(1)
    paths = [directory / f"prompts.{kind}" for kind in ("jsonl", "jsonl.gz", "parquet")]
    for path in paths[:2]:
        write_lines(prompts, path)
    pq.write_table(pa.table({"prompt": list(prompts)}), paths[2])
    costs = {"worker": worker_cost(paths[0], layers, directory)}
    for path in paths:
        kind = path.name.removeprefix("prompts.")
        costs[f"survey {kind}"] = median_cost(partial(plan_of, path))
        costs[f"read {kind}"] = median_cost(partial(chunks_of, *plan_of(path)))
    encoder, engine = make_encoder(FT), NoEngine(layers)
    encoder.max_model_len = engine.max_model_len
    source = chunks_of(*plan_of(paths[0]))
    tokens = [tokenised(chunk, encoder) for chunk in source]
    done = [scored(chunk, engine) for chunk in tokens]
    costs["tokenise"] = median_cost(lambda: [tokenised(chunk, encoder) for chunk in source])
    costs["score"] = median_cost(lambda: [scored(chunk, engine) for chunk in tokens])
    costs["write"] = median_cost(lambda: write_part(done, directory))
    count, text = len(prompts), sum(len(prompt.encode()) for prompt in prompts)
    ids = sum(pc.sum(pc.list_value_length(chunk["token_ids"])).as_py() for chunk in tokens)
    return {
        "rows": count,
        "layers": layers,
        "tokens": round(ids / count, 2),
        "text_bytes": round(text / count, 1),
        "microseconds_a_row": {name: round(cpu / count * 1e6, 3) for name, (cpu, _) in costs.items()},
        "microseconds_a_row_wall": {name: round(wall / count * 1e6, 3) for name, (_, wall) in costs.items()},
        "MB_per_second": {name: round(text / cpu / 1e6, 2) for name, (cpu, _) in costs.items()},
        "part_bytes_a_row": (directory / "part-0.parquet").stat().st_size / count,
    }


def worker_cost(path: Path, layers: int, directory: Path) -> tuple[float, float]:
    """CPU and wall seconds of a worker for a file's rows: medians of REPEATS, after one that warms up."""
    outs = [directory / f"out{number}" for number in range(REPEATS + 1)]
    _, *taken = (worker_seconds(path, layers, out) for out in outs)
    return median(cpu for cpu, _ in taken), median(wall for _, wall in taken)


def worker_seconds(path: Path, layers: int, out: Path) -> tuple[float, float]:
    """CPU and wall seconds of a worker for a file's rows."""
    workers = LocalWorkers(FT, layers)
    score_corpus(ScoreJob((str(path),), str(out)), resolve_pair(str(PT), str(FT)), lambda _: workers)
    return workers.seconds


def write_part(chunks: Sequence[pa.Table], directory: Path) -> None:
    """What a worker does with scored chunks."""
    store, rows = LocalStore(directory), sum(chunk.num_rows for chunk in chunks)
    with store.scratch() as path:
        with PartWriter(path, Unit(0, 0, 0, 0, rows, 0), (), {"tuco.job": "bench"}) as part:
            for chunk in chunks:
                part.write(chunk)
            part.close()
        (directory / "part-0.parquet").unlink(missing_ok=True)
        store.publish(path, "part-0.parquet")


def median_cost(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of ``work``: medians of REPEATS, after one that warms up."""
    work()
    taken = []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        taken.append((max(time.process_time() - cpu, 1e-6), time.perf_counter() - wall))
    return median(cpu for cpu, _ in taken), median(wall for _, wall in taken)
