"""One engine, fed by several chunks at once, replaced when it dies.

Several callers wait in ``score`` while one thread owns the engine: the next chunk's prompts are in its queue
before the last of this one's are done, so it never runs dry between chunks.

When the engine dies, the prompts that it was running are suspects: it takes them in order, so they are the
oldest that it had (where PT runs on streams of its own as well, of each: then it may take some deaths more).
A new engine runs the suspects one at a time: the one that kills this engine too has killed two, and is set
aside with its error; all others are scored. A death while nothing was at fault (out of memory, a kill by
hand) costs the time of this and nothing else.
"""

from __future__ import annotations  # torch's types below are for the checker only

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from tuco_vllm.errors import EngineError, EngineStartError
from tuco_vllm.score_requests import Adapted, EngineInput, RowScores

if TYPE_CHECKING:
    from torch import Tensor

    Result = Tensor | RowScores


class SetAside(str):
    """Why a row has no score that two engines have died on: its error."""


MOST_SUSPECTS = 1024
"""So many prompts are run alone after a death at most, whatever the engine runs at a time: the rest are
scored as before, and should the engine die again its oldest are suspects in their turn."""

DEATHS_IN_A_ROW = 8
"""So many engines may die without one prompt scored between them; then the fault is not the prompts'."""


_START_TRIES = 3
"""So often is the start of a new engine tried: what the dead one held may not be free yet."""


class Scoring(Protocol):
    """What a feeder uses of ``engine.scorer.Scorer``."""

    max_num_seqs: int
    """How many prompts it runs at a time."""

    def submit(self, asked: EngineInput | Adapted) -> str:
        """Put a prompt into the queue. Returns the request's name; raises EngineError if the engine died."""

    def step(self) -> list[tuple[str, Result]]:
        """Let the engine work. Returns what it has finished; raises EngineError if the engine died."""

    def close(self) -> None:
        """End the engine."""


@dataclass
class _Work:
    """One call of ``score``."""

    prompts: Sequence[EngineInput | Adapted]
    results: list[Result | str]
    left: int
    done: Future[list[Result | str]] = field(default_factory=Future)

    def deliver(self, place: int, result: Result | str) -> None:
        self.results[place] = result
        self.left -= 1
        if self.left == 0:
            self.done.set_result(self.results)


_Item = tuple[_Work, int]
"""A work's prompt at a place."""


class Feeder:
    """Scores prompts for many threads with one engine at a time.

    Args:
        start: starts an engine. Called at once, and again for every engine that died.

    ``starts`` counts the engines started, ``busy_seconds`` the time in which one had work. Raises what
    ``start`` raises.
    """

    def __init__(self, start: Callable[[], Scoring]) -> None:
        self._start = start
        self._engine = start()
        self.starts = 1
        self.busy_seconds = 0.0
        self._deaths = 0
        self._incoming: SimpleQueue[_Work | None] = SimpleQueue()
        self._waiting: deque[_Item] = deque()  # not yet given to the engine
        self._in_flight: dict[str, _Item] = {}
        self._suspects: deque[_Item] = deque()  # to be run alone
        self._thread = Thread(target=self._run, name="feeder", daemon=True)
        self._thread.start()

    def score(self, prompts: Sequence[EngineInput | Adapted]) -> list[Result | str]:
        """What the engine says of each prompt, or a SetAside. Waits; thread-safe.

        Raises EngineError when engines go on dying, or a new one does not start.
        """
        if not prompts:
            return []
        work = _Work(prompts, [""] * len(prompts), len(prompts))
        self._incoming.put(work)
        return work.done.result()

    def close(self) -> None:
        """End the engine, after the prompts that it has. Idempotent."""
        self._incoming.put(None)
        self._thread.join()
        self._engine.close()

    def _run(self) -> None:
        while (work := self._incoming.get()) is not None:
            began = time.monotonic()
            self._accept(work)
            try:
                while self._waiting or self._in_flight or self._suspects:
                    if self._suspects and not self._in_flight:
                        self._try_alone()
                    else:
                        if not self._suspects:
                            self._take_incoming()
                            self._fill()
                        self._step()
                    now = time.monotonic()
                    self.busy_seconds += now - began
                    began = now
            except BaseException as error:  # callers in other threads must hear of it, whatever it is
                self._fail(error)

    def _take_incoming(self) -> None:
        with suppress(Empty):
            while (work := self._incoming.get_nowait()) is not None:
                self._accept(work)
            self._incoming.put(None)  # close() waits for what is in flight

    def _fill(self) -> None:
        while self._waiting:
            work, place = self._waiting[0]
            try:
                request = self._engine.submit(work.prompts[place])
            except EngineError:
                return  # step() will say so too
            self._in_flight[request] = self._waiting.popleft()

    def _step(self) -> None:
        try:
            for request, norms in self._engine.step():
                self._deliver(self._in_flight.pop(request), norms)
        except EngineError as death:
            items = list(self._in_flight.values())
            self._in_flight.clear()
            most = min(self._engine.max_num_seqs, MOST_SUSPECTS)
            self._suspects.extend(items[:most])
            self._waiting.extendleft(reversed(items[most:]))
            self._replace(death)

    def _try_alone(self) -> None:
        work, place = self._suspects[0]
        try:
            self._engine.submit(work.prompts[place])
            while not (finished := self._engine.step()):
                pass
            self._deliver(self._suspects.popleft(), finished[0][1])
        except EngineError as death:
            self._suspects.popleft()
            work.deliver(place, SetAside(f"the engine died twice on this row: {death}"))
            self._replace(death)

    def _deliver(self, item: _Item, norms: Result) -> None:
        work, place = item
        work.deliver(place, norms)
        self._deaths = 0

    def _replace(self, death: EngineError) -> None:
        self._deaths += 1
        if self._deaths >= DEATHS_IN_A_ROW:
            raise EngineError(
                f"{self._deaths} engines died one after the other without scoring a row "
                f"(the last: {death}); rows already written are kept"
            )
        self._engine.close()
        for left in reversed(range(_START_TRIES)):
            try:
                self._engine = self._start()
                break
            except EngineError as error:
                if not left:
                    raise EngineStartError(str(error)) from error
        self.starts += 1

    def _accept(self, work: _Work) -> None:
        self._waiting.extend((work, place) for place in range(len(work.prompts)))

    def _fail(self, error: BaseException) -> None:
        items = [*self._suspects, *self._in_flight.values(), *self._waiting]
        for held in (self._suspects, self._in_flight, self._waiting):
            held.clear()
        for work in {id(work): work for work, _ in items}.values():
            work.done.set_exception(error)
