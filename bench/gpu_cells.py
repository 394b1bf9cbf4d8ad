"""How each kind of cell of gpu.py is measured: turns in rounds, ratios within a round.

Each function takes a cell and what the run knows (``Bench``), and returns the record, to which gpu.py adds
where it comes from. Contenders that failed are left out; a cell of which all failed raises ``Failed``.
"""

import random
from collections.abc import Callable
from statistics import median
from typing import Any

from gpu_budgets import FROM_TOKENS, judge
from gpu_plan import Cell, Deadline, Key, OutOfTime, Sizes
from gpu_processes import Crew, Failed
from gpu_shapes import config_of, kv_bytes_per_token, mfu, prefill_flops, shape_of, work
from models import Shape

Record = dict[str, Any]
LONG_ROUNDS = 3
"""As many rounds of generation: one takes half a minute."""

KERNELS = ("dual_rms_norm", "add_rms_norm", "accumulate_contribution", "steer_residual")
HIDDEN = 4096


class Bench:
    """What one run knows: the living, the clock, the sizes, and the ceiling once it is measured."""

    def __init__(self, sizes: Sizes, rounds: int, smoke: bool, deadline: Deadline) -> None:
        self.sizes, self.rounds, self.smoke, self.deadline = sizes, rounds, smoke, deadline
        self.crew = Crew()
        self.ceiling: float | None = None
        """FLOP/s of the largest of the machine's medians."""

    def shape(self, cell: Cell) -> Shape:
        return shape_of(config_of(cell.shape, smoke=self.smoke))

    def config(self, cell: Cell) -> dict[str, Any]:
        return config_of(cell.shape, smoke=self.smoke)

    def enough(self, seconds: dict[str, list[float]]) -> bool:
        """Whether there were rounds enough for a verdict: 3, which a deadline can prevent."""
        return self.smoke or all(len(own) >= 3 for own in seconds.values())

    def ask(self, key: Key, verb: str, *arguments: Any) -> Any:
        """A member's answer; one that fails is dropped, and the cell with it."""
        try:
            return self.crew.living[key].ask(self.deadline, verb, *arguments)
        except Failed as error:
            self.crew.drop(key, str(error))
            raise

    def living(self, cell: Cell) -> dict[str, Key]:
        """Role -> key of the cell's members that live."""
        keys = {key[0]: key for key in cell.members() if key in self.crew.living}
        if not keys:
            raise Failed("none of its processes is alive")
        return keys


def rounds_of(
    turns: dict[str, Callable[[int], float]], bench: Bench, at_most: int = 1000
) -> dict[str, list[float]]:
    """Seconds of every contender's turns, as many rounds as there is time for (one at least, else OutOfTime).

    The order is turned about every round, so that whoever comes after whom is the same for all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    done = 0
    try:
        for number in range(1, min(bench.rounds, at_most) + 1):
            bench.deadline.check(1.1 * sum(own[-1] for own in seconds.values() if own))
            for name in list(turns)[:: 1 if number % 2 else -1]:
                seconds[name].append(turns[name](number))
            done = number
    except OutOfTime:
        if not done:
            raise
    return {name: own[:done] for name, own in seconds.items()}


def ratios_to(slow: str, seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Throughput relative to ``slow``'s, round by round, then median, least and greatest."""
    if slow not in seconds:
        return {}
    return {
        name: spread([theirs / ours for theirs, ours in zip(seconds[slow], own, strict=True)])
        for name, own in seconds.items()
    }


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median, least and greatest."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def prompts_of(count: int, length: int, seed: str, vocabulary: int) -> list[list[int]]:
    """Random tokens."""
    generator = random.Random(seed)
    return [[generator.randrange(3, vocabulary) for _ in range(length)] for _ in range(count)]


