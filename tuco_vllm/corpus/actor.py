"""A worker in an actor of Ray's, and how its process makes what it needs: an engine and an encoder."""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import ray

from tuco_vllm.adapter import Adapter
from tuco_vllm.config import Checkpoint, ModelPair
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.feeder import Feeder
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.unit import Unit, UnitDone
from tuco_vllm.corpus.worker import CloseLook, EngineFacts, Report, Work, Worker
from tuco_vllm.engine.start_stages import Start
from tuco_vllm.errors import InputError
from tuco_vllm.prompts import PromptEncoder, load_tokenizer, template_in
from tuco_vllm.records import STATE
from tuco_vllm.shared_tokens import SharedTokens


def engine_starter(
    pair: ModelPair, cluster: Cluster, engine_args: dict[str, Any], others: Sequence[Checkpoint] = ()
) -> Callable[[int, int], Any]:
    """Starts an engine (an ``engine.scorer.Scorer``) in the process that calls it, given its place among the
    engines of its machine, and their number. Picklable; ``engine_args`` are vLLM's, as users know them.
    ``others``: the fine-tunes that it has room for beside the pair's."""
    if cluster.ranks > 1:
        engine_args = {
            **engine_args,
            "tensor_parallel_size": cluster.tensor_parallel_size,
            "pipeline_parallel_size": cluster.pipeline_parallel_size,
            "distributed_executor_backend": "mp",  # inside a Ray actor vLLM would ask Ray for its ranks
        }
    adapters = [ft.adapter for ft in (pair.ft, *others) if ft.adapter is not None]
    return partial(_start_engine, pair, engine_args, adapters)


def encoder_maker(job: ScoreJob, pair: ModelPair) -> Callable[[], PromptEncoder]:
    """Makes the job's encoder in the process that calls it. Picklable."""
    if job.chat_template not in ("auto", "none"):  # the file is where the command runs
        job = replace(job, chat_template=template_in(job.chat_template))
    return partial(_make_encoder, job, pair)


def _start_engine(
    pair: ModelPair,
    engine_args: dict[str, Any],
    adapters: Sequence[Adapter],
    place: int,
    engines_on_node: int,
) -> Any:
    from tuco_vllm.engine.adapter_requests import room_for
    from tuco_vllm.engine.arguments import share_cpu
    from tuco_vllm.engine.scorer import Scorer

    if len(adapters) > 1:  # a worker's two units may be under different ones
        rank = max(map(room_for, adapters))
        engine_args = {"max_loras": 2, "max_lora_rank": rank, **engine_args}
    return Scorer(pair, **share_cpu(place, engines_on_node, engine_args))


def _make_encoder(job: ScoreJob, pair: ModelPair) -> PromptEncoder:
    tokenizer = load_tokenizer(pair.ft.tokenizer_directory, trust_remote_code=job.trust_remote_code)
    encoder = job.encoder(tokenizer, pair.ft.config.get("vocab_size"))
    encoder.shared = SharedTokens(pair, tokenizer, trust_remote_code=job.trust_remote_code)
    return encoder


class WorkerActor:
    """A worker in a process of its own. Ray runs its methods in threads: two units, and questions.

    Args:
        start_engine: see ``engine_starter``.
        make_encoder: see ``encoder_maker``.
    """

    def __init__(
        self, start_engine: Callable[[int, int], Any], make_encoder: Callable[[], PromptEncoder]
    ) -> None:
        # Ray sets it to the actor's one slot; how many threads an engine has is not Ray's to say.
        os.environ.pop("OMP_NUM_THREADS", None)
        # A batch of texts would go over all cores, beside an engine that computes on them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._start_engine, self._make_encoder = start_engine, make_encoder
        self._start: Start | None = None
        self._begun = Event()

    def node(self) -> str:
        """The id of the node that the process is on."""
        return str(ray.get_runtime_context().get_node_id())

    def start(self, place: int, engines: int) -> tuple[EngineFacts, str]:
        """Start the engine. Returns what it holds, and what its start took, in words."""
        facts = None

        def start() -> Any:
            nonlocal facts
            with Start() as self._start:
                engine = self._start_engine(place, engines)
            facts = EngineFacts.of(engine)
            return engine

        self._encoder = self._make_encoder()
        self._feeder = Feeder(start)
        self._ready = time.monotonic()
        assert facts is not None
        self._facts = facts
        return facts, self.starting()

    def starting(self) -> str:
        """How far the engine's start is, in words."""
        return "" if self._start is None else self._start.text()

    def begin(self, work: Work) -> None:
        """What the units belong to that come from now on.

        Raises InputError where the output is not what it is to the driver, as a folder may be that machines
        do not share: parts would lie where nobody looks for them.
        """
        said = work.store.read(f"{STATE}/job.json")
        if said is None or json.loads(said).get("job") != work.job:
            where = f"--out {work.store.where} is another place on {socket.gethostname()}"
            raise InputError(f"{where}: name a folder that all machines share, or an object store")
        self._worker = Worker(self._feeder, self._encoder, self._facts, work)
        self._begun.set()

    def in_hand(self) -> list[UnitDone]:
        """How far each unit is that is being done."""
        return list(self._worker.in_hand.values()) if self._begun.is_set() else []

    def score(
        self,
        number: int,
        unit: Unit,
        watch: Any = None,
        poison: frozenset[int] = frozenset(),
        unread: frozenset[int] = frozenset(),
    ) -> Report:
        """Do a unit as engine ``number``; with ``watch``, an actor, a row at a time."""
        self._begun.wait()
        look = None
        if watch is not None:

            def tell(row: int | None, read: bool) -> None:
                ray.get(watch.at.remote(unit.number, row, read))

            look = CloseLook(tell, poison, unread)
        done = self._worker.score(unit, look)
        return Report(
            done,
            number,
            f"{socket.gethostname()}:{os.getpid()}",
            self._feeder.starts,
            self._feeder.busy_seconds,
            time.monotonic() - self._ready,
        )
