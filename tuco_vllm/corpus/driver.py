"""A job's workers, in actors of Ray's: units to them, and what became of each.

Plain actors, not Ray Data: one process does a unit from its records to its part, so nothing streams between
processes, there is no order to keep, and a loop around ``ray.wait`` is enough.

Which guarantee comes from where:

- A row is written once: parts have one name, created if absent (``store/places.py``). So whatever is done
  twice here costs time only.
- A process that dies is replaced, and its units are done again. After a unit's first death it runs alone in
  its process, after two a row at a time; the row that is at hand when the third and the fourth die is set
  aside with its error. Nothing is tried without a bound.
- An engine that dies inside its process is replaced there; a row that kills two is set aside (``feeder.py``).
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from tuco_vllm.corpus.actor import WorkerActor
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.trials import Trial, Watch
from tuco_vllm.corpus.unit import Unit, UnitDone
from tuco_vllm.corpus.worker import EngineFacts, Report, Work
from tuco_vllm.corpus.worker_process import WorkerProcess
from tuco_vllm.errors import EngineError, EngineStartError, TucoError
from tuco_vllm.prompts import PromptEncoder

_UNITS_AT_A_TIME = 2
"""In a worker: one keeps its engine full while the other begins or ends."""

_STARTS = 4
"""So many engines of one worker in a row may fail to start, once there was one."""

_LOOK_SECONDS = 1.0
"""How long the loop waits for workers before it lets its caller look around."""

_WATCH_SECONDS = 30.0
"""How long the watch may take to answer: it may be about to be replaced."""

_ASK_SECONDS = 2.0
"""How often workers are asked how far they are: a unit may take minutes, and people watch."""


class Workers:
    """A job's workers on a Ray cluster; a context manager, since it may have to start that cluster.

    Args:
        cluster: engines and where they run.
        start_engine: see ``actor.engine_starter``.
        make_encoder: see ``actor.encoder_maker``.

    Entering it raises InputError where the cluster cannot be reached or has no room for so many engines.
    """

    def __init__(
        self,
        cluster: Cluster,
        start_engine: Callable[[int, int], Any],
        make_encoder: Callable[[], PromptEncoder],
    ) -> None:
        self._cluster = cluster
        self._arguments = start_engine, make_encoder
        self._exits = ExitStack()
        self._workers: list[WorkerProcess] = []
        self._refs: dict[
            Any, tuple[str, WorkerProcess, Any]
        ] = {}  # -> what was asked, of whom, in which process
        self._facts: EngineFacts | None = None
        self._work: Any = None
        self._again: deque[Unit] = deque()
        self._trials: dict[int, Trial] = {}
        self._asked = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(self._cluster.joined())
            resources = self._cluster.engine_resources()
            self._engines_on_a_node = self._cluster.engines_on_a_node()
            self._actor = ray.remote(WorkerActor).options(
                max_concurrency=_UNITS_AT_A_TIME + 2, max_restarts=0, **resources
            )
            self._watch = ray.remote(Watch).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
            self._workers = [WorkerProcess(number) for number in range(self._cluster.engines)]
            self._exits = exits.pop_all()
        for worker in self._workers:
            self._employ(worker)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        ray.kill(self._watch)
        self._exits.close()

    def facts(self) -> EngineFacts:
        """What the engines hold; waits for the first. EngineError where the first heard of does not start."""
        while self._facts is None:
            self.turn()
        return self._facts

    def states(self) -> dict[int, str]:
        """Engine number -> what it does or waits for, see ``WorkerProcess.state``."""
        return {worker.number: worker.state for worker in self._workers}

    def in_hand(self) -> list[UnitDone]:
        """How far the units are that are being done."""
        units = {unit.number for worker in self._workers for unit in worker.held.values()}
        return [each for worker in self._workers for each in worker.in_hand if each.unit in units]

    def starts(self) -> dict[int, str]:
        """Engine number -> how far its start is, or how it went, in words. Any thread may ask."""
        found = {worker.number: worker.started for worker in self._workers if worker.started}
        if not found and self._workers[0].node:
            with suppress(RayError):
                found[0] = ray.get(self._workers[0].actor.starting.remote(), timeout=1.0)
        return found

    def scored(self, work: Work, units: Iterable[Unit]) -> Iterator[Report | None]:
        """What became of each unit, as they are done; None now and then, where none is.

        Raises InputError, EngineError and OutputError as ``Worker.score`` does, and EngineError where
        processes die for good.
        """
        self._work = ray.put(work)
        for worker in self._workers:
            if worker.ready:
                self._begin(worker)
        source, more = iter(units), True
        while more or self._again or any(worker.held for worker in self._workers):
            more = self._hand_out(source if more else iter(()))
            reports = self.turn()
            yield from reports
            if not reports:
                yield None

    def _hand_out(self, source: Iterator[Unit]) -> bool:
        """Fill the workers, the emptiest first. Returns whether there may be more units.

        A unit that processes have died on is given to one that has nothing else, and will have nothing; as
        many workers get no new units as there are such.
        """
        free = sorted(
            (worker for worker in self._workers if worker.ready and not worker.exclusive),
            key=lambda worker: len(worker.held),
        )
        kept, others = free[: len(self._again)], free[len(self._again) :]
        for worker in kept:
            if not worker.held:
                worker.exclusive = True
                suspect = self._again.popleft()
                trial = self._trials[suspect.number]
                close = (self._watch, trial.poison, trial.unread) if trial.is_close else ()
                self._give(worker, suspect, *close)
        for worker in others * _UNITS_AT_A_TIME:
            if len(worker.held) < _UNITS_AT_A_TIME:
                unit = next(source, None)
                if unit is None:
                    return False
                self._give(worker, unit)
        return True

    def _give(self, worker: WorkerProcess, unit: Unit, *close: Any) -> None:
        ref = worker.actor.score.remote(worker.number, unit, *close)
        worker.held[ref] = unit
        self._ask("score", worker, ref)

    def _begin(self, worker: WorkerProcess) -> None:
        """Units wait for this in the worker, so a failure of it must be heard of."""
        self._ask("begin", worker, worker.actor.begin.remote(self._work))

    def _ask(self, what: str, worker: WorkerProcess, ref: Any) -> None:
        self._refs[ref] = what, worker, worker.actor

    def _employ(self, worker: WorkerProcess) -> None:
        """A new process for a worker."""
        worker.actor, worker.ready = self._actor.remote(*self._arguments), False
        worker.node, worker.in_hand = "", []
        self._ask("node", worker, worker.actor.node.remote())

    def turn(self) -> list[Report]:
        """Wait for workers a little, and see to what they say: what is done since."""
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._asked = time.monotonic()
            asked = {worker.number for what, worker, _ in self._refs.values() if what == "in_hand"}
            for worker in self._workers:
                if worker.held and worker.number not in asked:
                    self._ask("in_hand", worker, worker.actor.in_hand.remote())
        if not self._refs:
            time.sleep(_LOOK_SECONDS)
            return []
        ready, _ = ray.wait(list(self._refs), num_returns=1, timeout=_LOOK_SECONDS)
        return [report for ref in ready if (report := self._heard(ref)) is not None]

    def _heard(self, ref: Any) -> Report | None:
        what, worker, actor = self._refs.pop(ref)
        unit = worker.held.pop(ref, None)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            starts = what == "start" or isinstance(getattr(error, "cause", None), EngineStartError)
            if not starts or self._facts is None:
                raise _own_error(error) from error
            # Of an engine that took the place of another: what that one held may not be free yet.
            self._mourn(worker, actor, unit, str(_own_error(error)))
            return None
        except RayError as death:
            self._mourn(worker, actor, unit, str(death))
            return None
        if actor is not worker.actor and unit is None:  # what a past process was asked about itself
            return None
        if what == "node":
            self._place(worker, answer)
        elif what == "start":
            self._facts, worker.started = answer
            worker.ready, worker.deaths = True, 0
            if self._work is not None:
                self._begin(worker)
        elif what == "in_hand":
            worker.in_hand = answer
        elif unit is not None:
            self._trials.pop(unit.number, None)
            worker.exclusive = False
            return answer
        return None

    def _place(self, worker: WorkerProcess, node: str) -> None:
        """Let a worker start its engine, which shares its machine with others."""
        taken = Counter(each.place for each in self._workers if each.node == node and each is not worker)
        worker.node, worker.place = node, next(n for n in range(len(self._workers)) if not taken[n])
        self._ask("start", worker, worker.actor.start.remote(worker.place, self._engines_on_a_node))

    def _mourn(self, worker: WorkerProcess, actor: Any, unit: Unit | None, reason: str) -> None:
        """A process has died: another takes its place, and what it was doing is done again."""
        if worker.actor is actor:  # the first that is heard of this death
            if not worker.ready:
                worker.deaths += 1
                worker.gone = worker.deaths >= _STARTS
            ray.kill(actor)  # it may only be out of reach
            worker.exclusive = False
            if worker.gone:
                last = " ".join(reason.split())[:300]
                said = f"{worker.deaths} engines in a row did not start (the last: {last})"
                if all(each.gone for each in self._workers):
                    raise EngineError(said)
                print(f"tuco: engine {worker.number} is given up: {said}", file=sys.stderr, flush=True)
            else:
                self._employ(worker)
        if unit is None:
            return
        row, read = None, False
        with suppress(RayError):
            row, read = ray.get(self._watch.last.remote(unit.number), timeout=_WATCH_SECONDS)
        trial = self._trials.get(unit.number, Trial()).again(row, read=read)
        if trial.is_over:
            raise EngineError(
                f"the process that was to score the rows from {unit.row} on died {trial.deaths} times; "
                "rows already written are kept"
            )
        self._trials[unit.number] = trial
        self._again.append(unit)


def _own_error(error: BaseException) -> TucoError:
    """The error that a worker raised, out of Ray's wrapping; else one that says what Ray said."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, TucoError):
        return type(cause)(str(cause))
    return EngineError(f"a worker failed: {' '.join(str(cause or error).split())[:500]}")
