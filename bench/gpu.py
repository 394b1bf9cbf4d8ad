"""What scores and alpha cost on a GPU: 7B and 8B pairs inside vLLM, in ten minutes, by one command.

    python bench/gpu.py [--minutes 9.3] [--only scoring,generation] [--shapes llama-2-7b] [--out DIR]

What is measured, with the real sizes of Llama-3-8B, Llama-2-7B (no grouped heads) and Qwen3-8B in bfloat16:
scoring over a stock vLLM prefill of FT alone, over PT on all tokens, over two Hugging Face models; generation
plain, scored and steered over stock; bytes of KV cache; our kernels over a copy; where a step's time goes.

Physics. Prefill of thousands of tokens is bound by matrix products: FLOPs over the product rate that the same
run measured (``machine``) is MFU, and ``Shape.bound`` (0.99, 0.88, 0.98) the most that scoring can reach of
stock. What it lacks is norms, rope and cache writes over all tokens, small products on rows, launches, and
the CPU: ``profile`` says which. Decoding a small batch is bound by reading weights: plain requests read FT's,
scored and steered ones PT's too, so 0.5 of stock is all there is for them, and the CPU's launches cost more
than that where no CUDA graph is replayed. How many *different* alphas are in a batch costs nothing. The
kernels are bound by the bytes they move.

Method. Engines are processes that live side by side on the device and take turns, one at work at a time: the
same settings for all, torch.compile and CUDA graphs as vLLM has them by default. Each turn has fresh prompts
of random tokens; scoring has no prefix cache. A turn before the rounds warms up. Ratios are taken within a
round, then their median; the order turns about every round. Weights are random (uniform within 1e-3): speed
does not depend on what they say, right scores are tests/parity's business, and here they need only be
finite. PT on all tokens runs without torch.compile, and the Hugging Face reference has prompts of one length,
its best case. Starting engines is most of the ten minutes: cells run in order of importance (``gpu_plan``),
each record is written the moment it is measured, and what there was no time for is named in the end.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import provenance
from contenders import set_environment
from gpu_budgets import all_met, in_words
from gpu_cells import MEASURES, Bench, Record
from gpu_plan import FULL, KINDS, SMOKE, Cell, Deadline, OutOfTime, cells, crew
from gpu_processes import Failed, Member
from gpu_roles import Spec, build
from gpu_shapes import CONFIGS, config_of, kv_bytes_per_token, shape_of, write_pair
from gpu_words import in_lines

ROOM = 130 << 30
"""Bytes of the device that the arithmetic of ``gpu_plan.device_bytes`` may fill: an H200 has 140 GiB."""

SMOKE_ROOM = 24 << 30
"""Few processes at a time: tiny engines hold little on a device, but start on two cores."""

START_SECONDS = 45
"""With less time than this nothing is started any more."""


def main() -> None:
    """Measure; lines and a last one of JSON on stdout, records in bench/results or ``--out``."""
    options = parse()
    deadline = Deadline(options.minutes)
    set_environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # as users run it
    origin = provenance.provenance()
    run = Run(options, deadline, origin)
    # SIGTERM must unwind too; and should this process itself hang, all ends a little after the deadline.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    guard = threading.Timer(max(0.0, deadline.left()) + 20, run.end_at_once)
    guard.daemon = True
    guard.start()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            run.all_cells(Path(directory))
    finally:
        run.bench.crew.kill()
        run.close()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--minutes", type=float, default=9.3, help="all has ended by then")
    parser.add_argument("--only", type=names, default=",".join(KINDS), help="kinds of cells")
    parser.add_argument("--shapes", type=names, default=",".join(CONFIGS), help="in order of importance")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender a cell, 3 at least")
    parser.add_argument("--out", type=Path, default=provenance.RESULTS, help="folder of gpu.jsonl")
    parser.add_argument("--eager", action="store_true", help="no torch.compile and no CUDA graphs")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="more of vLLM's, JSON, for all")
    parser.add_argument("--caches", type=Path, help="keep what is compiled here, for a next run")
    parser.add_argument("--smoke", action="store_true", help="tiny models, one round, nothing recorded")
    options = parser.parse_args()
    if unknown := set(options.only) - {*KINDS} | set(options.shapes) - {*CONFIGS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.smoke:
        options.rounds, options.eager = 1, True
    elif options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    return options


class Run:
    """One run of this script: its plan, what it has measured, and what it could not."""

    def __init__(self, options: argparse.Namespace, deadline: Deadline, origin: dict[str, Any]) -> None:
        self.options, self.origin = options, origin
        self.sizes = SMOKE if options.smoke else FULL
        self.configs = {name: config_of(name, smoke=options.smoke) for name in options.shapes}
        self.bench = Bench(self.sizes, options.rounds, options.smoke, deadline)
        self.records: list[Record] = []
        self.failures: dict[str, str] = {}
        self.left: list[Cell] = cells(self.configs, self.sizes, options.only)
        self.directory = Path()
        self.room = SMOKE_ROOM if options.smoke else ROOM

    def all_cells(self, directory: Path) -> None:
        """Every cell that there is time for."""
        self.directory = directory
        try:
            while self.left:
                self.muster()
                self.one_cell(self.left[0])
                self.left.pop(0)
        except OutOfTime:
            return

    def muster(self) -> None:
        """See that the next cell's processes live; when some must start, as many others as fit."""
        members = self.bench.crew
        if {*self.left[0].members()} <= {*members.living, *members.failed}:
            return
        wanted = crew(self.left, self.configs, self.sizes, self.room, [*members.living])
        new = [key for key in wanted if key not in members.living and key not in members.failed]
        self.bench.deadline.check(0 if self.options.smoke else START_SECONDS)
        self.say(f"starting {', '.join(' '.join(key).strip() for key in new)}")
        members.muster(wanted, self.start, self.bench.deadline)
        started = [(" ".join(key).strip(), members.living[key]) for key in new if key in members.living]
        self.say(f"ready: {', '.join(f'{name} {member.start_seconds} s' for name, member in started)}")

    def one_cell(self, cell: Cell) -> None:
        """Measure and record a cell; again without whoever failed in it."""
        for _ in cell.roles:
            try:
                self.bench.deadline.check()
                self.record(cell, MEASURES[cell.kind](cell, self.bench))
                return
            except Failed as error:
                self.failures[str(cell)] = str(error).strip().rpartition("\n")[2]
                self.say(f"{cell}: {self.failures[str(cell)]}")

    def start(self, role: str, shape: str) -> Member:
        """One process."""
        config, sizes = self.configs.get(shape), self.sizes
        name = f"{role} {shape}".strip()
        pt, ft, cache_bytes = "", "", 0
        if config is not None:
            home = self.directory / shape
            pt, ft = (str(home / "pt"), str(home / "ft")) if home.exists() else write_pair(config, home)
            models = 2 if role.endswith("tuco") or role == "two passes" else 1
            shape_sizes = shape_of(config)
            cache_bytes = sizes.kv_tokens(role, shape_sizes) * kv_bytes_per_token(shape_sizes, models)
        spec = Spec(
            role=role,
            pt=pt,
            ft=ft,
            on_gpu=self.origin["gpu"] is not None,
            compiled=not self.options.eager,
            max_model_len=sizes.max_model_len(),
            max_num_seqs=max(sizes.batches),
            step_tokens=sizes.step_tokens,
            kv_cache_bytes=cache_bytes + (64 << 20 if self.options.smoke else 0),
            caches=str((self.options.caches or self.directory / "caches") / name.replace(" ", "-")),
            more_arguments=self.options.engine_args,
        )
        return Member(name, build, spec)

    def record(self, cell: Cell, measured: Record) -> None:
        """Keep a cell, write it, and say what it is."""
        record = {
            "bench": "gpu",
            "kind": cell.kind,
            "shape": cell.shape,
            "size": cell.size,
            "config": self.configs.get(cell.shape),
            "compiled": not self.options.eager,
            "step_tokens": self.sizes.step_tokens,
            "engine_args": self.options.engine_args,
            "alive": [" ".join(key).strip() for key in self.bench.crew.living],
            **measured,
        }
        self.records.append(record)
        if not self.options.smoke:
            provenance.append("gpu", {**record, "provenance": self.origin}, self.options.out)
        for line in in_lines(cell, record):
            self.say(line)

    def say(self, line: str) -> None:
        """A line of stdout, with the seconds left."""
        print(f"[{self.bench.deadline.left():4.0f} s left] {line}", flush=True)

    def close(self) -> None:
        """What failed, what there was no time for, and the last line."""
        unmeasured = [str(cell) for cell in self.left]
        failed = {" ".join(key).strip(): why[-600:] for key, why in self.bench.crew.failed.items()}
        for name in unmeasured:
            self.say(f"no time for {name}")
        for name in failed:
            self.say(f"failed: {name}")
        verdicts = [
            {"shape": record["shape"], "size": record["size"], **judged}
            for record in self.records
            for judged in record.get("budgets", [])
        ]
        met = sum(judged["met"] for judged in verdicts)
        self.say(f"{met} of {len(verdicts)} floors met; floors and goals not met:")
        for judged in verdicts:
            if not judged["goal_met"]:
                where = [judged.get(key) for key in ("shape", "kernel", "rows", "size")]
                self.say(" ".join(str(part) for part in where if part) + f" {in_words(judged)}")
        keys = (
            "kind",
            "shape",
            "size",
            "tokens_per_s",
            "mfu",
            "over_stock",
            "ratios",
            "tuco_over_hugging_face",
        )
        summary = {
            "bench": "gpu",
            "recorded": not self.options.smoke,
            "commit": self.origin["commit"],
            "gpu": self.origin["gpu"],
            "floors_met": None if self.options.smoke else all_met(self.records),
            "complete": not (unmeasured or failed),
            "cells": [{key: record[key] for key in keys if key in record} for record in self.records],
            "budgets": verdicts,
            "no_time_for": unmeasured,
            "failed_cells": self.failures,
            "failed_processes": failed,
        }
        print(json.dumps(summary), flush=True)

    def end_at_once(self) -> None:
        """The last resort: nothing may outlive the deadline."""
        self.say("the deadline has passed long ago: all processes are killed")
        self.bench.crew.kill()
        os._exit(3)


if __name__ == "__main__":
    main()
