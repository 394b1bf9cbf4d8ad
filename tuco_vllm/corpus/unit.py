"""A unit: rows that one worker does end to end, and that become one part; what became of it, in counts."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that follow each other, of one file or of several small ones, under one fine-tune."""

    number: int
    """From 0; units, and so parts by name, are in input order."""
    file: int
    """The file's place among the job's inputs."""
    first: int
    """The number of the first record in its file, from 0."""
    row: int
    """The number of the first row in the output, from 0."""
    rows: int
    offset: int
    """Where the first record begins in the file's decoded content, in bytes; 0 in Parquet."""
    ft: int = 0
    """The place, among the job's fine-tunes, of the one that the rows are scored under."""
    more: tuple[int, ...] = ()
    """Rows of the files that follow that one: small files, whole, which share a unit."""


@dataclass(frozen=True, slots=True)
class UnitDone:
    """What has come of a unit: all of it once its part is there, till then so far."""

    unit: int
    rows: int
    errors: int
    prompt_tokens: int
    size: int
    """Bytes of the part."""
    set_aside: tuple[int, ...] = ()
    """The numbers, in the output, of the rows that processes died on; they are among the errors."""


@dataclass
class Counts:
    """How far a job has come."""

    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    set_aside: list[int] = field(default_factory=list)
    """The numbers of the rows that processes died on; they are among the errors."""

    @classmethod
    def of(cls, done: Iterable[UnitDone]) -> Self:
        """The sum of these units."""
        return cls().with_(done)

    def add(self, done: UnitDone) -> None:
        """Count a unit."""
        self.rows += done.rows
        self.errors += done.errors
        self.prompt_tokens += done.prompt_tokens
        self.set_aside += done.set_aside

    def with_(self, more: Iterable[UnitDone]) -> Self:
        """A copy that has these units as well."""
        counts = replace(self, set_aside=[*self.set_aside])
        for done in more:
            counts.add(done)
        return counts
