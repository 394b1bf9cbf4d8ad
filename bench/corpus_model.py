"""Pure functions: what a corpus is made of, what is compared, and what it is held to."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BUDGETS = ((256, 0.95, 0.98), (15, 0.90, 0.95))
"""Prompts of so many tokens on: floor and goal of pipeline over bare engine."""


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


def ratio_budget(tokens: int, ratio: float) -> list[dict[str, Any]]:
    """Whether a pipeline with prompts of so many tokens is fast enough beside a bare engine."""
    for least, floor, goal in BUDGETS:
        if tokens >= least:
            name = f"pipeline / bare engine, {least}+ tokens"
            return [{"name": name, "value": ratio, "floor": floor, "met": ratio >= floor, "goal": goal}]
    return []


def ceiling(name: str, value: float, most: float) -> dict[str, Any]:
    """One requirement on a cost and whether it is met."""
    return {"name": name, "value": round(value, 4), "ceiling": most, "met": value <= most}
