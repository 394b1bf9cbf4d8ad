"""A sweep's output as its state: what it is a sweep of, and which chunks of questions have been answered.

sweep.json                   the sweep's identity, its random id, versions, the number of chunks
answers-{chunk}-{id}.parquet a chunk of questions each; which are there is how far the sweep is
effects.csv                  what the command made of them
_SUCCESS                     all are there

A chunk gets its name when it is whole, and only once, so two commands that write the same sweep lose work but
no row. Chunks of another id are nobody's: readers leave them out.
"""

import io
import json
import secrets
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.errors import InputError
from tuco_vllm.records import STATE, SUCCESS
from tuco_vllm.store import Store
from tuco_vllm.store.local import SCRATCH

SWEEP = "sweep.json"
ANSWERS = "answers-*.parquet"
EFFECTS = "effects.csv"

Identity = dict[str, Any]
"""Setting -> JSON value: all that an answer depends on."""


class SweepDirectory:
    """One sweep's output."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._sweep: dict[str, Any] = {}

    def holds(self, identity: Identity) -> bool:
        """Whether this very sweep is here, finished or not. Raises InputError where another's files are."""
        self._expect_no_job()
        try:
            sweep = json.loads(self.store.read(SWEEP) or "null")
        except ValueError as error:
            raise InputError(f"cannot read {self.store.where}/{SWEEP}: {error} (or --overwrite)") from error
        if sweep is None:
            if self._parts():
                raise InputError(f"{self.store.where} holds answers without {SWEEP}: choose another --out")
            return False
        old = sweep.get("identity") if isinstance(sweep, dict) else None
        if not isinstance(old, dict) or not isinstance(sweep.get("sweep"), str):
            raise InputError(
                f"{self.store.where}/{SWEEP} is no sweep's: choose another --out, or --overwrite"
            )
        if differs := difference(old, identity):
            raise InputError(
                f"{self.store.where} holds another sweep ({differs}): choose another --out, "
                "or start anew with --overwrite"
            )
        self._sweep = sweep
        return True

    def expect_free(self) -> None:
        """Raises InputError where an --overwrite would stand beside a run of tuco score."""
        self._expect_no_job()

    def begin(self, identity: Identity, about: Mapping[str, Any]) -> None:
        """Write down what is swept; ``about`` is for people and readers."""
        sweep = {"sweep": secrets.token_hex(4), **about, "identity": identity}
        self.store.create(SWEEP, json.dumps(sweep, indent=1).encode())
        self.holds(identity)  # another command may have been first, with a sweep of its own

    def overwrite(self) -> None:
        """Remove an earlier sweep's files, its mark of success first."""
        self.store.delete(SUCCESS)
        self.store.delete(*self._parts(), EFFECTS, SWEEP)

    def missing(self, chunks: int) -> list[int]:
        """The chunks that have no answers yet, or not all of what was written."""
        there = self.store.list("")
        names = map(self._part, range(chunks))
        return [number for number, name in enumerate(names) if not (there.get(name) and self._is_whole(name))]

    @property
    def is_finished(self) -> bool:
        """Whether the sweep is marked complete."""
        return self.store.read(SUCCESS) is not None

    def clear_scratch(self) -> None:
        """Remove what a kill has left half-written."""
        self.store.delete(*self.store.list(SCRATCH))

    def write(self, number: int, answers: pa.Table) -> None:
        """The answers of a chunk, whole or not at all."""
        file = io.BytesIO()
        pq.write_table(answers.replace_schema_metadata(self._metadata(answers)), file, compression="zstd")
        name = self._part(number)
        if not self.store.create(name, file.getvalue()) and not self._is_whole(name):
            self.store.replace(name, file.getvalue())

    def finish(self) -> None:
        """Mark the sweep complete."""
        self.store.replace(SUCCESS, b"")

    def _metadata(self, answers: pa.Table) -> dict[bytes, bytes]:
        return {**(answers.schema.metadata or {}), b"tuco.sweep": self._sweep["sweep"].encode()}

    def _is_whole(self, name: str) -> bool:
        """Whether a file has its end: a power cut may leave a name with less behind it, or nothing."""
        with self.store.open(name) as file:
            try:
                pq.read_metadata(file)
            except (pa.ArrowException, OSError):
                return False
        return True

    def _part(self, number: int) -> str:
        return f"answers-{number:05d}-{self._sweep['sweep']}.parquet"

    def _parts(self) -> list[str]:
        return sorted(name for name in self.store.list("") if fnmatch(name, ANSWERS))

    def _expect_no_job(self) -> None:
        self.store.look()
        if self.store.read(f"{STATE}/job.json") is not None:
            raise InputError(f"{self.store.where} holds a tuco score: choose another --out")


def difference(old: Identity, new: Identity) -> str | None:
    """The first thing that differs, in words; None where both are the same sweep."""
    for name in {**new, **old}:
        before, now = old.get(name), new.get(name)
        if before != now:
            if name in ("pt", "ft"):
                return f"the {name.upper()} model is another one"
            if name == "inputs":
                return "its files, or what is in them, were others"
            return f"{name} was {json.dumps(before)} and is {json.dumps(now)}"
    return None
