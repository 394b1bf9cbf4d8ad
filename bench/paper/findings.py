"""What a part of the replication says: the paper's finding, ours beside it, and the controls beside that."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from setting import Row, Scores

from tuco_vllm.analysis.statistics import Estimate, auc, mean

SAME, OPPOSITE, NONE, UNKNOWN = "same", "opposite", "none seen", "cannot be said"

_SLACK = 0.1
"""Two prompts are equally long where their tokens differ by no more than this share, or by two tokens."""


@dataclass(frozen=True)
class Figure:
    """One estimate, and what it is of."""

    measure: str
    estimate: Estimate
    null: float = 0.5
    """What it would be if there were nothing."""


@dataclass(frozen=True)
class Finding:
    """A claim, and whether this pair bears it out."""

    claim: str
    paper: str
    """The paper's figure, in words."""
    ours: Figure
    above: bool = True
    """Whether the paper's direction is above ``ours.null``."""
    controls: list[Figure] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The direction of what the interval leaves no doubt about."""
        return verdict(self.ours, self.above)


@dataclass(frozen=True)
class Told:
    """All that a part says."""

    findings: list[Finding]
    groups: dict[str, Any] = field(default_factory=dict)
    """Of each group of prompts how TuCo is distributed."""
    curves: dict[str, Any] = field(default_factory=dict)
    """name -> x -> an estimate."""
    errors: int = 0
    """Rows that could not be scored."""

    def as_record(self) -> dict[str, Any]:
        """For a line of JSON; NaN is null there."""
        findings = [
            {
                "claim": each.claim,
                "paper": each.paper,
                **_figure(each.ours),
                "above": each.above,
                "verdict": each.verdict,
                "controls": [_figure(control) for control in each.controls],
            }
            for each in self.findings
        ]
        curves = {
            name: {str(x): _numbers(value) for x, value in points.items()}
            for name, points in self.curves.items()
        }
        return {"findings": findings, "groups": self.groups, "curves": curves, "errors": self.errors}


def verdict(figure: Figure, above: bool) -> str:
    """Of an interval without numbers nothing can be said."""
    low, high = figure.estimate.low, figure.estimate.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNKNOWN
    if low <= figure.null <= high:
        return NONE
    return SAME if (low > figure.null) == above else OPPOSITE


def higher(scores: Scores, group: str, other: str, name: str | None = None) -> Figure:
    """AUC of a group's TuCo over another's."""
    return Figure(name or f"AUC: {group} over {other}", auc(scores.of(group), scores.of(other)))


def at_equal_length(scores: Scores, group: str, other: str) -> Figure:
    """The same of pairs of prompts with about as many tokens, each prompt in one pair at most."""
    pairs = matched(scores.by_group.get(group, []), scores.by_group.get(other, []))
    left, right = ([one[side]["tuco"] for one in pairs] for side in (0, 1))
    return Figure(f"AUC: {group} over {other}, pairs of equal length", auc(left, right))


def matched(rows: Iterable[Row], others: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Rows with others of about their ``prompt_tokens``: the nearest one that is left."""
    left, pairs = list(others), []
    for row in sorted(rows, key=lambda row: str(row["id"])):
        if not left:
            break
        near = min(left, key=lambda other: abs(other["prompt_tokens"] - row["prompt_tokens"]))
        if abs(near["prompt_tokens"] - row["prompt_tokens"]) <= max(2, _SLACK * row["prompt_tokens"]):
            left.remove(near)
            pairs.append((row, near))
    return pairs


def summaries(scores: Scores) -> dict[str, dict[str, Any]]:
    """Of each group: how many, their tokens, TuCo's mean with its interval, and five quantiles."""
    return {
        group: {
            "n": len(rows),
            "tokens": float(np.median([row["prompt_tokens"] for row in rows])),
            "mean": _numbers(mean([row["tuco"] for row in rows])),
            "quantiles": np.quantile([row["tuco"] for row in rows], (0.05, 0.25, 0.5, 0.75, 0.95)).tolist(),
        }
        for group, rows in scores.by_group.items()
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"measure": figure.measure, "ours": _numbers(figure.estimate), "null": figure.null}


def _numbers(estimate: Estimate) -> list[float | None]:
    ends = (estimate.value, estimate.low, estimate.high)
    return [*(float(f"{end:.6g}") if math.isfinite(end) else None for end in ends), estimate.n]
