"""Engine processes end when the process that owns the engine is killed.

vLLM's EngineCore waits for requests for ever: after a SIGKILL of its owner, which runs no clean-up, it would
keep its memory and its GPU. Only its tensor-parallel workers notice when their EngineCore dies, and they are
then the only processes that hold a pair; so a worker looks at its EngineCore's parent as well.

A thread looks, since Linux's PR_SET_PDEATHSIG fires already when the parent's *thread* ends.
"""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

_SECONDS = 1.0
_THREAD = "tuco-parent-watch"


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
