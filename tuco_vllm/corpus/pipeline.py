"""A corpus through Ray Data: read -> tokenise on CPU actors -> score on engine actors -> back, in order.

    Source --(one task)--> source chunks --(actors)--> token chunks --(engines)--> scored chunks --> driver

Which guarantee comes from where:

- Memory does not grow with the corpus: Ray Data's streaming execution and back-pressure. Each of its rows
  is one chunk (``chunks.py``) here, and its block size is set so low that a block is one row.
- A process that dies is replaced and its chunk done again: Ray (actor restarts, task retries, lineage), for
  ever. So ``board.py`` counts: after two deaths an engine takes the chunk's rows one by one, and one that is
  twice alone with its process when that dies is set aside; what finds no end in ``_ATTEMPTS`` ends the job.
- An engine that dies inside its actor is replaced, and a row that kills two is set aside: ``feeder.py``.
- Every row exactly once, in order: Ray Data's ``preserve_order`` hands chunks to the driver in reading order,
  the driver checks that each begins where the last one ended, and only the driver writes (``writer.py``,
  ``publish.py``). What is durable is always a beginning of the corpus, so the state of a job is one number,
  whatever the size of the corpus, and no id is ever held or compared.

Not used: Ray Data's Parquet sink and its checkpoints. They need a unique id column, keep all ids in the
object store when a job is resumed, and write in no order; a number of rows is enough here. A zombie of an
earlier run cannot write, as no worker can.
"""

import logging
import pickle
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from tuco_vllm.config import ModelPair
from tuco_vllm.corpus.actors import EngineActor, Tokeniser, read
from tuco_vllm.corpus.board import Board, EngineFacts
from tuco_vllm.corpus.chunks import ScoredChunk, Source, from_bytes
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.run import ScoreJob
from tuco_vllm.errors import EngineError, InputError, TucoError
from tuco_vllm.prompts import PromptEncoder, load_tokenizer, template_in
from tuco_vllm.score_requests import NO_MORE, MoreScores
from tuco_vllm.shared_tokens import SharedTokens

_CHUNKS_IN_AN_ENGINE = 3
"""One that is finishing, one that keeps the engine full meanwhile, one on its way."""

_SILENT_SECONDS = 4 * 3600.0
"""After so long without any progress Ray Data gives up: a large model on a slow disk takes time to load."""

_THREADS_SECONDS = 20.0
"""How long Ray Data's threads may take to end."""

_STATES_SECONDS = 1.0
"""How old the engines' states may be."""


class Pipeline:
    """The stages on a Ray cluster; a context manager, since it may have to start that cluster.

    Args:
        cluster: engines and where they run.
        start_engine: picklable; starts an engine (an ``engine.scorer.Scorer``) in the process that calls it,
            given its place among the engines of its machine, and their number.
        make_encoder: picklable; makes the prompts' encoder, in the process that calls it.
        layers, prompt, more: which columns the output has.

    Entering it raises InputError where the cluster cannot be reached or has no room for so many engines.
    """

    def __init__(
        self,
        cluster: Cluster,
        start_engine: Callable[[int, int], Any],
        make_encoder: Callable[[], PromptEncoder],
        *,
        layers: bool = True,
        prompt: bool = True,
        more: MoreScores = NO_MORE,
    ) -> None:
        self._cluster = cluster
        self._start_engine, self._make_encoder = start_engine, make_encoder
        self._columns: dict[str, Any] = {"layers": layers, "prompt": prompt, "more": more}
        self._exits = ExitStack()
        self._scoring: Generator[ScoredChunk, None, None] | None = None
        self._states: dict[int, str] = {}
        self._asked = -_STATES_SECONDS

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(self._cluster.joined())
            self._threads = set(threading.enumerate())
            self._resources = self._cluster.engine_resources()
            self._board: Any = (
                ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
            )
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # Ray Data ends its execution with its iterator, and waits for ever if Ray is gone by then. Its
        # threads have to end too: one that finds Ray gone ends this process with exit code 1, wordlessly.
        if self._scoring is not None:
            self._scoring.close()
        until = time.monotonic() + _THREADS_SECONDS
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        ray.kill(self._board)
        self._exits.close()

    def scored(self, source: Source) -> Iterator[ScoredChunk]:
        """Every row of ``source``, in order; once. Raises InputError and EngineError as the stages do."""
        self._scoring = self._chunks(source)
        return self._scoring

    def _chunks(self, source: Source) -> Generator[ScoredChunk, None, None]:
        dataset = self._dataset(source)
        try:
            # Not iter_batches: it fetches ahead in a thread that does not end with the iterator.
            for bundle in dataset.iter_internal_ref_bundles():
                for block in bundle.blocks:
                    for row in ray.get(block.ref).to_pylist():
                        yield ScoredChunk(table=from_bytes(row.pop("chunk")), **row)
        except Exception as error:  # Ray Data wraps what stages raise in errors of several kinds
            raise _own_error(error) from error

    def facts(self) -> EngineFacts:
        """What the engines hold; waits for the first."""
        facts: EngineFacts = ray.get(self._board.facts.remote())
        return facts

    def engine_states(self) -> dict[int, str]:
        """Engine number -> "starting" or "ready"."""
        if time.monotonic() - self._asked > _STATES_SECONDS:
            self._asked = time.monotonic()
            with suppress(ray.exceptions.RayError):  # a board that is being replaced is not worth waiting for
                self._states = ray.get(self._board.states.remote(), timeout=_STATES_SECONDS)
        return self._states

    def engine_starts(self) -> dict[int, str]:
        """Engine number -> how far its start is, or how it went, in words. Any thread may ask."""
        with suppress(ray.exceptions.RayError):
            starts: dict[int, str] = ray.get(self._board.starts.remote(), timeout=_STATES_SECONDS)
            return starts
        return {}

    def _dataset(self, source: Source) -> Any:
        _set_up_ray_data(debug=self._cluster.debug)
        tokenisers = ActorPoolStrategy(min_size=1, max_size=self._cluster.tokenisers)
        engines = ActorPoolStrategy(
            size=self._cluster.engines,
            max_concurrent_calls_per_actor=_CHUNKS_IN_AN_ENGINE,
            max_tasks_in_flight_per_actor=_CHUNKS_IN_AN_ENGINE + 1,
            enable_true_multi_threading=True,
        )
        engine = (self._board, self._start_engine, self._cluster.engines_on_a_node(), self._columns)
        encoder = (self._board, self._make_encoder, self._columns["more"].relative_reward)
        return (
            ray.data.from_items([{"source": pickle.dumps(source)}])
            # One reader parses several times what the engines of a rack can score, and in order. It reserves
            # less than a tokeniser so that Ray Data does not fuse the two into one process.
            .flat_map(read, compute=TaskPoolStrategy(size=1), num_cpus=0.5)
            .map(Tokeniser, compute=tokenisers, fn_constructor_args=encoder, num_cpus=1)
            .map(EngineActor, compute=engines, fn_constructor_args=engine, **self._resources)
        )


