"""Runs one scoring job and kills processes of it at steps of its commit protocol, for the chaos tests.

    python tests/chaos_driver.py PLAN.json

PLAN: inputs, out, pt, ft, dtype, rows_per_file; engines, or 0 for a fake one in this process, without Ray;
kills, a list of (step, victim); fake, a folder for fake engines' marks, or null for vLLM's. A step is a call
of the driver that makes something durable (fsync or rename), counted from 1; the victim dies just before it,
and with "disk" the call fails. The number of steps goes to OUT.steps in the end.
"""

import errno
import json
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from deadly_scorer import DeadlyScorer
from fake_scorer import LocalPipeline, make_encoder

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import publish, run_record
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.pipeline import Pipeline, pipeline_of
from tuco_vllm.corpus.run import ScoreJob, score_corpus

VICTIMS = {
    "engine": "EngineCore",
    "actor": "Map(EngineActor)",
    "tokeniser": "Map(Tokeniser)",
    "board": "Board",
}
"""What stands in the titles of these processes; the driver is this one."""


class Steps:
    """Counts the calls that make something durable, and kills when one is due."""

    def __init__(self, kills):
        self.done = 0
        self._kills = dict(kills)
        for name in ("fsync", "replace"):
            setattr(publish.os, name, partial(self._call, getattr(os, name)))

    def _call(self, real, *arguments):
        self.done += 1
        victim = self._kills.pop(self.done, None)
        if victim is not None:
            kill(victim)
        return real(*arguments)


def kill(victim):
    if victim == "disk":
        raise OSError(errno.ENOSPC, "the disk is full")
    if victim == "driver":
        os.kill(os.getpid(), signal.SIGKILL)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just died
            if VICTIMS[victim] in " ".join(process.cmdline()):
                process.kill()
                print(f"killed {victim} {process.pid}", file=sys.stderr)
                return
    print(f"no {victim} to kill", file=sys.stderr)


def main(plan_file):
    plan = json.loads(Path(plan_file).read_text())
    run_record._SAVE_SECONDS = float("inf")  # else there are more steps on a slow machine
    steps = Steps(plan["kills"])
    pair = resolve_pair(plan["pt"], plan["ft"])
    out = Path(plan["out"])
    job = ScoreJob(tuple(plan["inputs"]), out, rows_per_file=plan["rows_per_file"], dtype=plan["dtype"])
    cluster = Cluster(plan["engines"])

    def open_pipeline(tokens):
        if not plan["engines"]:
            return LocalPipeline(job, pair.ft.directory)
        if plan["fake"] is None:
            return pipeline_of(job, pair, cluster, {"dtype": plan["dtype"], "enforce_eager": True})
        start = partial(DeadlyScorer, folder=plan["fake"])
        return Pipeline(cluster, start, partial(make_encoder, pair.ft.directory))

    score_corpus(job, pair, open_pipeline)
    out.with_suffix(".steps").write_text(str(steps.done))


if __name__ == "__main__":
    main(sys.argv[1])
