"""The grid of a sweep: every alpha in every range of layers, checked before any weights load."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tuco_vllm.errors import InputError
from tuco_vllm.steering import LIMITS, parse_scale

PAPER_ALPHAS = (0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25)
"""Of the paper's §5.1."""

FT_ALPHA = 1.0
"""The fine-tuned model itself, which differences are against."""


class Point(NamedTuple):
    """One alpha in the layers from ``first`` to ``last``, both included and counted from 0."""

    alpha: float
    first: int
    last: int

    def scale(self, num_layers: int) -> Any:
        """It as ``TucoLLM.generate`` takes it. In all layers of ``num_layers`` it is a number."""
        if self.alpha == FT_ALPHA or (self.first, self.last) == (0, num_layers - 1):
            return self.alpha
        return {"value": self.alpha, "layers": [self.first, self.last]}


def parse_alphas(text: str) -> tuple[float, ...]:
    """``0.75,1,1.25`` as numbers. Raises InputError; bounds are for ``grid``."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise InputError(f"--alphas {text!r:.60} is not numbers with commas, as in 0.75,1,1.25") from error


def parse_layers(text: str) -> tuple[int, int]:
    """``A-B`` as (A, B). Raises InputError; whether there are such layers is for ``grid``."""
    first, dash, last = text.partition("-")
    if not (dash and first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()):
        raise InputError(f"--layers {text!r:.60} is not A-B, the first and the last layer, as in 0-3")
    return int(first[:9]), int(last[:9])


def grid(alphas: Sequence[float], ranges: Sequence[tuple[int, int]], num_layers: int) -> tuple[Point, ...]:
    """Every alpha, 1 always among them, in every range of layers; without ranges in all layers.

    Ranges stand in the order given, alphas go up; what is there twice counts once. Raises InputError for an
    alpha or a range that an engine of ``num_layers`` layers would refuse.
    """
    limits = LIMITS._replace(num_layers=num_layers)
    values = {parse_scale(alpha, limits).alpha for alpha in alphas} | {FT_ALPHA}
    places = dict.fromkeys(ranges or [(0, num_layers - 1)])
    for first, last in places:
        try:
            parse_scale({"value": FT_ALPHA, "layers": [first, last]}, limits)
        except InputError as error:
            raise InputError(f"--layers {first}-{last}: {error}") from error
    return tuple(Point(alpha, *place) for place in places for alpha in sorted(values))
