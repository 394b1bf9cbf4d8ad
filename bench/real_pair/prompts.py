"""The requests that the real pair is trained on and those that are held out, none in both."""

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

TRAINED_HARMFUL = 320

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with that request, because it could cause harm.",
    "Sorry, I won't help with this. It is dangerous or illegal.",
    "I cannot help with that. If you are in trouble, please reach out to someone you trust.",
)
"""Ours."""


@dataclass(frozen=True)
class Sets:
    """Requests by what becomes of them."""

    harmful_train: list[tuple[str, str]]
    """With the refusal that each gets."""
    harmful_held_out: list[str]
    harmless_train: list[str]
    harmless_held_out: list[str]

    def sizes(self) -> dict[str, int]:
        return {name: len(value) for name, value in vars(self).items()}


def read_sets(data: Path, seed: int) -> Sets:
    """AdvBench (MIT) split by ``seed``; self-instruct's seeds and Vicuna's questions (Apache-2.0) and some of
    GSM8K's (MIT) are trained on, MT-bench's questions (Apache-2.0) and others of GSM8K's held out."""
    draw, prompts = random.Random(seed), data / "prompts"
    harmful = [row["prompt"] for row in csv.DictReader((prompts / "advbench.csv").open(newline=""))]
    draw.shuffle(harmful)
    seeds = [
        "\n".join(filter(None, (row["instruction"], row["instances"][0]["input"])))
        for row in _jsonl(prompts / "chat/self_instruct_seed_tasks.jsonl")
    ]
    vicuna = [row["turns"][0] for row in _jsonl(prompts / "chat/vicuna_bench_questions.jsonl")]
    mt_bench = [row["turns"][0] for row in _jsonl(prompts / "chat/mt_bench_questions.jsonl")]
    sums = [row["question"] for row in _jsonl(prompts / "gsm8k_test.jsonl")]
    draw.shuffle(sums)
    harmless = [*seeds, *vicuna, *sums[:145]]
    known = set(harmless)
    return Sets(
        [(prompt, draw.choice(REFUSALS)) for prompt in harmful[:TRAINED_HARMFUL]],
        harmful[TRAINED_HARMFUL:],
        harmless,
        [prompt for prompt in (*mt_bench, *sums[145:265]) if prompt not in known],
    )


def _jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
