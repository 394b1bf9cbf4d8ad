"""What a score of a LoRA adapter costs: against a stock prefill with that adapter, and against a full pair.

    python bench/adapters.py [--shapes gqa,mha] [--lengths 256,512] [--ranks 16] [--dtypes float32,bfloat16]

Physics. PT's keys and values are a part of FT's base product, so beside a prefill with the adapter there is
the work of the rows alone: one token a prompt. The bound is 1 / (1 + 1 / n) at n tokens a prompt, with rows
in float32 1 / (1 + 2 / n), their products counted as if they took no longer.

On a CPU vLLM does not compile LoRA, and its products gather every token's A and B: what a prefill with an
adapter costs there is mostly that, and ours are others. So speed is relative to a prefill that has ours too,
``stock_adapter_grouped``; ``over_stock`` has vLLM's own, and ``over_full_pair`` a pair of the base and the
merged model, uncompiled as well.

Method is score.py's: contenders in turn, the same cores, threads and settings, fresh tokens every round, no
prefix cache, ratios within a round, their median and spread; norms are compared with the full pair's before
anything is timed.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import provenance
from contenders import Contender, Spec, Turn, set_environment
from models import SHAPES, write_adapter, write_pair
from rich.console import Console
from rich.table import Table
from score import TOLERANCE, floor, fresh_prompts, paired, spread, worst_error

FLOOR = 0.90
"""Throughput relative to a prefill with that adapter, where rows have the model's dtype."""


def main() -> None:
    """Measure every cell: a table, and records in bench/results."""
    parser = argparse.ArgumentParser(description="What a score of an adapter costs.")
    parser.add_argument("--shapes", default="gqa,mha", help="of " + ",".join(SHAPES))
    parser.add_argument("--lengths", default="256,512", help="tokens of a prompt")
    parser.add_argument("--ranks", default="16", help="of 8, 16, 32, 64")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8, help="prompts a turn")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    set_environment()
    origin = provenance.provenance()
    sizes, speeds = ("shape", "dtype", "rank", "tokens"), ("bound", "tuco", "min - max", "model's rows")
    table = Table(*sizes, *speeds, "over full pair", "over stock")
    for shape in options.shapes.split(","):
        for dtype in options.dtypes.split(","):
            for rank in map(int, options.ranks.split(",")):
                for cell in measure(shape, dtype, rank, options):
                    provenance.append("adapters", {"bench": "adapters", **cell, "provenance": origin})
                    table.add_row(*in_words(cell))
    Console(width=140).print(table)


def measure(name: str, dtype: str, rank: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All lengths of one shape, dtype and rank, by one set of living contenders."""
    lengths = [int(length) for length in options.lengths.split(",")]
    names = ["stock_adapter", "stock_adapter_grouped", "tuco_adapter", "tuco"]
    if dtype != "float32":
        names.append("tuco_adapter_model_rows")
    with tempfile.TemporaryDirectory() as directory:
        pt, _ = write_pair(SHAPES[name], Path(directory), dtype)
        adapter, merged = write_adapter(pt, Path(directory), rank, dtype)
        spec = Spec(
            pt, merged, dtype, compiled=False, max_model_len=max(lengths) + 1, max_num_seqs=options.prompts
        )
        contenders = []
        try:
            for each in names:
                contenders.append(Contender(each, spec if each == "tuco" else replace(spec, adapter=adapter)))
            return [
                {
                    "shape": name,
                    "dtype": dtype,
                    "rank": rank,
                    "tokens": length,
                    "prompts": options.prompts,
                    "rounds": options.rounds,
                    "sizes": asdict(SHAPES[name]),
                    "engine_args": spec.engine_args(),
                    **evaluate(length, dtype, rounds(contenders, length, dtype, options)),
                }
                for length in lengths
            ]
        finally:
            for contender in contenders:
                contender.close()


def rounds(
    contenders: list[Contender], length: int, dtype: str, options: argparse.Namespace
) -> dict[str, list[Turn]]:
    """Every contender's turns, without the first, which warms up and compares."""
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
    for number in range(options.rounds + 1):
        prompts = fresh_prompts(options.prompts, (length, length), number)
        found = {contender.name: contender.turn(prompts) for contender in contenders}
        if number:
            for each, turn in found.items():
                turns[each].append(turn)
            continue
        for each, turn in found.items():
            if each.startswith("tuco_adapter") and turn.norms and found["tuco"].norms:
                error = worst_error(turn.norms, found["tuco"].norms)
                if not error <= TOLERANCE[dtype]:
                    raise SystemExit(f"{each}: norms are {error:.1e} off a full pair's: nothing is timed")
    return turns


def evaluate(length: int, dtype: str, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """A record's figures: throughput relative to stock with the adapter, round by round."""
    speed = {each: spread(paired(turns["stock_adapter_grouped"], own, "wall")) for each, own in turns.items()}
    plain = "tuco_adapter" if dtype == "float32" else "tuco_adapter_model_rows"
    return {
        "bound": round(1 / (1 + (1 if dtype == "float32" else 2) / length), 4),
        "speed": speed,
        "over_stock": spread(paired(turns["stock_adapter"], turns["tuco_adapter"], "wall")),
        "over_full_pair": spread(paired(turns["tuco"], turns["tuco_adapter"], "wall")),
        "foreign": {each: [round(turn.foreign, 2) for turn in own] for each, own in turns.items()},
        "floors": [floor(f"{plain} / stock_adapter_grouped", speed[plain]["median"], FLOOR)],
    }


def in_words(cell: dict[str, Any]) -> list[str]:
    """A row of the table."""
    speed, plain = cell["speed"]["tuco_adapter"], cell["speed"].get("tuco_adapter_model_rows")
    numbers = [cell["shape"], cell["dtype"], str(cell["rank"]), str(cell["tokens"]), f"{cell['bound']:.3f}"]
    numbers += [f"{speed['median']:.3f}", f"{speed['min']:.3f} - {speed['max']:.3f}"]
    others = (f"{cell[name]['median']:.3f}" for name in ("over_full_pair", "over_stock"))
    return [*numbers, f"{plain['median']:.3f}" if plain else "", *others]


if __name__ == "__main__":
    main()
