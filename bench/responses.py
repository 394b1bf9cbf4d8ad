"""What a response's scores cost, its reward and OutputCo: against a stock prefill of FT over the same tokens.

    python bench/responses.py [--shapes gqa] [--asked 256,1024] [--answered 16,128,512] [--dtypes float32]
                              [--kinds response,reward,output_co]

Physics. A response's rows need PT's layers in full, so a long answer to a short prompt costs two passes, and
a short one to a long prompt what a prompt costs (``Shape.response_bound``). In 16 bits rows are computed in
float32 by default, for which FT's layers run on them a second time; products in float32 take longer than
those in bfloat16, and the bound takes them for equal: it is what arithmetic forbids, not what is reached.

The reward and OutputCo (of prompts alone) need PT's layers on a stream of their own, another pass over all
tokens, which runs uncompiled beside compiled ones.

Method is score.py's: contenders in turn, the same cores, threads and settings, fresh tokens every round, no
prefix cache, ratios within a round, their median and spread.
"""

import argparse
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import provenance
from contenders import Contender, Spec, Turn, set_environment
from models import SHAPES, VOCAB_SIZE, Shape, write_pair
from rich.console import Console
from rich.table import Table
from score import floor, paired, spread

from tuco_vllm.score_requests import NO_MORE, MoreScores, engine_inputs

FLOORS = {"response": 0.92, "reward": 0.9, "output_co": 0.9}
"""Of the bound, on a CPU, where rows have the model's dtype."""

KINDS = {
    "response": NO_MORE,
    "reward": MoreScores(relative_reward=True),
    "output_co": MoreScores(output_co=True),
}


def main() -> None:
    """Measure every cell: a table, and records in bench/results."""
    parser = argparse.ArgumentParser(description="What a response's scores cost.")
    parser.add_argument("--shapes", default="gqa", help="of " + ",".join(SHAPES))
    parser.add_argument("--asked", default="256,1024", help="tokens of a prompt")
    parser.add_argument("--answered", default="16,128,512", help="tokens of a response")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8, help="prompts with their responses a turn")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    set_environment()
    origin = provenance.provenance()
    table = Table(
        *("kind", "shape", "dtype", "asked", "answered"),
        *("bound", "tuco", "min - max", "model's rows", "of bound"),
    )
    for shape in options.shapes.split(","):
        for dtype in options.dtypes.split(","):
            for cell in measure(shape, dtype, options):
                provenance.append("responses", {"bench": "responses", **cell, "provenance": origin})
                table.add_row(*in_words(cell))
    Console(width=140).print(table)


def measure(name: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All lengths of one shape and dtype, by one set of living contenders."""
    shape = SHAPES[name]
    asked, answered = ([int(n) for n in each.split(",")] for each in (options.asked, options.answered))
    cells = [
        (kind, (m, n))
        for kind in options.kinds.split(",")
        for m in asked
        for n in ([0] if kind == "output_co" else answered)
    ]
    names = ["stock", "tuco", *(["tuco_model_rows"] if dtype != "float32" else [])]
    with tempfile.TemporaryDirectory() as directory:
        spec = Spec(
            *write_pair(shape, Path(directory), dtype),
            dtype,
            compiled=True,
            max_model_len=max(asked) + max(answered) + 1,
            max_num_seqs=options.pairs,
        )
        contenders = [Contender(each, spec) for each in names]
        try:
            return [
                {"kind": kind, "shape": name, **cell_of(kind, shape, dtype, lengths, turns, options, spec)}
                for kind, lengths in cells
                for turns in [rounds(contenders, lengths, KINDS[kind], options)]
            ]
        finally:
            for contender in contenders:
                contender.close()


def rounds(
    contenders: list[Contender], lengths: tuple[int, int], more: MoreScores, options: argparse.Namespace
) -> dict[str, list[Turn]]:
    """Every contender's turns, without the first, which warms up."""
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
    for number in range(options.rounds + 1):
        generator = random.Random(f"{number} {lengths}")
        texts = [
            [[generator.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]
            for _ in range(options.pairs)
        ]
        for contender in contenders:
            stock = contender.name == "stock"
            asked: Any = [
                one
                for prompt, answer in texts
                for one in ([prompt + answer] if stock else engine_inputs(prompt, answer, more))
            ]
            turn = contender.turn(asked)
            if number:
                turns[contender.name].append(turn)
    return turns


def cell_of(
    kind: str,
    shape: Shape,
    dtype: str,
    lengths: tuple[int, int],
    turns: dict[str, list[Turn]],
    options: argparse.Namespace,
    spec: Spec,
) -> dict[str, Any]:
    """A record: throughput relative to stock, round by round, beside the bounds."""
    speed = {each: spread(paired(turns["stock"], own, "wall")) for each, own in turns.items()}
    plain = "tuco" if dtype == "float32" else "tuco_model_rows"
    bound, wide = (bound_of(kind, shape, lengths, again=again) for again in (False, True))
    return {
        "dtype": dtype,
        "prompt": lengths[0],
        "response": lengths[1],
        "pairs": options.pairs,
        "rounds": options.rounds,
        "sizes": asdict(shape),
        "engine_args": spec.engine_args(),
        "bound": round(bound, 4),
        "bound_of_float32_rows": round(wide, 4),
        "speed": speed,
        "foreign": {each: [round(turn.foreign, 2) for turn in own] for each, own in turns.items()},
        "floors": [floor(f"{plain} / bound", speed[plain]["median"] / bound, FLOORS[kind])],
    }


def bound_of(kind: str, shape: Shape, lengths: tuple[int, int], *, again: bool) -> float:
    """What arithmetic forbids."""
    if kind == "output_co":
        return shape.output_co_bound(lengths[0])
    return (shape.reward_bound if kind == "reward" else shape.response_bound)(*lengths, again=again)


def in_words(cell: dict[str, Any]) -> list[str]:
    """A row of the table."""
    speed, plain = cell["speed"]["tuco"], cell["speed"].get("tuco_model_rows")
    numbers = [cell["kind"], cell["shape"], cell["dtype"], str(cell["prompt"]), str(cell["response"])]
    numbers += [f"{cell['bound']:.3f}", f"{speed['median']:.3f}", f"{speed['min']:.3f} - {speed['max']:.3f}"]
    [met] = cell["floors"]
    return [*numbers, f"{plain['median']:.3f}" if plain else "", f"{met['value']:.3f}"]


if __name__ == "__main__":
    main()
