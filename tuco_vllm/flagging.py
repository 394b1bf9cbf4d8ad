"""The file that `tuco calibrate` writes, and what it says of one score: is it beyond its threshold?

A threshold belongs to a pair, a dtype, a column, a form of prompt (a chat template's SHA-256, or None for
text and token ids as they are) and a range of prompt tokens. Of all else the file says nothing, and neither
do we: the answer is None. Needs nothing but JSON, so that servers and reports can read it alike.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from tuco_vllm.errors import InputError

FORMAT, VERSION = "tuco calibration", 1

DIRECTIONS = ("below", "above")
"""Which side of a threshold is flagged; a score equal to it never is."""

_MAKE = "make it anew with tuco calibrate"


@dataclass(frozen=True)
class Bucket:
    """A threshold for prompts of ``shortest`` to ``longest`` tokens, both included."""

    shortest: int
    longest: int
    threshold: float


@dataclass(frozen=True)
class Flags:
    """A calibration, read and checked."""

    path: str
    pt_fingerprint: str
    ft_fingerprint: str
    ft: str
    """FT's name when it was scored."""
    dtype: str
    row_dtype: str
    column: str
    """The output column whose scores are compared: ``tuco``, ``response_tuco``, ..."""
    direction: str
    """One of ``DIRECTIONS``."""
    fpr: float
    """The share of clean rows that was to be flagged at most."""
    templates: Mapping[str | None, tuple[Bucket, ...]]
    """By the form of prompts, in order of length."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """From a file of `tuco calibrate`. InputError says what is wrong with it, and the mend."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the calibration {path}: {error.strerror or error}") from error
        try:
            written = json.loads(text)
        except (ValueError, RecursionError):
            written = None
        if not is_calibration(written):
            raise InputError(f"{path} is no file of tuco calibrate: name one that is")
        if written.get("version") != VERSION:
            told = f"{written.get('version')!r:.20}"
            raise InputError(f"{path} is a calibration of version {told}, not {VERSION}: {_MAKE}")
        try:
            return cls(
                path=str(path),
                pt_fingerprint=_text(written["pair"]["pt"]["fingerprint"]),
                ft_fingerprint=_text(written["pair"]["ft"]["fingerprint"]),
                ft=_text(written["pair"]["ft"]["name"]),
                dtype=_text(written["dtype"]),
                row_dtype=_text(written["row_dtype"]),
                column=_text(written["column"]),
                direction=_one_of(DIRECTIONS, written["direction"]),
                fpr=_number(written["fpr"]),
                templates=_templates(written["templates"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"the calibration {path} is broken ({what}): {_MAKE}") from error

    def threshold(self, template: str | None, tokens: int) -> float | None:
        """For prompts of that form and length; None where nothing was calibrated."""
        for bucket in self.templates.get(template, ()):
            if bucket.shortest <= tokens <= bucket.longest:
                return bucket.threshold
        return None

    def flagged(self, template: str | None, tokens: int, value: float | None) -> bool | None:
        """Whether a score is beyond its threshold; None without a threshold, or without a finite score."""
        threshold = self.threshold(template, tokens)
        if threshold is None or value is None or not math.isfinite(value):
            return None
        return value < threshold if self.direction == "below" else value > threshold


def is_calibration(written: Any) -> bool:
    """Whether JSON says of itself that `tuco calibrate` wrote it, in whatever version."""
    return isinstance(written, dict) and written.get("format") == FORMAT


def _templates(written: Any) -> dict[str | None, tuple[Bucket, ...]]:
    templates: dict[str | None, tuple[Bucket, ...]] = {}
    for each in written:
        name = None if each["template"] is None else _text(each["template"])
        buckets = tuple(map(_bucket, each["buckets"]))
        if name in templates:
            raise ValueError("a template has two entries")
        if any(one.longest >= two.shortest for one, two in pairwise(buckets)):
            raise ValueError("buckets overlap, or are not in order")
        templates[name] = buckets
    if not any(templates.values()):
        raise ValueError("it has no thresholds")
    return templates


def _bucket(written: Any) -> Bucket:
    shortest, longest = written["tokens"]
    if type(shortest) is not int or type(longest) is not int or not 0 <= shortest <= longest:
        raise ValueError(f"tokens are {written['tokens']!r:.40}")
    return Bucket(shortest, longest, _number(written["threshold"]))


def _number(value: Any) -> float:
    """A finite one; JSON as Python reads it has others, and ``true`` is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{value!r:.40} is no finite number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _one_of(known: tuple[str, ...], value: Any) -> str:
    if value not in known:
        raise ValueError(f"{value!r:.40} is none of {', '.join(known)}")
    return _text(value)
