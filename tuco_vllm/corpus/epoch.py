"""Who writes into a directory: the run of the newest epoch, for as long as its heartbeat moves.

_tuco/epoch/0001.json    a run's claim, created if absent: of two that want a number, one has it
_tuco/heartbeat-1.json   replaced every few seconds; says "ended" when the run ends by itself

A newcomer watches the last run's heartbeat, and compares no clocks. While it moves, he is refused; when it
stands still, or its process is seen to be gone, he takes the next number, and the old run stops when it sees
that. This saves work: what both did meanwhile is no harm, since parts are created if absent.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from tuco_vllm.errors import InputError, TucoError
from tuco_vllm.records import STATE
from tuco_vllm.store import OutputError, Store

BEAT_SECONDS = 5.0
PATIENCE_BEATS = 3
"""A heartbeat that stands still for so many beats has stopped."""

_EPOCHS = f"{STATE}/epoch"


class Epoch:
    """A claim, and the thread that keeps its heartbeat moving."""

    def __init__(self, store: Store, number: int, claim: dict[str, Any]) -> None:
        self.number = number
        self._store, self._claim = store, claim
        self._lost = False
        self._over = Event()
        self._beats = 0
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def lost(self) -> bool:
        """Whether another run has taken over, as far as the last beat saw. Asks nobody."""
        return self._lost

    def check(self) -> None:
        """Raise OutputError where another run has taken over: before what a past run must not do."""
        self._lost = self._lost or self._store.read(_claim_name(self.number + 1)) is not None
        if self._lost:
            raise OutputError(f"another run has taken over {self._store.where}: this one stops")

    def start(self) -> None:
        """Make the heartbeat move."""
        self._beat("running")
        self._thread.start()

    def end(self) -> None:
        """Say that the run has ended."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=BEAT_SECONDS)  # it may be waiting for a store that does not answer
        self._beat("ended")

    def _run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._beat("running")
            with suppress(TucoError):
                self.check()

    def _beat(self, state: str) -> None:
        self._beats += 1
        said = {**self._claim, "beat": self._beats, "state": state}
        with suppress(TucoError):  # a store that does not answer will be noticed where something matters
            self._store.replace(_heartbeat_name(self.number), json.dumps(said).encode())


@contextmanager
def claimed(store: Store, patience: float | None = None) -> Iterator[Epoch]:
    """Be the run that writes into ``store``.

    Raises InputError where another is and its heartbeat moves within ``patience`` seconds, or where nobody
    can write.
    """
    claim = {**_this_process(), "claim": uuid4().hex}
    data = json.dumps(claim).encode()
    while True:
        number = _newest(store)
        if number and (holder := _holder(store, number, patience)) is not None:
            raise InputError(f"{store.where} is being written by {holder}")
        number += 1
        if _created(store, number, data):
            break
    epoch = Epoch(store, number, claim)
    try:
        epoch.start()
        yield epoch
    finally:
        epoch.end()


def writer(store: Store, patience: float | None = None) -> str | None:
    """The process that writes into ``store`` now, in words, if any; for who only wants to know."""
    number = _newest(store)
    return _holder(store, number, patience, trusted=True) if number else None


def _created(store: Store, number: int, data: bytes) -> bool:
    name = _claim_name(number)
    try:
        first = store.create(name, data)
        again = first and store.create(name, data)
    except OutputError as error:
        raise InputError(f"cannot write to --out {store.where}: {error.reason}") from error
    if again:
        raise InputError(
            f"{store.where} overwrites what it is told to keep (If-None-Match), so two runs could not "
            "be told apart: choose another --out"
        )
    return first or store.read(name) == data  # the answer to who was first may have been lost


def _holder(store: Store, number: int, patience: float | None, *, trusted: bool = False) -> str | None:
    """The process that has epoch ``number``, in words, if it is seen to be alive.

    ``trusted``: a process of this machine that is there counts as alive, its heartbeat is not watched.
    """
    until = time.monotonic() + (BEAT_SECONDS * PATIENCE_BEATS if patience is None else patience)
    first = said = _last_said(store, number)
    while not _is_over(said):
        if said != first or (trusted and _is_of_this_machine(said)):
            return f"process {said.get('pid')} on {said.get('host')}"
        if time.monotonic() > until:
            break
        time.sleep(BEAT_SECONDS / 10)
        said = _last_said(store, number)
    return None


def _last_said(store: Store, number: int) -> dict[str, Any]:
    for name in (_heartbeat_name(number), _claim_name(number)):  # it may have died before its first beat
        with suppress(ValueError):
            said = json.loads(store.read(name) or b"")
            if isinstance(said, dict):
                return said
    return {}


def _is_over(said: dict[str, Any]) -> bool:
    if said.get("state") == "ended":
        return True
    return _is_of_this_machine(said) and _started(said.get("pid")) != said.get("started")


def _is_of_this_machine(said: dict[str, Any]) -> bool:
    return said.get("machine") == _machine() != ""


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": os.uname().nodename, "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """Within it a process id means one process; "" where that cannot be told.

    Not the host's name: containers that have it in common do not see each other's processes.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: Any) -> int | None:
    """When a process began, in the kernel's ticks; None where there is none."""
    with suppress(OSError, IndexError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    return None


def _newest(store: Store) -> int:
    names = (Path(name).stem for name in store.list(_EPOCHS))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _claim_name(number: int) -> str:
    return f"{_EPOCHS}/{number:04}.json"


def _heartbeat_name(number: int) -> str:
    return f"{STATE}/heartbeat-{number}.json"
