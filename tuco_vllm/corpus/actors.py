"""What runs in Ray's worker processes: the stages, each around what its process holds.

A chunk travels as a row of Ray Data: the number of its first row in the corpus, and its Arrow table as bytes.
"""

from __future__ import annotations  # torch's types below are for the checker only

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

import ray

from tuco_vllm.corpus.board import EngineFacts, Trial
from tuco_vllm.corpus.chunks import Source, from_bytes, to_bytes
from tuco_vllm.corpus.feeder import Feeder, SetAside
from tuco_vllm.corpus.stages import scored, tokenised
from tuco_vllm.engine.start_stages import Start
from tuco_vllm.errors import EngineError
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.score_requests import EngineInput

if TYPE_CHECKING:
    from tuco_vllm.corpus.feeder import Result

_TRUSTED = 2
"""A chunk is scored as a whole so often; if the process died each time, row by row."""

_ATTEMPTS = 12
"""So often may processes die on a chunk, besides alone with one of its rows. Other chunks are in the same
process, so their killers count here too."""

_KILLERS = 8
"""With more rows of a chunk than these that a process died alone with, the rows are not to blame."""

_REMIND_SECONDS = 2.0


def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Stage 1, a task: a source's chunks."""
    source: Source = pickle.loads(row["source"])
    first = source.skip
    for chunk in source.chunks():
        yield {"first": first, "chunk": to_bytes(chunk)}
        first += chunk.num_rows


def _begin(board: Any, stage: str, row: dict[str, Any]) -> Trial:
    trial: Trial = ray.get(board.begin.remote(stage, row["first"]))
    if trial.attempts > _ATTEMPTS or len(trial.suspects + trial.poison) > _KILLERS:
        alone = len(trial.suspects) + 2 * len(trial.poison)
        raise EngineError(
            f"the process that was to {stage} the rows from {row['first']} on died "
            f"{trial.attempts - 1 + alone} times; rows already written are kept"
        )
    return trial


class Tokeniser:
    """Stage 2, an actor: holds FT's tokenizer."""

    def __init__(self, board: Any, make_encoder: Callable[[], PromptEncoder], rewarded: bool) -> None:
        self._board, self._rewarded = board, rewarded
        self._encoder = make_encoder()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        _begin(self._board, "tokenise", row)
        if self._encoder.max_model_len is None:  # known when an engine has started
            self._encoder.max_model_len = ray.get(self._board.facts.remote()).max_model_len
        chunk = tokenised(from_bytes(row["chunk"]), self._encoder, rewarded=self._rewarded)
        self._board.end.remote("tokenise", row["first"])
        return {"first": row["first"], "chunk": to_bytes(chunk)}


class EngineActor:
    """Stage 3, an actor: holds one engine and has it work on several chunks at once."""

    def __init__(
        self,
        board: Any,
        start_engine: Callable[[int, int], Any],
        engines_on_node: int,
        columns: dict[str, Any],
    ) -> None:
        # Ray sets it to the actor's one slot; how many threads an engine has is not Ray's to say.
        os.environ.pop("OMP_NUM_THREADS", None)
        context = ray.get_runtime_context()
        self._process = f"{socket.gethostname()}:{os.getpid()}"
        self._board, self._columns = board, columns
        self._facts: EngineFacts | None = None
        self._start: Start | None = None

        def start() -> Any:
            self._facts = None
            self._number, place = ray.get(board.arrive.remote(context.get_actor_id(), context.get_node_id()))
            with Start() as self._start:
                engine = start_engine(place % engines_on_node, engines_on_node)
            board.starting.remote(self._number, self._start.text())
            self._facts = EngineFacts(
                engine.dtype,
                engine.row_dtype,
                engine.max_model_len,
                engine.num_layers,
                engine.vllm_version,
                ray.__version__,
            )
            board.ready.remote(self._number, self._facts)
            return engine

        Thread(target=self._remind, name="remind", daemon=True).start()
        self._feeder = Feeder(start)
        self._ready = time.monotonic()

    def _remind(self) -> None:
        # A board that was replaced has forgotten the facts, and a tokeniser that was may be waiting for them.
        while True:
            time.sleep(_REMIND_SECONDS)
            if self._facts is not None:
                self._board.ready.remote(self._number, self._facts)
            elif self._start is not None:
                self._board.starting.remote(self._number, self._start.text())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        trial = _begin(self._board, "score", row)
        engine = self._feeder if trial.attempts <= _TRUSTED else _OneByOne(self, trial, row["first"])
        chunk = scored(from_bytes(row["chunk"]), engine, **self._columns)
        self._board.end.remote("score", row["first"])
        return {
            "first": row["first"],
            "chunk": to_bytes(chunk),
            "engine": self._number,
            "process": self._process,
            "starts": self._feeder.starts,
            "busy_seconds": self._feeder.busy_seconds,
            "ready_seconds": time.monotonic() - self._ready,
        }

    def score_one_by_one(
        self, prompts: Sequence[EngineInput], trial: Trial, first: int
    ) -> list[Result | str]:
        """The prompts' norms, the board told before each of them, those of known poison left out."""
        poison = SetAside("the engine's process died twice on this row")
        results: list[Result | str] = [poison] * len(prompts)
        places = [place for place in range(len(prompts)) if place not in trial.poison]

        def tell(index: int) -> None:
            ray.get(self._board.alone.remote("score", first, places[index]))

        for place, norms in zip(
            places, self._feeder.score([prompts[p] for p in places], alone=tell), strict=True
        ):
            results[place] = norms
        ray.get(self._board.alone.remote("score", first, None))  # what follows is no row's fault
        return results


@dataclass(frozen=True)
class _OneByOne:
    """The engine for a chunk on which processes have died."""

    engine: EngineActor
    trial: Trial
    first: int

    def score(self, prompts: Sequence[EngineInput]) -> list[Result | str]:
        return self.engine.score_one_by_one(prompts, self.trial, self.first)
