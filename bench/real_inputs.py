"""Does it score real input? Every row of public prompt sets and text corpora, through ``tuco score``.

    python bench/real_inputs.py --data DIR [--out DIR] [--sets advbench,hh,...] [--limit N]

DIR holds ``prompts/`` and ``text/`` as the project's developers have them; the sets are read where they lie
and never copied into the repository. Prompt sets are chats, as one would ask them (HH's transcripts up to
the last answer; MMLU with its choices), so they go through FT's template. Text corpora are raw, cut into
windows of 97 tokens as in the paper's §5.2. The pair is the bundled one: what is shown is that all rows are
scored, how fast, and that TuCo orders the kinds of input; not what it would be for a real model.

Appends one record to ``bench/results/real_inputs.jsonl``.
"""

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import provenance
from rich.console import Console
from rich.table import Table

from tuco_vllm.analysis.groups import read_groups
from tuco_vllm.analysis.statistics import auc
from tuco_vllm.analysis.summary import summarise
from tuco_vllm.analysis.tables import read_run
from tuco_vllm.demo import FT, PT
from tuco_vllm.prompts import load_tokenizer
from tuco_vllm.store import store_at

WINDOW_TOKENS = 97
CHAT, TEXT = "chat", "text"
Row = dict[str, Any]


def chat(text: str) -> Row:
    """One user turn."""
    return {"messages": [{"role": "user", "content": text}]}


def advbench(data: Path) -> Iterator[Row]:
    yield from (chat(row["prompt"]) for row in read_csv(data / "prompts/advbench.csv"))


def hh(data: Path) -> Iterator[Row]:
    for row in read_jsonl(data / "prompts/chat/hh_harmless_base_test.jsonl.gz"):
        for side in ("chosen", "rejected"):
            yield {"messages": transcript(row[side])}


def mmlu(data: Path) -> Iterator[Row]:
    for part in ("dev", "val", "test_first100"):
        for row in read_csv(data / f"prompts/mmlu/{part}.csv"):
            choices = "\n".join(f"{letter}. {row[letter]}" for letter in "ABCD")
            yield chat(f"{row['question']}\n{choices}\nAnswer:")


def mgsm(data: Path) -> Iterator[Row]:
    for row in read_jsonl(data / "prompts/mgsm_long.jsonl"):
        yield {**chat(row["prompt"]), "part": row["lang"]}


def gsm8k(data: Path) -> Iterator[Row]:
    for name in ("gsm8k_test.jsonl", "gsm8k_train.jsonl.gz"):
        yield from (chat(row["question"]) for row in read_jsonl(data / "prompts" / name))


def texts(*names: str) -> Callable[[Path], Iterator[Row]]:
    """Windows of plain-text files, documents apart."""

    def windows(data: Path) -> Iterator[Row]:
        tokenizer = load_tokenizer(PT)
        for name in names:
            for path in sorted((data / "text").glob(name)):
                documents = path.read_text(encoding="utf-8").split("<|doc|>\n")
                yield from ({"prompt": text} for document in documents for text in cut(document, tokenizer))

    return windows


def udhr(data: Path) -> Iterator[Row]:
    tokenizer = load_tokenizer(PT)
    for row in read_jsonl(data / "text/udhr_16_languages.jsonl"):
        yield from ({"prompt": text, "part": row["lang"]} for text in cut(row["text"], tokenizer))


SETS: dict[str, tuple[str, Callable[[Path], Iterator[Row]]]] = {
    "advbench": (CHAT, advbench),
    "hh": (CHAT, hh),
    "mmlu": (CHAT, mmlu),
    "mgsm": (CHAT, mgsm),
    "gsm8k": (CHAT, gsm8k),
    "novels": (TEXT, texts("novels/*.txt")),
    "shakespeare": (TEXT, texts("tinyshakespeare.txt")),
    "speeches": (TEXT, texts("state_of_the_union.txt")),
    "technical": (TEXT, texts("docs_python_peps.txt", "docs_rust_book.txt")),
    "wikipedia": (TEXT, texts("wikipedia_30_articles.txt", "wikipedia_hotpot_contexts.txt")),
    "web": (TEXT, texts("web_c4_a.txt")),
    "udhr": (TEXT, udhr),
}


