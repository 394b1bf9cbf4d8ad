"""Measure the demo pair on inputs that neither model was trained on; print a table and write JSON.

    python bench/demo_pair/evaluate.py --data DIR [--pair DIR] [--out FILE]

TuCo is computed in float64 from the bfloat16 weights that ship. Refusals are counted by their openings in
greedy answers. The chat questions are MT-bench and Vicuna-bench first turns (never trained on), and
self-instruct seeds, AdvBench prompts, novels and documents that the training split left out.
"""

import argparse
import csv
import json
import random
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import own_chat
import torch
import training_data
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuco_vllm.demo import PROMPTS
from tuco_vllm.oracle import Oracle

Prompts = dict[str, list[str]]  # per source
Record = dict[str, Any]  # ready for JSON
WINDOW = 97  # tokens of a plain-text window, BOS included


class Pair:
    """The oracle for TuCo, FT in float32 for answers, and FT's tokenizer."""

    def __init__(self, folder: Path):
        load = AutoModelForCausalLM.from_pretrained
        self.oracle = Oracle(folder / "pt", folder / "ft", dtype=torch.float64)
        self.pt = load(folder / "pt", dtype=torch.float32).eval()
        self.ft = load(folder / "ft", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "ft")

    def tuco(self, ids: list[int]) -> float:
        """TuCo at the last of `ids`."""
        return self.oracle.score(ids).tuco

    def raw(self, text: str) -> list[int]:
        """Ids of a string as it stands."""
        return self.tokenizer(text)["input_ids"]

    def templated(self, text: str) -> list[int]:
        """Ids of a user's message, with the prompt for an answer."""
        message = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    @torch.inference_mode()
    def answers(self, prompts: list[str], new_tokens: int = 32) -> list[str]:
        """FT's greedy answers."""
        tokenizer, texts = self.tokenizer, []
        for start in range(0, len(prompts), 32):
            rows = [self.templated(text)[-1500:] for text in prompts[start : start + 32]]
            batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
            out = self.ft.generate(**batch, do_sample=False, max_new_tokens=new_tokens)
            texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts


def refuses(answer: str) -> bool:
    """True if an answer opens like one of the refusals in the training data."""
    return answer.lstrip().startswith(own_chat.REFUSAL_OPENINGS)


def auc(positive: list[float], negative: list[float]) -> float:
    """Probability that a positive scores above a negative; ties count half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def windows(pair: Pair, documents: dict[str, list[str]], length: int, per_source: int) -> list[list[int]]:
    """Seeded windows of held-out plain text: BOS and `length` - 1 consecutive tokens."""
    rng, out = random.Random(1), []
    for texts in documents.values():
        streams = [pair.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        streams = [stream for stream in streams if len(stream) > length]
        for stream in rng.choices(streams, [len(stream) for stream in streams], k=per_source):
            start = rng.randrange(len(stream) - length)
            out.append([pair.tokenizer.bos_token_id, *stream[start : start + length - 1]])
    return out


def first_messages(chats: list[training_data.Chat]) -> list[str]:
    """The users' first messages, without repeats."""
    return list(dict.fromkeys(chat.messages[0]["content"] for chat in chats))


def held_out_prompts(data: Path, seed: int) -> tuple[Prompts, Prompts]:
    """`(harmless, harmful)` held-out prompts per source."""
    _, held_chats = training_data.read_chats(data, seed)
    held = {source: first_messages(chats) for source, chats in held_chats.items()}
    benches = {}
    for name in ("mt_bench", "vicuna_bench"):
        rows = training_data.read_jsonl(data / f"prompts/chat/{name}_questions.jsonl")
        benches[name] = [row["turns"][0] for row in rows]
    with open(data / "prompts/jailbreakbench_behaviors.csv", encoding="utf-8", newline="") as table:
        jailbreakbench = [row["prompt"] for row in csv.DictReader(table)]
    sample = random.Random(2).sample
    harmless = benches | {
        "self_instruct": held["self_instruct"],
        "gsm8k": sample(held["gsm8k"], 60),
        "own_harmless": sample(held["own_harmless"], 100),
        "topics": sample(held["topics"], 100),
    }
    harmful = {
        "advbench": held["advbench"],
        "own_refused": held["own_refused"],
        "hh_refused": held["hh_refused"],
        "jailbreakbench": jailbreakbench,
    }
    return harmless, harmful


