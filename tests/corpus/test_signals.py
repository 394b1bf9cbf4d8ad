"""Ctrl-C, SIGTERM and SIGHUP at every stage of `tuco score`: exit code, one line, nothing left behind.

With fake engines, on Ray. A moment is an event that is seen from outside, not a time: machines differ.
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
import signalled_driver
from corpus.test_chaos import RAYS_AGENTS

from tuco_vllm.corpus.cluster import _sigterm_is_ours

pytestmark = pytest.mark.engine  # Ray

DRIVER = Path(signalled_driver.__file__)
MARK = "TUCO_SIGNALLED"


class Job:
    """A running `tuco score` in a session of its own, as a terminal would start it, or nohup."""

    def __init__(self, models, folder, ignores=()):
        self.out, self.temporary = folder / "out", folder / "tmp"
        self.temporary.mkdir()
        corpus = folder / "x.jsonl"
        corpus.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(9000)))
        paths = [str(DRIVER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._mark = str(folder)
        env = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(self.temporary), MARK: self._mark}
        env = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | env
        command = [sys.executable, str(DRIVER), "score", str(corpus), "--out", str(self.out)]
        command += ["--pt", str(models[0]), "--ft", str(models[1])]
        self._errors = (folder / "stderr").open("w+")

        def dispositions():
            """Whatever the tests themselves were started to ignore: in the background, a shell's SIGINT."""
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if number in ignores else signal.SIG_DFL)

        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env=env,
            start_new_session=True,
            preexec_fn=dispositions,
        )

    def until(self, moment):
        """Wait for an event of MOMENTS."""
        deadline = time.monotonic() + 120
        while not MOMENTS[moment](self):
            assert self.process.poll() is None, self.stderr()
            assert time.monotonic() < deadline, moment
            time.sleep(0.01)

    def takes_signals(self):
        """Whether the process has a handler of SIGTERM, which Python itself has not."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def has(self, title):
        """Whether a process of the job, other than the command itself, has this in its title."""
        return any(
            title in " ".join(process.cmdline()) for process in self.left() if process.pid != self.process.pid
        )

    def has_rows(self):
        """Whether rows have come, which are not in a part yet."""
        run = self.out / "_tuco/run.json"
        return run.exists() and json.loads(run.read_text())["counts"]["rows"] > 0

    def left(self):
        """All processes of the job."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            cmdline, environ = process.info["cmdline"], process.info["environ"] or {}
            if cmdline and cmdline[0] not in RAYS_AGENTS and environ.get(MARK) == self._mark:
                found.append(process)
        return found

    def send(self, number, *, group):
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(self.process.pid, number)

    def stderr(self):
        self._errors.seek(0)
        return self._errors.read()


MOMENTS = {
    "imports": Job.takes_signals,
    "ray starts": lambda job: any(job.temporary.glob("tuco-ray-*")),
    "ray runs": lambda job: job.has("raylet"),
    "engine starts": lambda job: job.has(signalled_driver.ENGINE),
    "rows come": Job.has_rows,
}


def assert_it_ended_well(job, number):
    assert job.process.wait(60) == 128 + number, job.stderr()
    progress = re.compile(r"tuco: (starting|engine|[\d,]+/9,000 rows)")
    lines = [line for line in job.stderr().splitlines() if not progress.match(line)]
    assert len(lines) == 1, job.stderr()
    assert lines[0].startswith("tuco: interrupted")
    assert not job.left()
    assert not list(job.temporary.glob("*"))
    assert not list(Path("/tmp").glob(f"tuco-ray-{job.process.pid}-*"))


@pytest.mark.parametrize(
    ("moment", "number", "group", "times"),
    [
        ("imports", signal.SIGINT, True, 2),
        ("ray starts", signal.SIGTERM, False, 1),
        ("ray runs", signal.SIGTERM, True, 2),
        ("engine starts", signal.SIGHUP, True, 1),
        ("rows come", signal.SIGINT, True, 2),
    ],
)
def test_a_signal_ends_it_in_one_line_and_leaves_nothing(models, tmp_path, moment, number, group, times):
    job = Job(models, tmp_path)
    job.until(moment)
    for _ in range(times):
        job.send(number, group=group)
        time.sleep(0.05)
    assert_it_ended_well(job, number)
    if moment == "rows come":
        stages = r"tuco: engine started in \d+ s: processes \d+ s, weights [1-9]\d* s$"
        assert re.search(stages, job.stderr(), re.MULTILINE)
        # The rows in hand are a part.
        assert json.loads((job.out / "_tuco/run.json").read_text())["state"] == "interrupted"
        assert 0 < pq.read_table(job.out).num_rows < 9000


def test_a_sigterm_that_ray_loses_is_ours():
    """Ray's handler raises, and where it does nobody may be listening."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        for lost in (True, False):
            with _sigterm_is_ours():
                signal.signal(signal.SIGTERM, lambda *_: None)
                if lost:
                    signal.raise_signal(signal.SIGTERM)
            assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_nohup_ignores_stays_ignored(models, tmp_path):
    """A job that is told to ignore SIGHUP is not ended by it."""
    job = Job(models, tmp_path, ignores=[signal.SIGHUP])
    job.until("imports")
    job.send(signal.SIGHUP, group=True)
    time.sleep(0.5)
    assert job.process.poll() is None
    job.send(signal.SIGTERM, group=True)
    assert_it_ended_well(job, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_many_times(models, tmp_path, number, group, times):
    """From the moment at which signals are taken to the first rows, in steps that machines do not choose."""
    for step in range(0, 40):
        folder = tmp_path / str(step)
        folder.mkdir()
        job = Job(models, folder)
        job.until("imports")
        time.sleep(0.25 * step)
        for _ in range(times):
            job.send(number, group=group)
            time.sleep(0.05)
        assert_it_ended_well(job, number)
