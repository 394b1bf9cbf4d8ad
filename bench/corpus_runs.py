"""Runs of ``tuco score`` and of a bare engine on the same prompts, each in processes of its own, and resumes.

A turn starts everything anew, so neither side is warmer than the other. Prompts are new in every round.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from corpus_long import Watch, running
from corpus_model import compared, prompts, ratio_budget
from corpus_stages import LocalWorkers, make_encoder, write_lines
from score import spread

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus

LONG = 256
"""Tokens of the longer prompts."""

Paths = tuple[str, str]
"""The directories of PT and FT."""

SCORE_TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-3, "float16": 2e-3}
"""|dTuCo| of one prompt in two batches. In float32 it is the engine's bound against the oracle; in 16 bits a
prompt's matrix products round by the shape of the batch, within the noise floor of tests/tolerances.py."""


@dataclass(frozen=True)
class Turn:
    """One side's turn. ``seconds`` is the clock that is compared; ``wall`` has starting and ending in it."""

    seconds: float
    wall: float
    rows: int
    errors: int
    prompt_tokens: int
    engine_cores: list[int]
    cpu_seconds: dict[str, float]
    """By group of processes; seen every two seconds, so the last moments are missing."""
    foreign_cpu_seconds: float
    """What all other processes of the machine took meanwhile."""
    rows_by_engine: list[int]
    """An engine that was still starting when the rows ran out has none."""


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """``work(*arguments)`` in a process that ends with it; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def bare_turn(pair: Paths, texts: Sequence[str], eager: bool) -> Turn:
    """A bare engine, started for this."""
    began = time.monotonic()
    with Watch(os.getpid()) as watch:
        seconds, tokens = in_own_process(_bare_engine, pair, list(texts), eager)
    wall = time.monotonic() - began
    return Turn(seconds, wall, len(texts), 0, tokens, *_seen(watch), [len(texts)])


def _bare_engine(pair: Paths, texts: list[str], eager: bool) -> tuple[float, int]:
    """Seconds from the first submission to the last result, and how many tokens these were."""
    from tuco_vllm.engine.scorer import Scorer

    checked = resolve_pair(*pair)
    encoder = make_encoder(checked.ft.directory)
    token_ids = [encoder.encode(text).token_ids for text in texts]
    # So it compiles where a job of as many tokens does.
    arguments: dict[str, Any] = {"expected_tokens": sum(map(len, token_ids))}
    scorer = Scorer(checked, **arguments, **({"enforce_eager": True} if eager else {}))
    try:
        began = time.monotonic()
        found = sum(1 for _ in scorer.stream(enumerate(token_ids)))
        seconds = time.monotonic() - began
    finally:
        scorer.close()
    if found != len(texts):
        raise RuntimeError(f"the bare engine returned {found} of {len(texts)} prompts")
    return seconds, sum(map(len, token_ids))


def score_command(pair: Paths, inputs: Path, out: Path, eager: bool, *more: str) -> list[str]:
    """The command line of ``tuco score``."""
    command = [str(Path(sys.executable).with_name("tuco")), "score", str(inputs), "--pt", pair[0]]
    command += ["--ft", pair[1], "--out", str(out), *more]
    return [*command, "--enforce-eager"] if eager else command


def pipeline_turn(pair: Paths, inputs: Path, out: Path, eager: bool, engines: int) -> Turn:
    """One whole ``tuco score``; its output stays in ``out``."""
    began = time.monotonic()
    command = score_command(pair, inputs, out, eager, "--engines", str(engines))
    with running(command) as process, Watch(process.pid) as watch:
        code = process.wait()
    wall = time.monotonic() - began
    if code != 0:
        raise RuntimeError(f"tuco score ended with {code}: its own message is above")
    run = json.loads((out / "_tuco" / "run.json").read_text())
    counts = run["counts"]
    return Turn(
        run["timings"]["score_seconds"],
        round(wall, 3),
        counts["rows"],
        counts["errors"],
        counts["prompt_tokens"],
        *_seen(watch),
        [engine["rows"] for engine in run["engines"]],
    )


def _seen(watch: Watch) -> tuple[list[int], dict[str, float], float]:
    return sorted(watch.engine_cores), watch.cpu_seconds(), watch.foreign_seconds()


def measure_cell(
    pair: Paths,
    tokens: int,
    sides: list[int],
    words: Mapping[str, int],
    options: Namespace,
    scratch: Path,
) -> dict[str, Any]:
    """Rounds of some sides (0: bare engine, n: a pipeline of n engines) on prompts of one length."""
    few = list(prompts(max(32, 16_384 // tokens), tokens, seed=0, words=words))
    warm = bare_turn(pair, few, options.eager)
    rows = max(len(few), math.ceil(1.3 * options.seconds * len(few) / warm.seconds))
    turns, equal = take_turns(pair, sides, rows, tokens, words, options, scratch)
    ratios = {
        name: spread([a.seconds / b.seconds for a, b in zip(turns[base], turns[side], strict=True)])
        for name, (side, base) in compared(sides).items()
    }
    budget = ratios.get("1 engine / bare engine")
    cores = {str(side): sorted({tuple(turn.engine_cores) for turn in own}) for side, own in turns.items()}
    return {
        "mode": "runs",
        "tokens": tokens,
        "rows": rows,
        "rounds": options.rounds,
        "prompt_tokens_of_the_last_round": turns[sides[0]][-1].prompt_tokens,
        "ratios": ratios,
        "floors": ratio_budget(tokens, budget["median"]) if budget and not options.quick else [],
        "same_cores": cores.get("0") == cores.get("1") if budget else None,
        "rows_per_second": {
            str(s): round(median(t.rows / t.seconds for t in own), 2) for s, own in turns.items()
        },
        "tokens_per_second": {
            str(s): round(median(t.prompt_tokens / t.seconds for t in own), 1) for s, own in turns.items()
        },
        "all_engines_scored": all(all(turn.rows_by_engine) for own in turns.values() for turn in own),
        "outputs_of_numbers_of_engines": equal,
        "turns": {str(side): [asdict(turn) for turn in own] for side, own in turns.items()},
    }


def take_turns(
    pair: Paths,
    sides: Sequence[int],
    rows: int,
    tokens: int,
    words: Mapping[str, int],
    options: Namespace,
    scratch: Path,
) -> tuple[dict[int, list[Turn]], dict[str, Any] | None]:
    """Rounds of all sides on the same prompts, the order turned round each time.

    ``sides``: 0 is the bare engine, n a pipeline of n engines. Returns turns by side and, for several
    pipelines, how equal their outputs were.
    """
    turns: dict[int, list[Turn]] = {side: [] for side in sides}
    equal = None
    for number in range(options.rounds):
        texts = list(prompts(rows, tokens, seed=number + 1, words=words))
        inputs = scratch / "prompts.jsonl"
        write_lines(texts, inputs)
        outs = {side: scratch / f"out{side}" for side in sides if side}
        for side in sides if number % 2 == 0 else reversed(sides):
            turn = (
                pipeline_turn(pair, inputs, outs[side], options.eager, side)
                if side
                else bare_turn(pair, texts, options.eager)
            )
            turns[side].append(turn)
        counted = {
            (turn.rows, turn.prompt_tokens, turn.errors) for own in turns.values() for turn in own[-1:]
        }
        if len(counted) != 1:
            raise RuntimeError(f"rows, tokens, errors differ between the sides: {counted}")
        if len(outs) > 1:
            equal = compare_outputs(list(outs.values()), equal)
        for out in outs.values():
            shutil.rmtree(out)
    return turns, equal


def compare_outputs(outs: Sequence[Path], worst: dict[str, Any] | None) -> dict[str, Any]:
    """Whether runs have the same ids, errors and token counts, and by how much TuCo differs at most.

    Raises RuntimeError where they are not equal, or a score is off by more than ``SCORE_TOLERANCE``.
    """
    names = ["id", "error", "prompt_tokens", "tuco"]
    first, *others = (pq.read_table(sorted(out.glob("part-*.parquet")), columns=names) for out in outs)
    dtype = json.loads((outs[0] / "_tuco" / "run.json").read_text())["engine"]["dtype"]
    difference = worst["max_difference_of_tuco"] if worst else 0.0
    for other in others:
        if not first.select(names[:3]).equals(other.select(names[:3])):
            raise RuntimeError("ids, errors or token counts differ between numbers of engines")
        distance = pc.max(pc.abs(pc.subtract(first["tuco"], other["tuco"]))).as_py() or 0.0
        if not distance <= SCORE_TOLERANCE[dtype]:
            raise RuntimeError(f"TuCo differs by {distance:.1e} between numbers of engines, in {dtype}")
        difference = max(difference, distance)
    return {
        "ids_errors_tokens_equal": True,
        "max_difference_of_tuco": difference,
        "tolerance": SCORE_TOLERANCE[dtype],
        "dtype": dtype,
    }


def resume_costs(pair: Paths, words: Mapping[str, int], options: Namespace, scratch: Path) -> dict[str, Any]:
    """Seconds from the command's start to its first new part, by the share that is done already.

    What is done is what an earlier run leaves; it is made here without an engine, in about a hundred parts.
    """
    rows, eager = options.resume_rows, options.eager
    inputs, full = scratch / "resume.jsonl", scratch / "full"
    write_lines(prompts(rows, 15, seed=0, words=words), inputs)
    checked = resolve_pair(*pair)
    layers = json.loads((checked.ft.directory / "config.json").read_text())["num_hidden_layers"]
    job = ScoreJob((str(inputs),), str(full), rows_per_file=rows // 100)
    score_corpus(job, checked, lambda _: LocalWorkers(checked.ft.directory, layers))
    (full / "_SUCCESS").unlink()
    seconds: dict[str, list[float]] = {"0": [], "10": [], "50": [], "90": []}
    for _ in range(options.resume_rounds):
        for share, taken in seconds.items():
            out = scratch / "resumed"
            shutil.copytree(full, out)
            parts = sorted(out.glob("part-*"))
            for part in parts[len(parts) * int(share) // 100 :]:
                part.unlink()
            taken.append(_seconds_to_first_part(score_command(pair, inputs, out, eager), out))
            shutil.rmtree(out)
    return {
        "rows": rows,
        "rounds": options.resume_rounds,
        "seconds_to_first_new_rows_at_percent_done": {
            k: [round(s, 2) for s in v] for k, v in seconds.items()
        },
    }


def _seconds_to_first_part(command: list[str], out: Path) -> float:
    before = len(list(out.glob("part-*")))
    began = time.monotonic()
    with running(command, stderr=subprocess.DEVNULL) as process:
        while len(list(out.glob("part-*"))) == before:
            if process.poll() is not None:
                raise RuntimeError(f"tuco score ended with {process.returncode} before it committed a row")
            time.sleep(0.02)
        seconds = time.monotonic() - began
        process.send_signal(signal.SIGTERM)
        process.wait()
    return seconds
