"""What stands for a worker where only the driver's costs count. It sleeps, and imports next to nothing, for
64 of them share one machine's memory.
"""

import os
import random
import socket
import time
from threading import Event
from types import SimpleNamespace
from typing import Any

import ray

from tuco_vllm.corpus.unit import Unit, UnitDone

TOKENS = 15
"""Of a row."""


class Sleeper:
    """In place of ``actor.WorkerActor``: answers as that does, and does a unit in ``seconds`` of sleep."""

    def __init__(self, seconds: float, _: object) -> None:
        self._seconds, self._ready, self._busy = seconds, time.monotonic(), 0.0
        self._held: dict[int, UnitDone] = {}
        self._begun = Event()

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def start(self, place: int, engines: int) -> tuple[Any, str]:
        facts = {"dtype": "float32", "row_dtype": "float32", "max_model_len": 0, "num_layers": 0}
        return SimpleNamespace(**facts, vllm_version="none"), ""

    def starting(self) -> str:
        return ""

    def begin(self, _: object) -> None:
        self._begun.set()

    def in_hand(self) -> list[UnitDone]:
        return list(self._held.values())

    def score(self, number: int, unit: Unit, *_: object) -> Any:
        self._begun.wait()
        self._held[unit.number] = UnitDone(unit.number, unit.rows // 2, 0, unit.rows // 2 * TOKENS, 0)
        # Two units share an engine, and no two take equally long.
        time.sleep(2 * self._seconds * random.uniform(0.5, 1.5))
        del self._held[unit.number]
        self._busy += self._seconds
        return SimpleNamespace(
            done=UnitDone(unit.number, unit.rows, 0, unit.rows * TOKENS, 1),
            engine=number,
            process=f"{socket.gethostname()}:{os.getpid()}",
            starts=1,
            busy_seconds=self._busy,
            ready_seconds=time.monotonic() - self._ready,
        )
