"""Records -> the table that people read: the paper's finding, its figure, ours, whether they agree."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SECTIONS = {
    "5.1": "§5.1 α chosen by cross-validation",
    "5.2": "§5.2 Web text against chats",
    "5.3-attacks": "§5.3 GCG and templates",
    "5.3-many-shot": "§5.3 Many-shot jailbreaks",
    "5.3-languages": "§5.3 Languages",
    "5.4": "§5.4 Attacks that succeed and attacks that fail",
    "5.5": "§5.5 OutputCo and TuCo",
}
HEAD = (
    "| the paper's finding | its figure | ours, 95 % | n | same direction? | beside it |\n" + "|---" * 6 + "|"
)
INTRODUCTION = """# The paper's experiments, done again

Made by `bench/paper/run.py` from [the records](../results/paper.jsonl); not written by hand. {pairs}

*Same* is said where the 95 % interval leaves nothing else, *none seen* where it holds what nothing would
give (0.5 of an AUC, 0 of a difference or correlation), *cannot be said* where there is no interval. A row
that begins with … is what is left of the finding above it when something simpler is taken away: a claim
stands only where both do. Intervals are of the prompts drawn, under one pair; they say nothing about other
pairs. Requests that FT was trained to refuse are in no set; they are of the same kind, though, and this
pair's fine-tuning taught little else.
"""
_WORDS = {"same": "**same**", "opposite": "**opposite**"}


def latest(file: Path) -> list[Record]:
    """The last record of each part and pair, and of each bench besides."""
    found: dict[tuple[Any, ...], Record] = {}
    for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
        if line.strip():
            record = json.loads(line)
            found[
                record["bench"],
                record.get("part"),
                record.get("pair") if record["bench"] == "paper" else None,
            ] = record
    return list(found.values())


def write(found: list[Record], page: Path, names: Mapping[str, str], results: Path) -> None:
    """The page; ``results`` is where its figures lie."""
    own = [record for record in found if record["bench"] == "paper"]
    pairs = [name for name in names if any(record["pair"] == name for record in own)]
    lines = [INTRODUCTION.format(pairs=_pairs(own, pairs, names))]
    for pair in pairs:
        lines.append(f"## {names[pair][0].upper()}{names[pair][1:]}\n")
        for part, title in SECTIONS.items():
            lines += [
                _section(record, title) for record in own if (record["part"], record["pair"]) == (part, pair)
            ]
        figures = [results / f"paper-{kind}-{pair}.png" for kind in ("groups", "shots")]
        for figure in figures:
            if figure.exists():
                lines.append(f"![{figure.stem}]({_link(figure, page)})\n")
    for record in found:
        if record["bench"] == "refusals_by_alpha":
            lines.append(_refusals(record))
    page.write_text("\n".join(lines), encoding="utf-8")


def _pairs(own: list[Record], pairs: list[str], names: Mapping[str, str]) -> str:
    minutes = {
        name: sum(record["seconds"] for record in own if record["pair"] == name) / 60 for name in pairs
    }
    told = [f"{names[name]} ({minutes[name]:.0f} minutes on two cores)" for name in pairs]
    return f"Pairs: {'; '.join(told)}." if told else "There are no records yet."


def _section(record: Record, title: str) -> str:
    rows = [_row(finding) for finding in record["findings"]]
    commit = str(record["provenance"]["commit"])[:9]
    lost = f", {record['errors']:,} rows could not be scored" if record["errors"] else ""
    return f"### {title}\n\n{HEAD}\n" + "\n".join(rows) + f"\n\nCommit {commit}{lost}.\n"


def _row(finding: Record) -> str:
    beside = "<br>".join(f"{each['measure']}: {_estimate(each['ours'])}" for each in finding["controls"])
    verdict = _WORDS.get(finding["verdict"], finding["verdict"])
    measure = f"{finding['measure']}: {_estimate(finding['ours'])}"
    cells = (finding["claim"], finding["paper"], measure, f"{finding['ours'][3]:,}", verdict, beside)
    return f"| {' | '.join(cells)} |"


def _refusals(record: Record) -> str:
    alphas = list(next(iter(record["refused"].values())))
    head = f"| | {' | '.join(f'α = {alpha}' for alpha in alphas)} |\n|{'---|' * (len(alphas) + 1)}"
    rows = [
        f"| {group} | " + " | ".join(_estimate(own[alpha], 2) for alpha in alphas) + " |"
        for group, own in record["refused"].items()
    ]
    told = f"Share of greedy answers that refuse, up to {record['rows']} requests of each kind, 95 %."
    return f"## Refusals against α\n\n{told}\n\n{head}\n" + "\n".join(rows) + "\n"


def _estimate(numbers: list[float | None], digits: int = 3) -> str:
    value, low, high = numbers[:3]
    if value is None:
        return "–"
    # Differences of a light fine-tune's TuCo are small.
    places = (
        max(digits, min(6, 2 - math.floor(math.log10(abs(value))))) if value and abs(value) < 0.01 else digits
    )
    ends = f" [{low:.{places}f}, {high:.{places}f}]" if low is not None and high is not None else ""
    return f"{value:.{places}f}{ends}"


def _link(figure: Path, page: Path) -> str:
    """From the page to the figure."""
    common = page.parent.parent
    return figure.name if figure.parent == page.parent else f"../{figure.relative_to(common).as_posix()}"
