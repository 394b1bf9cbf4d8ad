"""Whoever waits for an engine's output hears of it when the engine's process is killed.

vLLM's synchronous client waits on a queue. An engine that fails says so there; one that is killed (SIGKILL,
the kernel short of memory) cannot, and the client, which does notice, closes its sockets and goes on waiting
(``SyncMPClient.get_output``, vllm/v1/engine/core_client.py).
"""

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
