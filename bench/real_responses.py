"""What do real answers score? Public chats with their answers, through ``tuco score`` with all it can say.

    python bench/real_responses.py --data DIR [--limit 1000]

DIR holds ``prompts/`` as the project's developers have it; nothing of it is copied into the repository. The
pair is the bundled one, which knows its own few hundred facts: its answers to others' questions mean little,
and that is what a figure here is for: the scores of *given* texts, by position, beside Δ log p and OutputCo.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import provenance
import pyarrow.parquet as pq
from real_inputs import Row, read_jsonl, transcript
from rich.console import Console
from rich.table import Table

from tuco_vllm.analysis.tables import read_run
from tuco_vllm.demo import FT, PT
from tuco_vllm.store import store_at

POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Of a response's tokens, counted from 0."""


def instructions(path: Path) -> Iterator[Row]:
    """An instruction, with what it is about, and somebody's answer."""
    for row in read_jsonl(path):
        asked = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
        yield {"messages": [{"role": "user", "content": asked}], "response": row["output"]}


def hh(path: Path) -> Iterator[Row]:
    """Dialogues that end with an answer of the assistant's."""
    for row in read_jsonl(path):
        answer = row["chosen"].rpartition("\n\nAssistant:")[2].strip()
        yield {"messages": [*transcript(row["chosen"]), {"role": "assistant", "content": answer}]}


SETS = {
    "alpaca": lambda data: instructions(data / "prompts/chat/alpaca_sample.jsonl"),
    "dolly": lambda data: instructions(data / "prompts/chat/dolly_sample.jsonl"),
    "hh": lambda data: hh(data / "prompts/chat/hh_harmless_base_test.jsonl.gz"),
}


def main() -> None:
    """Score them, and append a record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000, help="rows of each set; default: %(default)s")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    origin = provenance.provenance()
    with tempfile.TemporaryDirectory() as scratch:
        inputs, out = Path(scratch) / "inputs.jsonl", Path(scratch) / "scores"
        with inputs.open("w", encoding="utf-8") as lines:
            for name, rows in SETS.items():
                for _, row in zip(range(options.limit), rows(options.data), strict=False):
                    lines.write(json.dumps({"set": name, **row}) + "\n")
        command = [str(Path(sys.executable).with_name("tuco")), "score", str(inputs), "--out", str(out)]
        command += ["--pt", str(PT), "--ft", str(FT), "--enforce-eager", "--output-co", "--relative-reward"]
        subprocess.run(command, check=True)
        table = pq.read_table(out)
        sets = {name: figures([row for row in table.to_pylist() if row["set"] == name]) for name in SETS}
        record = {
            "bench": "real_responses",
            "limit": options.limit,
            "sets": sets,
            "score_seconds": read_run(store_at(out))["timings"].get("score_seconds"),
            # Where the data lie is nobody's business.
            "provenance": {
                **origin,
                "command": f"bench/real_responses.py --data DIR --limit {options.limit}",
            },
        }
    provenance.append("real_responses", record)
    show(sets)


def figures(rows: list[Row]) -> dict[str, Any]:
    """Means over a set's rows; of positions over those that have so many tokens."""
    scored = [row for row in rows if row["error"] is None]
    reasons = sorted({row["error"] for row in rows if row["error"]})
    tucos = [row["response_tucos"] for row in scored]
    at = {place: [each[place] for each in tucos if len(each) > place] for place in POSITIONS}
    tokens = sum(row["response_tokens"] for row in scored)
    return {
        "rows": len(rows),
        "errors": len(rows) - len(scored),
        "reasons": reasons[:3],
        "prompt_tuco": mean([row["tuco"] for row in scored]),
        "response_tuco": mean([row["response_tuco"] for row in scored]),
        "response_tuco_by_position": {str(place): mean(values) for place, values in at.items() if values},
        "rows_by_position": {str(place): len(values) for place, values in at.items() if values},
        "output_co": mean([row["output_co"] for row in scored]),
        "relative_reward_a_token": round(sum(row["relative_reward"] for row in scored) / max(tokens, 1), 4),
        "response_tokens": tokens,
    }


def mean(values: list[float]) -> float | None:
    """To four digits."""
    return round(float(np.mean(values)), 4) if values else None


def show(sets: dict[str, dict[str, Any]]) -> None:
    """A row a set."""
    table = Table(
        "set", "rows", "errors", "TuCo, prompt", "response", *map(str, POSITIONS), "OutputCo", "reward"
    )
    for name, one in sets.items():
        by = one["response_tuco_by_position"]
        table.add_row(
            name,
            *(str(one[key]) for key in ("rows", "errors", "prompt_tuco", "response_tuco")),
            *(f"{by[str(place)]:.3f}" if str(place) in by else "" for place in POSITIONS),
            *(str(one[key]) for key in ("output_co", "relative_reward_a_token")),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