def pipeline_of(job: ScoreJob, pair: ModelPair, cluster: Cluster, engine_args: dict[str, Any]) -> Pipeline:
    """The pipeline that scores ``job`` with ``pair``; ``engine_args`` are vLLM's, as users know them."""
    if cluster.ranks > 1:
        engine_args = {
            **engine_args,
            "tensor_parallel_size": cluster.tensor_parallel_size,
            "pipeline_parallel_size": cluster.pipeline_parallel_size,
            "distributed_executor_backend": "mp",  # inside a Ray actor vLLM would ask Ray for its ranks
        }
    if job.chat_template not in ("auto", "none"):  # the file is where the command runs
        job = replace(job, chat_template=template_in(job.chat_template))
    return Pipeline(
        cluster,
        partial(_start_engine, pair, engine_args),
        partial(_make_encoder, job, pair),
        layers=job.layers,
        prompt=job.prompt,
        more=job.more,
    )


def _start_engine(pair: ModelPair, engine_args: dict[str, Any], place: int, engines_on_node: int) -> Any:
    from tuco_vllm.engine.arguments import share_cpu
    from tuco_vllm.engine.scorer import Scorer

    return Scorer(pair, **share_cpu(place, engines_on_node, engine_args))


def _make_encoder(job: ScoreJob, pair: ModelPair) -> PromptEncoder:
    tokenizer = load_tokenizer(pair.ft.tokenizer_directory, trust_remote_code=job.trust_remote_code)
    encoder = job.encoder(tokenizer, pair.ft.config.get("vocab_size"))
    encoder.shared = SharedTokens(pair, tokenizer, trust_remote_code=job.trust_remote_code)
    return encoder


def _set_up_ray_data(*, debug: bool) -> None:
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # bytes: one row, one chunk, one block
    context.enable_progress_bars = debug
    context.print_on_execution_start = debug
    context.raise_original_map_exception = False
    context.execution_no_progress_timeout_s = _SILENT_SECONDS
    if not debug:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _own_error(error: BaseException) -> TucoError:
    """The error that a stage raised, out of Ray's wrapping; else one that says what Ray said."""
    chain: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if isinstance(current, TucoError):
            return type(current)(str(current))
        if current is not None and current not in chain:
            chain.append(current)
            queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    said = "\n".join(map(str, chain))
    # Of an actor that could not be made, and of tasks that are tried again, there is a traceback's text only.
    if (own := re.search(r"tuco_vllm\.errors\.(\w+): (.+)", said)) is not None:
        return InputError(own[2]) if own[1] == "InputError" else EngineError(own[2])
    return EngineError(f"the pipeline failed: {' '.join(said.split())[:500]}")