def machine(cell: Cell, bench: Bench) -> Record:
    """The ceilings that everything else is a fraction of."""
    key = bench.living(cell)["machine"]
    turns = 3 if bench.smoke else 10
    found = bench.ask(key, "measure", bench.sizes.squares, bench.sizes.copy_bytes, turns)
    products = {side: spread(own, 3) for side, own in found["matmul_tflops"].items()}
    bench.ceiling = 1e12 * max(own["median"] for own in products.values())
    return {
        "device": found["device"],
        "matmul_tflops": products,
        "copy_gb_per_s": spread(found["copy_gb_per_s"], 1),
        "turns": turns,
    }


def scoring(cell: Cell, bench: Bench) -> Record:
    """Ways to score prompts of one length: tokens/s, MFU, and relative to stock prefill of FT alone."""
    shape, length = bench.shape(cell), cell.size
    tokens = bench.sizes.turn_tokens // (
        2 if cell.kind == "references" else 1
    )  # two passes take twice as long
    count = max(1, tokens // length)
    vocabulary = bench.config(cell)["vocab_size"]
    keys = {role.removeprefix("scoring "): key for role, key in bench.living(cell).items()}

    def turn(name: str) -> Callable[[int], float]:
        return lambda number: bench.ask(
            keys[name], "score", prompts_of(count, length, f"{length} {number}", vocabulary)
        )

    turns = {name: turn(name) for name in keys}
    for one in turns.values():
        one(0)
    seconds = rounds_of(turns, bench)
    speed = {name: count * length / median(own) for name, own in seconds.items()}
    relative_work, bound = work(shape, length), shape.bound(length)
    ratios = ratios_to("stock", seconds)
    record = {
        "prompts": count,
        "tokens": count * length,
        "rounds": len(next(iter(seconds.values()))),
        "seconds": {name: [round(value, 4) for value in own] for name, own in seconds.items()},
        "tokens_per_s": {name: round(value) for name, value in speed.items()},
        "mfu": {
            name: round(mfu(relative_work[name] * prefill_flops(shape, length), value, bench.ceiling), 4)
            for name, value in speed.items()
            if bench.ceiling
        },
        "bound": round(bound, 4),
        "over_stock": ratios,
        "budgets": [],
    }
    judged = bench.enough(seconds)
    if "tuco" in ratios:
        over_stock = ratios["tuco"]["median"]
        record["of_bound"] = round(over_stock / bound, 4)
        if judged and (length >= FROM_TOKENS or bench.smoke):
            heads = "grouped" if shape.kv_heads < shape.heads else "all"
            record["budgets"].append(judge(f"scoring / stock, {heads} heads", over_stock, bound))
    if "tuco" in seconds and "hugging face" in seconds:
        over = ratios_to("hugging face", seconds)["tuco"]
        record["tuco_over_hugging_face"] = over
        if judged:
            record["budgets"].append(judge("scoring / hugging face", over["median"]))
    return record


def wishes_of(load: str, count: int) -> list[tuple[float, bool]] | None:
    """(alpha, scored) of each request under a load; None for requests that say nothing of it."""
    if load in ("stock", "plain"):
        return None
    if load == "scored":
        return [(1.0, True)] * count
    different = int(load.split()[0])
    return [((index % different + 0.5) / different, False) for index in range(count)]


def loads_of(batch: int, alphas: tuple[int, ...], roles: dict[str, Key]) -> dict[str, Key]:
    """Load -> who takes it. As many different alphas as requests is the most there can be."""
    loads: dict[str, Key] = {}
    if "generating stock" in roles:
        loads["stock"] = roles["generating stock"]
    if "generating tuco" in roles:
        names = ["plain", "scored"]
        names += [f"{k} alpha{'s' if k > 1 else ''}" for k in alphas if k <= batch]
        loads |= dict.fromkeys(names, roles["generating tuco"])
    return loads


def generation(cell: Cell, bench: Bench) -> Record:
    """Completions of one batch of requests under each load."""
    batch, sizes = cell.size, bench.sizes
    vocabulary = bench.config(cell)["vocab_size"]
    loads = loads_of(batch, sizes.alphas, bench.living(cell))

    def turn(load: str, output: int) -> Callable[[int], float]:
        return lambda number: bench.ask(
            loads[load],
            "generate",
            prompts_of(batch, sizes.prompt, f"{batch} {load} {number} {output}", vocabulary),
            output,
            wishes_of(load, batch),
        )

    for load in loads:
        turn(load, sizes.warm_output)(0)
    seconds = rounds_of({load: turn(load, sizes.output) for load in loads}, bench, LONG_ROUNDS)
    over_stock = ratios_to("stock", seconds)
    over_one = ratios_to("1 alpha", {load: own for load, own in seconds.items() if "alpha" in load})
    ratios = {f"{load} / stock": found for load, found in over_stock.items() if load != "stock"}
    ratios |= {f"{load} / 1 alpha": found for load, found in over_one.items() if load != "1 alpha"}
    return {
        "prompt": sizes.prompt,
        "output": sizes.output,
        "rounds": len(next(iter(seconds.values()))),
        "seconds": {load: [round(value, 4) for value in own] for load, own in seconds.items()},
        "output_tokens_per_s": {
            load: round(batch * sizes.output / median(own)) for load, own in seconds.items()
        },
        "ratios": ratios,
        "budgets": [
            judge(name, ratios[name]["median"])
            for name in ratios
            if name in BUDGETED and bench.enough(seconds)
        ],
    }


BUDGETED = ("plain / stock", "1 alpha / stock", "64 alphas / 1 alpha", "256 alphas / 1 alpha")


def memory(cell: Cell, bench: Bench) -> Record:
    """Bytes a token of each engine's KV cache, beside the arithmetic: one model's, or two's."""
    shape = bench.shape(cell)
    engines = {}
    for role, key in bench.living(cell).items():
        models = 2 if role.endswith("tuco") else 1
        expected = kv_bytes_per_token(shape, models)
        found = bench.ask(key, "kv_bytes")
        agrees = found["bytes_per_token"] == expected
        engines[role] = {**found, "by_arithmetic": expected, "agrees": agrees}
    return {"engines": engines}


def profile(cell: Cell, bench: Bench) -> Record:
    """One turn of each under torch.profiler: a scoring turn of 8 steps' tokens, or a few generated tokens."""
    sizes, vocabulary = bench.sizes, bench.config(cell)["vocab_size"]
    keys = bench.living(cell)
    profiles = {}
    if cell.kind == "profile generation":
        for load, key in loads_of(cell.size, (1,), keys).items():
            prompts = prompts_of(cell.size, sizes.prompt, f"profile {load}", vocabulary)
            wishes = wishes_of(load, cell.size)
            profiles[load] = bench.ask(key, "trace", "generate", prompts, sizes.warm_output, wishes)
        return {"output": sizes.warm_output, "profiles": profiles}
    prompts = prompts_of(max(1, sizes.turn_tokens // cell.size), cell.size, "profile", vocabulary)
    for role, key in keys.items():
        profiles[role.removeprefix("scoring ")] = bench.ask(key, "trace", "score", prompts)
    return {"tokens": len(prompts) * cell.size, "profiles": profiles}


def kernels(cell: Cell, bench: Bench) -> Record:
    """The share of a copy's bandwidth that each kernel reaches, many rows."""
    key = bench.living(cell)["kernels"]
    hidden, turns = (256, 2) if bench.smoke else (HIDDEN, 50)
    measured = [
        bench.ask(key, "measure", kernel, rows, hidden, turns)
        for kernel in KERNELS
        for rows in bench.sizes.kernel_rows
    ]
    budgets = [
        judge("kernel / copy", one["reach"]["ours"]) | {"kernel": one["kernel"], "rows": one["rows"]}
        for one in measured
    ]
    return {"turns": turns, "kernels": measured, "budgets": budgets}


MEASURES: dict[str, Callable[[Cell, Bench], Record]] = {
    "machine": machine,
    "scoring": scoring,
    "references": scoring,
    "generation": generation,
    "memory": memory,
    "profile": profile,
    "profile generation": profile,
    "kernels": kernels,
}
