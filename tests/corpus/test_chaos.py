"""SIGKILL of driver and workers at the steps of unit, log and epoch, then resumed: processes really die.

``test_resume.py`` simulates the driver's death at every call of the local store, inside one process.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import tolerances
from object_store import dataset, object_store  # noqa: F401  (a fixture)

import tuco_vllm.demo
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompts import load_tokenizer
from tuco_vllm.store import store_at

pytestmark = pytest.mark.engine

DRIVER = Path(__file__).parents[1] / "chaos_driver.py"
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""These two small processes may try for a minute to tell a dead head of their end, and then do end (Ray's
``publish_error_to_driver``). They hold nothing, and nobody waits for them here."""

DEAD_SECONDS = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""So long do Ray's processes look for a dead driver's head here; slow tests wait as long as users do."""


class Chaos:
    """Runs jobs into ``out``s below a place, each run in a process of its own."""

    def __init__(self, models, folder, env):
        self._models, self.folder, self._env = models, folder, env
        self._mark = str(folder)
        (folder / "marks").mkdir()

    def start(
        self,
        out,
        inputs,
        faults=(),
        *,
        fake=True,
        engines=1,
        rows_per_file=500,
        pair=None,
        after=0,
        step_seconds=0.0,
        log_seconds=10.0,
    ):
        pair = pair or self._models
        plan = {
            "inputs": [str(path) for path in inputs],
            "out": str(out),
            "pt": str(pair[0]),
            "ft": str(pair[1]),
            "rows_per_file": rows_per_file,
            "dtype": "float32",
            "faults": list(faults),
            "engines": engines,
            "engine_dies_after": after,
            "step_seconds": step_seconds,
            "log_seconds": log_seconds,
            "beat_seconds": 0.5,
            "fake": fake,
            "marks": str(self.folder / "marks"),
        }
        (self.folder / "plan.json").write_text(json.dumps(plan))
        paths = [str(DRIVER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, **self._env, "PYTHONPATH": os.pathsep.join(paths), "TUCO_CHAOS": self._mark}
        with (self.folder / "log").open("a") as stderr:
            return subprocess.Popen(
                [sys.executable, str(DRIVER), str(self.folder / "plan.json")], stderr=stderr, env=env
            )

    def run(self, *arguments, **options):
        """The exit code and all that was said till now."""
        code = self.start(*arguments, **options).wait()
        self.assert_no_process_is_left()
        return code, (self.folder / "log").read_text()

    def assert_no_process_is_left(self):
        """Engines, Ray and its workers end with their driver, however it ended."""
        until = time.monotonic() + 60
        while left := [
            process.info["cmdline"]
            for process in psutil.process_iter(["cmdline", "environ"])
            if self._ours(process)
        ]:
            assert time.monotonic() < until, left
            time.sleep(0.2)

    def _ours(self, process):
        cmdline = process.info["cmdline"]  # of a zombie there is none
        return (
            cmdline
            and cmdline[0] not in RAYS_AGENTS
            and (process.info["environ"] or {}).get("TUCO_CHAOS") == self._mark
        )


@pytest.fixture
def chaos(tmp_path, models, request):
    slow = request.node.get_closest_marker("slow")
    return Chaos(models, tmp_path, {} if slow else DEAD_SECONDS)


@pytest.fixture
def corpus(tmp_path):
    """Two files of one name in two folders, with ids that repeat and rows that are broken."""
    paths = []
    for folder in "ab":
        path = tmp_path / "in" / folder / "x.jsonl"
        path.parent.mkdir(parents=True)
        rows = [{"prompt": f"{folder} {n}" if n % 5 else "", "id": n % 100} for n in range(3000)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)
    return paths


def read(out):
    if "://" in str(out):
        return dataset(str(out)).to_pylist()
    for part in Path(out).glob("part-*"):
        pq.read_table(part)  # nothing half-written
    return pq.read_table(out).to_pylist()


@pytest.fixture(params=["directory", pytest.param("S3", marks=pytest.mark.slow)])
def out(request, tmp_path):
    if request.param == "directory":
        return tmp_path / "out"
    return f"{request.getfixturevalue('object_store')}/out"


@pytest.fixture
def whole(chaos, corpus, tmp_path):
    """The rows of an undisturbed run."""
    code, log = chaos.run(tmp_path / "whole", corpus, engines=0)
    assert code == 0, log
    return read(tmp_path / "whole")


def test_workers_and_drivers_killed_at_steps_of_a_unit(chaos, corpus, tmp_path, out, whole):
    """A worker before and after its part is there, then the driver with the log unwritten, then a worker."""
    code, log = chaos.run(
        out,
        corpus,
        [
            ("publish", "part-00000001-*", "before"),
            ("publish", "part-00000002-*", "after"),
            ("create", "_tuco/log/0001-000004.parquet", "before"),  # when five units have been heard of
        ],
        log_seconds=0.0,
    )
    assert code == -9, log
    assert 0 < len(read(out)) < 6000
    code, log = chaos.run(out, corpus, [("publish", "part-00000011-*", "before")], engines=2)
    assert code == 0, log
    assert read(out) == whole
    assert len(list((tmp_path / "marks").glob("fault-*"))) == 4, "each fault has happened"


@pytest.mark.parametrize("out", ["S3", pytest.param("directory", marks=pytest.mark.slow)], indirect=True)
def test_a_power_cut_leaves_empty_parts_and_a_network_loses_answers(chaos, corpus, out, whole):
    """What was put and not heard of is found there; what a cut emptied is scored again."""
    faults = [
        ("publish", "part-00000001-*", "after", "lose"),
        ("create", "_tuco/epoch/*", "after", "lose"),
        ("create", "_tuco/job.json", "after", "lose"),
        ("publish", "part-00000003-*", "after", "cut"),
    ]
    code, log = chaos.run(out, corpus, faults, engines=0)
    assert code == -9, log
    code, log = chaos.run(out, corpus, engines=0)
    assert code == 0, log
    assert "part-00000003" in log
    assert read(out) == whole


def test_a_disk_that_fills_up_ends_the_job_at_once_and_keeps_what_is_done(chaos, corpus, tmp_path):
    out = tmp_path / "out"
    code, log = chaos.run(out, corpus, [("publish", "part-00000004-*", "before", "full")], engines=0)
    assert code == 1
    assert "No space left on device; finished parts stay" in log
    assert 1000 <= len(read(out)) < 6000


def test_two_drivers_and_one_that_comes_back_from_the_dead(chaos, corpus, out, whole):
    """The second is refused while the first lives, and takes over when it stands still; the first wakes up
    and stops. Every row is there once."""
    first = chaos.start(out, corpus, engines=0, step_seconds=0.02)
    until = time.monotonic() + 60
    while not parts(out):
        assert time.monotonic() < until
        time.sleep(0.05)
    code = chaos.start(out, corpus, engines=0).wait()
    assert code == 1
    assert f"is being written by process {first.pid}" in (chaos.folder / "log").read_text()
    first.send_signal(signal.SIGSTOP)
    second = chaos.start(out, corpus, engines=0, step_seconds=0.005)
    before = len(parts(out))
    while len(parts(out)) == before:
        assert second.poll() is None, (chaos.folder / "log").read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 1
    assert second.wait() == 0, (chaos.folder / "log").read_text()
    assert "another run has taken over" in (chaos.folder / "log").read_text()
    assert read(out) == whole


def parts(out):
    return [name for name in store_at(str(out)).list() if name.startswith("part-")]


DRIVERS_STEPS = [
    (step, name, when)
    for step, name in (
        ("create", "_tuco/epoch/*"),
        ("create", "_tuco/plan/*"),
        ("create", "_tuco/job.json"),
        ("create", "_tuco/log/*"),
        ("replace", "_tuco/run.json"),
        ("replace", "_tuco/heartbeat-1.json"),
        ("create", "_SUCCESS"),
    )
    for when in ("before", "after")
]


@pytest.mark.slow  # each starts Python twice
@pytest.mark.parametrize("fault", DRIVERS_STEPS)
def test_the_driver_killed_at_every_step(chaos, corpus, out, whole, fault):
    assert chaos.run(out, corpus, [fault], engines=0)[0] == -9
    code, log = chaos.run(out, corpus, engines=0)
    assert code == 0, log
    assert read(out) == whole


@pytest.mark.slow  # three minutes: three starts of a real engine, a quarter of a million tokens
def test_vllms_engine_and_the_driver_killed(chaos, tmp_path):
    """The bundled pair on real engines: every row once and, where one looks, with the oracle's score."""
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    # Long enough that the engine is still at work when the first part is written.
    prompts = [f"What is {n}? " * 10 if n % 9 else "" for n in range(4000)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    pair = (tuco_vllm.demo.PT, tuco_vllm.demo.FT)
    faults = [("publish", "part-00000003-*", "after"), ("create", "_tuco/log/*", "before")]
    code, log = chaos.run(out, [path], faults, fake=False, pair=pair, after=1)
    assert code == -9, log
    assert "killed EngineCore" in log
    assert re.search(r"processes \d+ s, weights \d+ s.* \(eager, as asked\)", log)
    assert 0 < len(read(out)) <= 4000
    code, log = chaos.run(out, [path], fake=False, pair=pair)
    assert code == 0, log
    rows = read(out)
    assert [(row["id"], row["prompt"]) for row in rows] == [
        (f"x.jsonl:{n}", prompt) for n, prompt in enumerate(prompts)
    ]
    errors = [None if prompt else "the prompt is empty" for prompt in prompts]
    assert [row["error"] for row in rows] == errors
    tokenizer = load_tokenizer(tuco_vllm.demo.FT)
    oracle = Oracle(*pair)
    for row in rows[1::97]:
        if row["error"] is None:
            truth = oracle.score(tokenizer.encode(row["prompt"]))
            assert row["prompt_tokens"] == truth.num_prompt_tokens
            assert abs(row["tuco"] - truth.tuco) <= tolerances.TUCO_FLOAT32
