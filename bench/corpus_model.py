"""Pure functions: what a corpus is made of, what is compared, which part of ``tuco score`` saturates first.

The model. E engines of t tokens/s take E t / n rows of n tokens each second. Every row costs each stage its
CPU seconds (``corpus_stages.py``), and every chunk costs the driver what Ray's scheduling takes. A resource's
load is the seconds that it is asked for in one second, divided by the cores that it has: one for the reader,
one for each tokeniser (a tokeniser for two engines), one for the Python beside each engine, one for the
driver. Where that reaches 1 the engines begin to wait: the job then runs at 1 / load of their speed. Bursts
are left out, so a stage is in trouble somewhat before 1. That every node's cores are as fast as the measured
one, and that Ray's price for a chunk does not grow with the number of actors, are assumptions too.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENGINES = (1, 10, 100, 1000)
ROWS_PER_FILE = 10_000
NETWORK_BYTES_PER_SECOND = 25e9 / 8
"""Into the driver's node: an assumption, 25 Gbit/s."""


def prompts(count: int, tokens: int, seed: int, words: Mapping[str, int]) -> Iterator[str]:
    """``count`` prompts of random words, each of ``tokens`` tokens or a few more; no two are equal.

    ``words``: word -> its tokens after a space. A prompt opens with its number, so that it is unique, and
    random words follow at once: no two share a block of the prefix cache.
    """
    generator = random.Random(f"{seed} {tokens}")
    names = list(words)
    for number in range(count):
        chosen, length = [str(number)], 1
        while length < tokens:
            word = names[int(generator.random() * len(names))]
            chosen.append(word)
            length += words[word]
        yield " ".join(chosen)


def compared(sides: Sequence[int]) -> dict[str, tuple[int, int]]:
    """The ratios of some sides, numbers of engines with 0 for the bare one: name -> (side, base).

    The smallest pipeline is held to the bare engine, larger ones to the smallest.
    """

    def called(side: int) -> str:
        return f"{side} engine{'s' * (side > 1)}" if side else "bare engine"

    pipelines = sorted(side for side in sides if side)
    pairs = [(pipelines[0], 0)] if 0 in sides and pipelines else []
    pairs += [(side, pipelines[0]) for side in pipelines[1:]]
    return {f"{called(side)} / {called(base)}": (side, base) for side, base in pairs}


@dataclass(frozen=True)
class RowCosts:
    """One row: seconds of one core in each of the processes it goes through, and bytes of its chunks."""

    tokens: float
    chunk_rows: float
    read: float
    tokenise: float
    score: float
    """In an engine actor's process, beside the engine."""
    write: float
    source_bytes: float
    token_bytes: float
    scored_bytes: float
    file_bytes: float


def row_costs(stages: Mapping[str, Any], kind: str = "jsonl") -> RowCosts:
    """From what ``stage_costs`` returned: each stage with the packing and unpacking that its process does."""
    cost, size = stages["seconds_a_row"], stages["bytes_a_row"]
    return RowCosts(
        tokens=stages["tokens"],
        chunk_rows=stages["chunk_rows"],
        read=cost[f"read {kind}"] + cost["to_bytes source"],
        tokenise=cost["from_bytes source"] + cost["tokenised()"] + cost["to_bytes token"],
        score=cost["from_bytes token"] + cost["scored()"] + cost["to_bytes scored"],
        write=cost["from_bytes scored"] + cost["write"],
        source_bytes=size["source"],
        token_bytes=size["token"],
        scored_bytes=size["scored"],
        file_bytes=stages["file_bytes_a_row"],
    )


def loads(
    engines: int, tokens_per_second: float, row: RowCosts, driver_chunk_seconds: float
) -> dict[str, float]:
    """Each resource's load when ``engines`` run at full speed: 1 is all that it has.

    Where there is one tokeniser, Ray Data fuses the reader into it: one process does both.
    """
    rows = engines * tokens_per_second / row.tokens
    tokenisers = math.ceil(engines / 2)
    fused = row.read if tokenisers == 1 else 0.0
    return {
        "reader": rows * row.read,
        "tokenisers": rows * (row.tokenise + fused) / tokenisers,
        "engine actor": rows / engines * row.score,
        "driver": rows * row.write + rows / row.chunk_rows * driver_chunk_seconds,
        "network": rows * row.scored_bytes / NETWORK_BYTES_PER_SECOND,
    }


def saturation(tokens_per_second: float, row: RowCosts, driver_chunk_seconds: float) -> dict[str, int | None]:
    """The most engines that leave each resource below 1; None where it grows along with the engines."""

    def load(engines: int, name: str) -> float:
        return loads(engines, tokens_per_second, row, driver_chunk_seconds)[name]

    most: dict[str, int | None] = {}
    for name in loads(1, tokens_per_second, row, driver_chunk_seconds):
        full = next((engines for engines in (1, 2, 3, 4) if load(engines, name) >= 1), None)
        if full is not None:
            most[name] = full - 1
        elif load(2000, name) < 1.5 * load(1000, name):
            most[name] = None
        else:  # proportional to the engines
            most[name] = math.ceil(1000 / load(1000, name)) - 1
    return most


def first_to_saturate(most: Mapping[str, int | None]) -> tuple[str, int | None]:
    """The resource that the fewest engines fill, and how many it bears."""
    filled = {name: engines for name, engines in most.items() if engines is not None}
    return min(filled.items(), key=lambda item: item[1]) if filled else ("none", None)


def flows(
    engines: int, tokens_per_second: float, row: RowCosts, driver_chunk_seconds: float
) -> dict[str, float]:
    """What moves each second, and what 100 M rows come to, at the speed that the fullest resource allows."""
    fullest = max(1.0, *loads(engines, tokens_per_second, row, driver_chunk_seconds).values())
    rows = engines * tokens_per_second / row.tokens / fullest
    return {
        "rows_per_second": rows,
        "chunks_per_second": rows / row.chunk_rows,
        "object_store_MB_per_second": rows * (row.source_bytes + row.token_bytes + row.scored_bytes) / 1e6,
        "into_driver_MB_per_second": rows * row.scored_bytes / 1e6,
        "disk_MB_per_second": rows * row.file_bytes / 1e6,
        "files_per_second": rows / ROWS_PER_FILE,
        "hours_for_100M_rows": 1e8 / rows / 3600,
        "files_for_100M_rows": math.ceil(1e8 / ROWS_PER_FILE),
    }


def projection(tokens_per_second: float, row: RowCosts, driver_chunk_seconds: float) -> dict[str, Any]:
    """The whole model for engines of one speed, rounded, for a record."""
    most = saturation(tokens_per_second, row, driver_chunk_seconds)
    first, engines = first_to_saturate(most)
    cases = {}
    for count in ENGINES:
        load = loads(count, tokens_per_second, row, driver_chunk_seconds)
        moved = flows(count, tokens_per_second, row, driver_chunk_seconds)
        cases[str(count)] = {
            "load": {name: float(f"{value:.3g}") for name, value in load.items()},
            **{name: float(f"{value:.3g}") for name, value in moved.items()},
        }
    return {
        "tokens_per_second_an_engine": round(tokens_per_second),
        "driver_seconds_a_chunk": driver_chunk_seconds,
        "engines_that_each_bears": most,
        "first_to_saturate": first,
        "at_engines": engines,
        "cases": cases,
    }
