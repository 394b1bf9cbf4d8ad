"""§5.1: α chosen by cross-validation changes accuracy. MMLU and model-written evaluations by ``tuco sweep``.

Of MMLU ten subjects of fifty questions behind five examples, of the evaluations five behaviours of two
hundred, drawn by a fixed seed. A model of 135 M parameters is near chance on the former, and this pair's
fine-tuning taught neither: the sweep then has nothing to find, and says so.
"""

import csv
from pathlib import Path

from asked import drawn
from findings import Figure, Finding, Told
from setting import Row, Setting

from tuco_vllm.analysis.statistics import Estimate

SUBJECTS, QUESTIONS, BEHAVIOURS, STATEMENTS = 10, 50, 5, 200


def findings(setting: Setting) -> Told:
    """Sweep both, and read ``effects.csv``."""
    found, curves = [], {}
    for name, chance, out in (("MMLU", 0.25, mmlu(setting)), ("behaviours", 0.5, written(setting))):
        lines = list(csv.DictReader((out / "effects.csv").open(newline="", encoding="utf-8")))
        rows = [line for line in lines if (line["dataset"], line["scope"]) == ("main", "rows")]
        accuracy = {line["alpha"]: line for line in rows if line["what"] == "accuracy"}
        curves[f"accuracy, {name}"] = {alpha: _estimate(line) for alpha, line in accuracy.items()}
        found += [_finding(name, chance, what, lines, accuracy) for what in ("max", "min")]
    return Told(found, curves=curves)


def mmlu(setting: Setting) -> Path:
    """The folder of its sweep."""
    path = setting.given("prompts/mmlu/test_first100.csv")
    lines = list(csv.DictReader(path.open(newline="", encoding="utf-8")))
    subjects = drawn(sorted({row["subject"] for row in lines}), setting.rows(SUBJECTS, least=2), "subjects")
    wanted = setting.work / "mmlu.csv"
    if not wanted.exists():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with wanted.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(lines[0]))
            table.writeheader()
            table.writerows(row for row in lines if row["subject"] in subjects)
    examples = ("--few-shot", str(setting.given("prompts/mmlu/dev.csv")))
    return swept(setting, "mmlu", "mmlu-csv", [wanted], setting.rows(QUESTIONS), *examples)


def written(setting: Setting) -> Path:
    """The folder of the evaluations' sweep."""
    files = sorted(setting.given("prompts/mwe").glob("*.jsonl"))
    chosen = drawn(files, setting.rows(BEHAVIOURS, least=2), "behaviours")
    return swept(setting, "mwe", "mwe-jsonl", chosen, setting.rows(STATEMENTS))


def swept(setting: Setting, name: str, kind: str, inputs: list[Path], limit: int, *options: str) -> Path:
    """``tuco sweep`` with the paper's α."""
    out = setting.work / f"{name}-sweep"
    pair = ("--pt", str(setting.pt), "--ft", str(setting.ft), "--limit", str(limit))
    setting.tuco("sweep", *map(str, inputs), "--dataset", kind, "--out", str(out), *pair, *options)
    return out


def _finding(name: str, chance: float, what: str, lines: list[Row], accuracy: dict[str, Row]) -> Finding:
    scopes = {
        line["scope"]: line
        for line in lines
        if line["what"] == f"chosen-{what}" and line["scope"] in ("rows", "macro")
    }
    claims = {
        "MMLU": "α chosen for accuracy improves MMLU",
        "behaviours": "α chosen for a behaviour makes it more frequent",
    }
    claim = claims[name] if what == "max" else f"… and α chosen against it does the opposite ({name})"
    ends = {"MMLU": "up to 5 % on a task", "behaviours": "more, on most behaviours"}
    at_one = next((_estimate(line) for alpha, line in accuracy.items() if float(alpha) == 1), None)
    controls = [Figure(f"accuracy at α = 1; chance is {chance:g}", at_one, chance)] if at_one else []
    if "rows" in scopes:
        rows = scopes["rows"]
        told = (
            f"Δ over all questions (α: {_most(rows['alpha'])}; {rows['gained']} gained, {rows['lost']} lost)"
        )
        controls.append(Figure(told, _estimate(rows), 0.0))
    ours = Figure("Δ accuracy out of fold, mean over tasks", _estimate(scopes.get("macro")), 0.0)
    paper = ends[name] if what == "max" else "less"
    return Finding(claim, paper, ours, above=what == "max", controls=controls)


def _estimate(line: Row | None) -> Estimate:
    if line is None or not line["value"]:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return Estimate(*(float(line[name]) for name in ("value", "low", "high")), int(line["n"]))


def _most(chosen: str) -> str:
    """The α that most folds chose, of "0.75:3 1:22"."""
    counts = [each.split(":") for each in chosen.split()]
    alpha, folds = max(counts, key=lambda each: int(each[1]), default=("-", "0"))
    return f"{alpha} in {folds} of {sum(int(each[1]) for each in counts)} folds"
