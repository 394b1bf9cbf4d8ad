"""What a request may ask of the executor: its alpha, and its scores. The one parser for both.

A request says ``alpha`` (FTC_alpha scaling, paper Def. 5.1: the stream becomes x + PTC + alpha * FTC, so 1
is the fine-tuned model and 0 is PT's layers) and ``tuco`` (scores wanted: True, or "layers" for all norms).
``alpha`` is a number, or ``{"value": number, "layers": [first, last]}``: then the other layers are FT's.
Both travel in vLLM's ``SamplingParams.extra_args``, whatever the interface: Python, HTTP fields,
``vllm_xargs``. Values are checked before anything coerces them: JSON's ``true`` is not 1, ``"1"`` is not 1,
NaN is not a scale.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from tuco_vllm.errors import InputError

ALPHA, TUCO = "alpha", "tuco"
"""The request fields, and keys of ``extra_args``."""

ALPHA_LAYERS = "tuco_alpha_layers"
"""A key of ``extra_args``: the [first, last] of an alpha that stands beside it as a number. Only we write it:
``vllm_xargs`` hold no objects."""

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


MIN_ALPHA, MAX_ALPHA = 0.0, 2.0
"""Default bounds of alpha: far outside the paper's 0.75 to 1.25, where streams are still finite."""


class Limits(NamedTuple):
    """The alphas that an engine takes. 1, FT itself, is always one."""

    lowest: float = MIN_ALPHA
    highest: float = MAX_ALPHA
    num_layers: int | None = None
    """Of the models; None where it is not known, or has been seen to."""

    def checked(self) -> "Limits":
        """These, if bounds can be so; else InputError."""
        if not -math.inf < self.lowest <= 1.0:
            raise InputError(f"min_alpha must be a finite number up to 1, not {self.lowest}")
        if not 1.0 <= self.highest < math.inf:
            raise InputError(f"max_alpha must be a finite number from 1 up, not {self.highest}")
        return self


LIMITS = Limits()
ANY_NUMBER = Limits(-sys.float_info.max, sys.float_info.max)


class Layers(NamedTuple):
    """From ``first`` to ``last``, both included; layers count from 0."""

    first: int
    last: int


class Scale(NamedTuple):
    """What the field ``alpha`` says."""

    alpha: float = 1.0
    layers: Layers | None = None
    """Those that are scaled; None for all."""


class Steering(NamedTuple):
    """One request's wishes. The default is plain FT, for which PT does nothing."""

    alpha: float = 1.0
    scored: bool = False
    rows: Asked | None = None
    """Of the prompt, beside the rows of generated tokens."""
    layers: Layers | None = None
    """``Scale.layers``."""

    @property
    def needs_pt(self) -> bool:
        """Whether PT's keys and values must be in the cache for this request."""
        return self.scored or self.alpha != 1.0

    @property
    def pt_layers(self) -> Layers | None:
        """Of a request that needs PT, the layers in which it does; None for all of them."""
        return None if self.scored else self.layers

    def extra_args(self) -> dict[str, Any]:
        """Of vLLM's SamplingParams, what says it."""
        layers = {} if self.layers is None else {ALPHA_LAYERS: list(self.layers)}
        rows = {} if self.rows is None else {ROWS: list(self.rows)}
        return {ALPHA: self.alpha, **layers, TUCO: self.scored, **rows}

    def cache_salt(self, users: str | None) -> str:
        """What a prefix-cache block must match besides its tokens.

        The stream, and so every later layer's keys and values, depends on alpha and on where it holds; and a
        block must not serve a request that reads PT's keys and values in layers where none were written.
        """
        written = f"pt{_in(self.pt_layers)}" if self.needs_pt else "ft"
        return f"tuco:{self.alpha.hex()}{_in(self.layers)}:{written}|{users or ''}"


def _in(layers: Layers | None) -> str:
    return "" if layers is None else f"@{layers.first}-{layers.last}"


PLAIN = Steering()


def parse_alpha(value: Any, limits: Limits = LIMITS, name: str = ALPHA) -> float:
    """A finite number within ``limits`` as a float (-0.0 as 0.0), or InputError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    lowest, highest = limits.lowest, limits.highest
    if not number or not lowest <= value <= highest:  # NaN compares false; 10**400 is compared as an integer
        shown = float(value) if isinstance(value, float) else value  # numpy's would say its type as well
        raise InputError(f"{name} must be a number from {lowest:.15g} to {highest:.15g}, not {shown!r:.40}")
    if not math.isfinite(value):  # only without finite limits
        raise InputError(f"{name} must be finite")
    return float(value) + 0.0


_FORM = 'a number, or {"value": number, "layers": [first, last]}'


def parse_scale(value: Any, limits: Limits = LIMITS) -> Scale:
    """A number, or a mapping as the module has it; InputError for all else.

    What is the same has one form, and so one cache: all layers are no range, nor has alpha 1 one.
    """
    if not isinstance(value, Mapping):
        return Scale(parse_alpha(value, limits))
    for name in value:
        if name not in ("value", "layers"):
            raise InputError(f"{ALPHA} has no {name!r:.40}: it is {_FORM}")
    for name in ("value", "layers"):
        if name not in value:
            raise InputError(f'{ALPHA} lacks "{name}": it is {_FORM}')
    alpha, layers = parse_alpha(value["value"], limits, f"{ALPHA}.value"), value["layers"]
    whole = isinstance(layers, list | tuple) and all(type(number) is int for number in layers)
    if not whole or len(layers) != 2 or not 0 <= layers[0] <= layers[1]:
        raise InputError(
            f"{ALPHA}.layers must be [first, last], whole numbers with 0 <= first <= last, not {layers!r:.40}"
        )
    count = limits.num_layers
    if count is not None and layers[1] >= count:
        raise InputError(f"{ALPHA}.layers must end at {count - 1}: there are {count} layers, from 0 on")
    everywhere = count is not None and tuple(layers) == (0, count - 1)
    return Scale(alpha, None if everywhere or alpha == 1.0 else Layers(*layers))


def parse_tuco(value: Any) -> bool:
    """Whether scores are wanted: True and "layers" say so, False and None do not; all else is InputError."""
    if value is None or value is False:
        return False
    if value is True or (isinstance(value, str) and value == "layers"):
        return True
    raise InputError(f'{TUCO} must be true, false or "layers", not {value!r:.40}')


def steering_of(extra_args: Mapping[str, Any] | None, limits: Limits = LIMITS) -> Steering:
    """What ``extra_args`` asks for; InputError where it cannot be given."""
    if not extra_args or not any(name in extra_args for name in (ALPHA, ALPHA_LAYERS, TUCO, ROWS)):
        return PLAIN
    alpha, rows = extra_args.get(ALPHA), Asked.of(extra_args.get(ROWS))
    if (layers := extra_args.get(ALPHA_LAYERS)) is not None:
        alpha = {"value": alpha, "layers": layers}
    scale = Scale() if alpha is None else parse_scale(alpha, limits)
    scored = parse_tuco(extra_args.get(TUCO)) or rows is not None
    return Steering(scale.alpha, scored, rows, scale.layers)
