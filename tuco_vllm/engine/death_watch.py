"""Nobody waits for ever: not for the output of an engine that was killed, nor for one to end by itself.

vLLM's synchronous client waits on a queue. An engine that fails says so there; one that is killed (SIGKILL,
the kernel short of memory) cannot, and the client, which does notice, closes its sockets and goes on waiting
(``SyncMPClient.get_output``, vllm/v1/engine/core_client.py).
"""

import atexit
import weakref
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

from tuco_vllm.engine.compat import EngineDeadError, InprocClient


def hear_of_death(engine: Any) -> None:
    """Make ``step()`` of an LLMEngine raise EngineDeadError once one of its processes is gone.

    Does nothing for an engine inside this process.
    """
    client = engine.engine_core
    if isinstance(client, InprocClient):
        return
    processes, queue = list(client.resources.engine_manager.processes), client.outputs_queue

    def watch() -> None:
        # The processes are held as well: without them their sentinels would be closed.
        wait([process.sentinel for process in processes])
        queue.put(EngineDeadError())

    Thread(target=watch, name="tuco-death-watch", daemon=True).start()


def end_before_python(engine: Any) -> None:
    """End an LLMEngine's processes when Python ends, if nobody has by then.

    vLLM leaves that to a finalizer. Where ``weakref.finalize`` was used before multiprocessing was imported
    (numba does, and every ``TemporaryDirectory``), Python runs finalizers after multiprocessing's own exit
    handler, which waits for the engine's process without a limit.
    """
    client = weakref.ref(engine.engine_core)

    def end() -> None:
        alive = client()
        if alive is not None:
            alive.shutdown()

    atexit.register(end)
