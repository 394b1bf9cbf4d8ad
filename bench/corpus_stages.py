"""What each stage of a corpus run costs by itself on one core, and what Ray adds.

A stage's cost is CPU seconds, so what else runs on the machine does not count; ``wall`` stands beside it,
which for the writer holds the disk's fsync. Ray's cost is taken with chunks of one short prompt and 128 KiB
of passed-through text: such a chunk costs its stages next to nothing and moves as many bytes as a full one.
"""

import gzip
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tuco_vllm.corpus.board import EngineFacts
from tuco_vllm.corpus.chunks import CHUNK_CHARACTERS, ScoredChunk, Source, from_bytes, to_bytes
from tuco_vllm.corpus.columns import Columns, survey
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.stages import scored, tokenised
from tuco_vllm.corpus.writer import PartWriter
from tuco_vllm.demo import FT, PT
from tuco_vllm.prompts import PromptEncoder, load_tokenizer

REPEATS = 3


class NoEngine:
    """Has what a pipeline uses of an engine; every prompt is done at the next step, with random norms."""

    dtype, vllm_version, max_model_len = "float32", "none", 1 << 20

    def __init__(self, layers: int, place: int = 0, engines: int = 1) -> None:
        self.num_layers = layers
        self._random = np.random.default_rng(0)
        self._waiting: deque[str] = deque()
        self._names = 0

    def submit(self, token_ids: list[int]) -> str:
        self._names += 1
        self._waiting.append(str(self._names))
        return self._waiting[-1]

    def step(self) -> list[tuple[str, Any]]:
        names = list(self._waiting)
        self._waiting.clear()
        return list(zip(names, self.score(names), strict=True))

    def score(self, prompts: Sequence[Any]) -> list[Any]:
        return list(self._random.random((len(prompts), self.num_layers, 7), np.float32))

    def close(self) -> None:
        pass


class LocalPipeline:
    """A job's stages in this process, around no engine: what a run leaves, without the time of a run."""

    def __init__(self, ft: Path, layers: int) -> None:
        self._encoder, self._engine = make_encoder(ft), NoEngine(layers)
        self._encoder.max_model_len = NoEngine.max_model_len

    def __enter__(self) -> "LocalPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def scored(self, source: Source) -> Iterator[ScoredChunk]:
        first = source.skip
        for chunk in source.chunks():
            table = scored(tokenised(chunk, self._encoder), self._engine)
            yield ScoredChunk(first, table, 0, "here:1", 1, 0.0, 0.0)
            first += chunk.num_rows

    def facts(self) -> EngineFacts:
        engine = self._engine
        return EngineFacts(
            engine.dtype, engine.dtype, engine.max_model_len, engine.num_layers, "none", "none"
        )

    def engine_starts(self) -> dict[int, str]:
        return {}

    def engine_states(self) -> dict[int, str]:
        return {0: "ready"}


def make_encoder(ft: Path) -> PromptEncoder:
    """Raw strings -> token ids, as a job with default settings has them."""
    return PromptEncoder(load_tokenizer(ft))


def source_of(path: Path, skip: int = 0) -> Source:
    """What a job reads of one file from row ``skip`` on; reads it once to know its columns, as a job does."""
    files = find_inputs([str(path)], out=path.parent / "out")
    return Source(tuple(files), Columns(), survey(files, Columns()).extras, skip=skip)


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


