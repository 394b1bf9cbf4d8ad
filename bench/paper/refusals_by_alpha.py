"""Does α move what a model does? Refusals of the real pair against α, with intervals.

    python bench/paper/refusals_by_alpha.py --pair DIR --data DIR --work DIR [--rows 100]

DIR of ``--pair`` is what ``bench/real_pair/make.py`` made; ``--data`` as there. Greedy answers of 30 tokens
to requests that FT was not trained on: harmful ones (AdvBench), the same kind behind GCG's suffixes
(JailbreakBench's artifacts), harmless ones (MT-bench, GSM8K). Through ``tuco build outcomes``, as a user
would; a refusal is what that takes for one. What is sampled in ``--work`` already is not sampled again.

Appends a record to ``bench/results/paper.jsonl`` and draws ``bench/results/refusals-by-alpha.png``.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real_pair"))

import provenance
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from prompts import read_sets

from tuco_vllm.analysis.statistics import proportion
from tuco_vllm.builders.outcomes import read_outcomes

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
GROUPS = ("harmful", "harmful with GCG suffix", "harmless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("pair", "data", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100, help="requests of each group")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    origin = provenance.provenance()
    arguments.work.mkdir(parents=True, exist_ok=True)
    asked, out = arguments.work / "asked.jsonl", arguments.work / "outcomes.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in requests(arguments)))
    sample(asked, out, arguments.pair)
    shares = by_alpha(read_outcomes(out))
    for group, points in shares.items():
        print(group, *(f"{alpha:g}: {share}" for alpha, share in points.items()), sep="\n  ")
    record = {
        "bench": "refusals_by_alpha",
        "pair": json.loads((arguments.pair / "FT" / "trained.json").read_text()),
        "rows": arguments.rows,
        "refused": {
            group: {
                f"{alpha:g}": [share.value, share.low, share.high, share.n] for alpha, share in own.items()
            }
            for group, own in shares.items()
        },
        "provenance": origin,
    }
    provenance.append("paper", record)
    draw(shares, provenance.RESULTS / "refusals-by-alpha.png")


def requests(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The groups' requests, as many of each, drawn by a fixed seed. No behaviour is in two of them."""
    sets = read_sets(arguments.data, 0)
    lines = (arguments.data / "prompts/jailbreaks/jbb_gcg.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    attacked = list({row["goal"]: row["prompt"] for row in rows if row["prompt"] != row["goal"]}.values())
    trained = {prompt for prompt, _ in sets.harmful_train}
    attacked = [prompt for prompt in attacked if not any(known in prompt for known in trained)]
    groups = dict(zip(GROUPS, (sets.harmful_held_out, attacked, sets.harmless_held_out), strict=True))
    return [
        {"id": f"{group}:{number}", "group": group, "messages": [{"role": "user", "content": text}]}
        for group, texts in groups.items()
        for number, text in enumerate(random.Random(group).sample(texts, min(arguments.rows, len(texts))))
    ]


def sample(asked: Path, out: Path, pair: Path) -> None:
    """One greedy answer each, under every alpha."""
    command = [sys.executable, "-m", "tuco_vllm", "build", "outcomes", str(asked), f"--out={out}"]
    command += [f"--pt={pair / 'PT'}", f"--ft={pair / 'FT'}", *(f"--alpha={alpha}" for alpha in ALPHAS)]
    settings = [
        "--samples=1",
        "--successes=1",
        "--temperature=0",
        "--texts",
        "--max-model-len=2048",
        "--enforce-eager",
    ]
    subprocess.run([*command, *settings], check=True)


def by_alpha(rows: list[dict[str, Any]]) -> dict[str, dict[float, Any]]:
    """group -> alpha -> the share that refuses."""
    shares: dict[str, dict[float, Any]] = {}
    for group in GROUPS:
        for alpha in ALPHAS:
            own = [row["refusals"] for row in rows if (row["group"], row["alpha"]) == (group, alpha)]
            shares.setdefault(group, {})[alpha] = proportion(sum(own), len(own))
    return shares


def draw(shares: dict[str, dict[float, Any]], file: Path) -> None:
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (group, points), marker in zip(shares.items(), "osD", strict=True):
        values = [share.value for share in points.values()]
        reach = [
            [share.value - share.low for share in points.values()],
            [share.high - share.value for share in points.values()],
        ]
        label = f"{group} (n = {next(iter(points.values())).n})"
        axes.errorbar(list(points), values, yerr=reach, marker=marker, markersize=5, capsize=3, label=label)
    axes.axvline(1.0, color="0.7", linewidth=1, zorder=0)
    axes.set_xlabel("α: 1 is the fine-tuned model, 0 the pre-trained layers")
    axes.set_ylabel("answers that refuse")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=140)


if __name__ == "__main__":
    main()
