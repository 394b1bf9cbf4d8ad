"""All alphas of a sweep in one batch stream, against one alpha after another, and against a job an alpha.

    python bench/sweep.py [--shapes gqa] [--dtypes float32] [--tasks 4] [--questions 24] [--rounds 3]

Physics. A sweep is prefill: of each task's examples once an alpha, since keys and values depend on it, and of
every question at every alpha; at alpha other than 1 by both models. On a CPU that is bound by arithmetic,
which is the same in whichever order it is done. What one stream saves is ends: a batch's last steps are less
full, once for all alphas instead of once for each, which counts where a step holds many questions. Jobs pay
the engine's start for every alpha besides, which no size of batch gives back.

Method. In every round fresh questions, with examples that a task's questions share, are answered by all:
in one call of one engine, in a call an alpha of that engine, and by a process an alpha with an engine of its
own (``jobs``: all its seconds; ``jobs_without_starts``: those of the answers alone). Who goes first changes
from round to round. All must give the same log-probabilities, or nothing is recorded. Ratios are taken within
a round, then their median; a round before the first warms up. One engine's process is idle while jobs run.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from models import SHAPES, SMOKE_SHAPES, VOCAB_SIZE, write_pair
from provenance import append, provenance
from score import spread

from tuco_vllm.config import resolve_pair
from tuco_vllm.steering import ANY_NUMBER, Steering
from tuco_vllm.sweep.grid import PAPER_ALPHAS

AGREE = {"float32": 1e-3, "bfloat16": 0.2}
"""Largest difference of a log-probability between contenders. Coarse: tests judge accuracy."""

OPTIONS = [10, 20, 30, 40]

Answers = list[list[float]]


def main() -> None:
    """Measure every cell; a line and a record each."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shapes", default="gqa", help="of " + ",".join(SHAPES))
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--questions", type=int, default=24, help="of each task")
    parser.add_argument("--examples", type=int, default=256, help="tokens that a task's questions share")
    parser.add_argument("--own", type=int, default=64, help="tokens of a question's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a toy model: does it run at all? No record")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        do_job(json.loads(options.job), options)
        return
    if options.rounds < 3 and not options.smoke:
        parser.error("a ratio needs 3 rounds at least")
    origin = provenance()
    for shape in options.shapes.split(","):
        for dtype in options.dtypes.split(","):
            with tempfile.TemporaryDirectory() as directory:
                sizes = (SMOKE_SHAPES if options.smoke else SHAPES)[shape]
                pair = tuple(map(str, write_pair(sizes, Path(directory), dtype)))
                cell = {"shape": shape, "dtype": dtype, **measure(pair, dtype, options)}
            print({key: value for key, value in cell.items() if key != "seconds"}, flush=True)
            if not options.smoke:
                append("sweep", {"bench": "sweep", **cell, "provenance": origin})