def stage_costs(prompts: Sequence[str], ft: Path, layers: int, directory: Path) -> dict[str, Any]:
    """Rates and sizes of rows like ``prompts``, for a model of ``layers``. For a process of its own: it stays
    on one core."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    pa.set_cpu_count(1)
    paths = [directory / f"prompts.{kind}" for kind in ("jsonl", "jsonl.gz", "parquet")]
    for path in paths[:2]:
        write_lines(prompts, path)
    pq.write_table(pa.table({"prompt": list(prompts)}), paths[2])
    encoder, engine = make_encoder(ft), NoEngine(layers)
    encoder.max_model_len = engine.max_model_len
    work: dict[str, Callable[[], object]] = {}
    for path in paths:
        kind = path.name.removeprefix("prompts.")
        source = source_of(path)
        work[f"survey {kind}"] = partial(source_of, path)
        work[f"read {kind}"] = lambda source=source: deque(source.chunks(), 0)
    chunks = {"source": list(source_of(paths[0]).chunks())}
    chunks["token"] = [tokenised(chunk, encoder) for chunk in chunks["source"]]
    chunks["scored"] = [scored(chunk, engine) for chunk in chunks["token"]]
    packed = {stage: [to_bytes(chunk) for chunk in held] for stage, held in chunks.items()}
    for stage, held in chunks.items():
        work[f"to_bytes {stage}"] = lambda held=held: [to_bytes(chunk) for chunk in held]
        work[f"from_bytes {stage}"] = lambda data=packed[stage]: [from_bytes(each) for each in data]
    work["tokenised()"] = lambda: [tokenised(chunk, encoder) for chunk in chunks["source"]]
    work["scored()"] = lambda: [scored(chunk, engine) for chunk in chunks["token"]]
    work["write"] = lambda: write_parts(chunks["scored"], layers, directory)
    count, text = len(prompts), sum(len(prompt.encode()) for prompt in prompts)
    tokens = sum(pc.sum(pc.list_value_length(chunk["token_ids"])).as_py() for chunk in chunks["token"])
    costs = {name: median_cost(each) for name, each in work.items()}
    return {
        "rows": count,
        "layers": layers,
        "tokens": round(tokens / count, 2),
        "text_bytes": round(text / count, 1),
        "chunk_rows": round(count / len(chunks["source"]), 1),
        "seconds_a_row": {name: cpu / count for name, (cpu, _) in costs.items()},
        "rows_per_second": {name: round(count / cpu) for name, (cpu, _) in costs.items()},
        "rows_per_second_wall": {name: round(count / wall) for name, (_, wall) in costs.items()},
        "MB_per_second": {name: round(text / cpu / 1e6, 2) for name, (cpu, _) in costs.items()},
        "bytes_a_row": {stage: round(sum(map(len, data)) / count, 1) for stage, data in packed.items()},
        "file_bytes_a_row": sum(path.stat().st_size for path in directory.glob("part-*")) / count,
    }


def write_parts(chunks: Sequence[pa.Table], layers: int, directory: Path) -> None:
    """What the driver does with scored chunks."""
    writer = PartWriter(directory, (), {}, rows_per_file=10_000)
    for chunk in chunks:
        writer.write(chunk)
    writer.commit()


def median_cost(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of ``work``: medians of REPEATS, after one that warms up."""
    work()
    taken = []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        taken.append((max(time.process_time() - cpu, 1e-6), time.perf_counter() - wall))
    return median(cpu for cpu, _ in taken), median(wall for _, wall in taken)


def ray_costs(engines: int, chunks: int, ft: Path, directory: Path) -> dict[str, Any]:
    """What a chunk costs the driver and Ray's servers, around engines that do nothing; in its own process.

    ``cpu`` is seconds a chunk of: the driver, raylet and GCS, and everything else (the workers).
    """
    from tuco_vllm.corpus.cluster import Cluster
    from tuco_vllm.corpus.pipeline import Pipeline

    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # Ray's workers take NoEngine from here
    path = directory / f"chunks{engines}.jsonl"
    with path.open("w") as lines:
        for number in range(chunks):
            lines.write(json.dumps({"prompt": f"{number} a", "pad": "x" * CHUNK_CHARACTERS}) + "\n")
    stamps: list[tuple[float, dict[str, float]]] = []
    skipped = max(1, chunks // 10)
    with Pipeline(Cluster(engines), partial(NoEngine, 6), partial(make_encoder, ft)) as pipeline:
        for number, _ in enumerate(pipeline.scored(source_of(path))):
            if number in (skipped, chunks - 1):
                stamps.append((time.monotonic(), tree_cpu()))
            if number == skipped:
                titles = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
    path.unlink()
    (began, before), (ended, after) = stamps
    done = chunks - 1 - skipped
    return {
        "engines": engines,
        "chunks": done,
        "chunks_per_second": round(done / (ended - began), 2),
        "chunks_per_second_of_a_driver_with_its_own_core": round(
            done / (after["driver"] - before["driver"]), 1
        ),
        "cpu": {name: round((after[name] - before[name]) / done, 6) for name in after},
        "reader_and_tokeniser_are_one": any("read)->Map(Tokeniser" in title for title in titles),
    }


def tree_cpu() -> dict[str, float]:
    """CPU seconds of this process, of Ray's servers below it, and of all others below it."""
    taken = {"driver": time.process_time(), "ray servers": 0.0, "workers": 0.0}
    for process in psutil.Process().children(recursive=True):
        try:
            times, name = process.cpu_times(), process.name()
        except psutil.Error:
            continue
        taken["ray servers" if name in ("raylet", "gcs_server") else "workers"] += times.user + times.system
    return taken
