"""What scores and alpha cost on one GPU of 80 GB or more: three runs of at most ten minutes each.

    python bench/gpu.py correctness     tests/kernels and tests/gpu, part by part
    python bench/gpu.py scoring         Llama-3-8B: stock prefill and ours, 2048 and 16384 tokens a step
    python bench/gpu.py generation      Llama-3-8B: plain, scored, steered; then Llama-2-7B's scoring

Beside every figure stands ``roofline.py``'s prediction, by rates that the run measures first. Models have
real shapes and no weights: vLLM makes them up, speed does not depend on them, and whether scores are right is
what ``correctness`` asks. Both sides are engines of the same settings, a process each. They start together
and share the device, if the memory rule says that they fit. They take turns, one at work at a time; each
round has fresh prompts and turns the order about, and one before the first warms up. The clock runs from the
first step, when all requests are queued, to the last result. Ratios are taken within a round: median, least
and greatest. A cell is recorded at once; what there is no time for is named. ``--dry-run`` does it all with
tiny models on a CPU: no figure counts.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median
from typing import Any

import provenance
import roofline
from contenders import set_environment
from gpu_engine import WISHES, Cell, begin, device_rates, start, turn
from models import Shape
from rich.console import Console
from score import FLOOR_TOKENS, STOCK_FLOORS, floor, fresh_prompts, spread
from score_table import gpu_table

CHECKS = {
    "kernels": ("tests/kernels", ""),
    "scoring, eager": ("tests/gpu/test_scoring.py", "FLASH_ATTN-eager"),
    "scoring, 8 sequences": ("tests/gpu/test_scoring.py", "seqs8"),
    "scoring, graphs": ("tests/gpu/test_scoring.py", "FLASH_ATTN-FULL_AND_PIECEWISE"),
    "steering, eager": ("tests/gpu/test_steering.py", "eager"),
    "steering, graphs": ("tests/gpu/test_steering.py", "not eager"),
    "identity": ("tests/gpu/test_identity.py", ""),
}
"""What ``correctness`` runs, in this order: a folder or file, and pytest's -k."""

FLOORS = [("plain", "stock", 0.90, 0.98), ("steered", "stock", 0.45, 0.49), ("mixed", "steered", 0.95, 0.95)]
"""Of generation: what over what, floor, goal."""

GRAPHS = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}


