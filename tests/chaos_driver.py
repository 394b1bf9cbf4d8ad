"""Runs one scoring job whose processes die at named steps, for the chaos tests.

    python tests/chaos_driver.py PLAN.json

PLAN: inputs, out, pt, ft, dtype, rows_per_file; engines, or 0 for a fake one in this process, without Ray;
faults, a list of ``faulty_store.Fault``'s arguments, of whichever process comes by; engine_dies_after, a
number of parts after which vLLM's engine process is killed; step_seconds, what the fake one here takes for a
step; beat_seconds, of heartbeats, log_seconds, of the log; marks, a folder; fake, whether engines are fakes.
"""

import json
import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from deadly_scorer import DeadlyScorer
from fake_scorer import FakeScorer, LocalWorkers, make_encoder
from faulty_store import Fault, FaultyStore

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import epoch, run
from tuco_vllm.corpus.actor import encoder_maker, engine_starter
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.driver import Workers
from tuco_vllm.corpus.job import ScoreJob


class SlowScorer(FakeScorer):
    """Takes its time for a step."""

    seconds = 0.0

    def step(self):
        time.sleep(self.seconds)
        return super().step()


class Killing(Workers):
    """Workers, of which one engine process is killed when so many units are done."""

    after = 0

    def scored(self, work, units):
        done = 0
        for report in super().scored(work, units):
            yield report
            done += report is not None
            if report is not None and done == self.after:
                kill("EngineCore")


def kill(title):
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just died
            if title in " ".join(process.cmdline()):
                process.kill()
                print(f"killed {title} {process.pid}", file=sys.stderr)
                return
    print(f"no {title} to kill", file=sys.stderr)


def main(plan_file):
    plan = json.loads(Path(plan_file).read_text())
    marks = Path(plan["marks"])
    faults = tuple(Fault(*each) for each in plan["faults"])
    real = run.store_at
    run.store_at = lambda out: FaultyStore(real(out), marks, faults)
    pair = resolve_pair(plan["pt"], plan["ft"])
    job = ScoreJob(
        tuple(plan["inputs"]), plan["out"], rows_per_file=plan["rows_per_file"], dtype=plan["dtype"]
    )
    cluster = Cluster(plan["engines"])
    Killing.after, SlowScorer.seconds = plan["engine_dies_after"], plan["step_seconds"]
    epoch.BEAT_SECONDS, run._LOG_SECONDS = plan["beat_seconds"], plan["log_seconds"]

    def open_workers(tokens):
        if not plan["engines"]:
            return LocalWorkers(job, pair.ft.directory, SlowScorer())
        if not plan["fake"]:
            start = engine_starter(pair, cluster, {"dtype": plan["dtype"], "enforce_eager": True})
            return Killing(cluster, start, encoder_maker(job, pair))
        start = partial(DeadlyScorer, folder=marks)
        return Workers(cluster, start, partial(make_encoder, pair.ft.directory))

    run.score_corpus(job, pair, open_workers, engines=max(1, plan["engines"]))
    print(f"{os.getpid()} has finished", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
