"""A worker: one engine, and all that a unit needs from its records to its part.

    records --(ahead, a thread)--> token chunks --(feeder)--> scored chunks --> part --> the store

It runs in an actor of Ray's; tests run it in their own process. Two units run in it at a time: one keeps the
engine full while the other begins or ends. What is done twice does no harm: a part has one name, and whoever
comes second finds it there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa

from tuco_vllm.config import Checkpoint
from tuco_vllm.corpus.chunks import SCORED_COLUMNS, SET_ASIDE, SOURCE_COLUMNS, UnitReader
from tuco_vllm.corpus.columns import Columns, ExtraColumn
from tuco_vllm.corpus.feeder import Feeder
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.corpus.part import PartWriter, proof_of
from tuco_vllm.corpus.stages import scored, tokenised
from tuco_vllm.corpus.unit import Unit, UnitDone
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.records import part_name
from tuco_vllm.score_requests import NO_MORE, MoreScores
from tuco_vllm.store import OutputError, Store, refusals


@dataclass(frozen=True)
class Work:
    """What is the same for all units of a job, wherever they are done. Picklable."""

    store: Store
    job: str
    """The job's id, in every part's name and footer."""
    files: tuple[InputFile, ...]
    columns: Columns
    extras: tuple[ExtraColumn, ...]
    fts: tuple[Checkpoint, ...]
    """The fine-tunes, the engine's own first; the others are adapters of its base."""
    metadata: dict[str, str]
    """Of every part; what an engine knows is added."""
    responses: bool = False
    layers: bool = True
    prompt: bool = True
    more: MoreScores = NO_MORE

    def part(self, path: Path, unit: Unit, facts: EngineFacts) -> PartWriter:
        """A writer of the unit's part."""
        ft = self.fts[unit.ft]
        metadata = {
            **self.metadata,
            "tuco.ft": ft.name,
            "tuco.ft_fingerprint": ft.fingerprint,
            "tuco.job": self.job,
            "tuco.dtype": facts.dtype,
            "tuco.row_dtype": facts.row_dtype,
            "tuco.vllm_version": facts.vllm_version,
        }
        columns = {"layers": self.layers, "prompt": self.prompt, "responses": self.responses}
        several = len(self.fts) > 1
        with refusals(path):
            return PartWriter(path, unit, self.extras, metadata, **columns, more=self.more, several=several)


@dataclass(frozen=True)
class EngineFacts:
    """What is the same for all engines of a job, known once one has started."""

    dtype: str
    row_dtype: str
    max_model_len: int
    num_layers: int
    vllm_version: str

    @classmethod
    def of(cls, engine: Any) -> EngineFacts:
        """Those of an ``engine.scorer.Scorer``."""
        return cls(
            engine.dtype, engine.row_dtype, engine.max_model_len, engine.num_layers, engine.vllm_version
        )

    @classmethod
    def unknown(cls, dtype: str) -> EngineFacts:
        """Where there was nothing to score, and so no engine."""
        return cls(dtype, dtype, 0, 0, "")


@dataclass(frozen=True)
class CloseLook:
    """How a unit is done on which processes have died: a row at a time, ``watch`` told before each.

    ``watch`` is told a row's place in the unit, and whether the row has been read; None behind the last. Rows
    in ``poison`` are not scored, and those of them in ``unread`` not even read: they get an error.
    """

    watch: Callable[[int | None, bool], object]
    poison: frozenset[int] = frozenset()
    unread: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Report:
    """A unit that is done, and what the process that did it has done so far."""

    done: UnitDone
    engine: int = 0
    process: str = "here"
    """Host and process id."""
    starts: int = 1
    """Engines that the process has started: one, and one for each that died."""
    busy_seconds: float = 0.0
    ready_seconds: float = 0.0


@dataclass
class Worker:
    """An engine and FT's tokenizer, around a job's ``work``. Thread-safe."""

    feeder: Feeder
    encoder: PromptEncoder
    facts: EngineFacts
    work: Work
    _reader: UnitReader = field(init=False)
    _tokenising: Lock = field(default_factory=Lock)
    """Fast tokenizers raise "Already borrowed" in a second thread."""
    in_hand: dict[int, UnitDone] = field(default_factory=dict)
    """How far each unit is that is being done."""

    def __post_init__(self) -> None:
        self.encoder.max_model_len = self.facts.max_model_len
        self._reader = UnitReader(self.work.files, self.work.columns, self.work.extras)

    def score(self, unit: Unit, look: CloseLook | None = None) -> UnitDone:
        """Do a unit; its part is durable when this returns.

        Raises InputError where the input cannot be read or has changed, EngineError where engines go on
        dying, OutputError where the part cannot be written.
        """
        chunks = self._scored(unit) if look is None else self._scored_one_by_one(unit, look)
        try:
            with self.work.store.scratch() as path:
                with self.work.part(path, unit, self.facts) as part:
                    for chunk in chunks:
                        with refusals(path):
                            part.write(chunk)
                        self.in_hand[unit.number] = part.done
                    with refusals(path):
                        done = part.close()
                return self._published(unit, path, done)
        finally:
            self.in_hand.pop(unit.number, None)

    def _scored(self, unit: Unit) -> Iterator[pa.Table]:
        chunks = self._reader.chunks(unit)
        with ThreadPoolExecutor(1, "ahead") as ahead:
            following = ahead.submit(self._next_tokens, chunks)
            while (tokens := following.result()) is not None:
                following = ahead.submit(self._next_tokens, chunks)
                yield self._chunk_scored(tokens, unit)

    def _scored_one_by_one(self, unit: Unit, look: CloseLook) -> Iterator[pa.Table]:
        def before(place: int) -> None:
            look.watch(place, False)

        rows = self._reader.chunks(unit, chunk_rows=1, before=before, skip=look.unread)
        for place, row in enumerate(rows):
            if place not in look.poison:
                look.watch(place, True)
                yield self._chunk_scored(self._tokens(row), unit)
                continue
            row = row.set_column(SOURCE_COLUMNS.index("error"), "error", pa.array([SET_ASIDE]))
            chunk = self._chunk_scored(self._tokens(row), unit)
            yield chunk.set_column(SCORED_COLUMNS.index("set_aside"), "set_aside", pa.array([True]))
        look.watch(None, True)  # what follows is no row's fault

    def _next_tokens(self, chunks: Iterator[pa.Table]) -> pa.Table | None:
        chunk = next(chunks, None)
        return None if chunk is None else self._tokens(chunk)

    def _tokens(self, chunk: pa.Table) -> pa.Table:
        with self._tokenising:
            return tokenised(chunk, self.encoder, rewarded=self.work.more.relative_reward)

    def _chunk_scored(self, tokens: pa.Table, unit: Unit) -> pa.Table:
        work, ft = self.work, self.work.fts[unit.ft]
        return scored(
            tokens,
            self.feeder,
            layers=work.layers,
            prompt=work.prompt,
            more=work.more,
            under=ft.adapter if unit.ft else None,
            ft=ft.name if len(work.fts) > 1 else None,
        )

    def _published(self, unit: Unit, path: Path, done: UnitDone) -> UnitDone:
        store, name = self.work.store, part_name(unit.number, self.work.job)
        if store.publish(path, name):
            return done
        # Another attempt's, or this one's own whose answer was lost; after a power cut it may be torn.
        with suppress(FileNotFoundError), store.open(name) as file:
            there = proof_of(file, file.seek(0, os.SEEK_END), unit, self.work.job)
            if there is not None:
                return there
        store.delete(name)
        if store.publish(path, name):
            return done
        raise OutputError(f"cannot write {name} in {store.where}: others write it at the same time")
