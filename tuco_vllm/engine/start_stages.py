"""What an engine does while it starts: its processes tell it, and whoever started the engine hears it.

Loading and compiling take minutes, in processes of vLLM's that say nothing. So the pair model tells there
what begins, as a line of a file. The file has no name of its own, so nothing is left of it when a process is
killed: an environment variable says how to open it through the process that holds it. Where nobody listens
nothing happens, and nothing here can keep an engine from starting.
"""

import os
import time
from contextlib import suppress
from typing import Self

_FILE = "TUCO_START_STAGES"


def tell(stage: str) -> None:
    """Say that ``stage`` begins. Every rank of an engine may: the first is heard."""
    _write(f"{time.monotonic()}\t{stage}\n")


def explain(choice: str) -> None:
    """Say in words what was chosen for this engine, and why."""
    _write(f"\t{choice}\n")


def _write(line: str) -> None:
    with suppress(OSError, KeyError), open(os.environ[_FILE], "a") as file:
        file.write(line)


class Start:
    """Listens to the start of one engine of this process: a context manager around it."""

    def __enter__(self) -> Self:
        self._file = open(os.memfd_create("tuco-start"), "r+")
        self._begun, self._ended = time.monotonic(), 0.0
        os.environ[_FILE] = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        tell("processes")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        del os.environ[_FILE]

    def text(self) -> str:
        """Like "8 s: processes 5 s, weights 3 s (eager: why)", with the stage under way; from any thread."""
        begins: dict[str, float] = {}
        choice = ""
        for line in os.pread(self._file.fileno(), 1 << 16, 0).decode().splitlines():
            when, _, what = line.partition("\t")
            if when:
                begins.setdefault(what, float(when))
            else:
                choice = f" ({what})"
        end = self._ended or time.monotonic()
        ends = [*begins.values(), end][1:]
        spans = zip(begins.items(), ends, strict=True)
        stages = ", ".join(f"{stage} {until - since:.0f} s" for (stage, since), until in spans)
        return f"{end - self._begun:.0f} s: {stages}{choice}"
