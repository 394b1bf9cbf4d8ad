"""Engine processes end when the process that owns the engine is killed.

vLLM's EngineCore waits for requests for ever: after a SIGKILL of its owner, which runs no clean-up, it would
keep its memory and its GPU. Only its tensor-parallel workers notice when their EngineCore dies, and they are
then the only processes that hold a pair; so a worker looks at its EngineCore's parent as well.

A server's processes look from their first moment on (``end_with_owner``): they may be minutes away from a
pair, and an EngineCore that is starting waits five of them for orders of its owner. Other owners' processes
look once they hold a pair (``end_with_parent``).

A thread looks, since Linux's PR_SET_PDEATHSIG fires already when the parent's *thread* ends.
"""

import multiprocessing
import os
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

_SECONDS = 1.0
_THREAD = "tuco-parent-watch"
_OWNER = "TUCO_VLLM_OWNER"
"""The environment variable with the process that a new one has to end with."""
_STARTER = "TUCO_VLLM_STARTER"
"""The environment variable with the process that has last started an engine. Whoever else inherits it, like a
server in the background of a script, lives on when that one ends."""


def own_engines() -> None:
    """Have the processes that this one starts, and theirs, ``end_with_owner``."""
    os.environ[_OWNER] = str(os.getpid())


def name_starter() -> None:
    """Say in the environment of the engine that this process is about to start that this one starts it."""
    os.environ[_STARTER] = str(os.getpid())


def end_with_owner() -> None:
    """Let a process that its owner has just started end soon after it; nothing in any other process.

    For the import of the owner's main module, with which a spawned process begins.
    """
    own = os.getppid()
    if os.environ.get(_OWNER) != str(own):
        return

    def watch() -> None:
        while os.getppid() == own:
            time.sleep(_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name=_THREAD, daemon=True).start()
    own_engines()


def end_with_parent() -> None:
    """Let this process end soon after its owner has died; idempotent.

    Does nothing in a process that ``multiprocessing`` did not start: that one is not an engine's own.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    threading.Thread(target=_watch, args=(parent,), name=_THREAD, daemon=True).start()


def _watch(parent: BaseProcess) -> None:
    """Return never: end this process when its parent dies or, in a worker, when the EngineCore's does."""
    own, parents = os.getppid(), None
    if parent.name.startswith("EngineCore"):
        parents = _parent_of(own)
        if parents == 1 and os.environ.get(_STARTER, "1") != "1":
            os._exit(1)  # an orphan: its owner, which was another, died before this process could look
    while True:
        parent.join(_SECONDS)
        # A forked sibling can hold the sentinel open that join() waits for: hence the comparison.
        if not parent.is_alive() or os.getppid() != own:
            os._exit(1)
        if parents is not None and _parent_of(own) != parents:
            os._exit(1)  # an EngineCore whose worker has died ends by itself


def _parent_of(pid: int) -> int | None:
    """The parent of another process; None where there is no such process, or no /proc to say."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])  # pid (name) state ppid; a name may hold anything
