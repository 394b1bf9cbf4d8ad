"""What the numbers of gpu.py must reach, in one table, and whether they do. All are ratios of one run."""

from collections.abc import Iterable
from typing import Any, NamedTuple


class Budget(NamedTuple):
    """``floor`` must be reached, ``goal`` ought to be; ``of_bound``: the goal is that share of the bound."""

    floor: float
    goal: float
    of_bound: bool = False


BUDGETS = {
    "scoring / stock, grouped heads": Budget(0.90, 0.97, of_bound=True),
    "scoring / stock, all heads": Budget(0.82, 0.97, of_bound=True),
    "scoring / hugging face": Budget(3.0, 10.0),
    "plain / stock": Budget(0.90, 0.98),
    "1 alpha / stock": Budget(0.45, 0.49),
    "64 alphas / 1 alpha": Budget(0.95, 0.95),
    "256 alphas / 1 alpha": Budget(0.95, 0.95),
    "kernel / copy": Budget(0.80, 0.90),
}
"""Floors and goals on one H200. Scoring over stock counts from prompts of 256 tokens on; the floor over the
Hugging Face reference is what a CPU must reach."""

FROM_TOKENS = 256


def judge(name: str, value: float, bound: float = 1.0) -> dict[str, Any]:
    """One value against its budget."""
    floor, goal, of_bound = BUDGETS[name]
    goal = goal * bound if of_bound else goal
    return {
        "name": name,
        "value": round(value, 4),
        "floor": floor,
        "goal": round(goal, 4),
        "met": value >= floor,
        "goal_met": value >= goal,
    }


def in_words(judged: dict[str, Any]) -> str:
    """A verdict for people."""
    met = "met" if judged["met"] else "NOT MET"
    goal = "met" if judged["goal_met"] else "NOT MET"
    return (
        f"{judged['name']}: {judged['value']:.3f}, floor {judged['floor']:.2f} {met}, "
        f"goal {judged['goal']:.3f} {goal}"
    )


def all_met(records: Iterable[dict[str, Any]]) -> bool | None:
    """Whether all floors of some records are met; None if none was judged."""
    verdicts = [judged["met"] for record in records for judged in record.get("budgets", [])]
    return all(verdicts) if verdicts else None