def cut(document: str, tokenizer: Any) -> Iterator[str]:
    """Consecutive windows of WINDOW_TOKENS tokens; a shorter rest is left out."""
    offsets = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for first in range(0, len(offsets) - WINDOW_TOKENS + 1, WINDOW_TOKENS):
        text = document[offsets[first][0] : offsets[first + WINDOW_TOKENS - 1][1]]
        if text:
            yield text


def transcript(text: str) -> list[dict[str, str]]:
    """HH's ``\\n\\nHuman: ...\\n\\nAssistant: ...`` as messages, without the last answer."""
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = []
    for block in (
        text.replace("\n\nAssistant: ", "\n\n\0Assistant: ")
        .replace("\n\nHuman: ", "\n\n\0Human: ")
        .split("\n\n\0")
    ):
        role, _, content = block.partition(": ")
        if role in roles:
            turns.append({"role": roles[role], "content": content.strip()})
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return turns


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    unpack = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines)


def write_inputs(data: Path, names: list[str], limit: int | None, path: Path) -> dict[str, int]:
    """One JSONL of all sets; returns rows by set."""
    counts = {}
    with path.open("w", encoding="utf-8") as lines:
        for name in names:
            kind, rows = SETS[name]
            for number, row in enumerate(rows(data)):
                if number == limit:
                    break
                lines.write(json.dumps({"set": name, "kind": kind, **row}) + "\n")
                counts[name] = number + 1
    return counts


def figures(out: Path) -> dict[str, Any]:
    """TuCo by set, and how well it tells chats from text."""
    kinds = {group.name: group.tuco for group in read_groups(out, "kind")}
    sets = {
        group.name: {
            "scored": len(group.tuco),
            "mean": round(float(group.tuco.mean()), 4),
            "sd": round(float(group.tuco.std()), 4),
            "min": round(float(group.tuco.min()), 4),
            "max": round(float(group.tuco.max()), 4),
        }
        for group in read_groups(out, "set")
    }
    both = {CHAT, TEXT} <= kinds.keys()
    area = round(auc(kinds[CHAT], kinds[TEXT]).value, 4) if both else None
    return {"sets": sets, "auc_chat_vs_text": area}


def show(record: dict[str, Any]) -> None:
    table = Table("set", "rows", "scored", "TuCo mean", "sd", "min", "max", title="TuCo by set")
    for name, rows in record["rows_by_set"].items():
        found = record["sets"].get(name, {"scored": 0})
        table.add_row(
            name,
            f"{rows:,}",
            f"{found['scored']:,}",
            *(f"{found.get(k, 0):.3f}" for k in ("mean", "sd", "min", "max")),
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="keep the run's Parquet here (default: a temporary folder)")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--limit", type=int, help="rows of each set; nothing is recorded then")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    origin = provenance.provenance()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.jsonl"
        out = options.out or Path(scratch) / "scores"
        counts = write_inputs(options.data, options.sets.split(","), options.limit, inputs)
        command = [str(Path(sys.executable).with_name("tuco")), "score", str(inputs), "--overwrite"]
        command += ["--pt", str(PT), "--ft", str(FT), "--out", str(out), "--enforce-eager"]
        began = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began
        summary, timings = summarise(store_at(out)), read_run(store_at(out))["timings"]
        record = {
            **origin,
            "command": "python bench/real_inputs.py --data DIR",  # where the data lie is nobody's business
            "rows_by_set": counts,
            "rows": summary.rows,
            "errors": summary.errors,
            "error_reasons": dict(summary.reasons),
            "prompt_tokens": summary.prompt_tokens,
            "wall_seconds": round(seconds, 1),
            "score_seconds": round(timings["score_seconds"], 1),
            "tokens_per_second": round(summary.prompt_tokens / timings["score_seconds"]),
            "rows_per_second": round(summary.rows / timings["score_seconds"], 1),
            **figures(out),
        }
    show(record)
    if options.limit is None:
        provenance.append("real_inputs", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
