"""The processes of gpu.py: one for each engine, alive side by side, waiting on a pipe; none survives.

A process that hangs on a lent GPU costs real time, so each is the leader of a process group that its engine's
own processes belong to, and the whole group is killed: by the parent in the end, whatever happens, and by a
thread of its own as soon as the parent is gone. It stays in the parent's session, so that whoever ends that
ends all.
"""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from gpu_plan import Deadline, OutOfTime


class Failed(Exception):
    """A process could not do what it was asked for; its traceback."""


class _Failure(NamedTuple):
    text: str


class Member:
    """The parent's end of one process. ``kill`` it, whatever happens."""

    def __init__(self, name: str, build: Callable[..., Any], *arguments: Any) -> None:
        self.name = name
        self.start_seconds = 0.0
        self._started = time.monotonic()
        context = get_context("spawn")
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_live, args=(pipe, os.getpid(), build, arguments), name=name)
        self._process.start()
        pipe.close()

    def wait_until_ready(self, deadline: Deadline) -> None:
        """Until it is built. Raises Failed or OutOfTime, as ``ask`` does."""
        built_at = self._receive(deadline)
        self.start_seconds = round(built_at - self._started, 1)

    def ask(self, deadline: Deadline, verb: str, *arguments: Any) -> Any:
        """Call a method of what the process has built."""
        try:
            self._pipe.send((verb, arguments))
        except OSError:
            raise Failed(f"{self.name} ended: its own message is above") from None
        return self._receive(deadline)

    def kill(self) -> None:
        """End the process and all that it started."""
        self._pipe.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()  # if it had no group yet
        self._process.join(timeout=10)

    def _receive(self, deadline: Deadline) -> Any:
        if not self._pipe.poll(max(0.0, deadline.left())):
            raise OutOfTime
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise Failed(f"{self.name} ended: its own message is above") from None
        if isinstance(answer, _Failure):
            raise Failed(answer.text)
        return answer


class Crew:
    """The living, by (role, shape)."""

    def __init__(self) -> None:
        self.living: dict[tuple[str, str], Member] = {}
        self.failed: dict[tuple[str, str], str] = {}
        """Why one did not start or broke; it is not started again."""

    def muster(
        self, wanted: Iterable[tuple[str, str]], start: Callable[[str, str], Member], deadline: Deadline
    ) -> None:
        """Leave exactly ``wanted`` alive, less those that failed. What starts, starts at the same time."""
        wanted = [key for key in wanted if key not in self.failed]
        for key in [key for key in self.living if key not in wanted]:
            self.living.pop(key).kill()
        new = [key for key in wanted if key not in self.living]
        for key in new:
            self.living[key] = start(*key)
        for key in new:
            try:
                self.living[key].wait_until_ready(deadline)
            except Failed as error:
                self.drop(key, str(error))

    def drop(self, key: tuple[str, str], reason: str) -> None:
        """Give up one that failed."""
        self.failed[key] = reason
        self.living.pop(key).kill()

    def kill(self) -> None:
        """End all."""
        while self.living:
            self.living.popitem()[1].kill()


def _live(pipe: Connection, parent: int, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """A process: build, then answer messages until the parent hangs up."""
    os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.dup2(2, 1)  # stdout is the parent's; libraries talk too
    try:
        built = build(*arguments)
        pipe.send(time.monotonic())
        while True:
            verb, values = pipe.recv()
            pipe.send(getattr(built, verb)(*values))
    except EOFError:
        pass
    except BaseException:
        text = traceback.format_exc()
        print(text, flush=True)
        with suppress(OSError):
            pipe.send(_Failure(text[-4000:]))
    finally:
        time.sleep(0.2)  # the message is read, or lies in the pipe
        os.kill(0, signal.SIGKILL)  # an engine leaves threads and processes behind


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(0, signal.SIGKILL)
