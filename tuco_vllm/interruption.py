"""How a signal ends the `tuco` command: one line, nothing left behind, exit code 128 + the signal's number.

Python's own way, an exception wherever the program happens to be, makes tracebacks while modules are imported
and while Ray starts, and a second one breaks the clean-up after the first. So a signal ends the process on
the spot: the processes below it are killed, and what was registered with ``also_at_a_signal`` is done. Only
while there are rows to save (``rows_to_save``) it is an exception first.

A signal that this process was started to ignore (nohup, a shell's ``&``) stays ignored.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SAVE_SECONDS = 30
"""So long may saving rows take once a signal has come."""

_TWICE_SECONDS = 2.0
"""A second signal so soon after the first is the first, sent once more: Ctrl-C pressed in a hurry."""

_KILL_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36


class Interrupted(KeyboardInterrupt):
    """A signal came while there were rows to save."""


class _State:
    """What the handler needs to know."""

    def __init__(self) -> None:
        self.owner: int | None = None
        """The process whose handlers these are; a forked child inherits them."""
        self.stderr = 2
        self.advice = ""
        self.cleanups: list[Callable[[], object]] = []
        self.saving = False
        self.stopped: tuple[int, float] | None = None
        """The first signal that came while there were rows to save, and when."""


_state = _State()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP end this process, with all processes below it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _state.owner = os.getpid()
    _state.stderr = os.dup(2)  # Ray's start hides the other one
    for number in SIGNALS:
        if before[number] != signal.SIG_IGN:
            signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])
        _state.owner = None
        os.close(_state.stderr)


def advise(text: str) -> None:
    """What the line of a signal says after "interrupted"."""
    _state.advice = text


def line() -> str:
    """What a person is told."""
    return f"tuco: interrupted; {_state.advice}" if _state.advice else "tuco: interrupted"


def adopt_orphans() -> None:
    """Let the processes whose parent dies become this one's, as far down as they are: so a signal finds them.

    Does nothing outside ``ended_by_signals``, and where the kernel is not Linux.
    """
    if _state.owner == os.getpid():
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def also_at_a_signal(cleanup: Callable[[], object]) -> Iterator[None]:
    """Do ``cleanup`` when the block ends, whether by itself or by a signal."""
    _state.cleanups.append(cleanup)
    try:
        yield
    finally:
        cleanup()
        _state.cleanups.remove(cleanup)


@contextmanager
def rows_to_save() -> Iterator[None]:
    """Within, a signal raises Interrupted, once; the process ends when the block does."""
    _state.saving = True
    try:
        yield
    finally:
        # Whatever was made of the exception on its way.
        if _state.stopped is not None:
            _end(_state.stopped[0])
        _state.saving = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:
        os._exit(128 + number)
    if not _state.saving:
        _end(number)
    if _state.stopped is None:
        _state.stopped = number, time.monotonic()
        signal.signal(signal.SIGALRM, lambda *_: _end(number))
        signal.alarm(_SAVE_SECONDS)
        raise Interrupted(signal.Signals(number).name)
    if time.monotonic() - _state.stopped[1] > _TWICE_SECONDS:
        _end(number)


def _end(number: int) -> NoReturn:
    for each in (*SIGNALS, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)
    with suppress(OSError):
        os.write(_state.stderr, f"{line()}\n".encode(errors="replace"))
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the threads of this process may see what is done here, and complain
        os.dup2(null, stream)
    _kill_all_below()
    for cleanup in reversed(_state.cleanups):
        with suppress(Exception):
            cleanup()
    os._exit(128 + number)


def _kill_all_below() -> None:
    """Kill every process below this one, but for those that then end by themselves and clean up before."""
    until = time.monotonic() + _KILL_SECONDS
    looks = 0  # in a row that found none: while one looks, a process may hide behind one that it has started
    while looks < 2 and time.monotonic() < until:
        left = _all_below()
        looks = 0 if left else looks + 1
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _all_below() -> list[int]:
    """Living processes below this one, parents first."""
    children: dict[int, list[int]] = {}
    dead = set()  # they may still have children, while some of their threads are ending
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError):
            with open(f"/proc/{int(name)}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append(int(name))
            if state in "ZX":
                dead.add(int(name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return [pid for pid in found[1:] if pid not in dead and not _tidies_up(pid)]


def _tidies_up(pid: int) -> bool:
    """Whether it is Python's resource tracker, which removes shared memory once its owners are gone."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"multiprocessing.resource_tracker" in file.read()
    return False
