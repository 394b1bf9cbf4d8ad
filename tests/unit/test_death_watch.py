"""Who waits for an engine is told of its death, by the very names that vLLM keeps its processes under.

That Python ends with an engine alive, tests/readme/test_blocks.py shows.
"""

import multiprocessing
import time
from queue import Queue
from types import SimpleNamespace

import pytest

from tuco_vllm.engine.compat import EngineDeadError, InprocClient
from tuco_vllm.engine.death_watch import hear_of_death


def client_of(*processes):
    manager = SimpleNamespace(processes=list(processes))
    return SimpleNamespace(resources=SimpleNamespace(engine_manager=manager), outputs_queue=Queue())


def test_a_killed_engine_is_heard_of():
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    process.start()
    client = client_of(process)
    hear_of_death(SimpleNamespace(engine_core=client))
    process.kill()
    assert isinstance(client.outputs_queue.get(timeout=30), EngineDeadError)
    process.join()


def test_an_engine_inside_this_process_has_none():
    hear_of_death(SimpleNamespace(engine_core=InprocClient.__new__(InprocClient)))


@pytest.mark.parametrize("name", ["resources", "engine_manager", "processes", "outputs_queue"])
def test_a_name_that_moved_is_missed_at_once(name):
    client = client_of()
    for holder in (client, client.resources, client.resources.engine_manager):
        vars(holder).pop(name, None)
    with pytest.raises(AttributeError, match=name):
        hear_of_death(SimpleNamespace(engine_core=client))
