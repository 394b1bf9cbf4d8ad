"""SIGKILL at the steps of the commit protocol, of the driver and of every kind of process, then resumed.

``test_resume.py`` simulates the driver's death at every step inside one process; here processes really die.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import tolerances

import tuco_vllm.demo
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompts import load_tokenizer

pytestmark = pytest.mark.engine


DRIVER = Path(__file__).parents[1] / "chaos_driver.py"
SEED = 7
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""These two small processes may try for a minute to tell a dead head of their end, and then do end (Ray's
``publish_error_to_driver``). They hold nothing, and nobody waits for them here."""


DEAD_SECONDS = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""So long do Ray's processes look for a dead driver's head here; slow tests wait as long as users do."""


@pytest.fixture
def chaos(tmp_path, models, request):
    """Run the job into ``out`` of the test's folder, with kills; returns the exit code."""
    mark = f"{tmp_path}"

    def run(out, inputs, kills=(), fake=True, engines=1, rows_per_file=1000, pair=models):
        plan = {
            "inputs": [str(path) for path in inputs],
            "out": str(tmp_path / out),
            "pt": str(pair[0]),
            "ft": str(pair[1]),
            "rows_per_file": rows_per_file,
            "dtype": "float32",
            "kills": list(kills),
            "engines": engines,
            "fake": str(tmp_path) if fake else None,
        }
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        log = tmp_path / f"{out}.log"
        paths = [str(DRIVER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TUCO_CHAOS": mark}
        if not request.node.get_closest_marker("slow"):
            env |= DEAD_SECONDS
        with log.open("a") as stderr:
            done = subprocess.run(
                [sys.executable, str(DRIVER), str(tmp_path / "plan.json")],
                stderr=stderr,
                env=env,
                check=False,
            )
        assert_no_process_is_left(mark)
        assert_nothing_half_written(tmp_path / out)
        return done.returncode, log.read_text()

    return run


def assert_no_process_is_left(mark):
    """Engines, Ray and its workers end with their driver, however it ended."""
    until = time.monotonic() + 60
    while left := [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline", "environ"])
        if ours(process, mark)
    ]:
        assert time.monotonic() < until, left
        time.sleep(0.2)


def ours(process, mark):
    cmdline = process.info["cmdline"]  # of a zombie there is none
    return (
        cmdline
        and cmdline[0] not in RAYS_AGENTS
        and (process.info["environ"] or {}).get("TUCO_CHAOS") == mark
    )


def assert_nothing_half_written(out):
    for part in out.glob("part-*"):
        pq.read_table(part)
    if (out / "_SUCCESS").exists():
        assert json.loads((out / "_tuco/run.json").read_text())["counts"]["rows"] == len(read(out))


def read(out):
    return pq.read_table(out).to_pylist()


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


@pytest.mark.parametrize("deaths", [1, pytest.param(2, marks=pytest.mark.slow)])  # each starts Ray once more
def test_killed_at_random_steps_and_resumed(chaos, corpus, tmp_path, deaths):
    """A seeded walk: each run loses some of its processes and, in the end, its driver."""
    code, log = chaos("whole", corpus, engines=0)
    assert code == 0, log
    steps = int((tmp_path / "whole.steps").read_text())
    assert steps > 25  # job.json, six parts, run.json after each, _SUCCESS: three steps a file
    dice = random.Random(SEED)
    fewer = steps
    for _ in range(deaths):
        fatal = dice.randint(4, fewer - 12)
        fewer -= fatal
        victims = [(dice.randint(1, fatal - 1), victim) for victim in ("actor", "tokeniser", "board")]
        code, log = chaos("out", corpus, [*victims, (fatal, "driver")])
        assert code == -9, log
    code, log = chaos("out", corpus, [(3, "actor"), (5, "tokeniser")], engines=2)
    assert code == 0, log
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert "killed actor" in log
    assert "killed tokeniser" in log
    assert "killed board" in log


def test_a_disk_that_fills_up_ends_the_job_at_once_and_keeps_what_is_done(chaos, corpus, tmp_path):
    code, log = chaos("out", corpus, [(14, "disk")])
    assert code == 1
    assert "the disk is full; finished parts stay" in log
    assert len(read(tmp_path / "out")) >= 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_driver_killed_at_every_step(chaos, corpus, tmp_path):
    """Of a job of two parts: all that makes the first and the last of them durable."""
    chaos("whole", corpus, rows_per_file=3000, engines=0)
    whole = read(tmp_path / "whole")
    for step in range(1, int((tmp_path / "whole.steps").read_text()) + 1):
        out = f"out-{step}"
        assert chaos(out, corpus, [(step, "driver")], rows_per_file=3000)[0] == -9
        code, log = chaos(out, corpus, rows_per_file=3000)
        assert code == 0, log
        assert read(tmp_path / out) == whole, f"killed before step {step}"


@pytest.mark.slow  # three minutes: three starts of a real engine, a quarter of a million tokens
def test_vllms_engine_and_the_driver_killed(chaos, tmp_path):
    """The bundled pair on real engines: every row once and, where one looks, with the oracle's score."""
    path = tmp_path / "x.jsonl"
    # Long enough that the engine is still at work when the first part is written.
    prompts = [f"What is {n}? " * 10 if n % 9 else "" for n in range(4000)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    pair = (tuco_vllm.demo.PT, tuco_vllm.demo.FT)
    # Steps 1 to 6 write job.json and run.json, each part and the run.json after it six more.
    code, log = chaos("out", [path], [(8, "engine"), (20, "driver")], fake=False, pair=pair)
    assert code == -9, log
    assert "killed engine" in log
    assert re.search(r"processes \d+ s, weights \d+ s.* \(eager, as asked\)", log)
    assert 0 < len(read(tmp_path / "out")) < 4000
    code, log = chaos("out", [path], fake=False, pair=pair)
    assert code == 0, log
    rows = read(tmp_path / "out")
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