def measure(pair: tuple[str, str], dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """One cell: all contenders in every round."""
    engine = started(pair, dtype, options)
    seconds: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        turns = {
            "one_stream": lambda asked: one_stream(engine, asked),
            "by_alpha": lambda asked: by_alpha(engine, asked),
            "jobs": lambda asked, number=number: jobs(pair, dtype, number, options),
        }
        if not number:  # a job has nothing to warm up
            del turns["jobs"]
        told: dict[str, Answers] = {}
        for name in sorted(turns, reverse=number % 2 == 0):
            took, told[name], *started_in = turns[name](questions(f"{number}", options))
            engine.llm.reset_prefix_cache()  # the next one has the same questions
            if number:
                seconds.setdefault(name, []).append(round(took, 3))
                if started_in:
                    seconds.setdefault("jobs_without_starts", []).append(round(took - started_in[0], 3))
        expect_equal(told, dtype)
    engine.close()
    count = options.tasks * options.questions * len(PAPER_ALPHAS)
    cell: dict[str, Any] = {
        name: getattr(options, name) for name in ("tasks", "questions", "examples", "own")
    }
    cell |= {"alphas": len(PAPER_ALPHAS), "rounds": options.rounds, "seconds": seconds}
    cell["answers_a_second"] = spread([count / own for own in seconds["one_stream"]])
    for name in ("by_alpha", "jobs", "jobs_without_starts"):
        ratios = [own / one for own, one in zip(seconds[name], seconds["one_stream"], strict=True)]
        cell[f"one_stream_over_{name}"] = spread(ratios)
    return cell


def started(pair: tuple[str, str], dtype: str, options: argparse.Namespace) -> Any:
    """An engine as a sweep has it, uncompiled, with a prefix cache."""
    from tuco_vllm.engine.generator import Generator

    args: dict[str, Any] = {"dtype": dtype, "enforce_eager": True, "skip_tokenizer_init": True}
    args |= {"max_model_len": options.examples + options.own + 1, "kv_cache_memory_bytes": 2 << 30}
    return Generator(resolve_pair(*pair), limits=ANY_NUMBER, **args, block_size=32)


def questions(seed: str, options: argparse.Namespace) -> list[list[int]]:
    """Task by task, each question behind the task's examples."""
    draw = random.Random(seed)
    tasks = [draw.choices(range(3, VOCAB_SIZE), k=options.examples) for _ in range(options.tasks)]
    own = range(options.questions)
    return [task + draw.choices(range(3, VOCAB_SIZE), k=options.own) for task in tasks for _ in own]


def answers(engine: Any, asked: list[list[int]], alphas: tuple[float, ...]) -> Answers:
    """log p of the options of every question at every alpha, in one call."""
    from tuco_vllm.engine.generator import logps_of, next_token

    steerings = [Steering(alpha) for alpha in alphas for _ in asked]
    params = [next_token(OPTIONS)] * len(steerings)
    outputs = engine.generate(asked * len(alphas), params, steerings, progress=False)
    return [logps_of(output, OPTIONS) for output in outputs]


def one_stream(engine: Any, asked: list[list[int]]) -> tuple[float, Answers]:
    """Seconds, and what was answered."""
    start = time.perf_counter()
    told = answers(engine, asked, PAPER_ALPHAS)
    return time.perf_counter() - start, told


def by_alpha(engine: Any, asked: list[list[int]]) -> tuple[float, Answers]:
    """As ``one_stream``, a call an alpha."""
    start = time.perf_counter()
    told = [each for alpha in PAPER_ALPHAS for each in answers(engine, asked, (alpha,))]
    return time.perf_counter() - start, told


def jobs(
    pair: tuple[str, str], dtype: str, number: int, options: argparse.Namespace
) -> tuple[float, Answers, float]:
    """Seconds, answers, and the seconds that were no answering, of a process an alpha."""
    given = [f"--{name}={getattr(options, name)}" for name in ("tasks", "questions", "examples", "own")]
    start, told, answering = time.perf_counter(), [], 0.0
    for alpha in PAPER_ALPHAS:
        job = json.dumps({"pair": pair, "dtype": dtype, "seed": f"{number}", "alpha": alpha})
        command = [sys.executable, __file__, *given, "--job", job]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(run.stderr)
        done = json.loads(run.stdout.splitlines()[-1])
        told += done["told"]
        answering += done["seconds"]
    took = time.perf_counter() - start
    return took, told, took - answering


def do_job(job: dict[str, Any], options: argparse.Namespace) -> None:
    """What one of ``jobs``' processes does; a line of JSON on stdout."""
    engine = started(tuple(job["pair"]), job["dtype"], options)
    start = time.perf_counter()
    told = answers(engine, questions(job["seed"], options), (job["alpha"],))
    print(json.dumps({"seconds": time.perf_counter() - start, "told": told}), flush=True)
    engine.close()


def expect_equal(told: dict[str, Answers], dtype: str) -> None:
    """A contender that answers otherwise is not timed."""
    first, *others = (told[name] for name in sorted(told))
    for other in others:
        pairs = zip(chain(*first), chain(*other), strict=True)
        if (off := max(abs(a - b) for a, b in pairs)) > AGREE[dtype]:
            raise SystemExit(f"contenders differ by {off:.2g} in log p: nothing is recorded")


if __name__ == "__main__":
    main()
