"""The board on which a job's processes write what must outlive them: who is there, and who tries what.

It runs as one actor of the cluster (``pipeline.py``). No result depends on it: if it dies, a progress line
shows less, and a row that kills processes gets some more tries.
"""

import asyncio
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class EngineFacts:
    """What is the same for all engines of a job, known once one has started."""

    dtype: str
    row_dtype: str
    max_model_len: int
    num_layers: int
    vllm_version: str
    ray_version: str

    @classmethod
    def unknown(cls, dtype: str) -> "EngineFacts":
        """Where there was nothing to score, and so no engine."""
        return cls(dtype, dtype, 0, 0, "", "")


@dataclass(frozen=True)
class Trial:
    """How often a stage has begun with a chunk, and which of its rows it was alone with when it died.

    ``attempts`` leaves out those that ended alone with a row: their cause is known. ``suspects`` are rows of
    one such death, which may have had another cause; ``poison`` are those of two.
    """

    attempts: int = 0
    suspects: tuple[int, ...] = ()
    poison: tuple[int, ...] = ()
    alone_with: int | None = None

    def again(self) -> "Trial":
        """The next attempt, this one having died."""
        row = self.alone_with
        if row is None:
            return replace(self, attempts=self.attempts + 1)
        if row not in self.suspects:
            return Trial(self.attempts, (*self.suspects, row), self.poison)
        others = tuple(suspect for suspect in self.suspects if suspect != row)
        return Trial(self.attempts, others, (*self.poison, row))


class Board:
    """Engines by number, in order of arrival; the facts that the first of them reported; trials of chunks."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._states: dict[int, str] = {}
        self._starts: dict[int, str] = {}
        self._facts: EngineFacts | None = None
        self._known = asyncio.Event()
        self._trials: dict[tuple[str, int], Trial] = {}

    async def arrive(self, engine: str, node: str) -> tuple[int, int]:
        """An engine that is about to start: its number in the job, and its place on its node, from 0.

        ``engine`` names it also after its process has been replaced.
        """
        number = self._numbers.setdefault(engine, len(self._numbers))
        if self._places.get(engine, ("", 0))[0] != node:
            taken = {place for at, place in self._places.values() if at == node}
            self._places[engine] = (node, min(set(range(len(taken) + 1)) - taken))
        self._states[number] = "starting"
        return number, self._places[engine][1]

    async def starting(self, number: int, stages: str) -> None:
        """How far an engine's start is, in words; the last time when it has ended."""
        self._starts[number] = stages

    async def ready(self, number: int, facts: EngineFacts) -> None:
        """An engine has started; said again now and then, for a board that was replaced."""
        self._states[number] = "ready"
        self._facts = facts
        self._known.set()

    async def facts(self) -> EngineFacts:
        """What the engines hold. Waits for the first of them."""
        await self._known.wait()
        assert self._facts is not None
        return self._facts

    async def states(self) -> dict[int, str]:
        """Engine number -> "starting" or "ready"."""
        return dict(self._states)

    async def starts(self) -> dict[int, str]:
        """Engine number -> how far its start is, or how it went."""
        return dict(self._starts)

    async def nodes(self) -> list[str]:
        """The nodes that engines have come from."""
        return sorted({node for node, _ in self._places.values()})

    async def begin(self, stage: str, first: int) -> Trial:
        """A stage begins with the chunk whose first row is ``first``. Returns this trial."""
        trial = self._trials.get((stage, first), Trial()).again()
        self._trials[stage, first] = trial
        return trial

    async def alone(self, stage: str, first: int, row: int | None) -> None:
        """From here on a death is the fault of this row of the chunk; with None, of nobody known."""
        self._trials[stage, first] = replace(self._trials.get((stage, first), Trial()), alone_with=row)

    async def end(self, stage: str, first: int) -> None:
        """The stage is done with the chunk."""
        self._trials.pop((stage, first), None)
