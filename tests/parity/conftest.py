"""Processes that tests of this folder share."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import backend_engines
import engines
import pytest
import v2_on_cpu
from tiny_adapters import Made, make_adapter


@pytest.fixture
def in_process() -> Iterator[None]:
    """Engines of this test run in its process."""
    with engines.in_this_process():
        yield


@pytest.fixture(scope="session")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """``make_adapter`` into a directory of its own."""

    def make(base: str, seed: int, **config: Any) -> Made:
        return make_adapter(base, tmp_path_factory.mktemp("adapter"), seed, **config)

    return make


@pytest.fixture(scope="session")
def models_of(pair_dirs: Any, adapter_of: Callable[..., Made]) -> Callable[..., Any]:
    """(kind, name) -> the directories that judge a float32 pair, and what an engine is given for it.

    Of the kind "pair" the same; of the kind "adapter" FT's base, and an adapter of it.
    """

    def models(kind: str, name: str) -> tuple[tuple[str, str], tuple[str, str]]:
        pair = pair_dirs(name, "float32")
        if kind == "pair":
            return pair, pair
        made = adapter_of(pair[1], 31)
        return (pair[1], made.merged), (pair[1], made.adapter)

    return models


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