def plan(run: str, model: str, steps: list[int] | None) -> list[Cell]:
    """A run's cells, the most important first."""

    def scoring(model: str, steps: list[int], *prompts: int) -> list[Cell]:
        return [Cell(model, "scoring", step, n, 65536 // n) for step in steps for n in prompts]

    if run == "scoring":
        return scoring(model, steps or [16384, 2048], 512, 2048, 128, 32)
    return [Cell(model, "generation", 4096, 64, 64, 128), *scoring("llama-2-7b", steps or [8192], 512, 2048)]


def small(cell: Cell) -> Cell:
    """The same for a dry run."""
    requests, output = min(cell.requests, 70) // 4, cell.output // 16
    return Cell(*cell[:2], cell.step_tokens // 128, max(cell.prompt // 64, 4), requests, output)


def of_engine(cells: list[Cell], config: dict[str, Any], models: int) -> tuple[dict[str, Any], int]:
    """vLLM's arguments for an engine that serves such cells, and the bytes it takes of a device."""
    step, first = max(cell.step_tokens for cell in cells), cells[0]
    longest = max(cell.prompt + cell.output for cell in cells) + 32
    tokens = longest * first.requests if first.output else 2 * step + longest
    tokens += 512  # blocks are whole, and vLLM keeps one
    logits = first.requests if first.output else 0
    return {
        "runner": "generate" if first.output else "pooling",
        "max_model_len": longest,
        "max_num_seqs": logits or min(1024, step),
        "max_num_batched_tokens": step,
        "kv_cache_memory_bytes": tokens * roofline.kv_bytes_per_token(config, models),
        **{"dtype": "bfloat16", "load_format": "dummy", "skip_tokenizer_init": True},
        **{"disable_log_stats": True, "use_tqdm_on_load": False, "enable_prefix_caching": False},
    }, roofline.engine_bytes(config, step, models=models, kv_tokens=tokens, logits=logits)


def expect_room(cells: list[Cell], memory: int) -> None:
    """SystemExit where both engines of some cells, at their real size, do not fit a device."""
    room = roofline.USABLE * memory / 1e9
    for shared in dict.fromkeys(cell[:2] for cell in cells):
        own = [cell for cell in cells if cell[:2] == shared]
        wanted = sum(of_engine(own, roofline.CONFIGS[shared[0]], models)[1] for models in (1, 2)) / 1e9
        said = f"{' '.join(shared)}: two engines take {wanted:.0f} GB of {room:.0f}"
        if wanted > room:
            raise SystemExit(f"{said}: give fewer tokens a step (--steps 2048) or another --model")
        print(said, flush=True)


class Run:
    """One run: what is left to measure, and what was."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.origin = options, provenance.provenance()
        self.budgets: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.out = options.out or (None if options.dry_run else provenance.RESULTS)
        self.console, self.home = Console(width=130, highlight=False), tempfile.TemporaryDirectory()
        gpu = self.origin["gpu"]
        self.left: list[Any] = list(CHECKS)
        self.memory = int(gpu["memory.total"].split()[0]) << 20 if gpu else roofline.H100.memory
        if options.run != "correctness":
            cells = plan(options.run, options.model, options.steps)
            expect_room(cells, self.memory)
            self.left = [small(cell) for cell in cells] if options.dry_run else cells

    def measure(self) -> None:
        """All that is left, while there is time. What fails does not keep the rest from its turn."""
        shared: Any = None
        for cell in list(self.left):
            try:
                if isinstance(cell, str):
                    self.check(cell)
                elif cell[:2] == shared:
                    self.rounds(cell)
                else:
                    shared = cell[:2]
                    self.start_engines([other for other in self.left if other[:2] == shared])
                    self.rounds(cell)
                    self.trace(cell)
            except TimeoutError:
                raise
            except Exception as error:
                self.failed.append(f"{cell}: {error}"[:500])
                traceback.print_exc()
            self.left.remove(cell)

    def check(self, name: str) -> None:
        """One part of ``correctness``, which pytest judges."""
        path, only = CHECKS[name]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", path, "-k", only]
        begun, dry = time.perf_counter(), ["--dry-gpu"] * self.options.dry_run
        with subprocess.Popen(command + dry, cwd=provenance.REPOSITORY, process_group=0) as pytest:
            try:
                code = pytest.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(pytest.pid, signal.SIGKILL)
        self.record(kind="check", check=name, exit=code, seconds=round(time.perf_counter() - begun, 1))
        if code and not (dry and code == 5):  # without a device some modes are left out
            raise RuntimeError(f"pytest's exit code is {code}")

    def start_engines(self, cells: list[Cell]) -> None:
        """Both sides at once; whatever lived before is gone."""
        end_engines()
        config = roofline.CONFIGS[cells[0].model]
        self.config = roofline.tiny(config) if self.options.dry_run else config
        directory = tempfile.mkdtemp(dir=self.home.name)
        Path(directory, "config.json").write_text(json.dumps(self.config))
        self.sides = {side: ProcessPoolExecutor(1, get_context("spawn"), begin) for side in ("stock", "tuco")}
        begun, rules = {}, {}
        for models, (side, process) in enumerate(self.sides.items(), start=1):
            arguments, rules[side] = of_engine(cells, self.config, models)
            arguments |= {"model": directory, "enforce_eager": self.options.dry_run}
            if self.origin["gpu"]:  # the cache's size is given: the share is only checked against
                graphs = GRAPHS if cells[0].output else {"cudagraph_mode": "NONE"}
                arguments |= {"gpu_memory_utilization": 0.01, "compilation_config": graphs}
            if side == "tuco":
                pair = {"architectures": ["TucoForCausalLM"], "tuco_pt": directory}
                arguments["hf_overrides"] = pair | {"tuco_row_dtype": self.options.row_dtype}
            begun[side] = process.submit(start, arguments | self.options.engine_args)
        self.engines = {side: one.result() | {"bytes_by_rule": rules[side]} for side, one in begun.items()}
        rates = self.sides["stock"].submit(device_rates).result()
        self.device = roofline.Device("as measured", *rates, self.memory)
        about = {"model": cells[0].model, "of": cells[0].kind, "engines": self.engines}
        self.record(kind="engines", **about, device=self.device._asdict())

    def turn(self, cell: Cell, way: str, number: int, traced: int = -1) -> Any:
        """What ``gpu_engine.turn`` says; every number has prompts of its own."""
        prompts = fresh_prompts(cell.requests, (cell.prompt, cell.prompt), number)
        side = self.sides["stock" if way == "stock" else "tuco"]
        return side.submit(turn, prompts, cell, way, traced).result()

    def rounds(self, cell: Cell) -> None:
        """A cell's turns, and what they say."""
        ways = ("stock", "plain", *WISHES) if cell.output else ("stock", "tuco")
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(self.options.rounds + 1):
            for way in ways[:: 1 if number % 2 else -1]:
                seconds[way].append(self.turn(cell, way, number))
        seconds = {way: own[1:] for way, own in seconds.items()}  # the first warmed up
        line, wide = roofline.Roofline(self.config, self.device), self.options.row_dtype != "model"
        predicted = roofline.seconds_of_turn(line, *cell[2:], wide=wide)
        shape, tokens = roofline.shape_of(self.config), cell.requests * (cell.output or cell.prompt)
        flops = cell.requests * shape.pass_flops(cell.prompt + cell.output)
        self.record(
            **{**cell._asdict(), "rounds": self.options.rounds, "engines": self.engines},
            seconds={way: [round(one, 4) for one in own] for way, own in seconds.items()},
            tokens_per_s={way: round(tokens / median(own)) for way, own in seconds.items()},
            predicted_tokens_per_s={way: round(tokens / predicted[way]) for way in ways},
            over_stock={way: spread(paired(seconds["stock"], seconds[way])) for way in ways},
            mfu_of_stock=round(flops / median(seconds["stock"]) / self.device.flops, 4),
            budgets=budgets(cell, seconds, shape),
        )

    def trace(self, cell: Cell) -> None:
        """One step of each way, by kernels: of a turn that generates the sixth, when all decode."""
        for way in ("stock", "scored", "steered") if cell.output else ("stock", "tuco"):
            found = self.turn(cell, way, 0, traced=5 if cell.output else 1)
            self.record(**{**cell._asdict(), "kind": "trace", "of": cell.kind, "way": way, **found})

    def record(self, **record: Any) -> None:
        """Write it, and show it."""
        self.budgets += record.get("budgets", [])
        if self.out:
            asked = {key: vars(self.options)[key] for key in ("run", "row_dtype", "engine_args", "dry_run")}
            provenance.append("gpu", {"bench": "gpu", **asked, **record, "provenance": self.origin}, self.out)
        self.console.print(gpu_table(record))


def paired(slow: list[float], fast: list[float]) -> list[float]:
    """Throughput of one way over another's, round by round."""
    return [theirs / ours for theirs, ours in zip(slow, fast, strict=True)]


def budgets(cell: Cell, seconds: dict[str, list[float]], shape: Shape) -> list[dict[str, Any]]:
    """The floors and goals that a cell is held to."""
    wanted = FLOORS if cell.output else []
    if not cell.output and cell.prompt >= FLOOR_TOKENS:
        least = STOCK_FLOORS["gqa" if shape.kv_heads < shape.heads else "mha"]
        wanted = [("tuco", "stock", least, 0.97 * shape.bound(cell.prompt))]
    ratios = [median(paired(seconds[slow], seconds[fast])) for fast, slow, *_ in wanted]
    return [
        floor(f"{fast} / {slow}", round(ratio, 4), least) | {"goal": round(goal, 4)}
        for ratio, (fast, slow, least, goal) in zip(ratios, wanted, strict=True)
    ]


def end_engines() -> None:
    """Whatever they are doing."""
    for child in active_children():
        child.kill()


def out_of_time(*_: Any) -> None:
    raise TimeoutError


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    add = parser.add_argument
    add("run", choices=("correctness", "scoring", "generation"))
    add("--minutes", type=float, default=9.5, help="all has ended by then")
    add("--model", choices=roofline.CONFIGS, default="llama-3-8b")
    add("--steps", type=int, nargs="+", help="tokens a step, where prompts are scored")
    add("--row-dtype", choices=("auto", "model"), default="auto", help="of scored rows")
    add("--rounds", type=int, default=5, help="turns of each way a cell, 3 at least")
    add("--engine-args", type=json.loads, default={}, help="more of vLLM's, JSON, for both sides")
    add("--out", type=Path, help="folder of gpu.jsonl: bench/results, or none in a dry run")
    add("--dry-run", action="store_true", help="tiny models, on a CPU")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    return options


def main() -> None:
    """Measure; tables and a last line of JSON on stdout, records in bench/results."""
    options = parse()
    set_environment()
    os.environ |= {"OMP_NUM_THREADS": "1"} if options.dry_run else {}
    run = Run(options)
    for late in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(late, out_of_time)
    signal.alarm(round(60 * options.minutes))
    try:
        run.measure()
    except TimeoutError:
        print("the time is up", flush=True)
    finally:
        signal.alarm(0)
        end_engines()
    summary = {
        **{"bench": "gpu", "run": options.run, "recorded": bool(run.out), "commit": run.origin["commit"]},
        "budgets": [] if options.dry_run else run.budgets,
        **{"failed": run.failed, "no_time_for": [str(cell) for cell in run.left]},
    }
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