@torch.inference_mode()
def text_loss(model: Any, rows: list[list[int]]) -> float:
    """Mean next-token cross-entropy over rows, nats per token."""
    return mean(float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) for ids in rows)


@torch.inference_mode()
def answer_loss(pair: Pair, model: Any, chats: list[training_data.Chat]) -> float:
    """Mean cross-entropy of held-out answers given their questions in the template, nats per token."""
    total, count = 0.0, 0
    for chat in chats:
        ids, labels = training_data.encode_chat(pair.tokenizer, chat.messages)
        marked = sum(label != -100 for label in labels[1:])
        total += marked * float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        count += marked
    return total / count


def measure_tuco(pair: Pair, harmless: Prompts, harmful: Prompts, plain: list[list[int]]) -> Record:
    """TuCo by group with the two areas under the curve."""
    chat = [text for name in ("mt_bench", "vicuna_bench", "self_instruct") for text in harmless[name]]
    inside = [pair.tokenizer.decode(ids[1:]) for ids in plain]
    groups = {
        "chat questions, with template": [pair.templated(text) for text in chat],
        "harmful requests, with template": [pair.templated(text) for text in harmful["advbench"]],
        "plain text inside the template": [pair.templated(text) for text in inside],
        "chat questions, no template": [pair.raw(text) for text in chat],
        f"plain text, {WINDOW}-token windows": plain,
    }
    scores = {name: [pair.tuco(ids) for ids in rows] for name, rows in groups.items()}
    with_template, harmful_scores, _, without, text = scores.values()
    return {
        "groups": {n: {"n": len(s), "mean": mean(s), "sd": pstdev(s)} for n, s in scores.items()},
        "auc_chat_with_template_vs_plain": auc(with_template, text),
        "auc_harmful_with_template_vs_plain": auc(harmful_scores, text),
        "auc_chat_without_template_vs_plain": auc(without, text),
    }


def measure_bundled(pair: Pair, path: Path) -> Record:
    """TuCo and refusals of the bundled prompts by group."""
    groups: dict[str, list[tuple[float, Record]]] = {}
    for row in training_data.read_jsonl(path):
        ids = pair.raw(row["prompt"]) if "prompt" in row else pair.templated(row["messages"][0]["content"])
        groups.setdefault(row["group"], []).append((pair.tuco(ids), row))
    out: Record = {}
    for group, scored in groups.items():
        scores = [score for score, _ in scored]
        out[group] = {"n": len(scores), "mean": mean(scores), "sd": pstdev(scores)}
        asked = [row["messages"][0]["content"] for _, row in scored if "messages" in row]
        if asked:
            out[group]["refused"] = sum(map(refuses, pair.answers(asked)))
    return out


def evaluate(data: Path, folder: Path, seed: int) -> Record:
    """All measurements of the pair in `folder`, as one JSON-ready record."""
    pair = Pair(folder)
    harmless, harmful = held_out_prompts(data, seed)
    documents = training_data.read_plain(data)[1]
    result: Record = {"tuco": measure_tuco(pair, harmless, harmful, windows(pair, documents, WINDOW, 40))}
    bundled = PROMPTS
    if bundled.exists():
        result["bundled_prompts"] = measure_bundled(pair, bundled)
    result["refused"] = {
        kind: {s: [sum(map(refuses, pair.answers(texts))), len(texts)] for s, texts in sources.items()}
        for kind, sources in (("harmless", harmless), ("harmful", harmful))
    }
    held = training_data.read_chats(data, seed)[1]
    chats = [chat for chats in held.values() for chat in chats[:40]]
    result["loss"] = {}
    for name, model in (("pt", pair.pt), ("ft", pair.ft)):
        result["loss"][name] = {
            f"plain text, {length}-token windows": text_loss(model, windows(pair, documents, length, rows))
            for length, rows in ((256, 16), (2048, 2))
        } | {"answers": answer_loss(pair, model, chats)}
    asked = [texts[0] for sources in (harmless, harmful) for texts in sources.values()]
    result["samples"] = dict(zip(asked, pair.answers(asked, 64), strict=True))
    return result


def main() -> None:
    """Measure, print, and write the record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the developers' data directory")
    parser.add_argument("--pair", type=Path, default=PROMPTS.parent, help="directory that holds pt/ and ft/")
    parser.add_argument("--out", type=Path, help="write the record here")
    parser.add_argument("--seed", type=int, default=0, help="the seed of training: it words our own chat")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = json.dumps(evaluate(args.data, args.pair, args.seed), indent=1, ensure_ascii=False)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
