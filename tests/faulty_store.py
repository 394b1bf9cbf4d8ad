"""A store that kills its process, or fails, at named steps: each fault happens once in a job's life."""

import errno
import os
import signal
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tuco_vllm.store import refusals

WRITING = ("create", "replace", "publish", "delete")


@dataclass(frozen=True)
class Fault:
    """``step`` (of WRITING) on a name like ``name``; ``when``: "before" or "after" it is done.

    ``what``: "kill" this process; "lose" the answer, as a network does; "full", a disk without room; "cut"
    what was written to nothing and kill this process, as a power cut does.
    """

    step: str
    name: str
    when: str = "before"
    what: str = "kill"

    @property
    def mark(self) -> str:
        return "-".join((self.step, self.name, self.when, self.what)).replace("/", "_").replace("*", "@")


@dataclass(frozen=True)
class FaultyStore:
    """Another store, with faults; ``folder`` remembers which have happened. Picklable, as stores are."""

    store: Any
    folder: Path
    faults: tuple[Fault, ...] = ()

    def __getattr__(self, name):
        if name.startswith("__") or name in ("store", "folder", "faults"):
            raise AttributeError(name)  # while it is being unpickled
        return getattr(self.store, name)

    def create(self, name, data):
        return self._do("create", name, lambda: self.store.create(name, data))

    def replace(self, name, data):
        return self._do("replace", name, lambda: self.store.replace(name, data))

    def publish(self, file, name):
        return self._do("publish", name, lambda: self.store.publish(file, name))

    def delete(self, *names):
        for name in names:
            self._do("delete", name, lambda name=name: self.store.delete(name))

    def _do(self, step, name, call):
        self._fault(step, name, "before")
        answer = call()
        return False if self._fault(step, name, "after") == "lose" else answer

    def _fault(self, step, name, when):
        for fault in self.faults:
            if (fault.step, fault.when) != (step, when) or not fnmatch(name, fault.name):
                continue
            try:
                (self.folder / f"fault-{fault.mark}").touch(exist_ok=False)
            except FileExistsError:
                continue
            if fault.what == "full":
                with refusals(name):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if fault.what == "cut":
                self.store.delete(name)
                self.store.create(name, b"")
            if fault.what in ("kill", "cut"):
                os.kill(os.getpid(), signal.SIGKILL)
            return fault.what
        return None
