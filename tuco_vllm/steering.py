"""What a request may ask of the executor: its alpha, and its scores. The one parser for both.

A request says ``alpha`` (FTC_alpha scaling, paper Def. 5.1: the stream becomes x + PTC + alpha * FTC, so 1
is the fine-tuned model and 0 is PT's layers) and ``tuco`` (scores wanted: True, or "layers" for all norms).
Both travel in vLLM's ``SamplingParams.extra_args``, whatever the interface: Python, HTTP fields,
``vllm_xargs``. Values are checked before anything coerces them: JSON's ``true`` is not 1, ``"1"`` is not 1,
NaN is not a scale.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tuco_vllm.errors import InputError

ALPHA, TUCO = "alpha", "tuco"
"""The request fields, and keys of ``extra_args``."""

ROWS = "tuco_rows"
"""A key of ``extra_args``, and of a pooling request's ``extra_kwargs``: an ``Asked``. Only we write it."""

FT_STREAM, PT_ON_FT_EMBEDDING, PT_STREAM = STREAMS = ("ft", "pt-layers", "pt")
"""What a request runs on: FT's stream, where both models' layers are; PT's layers on a stream of their own,
which starts from FT's embedding (alpha = 0); or all of PT."""


class Asked(NamedTuple):
    """What is read of a prompt's rows. Positions count from 0."""

    first: int
    """The first row whose score is read."""
    last: int
    """The prompt's last row, whose norms are."""
    targets: tuple[int, ...] = ()
    """The tokens whose log-probabilities are read, at the rows from ``last`` on."""
    state: bool = False
    """Whether the stream behind the last layer is read, at ``last``."""
    stream: str = FT_STREAM

    @classmethod
    def of(cls, value: Any) -> "Asked | None":
        """What ``list(asked)`` was made of, checked; None for None, InputError for all else."""
        if value is None:
            return None
        if isinstance(value, list | tuple) and len(value) == len(cls._fields):
            first, last, targets, state, stream = value
            numbers = [first, last, *targets] if isinstance(targets, list | tuple) else [-1]
            whole = all(type(number) is int and number >= 0 for number in numbers)
            if whole and first <= last and isinstance(state, bool) and stream in STREAMS:
                return cls(first, last, tuple(targets), state, stream)
        raise InputError(f"{ROWS} is no row of a prompt, but {value!r:.40}")


MAX_ALPHA = 2.0
"""Default upper bound of alpha: far outside the paper's 0.75 to 1.25, where streams are still finite."""


class Steering(NamedTuple):
    """One request's wishes. The default is plain FT, for which PT does nothing."""

    alpha: float = 1.0
    scored: bool = False
    rows: Asked | None = None
    """Of the prompt, beside the rows of generated tokens."""

    @property
    def needs_pt(self) -> bool:
        """Whether PT's keys and values must be in the cache for this request."""
        return self.scored or self.alpha != 1.0

    def extra_args(self) -> dict[str, Any]:
        """Of vLLM's SamplingParams, what says it."""
        rows = {} if self.rows is None else {ROWS: list(self.rows)}
        return {ALPHA: self.alpha, TUCO: self.scored, **rows}

    def cache_salt(self, users: str | None) -> str:
        """What a prefix-cache block must match besides its tokens.

        The stream, and so every later layer's keys and values, depends on alpha; and a block whose PT half
        was never written must not serve a request that reads it.
        """
        return f"tuco:{self.alpha.hex()}:{'pt' if self.needs_pt else 'ft'}|{users or ''}"


PLAIN = Steering()


def parse_alpha(value: Any, max_alpha: float = MAX_ALPHA) -> float:
    """A finite number in [0, ``max_alpha``] as a float (-0.0 as 0.0), or InputError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= max_alpha:  # NaN compares false; 10**400 is compared as an integer
        shown = float(value) if isinstance(value, float) else value  # numpy's would say its type as well
        raise InputError(f"{ALPHA} must be a number from 0 to {max_alpha:.15g}, not {shown!r:.40}")
    return float(value) + 0.0


def parse_tuco(value: Any) -> bool:
    """Whether scores are wanted: True and "layers" say so, False and None do not; all else is InputError."""
    if value is None or value is False:
        return False
    if value is True or (isinstance(value, str) and value == "layers"):
        return True
    raise InputError(f'{TUCO} must be true, false or "layers", not {value!r:.40}')


def steering_of(extra_args: Mapping[str, Any] | None, max_alpha: float = MAX_ALPHA) -> Steering:
    """What ``extra_args`` asks for; InputError where it cannot be given."""
    if not extra_args or not any(name in extra_args for name in (ALPHA, TUCO, ROWS)):
        return PLAIN
    alpha, rows = extra_args.get(ALPHA), Asked.of(extra_args.get(ROWS))
    scored = parse_tuco(extra_args.get(TUCO)) or rows is not None
    steering = Steering(1.0 if alpha is None else parse_alpha(alpha, max_alpha), scored, rows)
    if not math.isfinite(steering.alpha):  # only with max_alpha=inf
        raise InputError(f"{ALPHA} must be finite")
    return steering
