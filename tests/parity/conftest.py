"""Processes that tests of this folder share."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import backend_engines
import engines
import pytest
import v2_on_cpu


@pytest.fixture
def in_process() -> Iterator[None]:
    """Engines of this test run in its process."""
    with engines.in_this_process():
        yield


@pytest.fixture(scope="session")
def on_v2() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """What ``v2_on_cpu.run`` returns for a spec, from the one process in which all V2 engines run."""
    pytest.importorskip("triton", reason="Triton's interpreter runs V2's kernels")
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, initializer=v2_on_cpu.prepare) as process:
        yield lambda spec: process.submit(v2_on_cpu.run, spec).result(timeout=600)


@pytest.fixture(scope="session")
def on_backend() -> Iterator[Callable[..., Any]]:
    """Calls a function in the one process in which engines of vLLM's Transformers backend run."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, initializer=backend_engines.prepare) as process:
        yield lambda function, *args, **named: process.submit(function, *args, **named).result(timeout=600)
