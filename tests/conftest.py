"""Options and what all tests share: offline, quiet, small engines, random pairs made once."""

import os

# Before anything imports torch, transformers or vllm. Engine processes inherit it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# GiB. By default an engine on a CPU zeroes several, of which these prompts need none.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# vLLM would bind every engine to the same core, also those of tests that run side by side.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Asked whether there is a GPU, torch would start CUDA, and no process forked later could use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engines
import pytest

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="the whole correctness matrix instead of a pairwise cover"
    )
    parser.addoption("--shard", metavar="PAIR|others", help="a part of --full, see full_product.py")
    parser.addoption(
        "--record", action="store_true", help="durations into bench/results/test_durations.jsonl"
    )
    parser.addoption(
        "--dry-gpu", action="store_true", help="without a GPU, run tests/gpu on a CPU: for who writes them"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("--dry-gpu"):
        return None
    import torch

    if torch.cuda.is_available():
        return "--dry-gpu: there is a CUDA device, so this is no dry run"
    return (
        "--dry-gpu: tests/gpu on a CPU, without attention backends and CUDA graphs; of the modes that then "
        "compute alike, only the first. It proves nothing about a GPU."
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What all tests of a folder or of a fixture are for, their authors need not write."""
    if shard := config.getoption("--shard"):
        items[:] = [item for item in items if shard_of(item) == shard]
    for item in items:
        if item.path.parent.name in ("parity", "gpu") or "server" in item.fixturenames:
            item.add_marker(pytest.mark.engine)


def shard_of(item: pytest.Item) -> str:
    """The pair of a cell of the parity product; "others" for all other tests."""
    parameters = getattr(item, "callspec", None)
    cell = parameters.params.get("engine") if parameters else None
    return getattr(cell, "pair", "others")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n`` tests run in several processes: those that share an engine in one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByEngine(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if file.startswith("tests/server/test_serve"):
                return "the server"
            return file + test.partition("[")[2] if file.endswith("test_oracle_parity.py") else file

    return ByEngine(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Only tests that are marked so start engines: `make quick` would not stay quick."""
    if item.get_closest_marker("engine"):
        return (yield)
    with engines.refused():
        return (yield)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What the whole matrix found in hours, or how long tests took, goes into a record, and on what."""
    options = session.config.option
    if not (options.full or options.record) or options.collectonly or hasattr(session.config, "workerinput"):
        return
    # By path: a folder with kernels.py in it must not get onto the path, where transformers looks for a
    # package of that name.
    spec = importlib.util.spec_from_file_location("provenance", ROOT / "bench" / "provenance.py")
    provenance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(provenance)
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    counts = {
        outcome: len(reporter.stats.get(outcome, [])) for outcome in ("passed", "failed", "error", "skipped")
    }
    record = {"exit": int(exitstatus), **counts, "provenance": provenance.provenance()}
    if options.shard:
        record = {"shard": options.shard, **record}
    if options.record:
        record = {"selection": options.markexpr, "seconds_by_file": seconds_by_file(reporter), **record}
    print(f"\nrecorded in {provenance.append('test_full' if options.full else 'test_durations', record)}")


def seconds_by_file(reporter: Any) -> dict[str, float]:
    """Set-up, tests and tear-down of every file, and their sum under "all"; the slowest first."""
    seconds: Counter[str] = Counter()
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.location[0]] += report.duration
    return {name: round(value, 1) for name, value in [("all", seconds.total()), *seconds.most_common()]}


@pytest.fixture(scope="session")
def pair_dirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[str, str]]:
    """(family pair name, dtype) -> (pt, ft) directories of a random pair, written once a session."""
    import tiny_models
    import torch

    root = tmp_path_factory.mktemp("pairs")
    made: dict[tuple[str, str], tuple[str, str]] = {}

    def get(name: str, dtype: str = "float32") -> tuple[str, str]:
        if (name, dtype) not in made:
            made[name, dtype] = tiny_models.make_pair(
                name, Path(root / f"{name}-{dtype}"), getattr(torch, dtype)
            )
        return made[name, dtype]

    return get
