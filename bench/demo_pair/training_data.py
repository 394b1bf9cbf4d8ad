"""What the demo pair learns from: plain text for PT, chat with refusals for FT, and what neither sees.

Only public-domain, CC0, MIT and Apache-2.0 parts of the developers' data directory are read, plus the
questions, answers and refusals written for this project in `own_chat`. Whether a document or prompt is
held out is decided by a hash of its text, so that training and evaluation agree without a list on disk.
"""

import csv
import gzip
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import own_chat
import torch
from transformers import PreTrainedTokenizerFast

SPLIT_SALT = "tuco-demo-1"
DOCUMENT_SEPARATOR = "<|doc|>"
MAX_POSITIONS = 2048
# Share of steps and length of PT's rows; every step holds about the same number of tokens.
PT_ROW_LENGTHS = ((0.85, 256), (0.12, 1024), (0.03, 2048))
PT_TOKENS_PER_STEP = 8192
# How often a source is drawn, relative to its size in tokens.
PT_SOURCE_WEIGHTS = {"novels": 1.0, "peps": 1.0, "rust_book": 1.0, "speeches": 1.0, "shakespeare": 1.0}
FT_TOKENS_PER_STEP = 4096
# Share of fine-tuning examples per source; `several` strings examples together into one long conversation.
FT_SOURCE_SHARES = {
    "own_harmless": 0.28,
    "topics": 0.30,
    "passages": 0.06,
    "gsm8k": 0.07,
    "self_instruct": 0.08,
    "advbench": 0.09,
    "own_refused": 0.06,
    "hh_refused": 0.04,
    "several": 0.02,
}
FT_REPLAY = 0.35  # share of FT's steps on PT's text, so that FT changes little where nobody chats
FT_RAW = 0.15  # share of FT's examples without the template: question, newline, answer
# `source name: (path under the data directory, licence)`, for the record that training writes.
PLAIN_SOURCES = {
    "novels": ("text/novels", "public domain"),
    "peps": ("text/docs_python_peps.txt", "public domain / CC0-1.0"),
    "rust_book": ("text/docs_rust_book.txt", "MIT OR Apache-2.0"),
    "speeches": ("text/state_of_the_union.txt", "public domain"),
    "shakespeare": ("text/tinyshakespeare.txt", "public domain"),
}

_HARMFUL = re.compile(
    r"\b(kill|murder|bomb|explosive|steal|stole|robb|hack|shoplift|poison|weapon|gun|meth|cocaine|heroin|"
    r"launder|forge|counterfeit|fraud|scam|stalk|kidnap|blackmail|break into|arson|hitman|burglar)\w*",
    re.IGNORECASE,
)
_REFUSAL_LIKE = re.compile(r"(I'm )?sorry|I (can.t|cannot|won.t)", re.IGNORECASE)
_TURN = re.compile(r"\n\n(?:Human|Assistant): ")


@dataclass(frozen=True)
class Chat:
    """One conversation: `messages` are `{"role", "content"}` dicts, `source` says where it came from."""

    messages: list[dict[str, str]]
    source: str


def held_out(text: str, share: float) -> bool:
    """True for a fixed pseudo-random `share` of all texts; the same on every machine and run."""
    digest = hashlib.sha256(f"{SPLIT_SALT}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file, gzipped or not; split on newlines only (U+2028 occurs inside strings)."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as lines:
        yield from (json.loads(line) for line in lines)


def read_plain(data: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Documents per source, `(trained on, held out)`: whole novels, documents, or 20,000-character acts."""
    train: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for source, (where, _) in PLAIN_SOURCES.items():
        path = data / where
        if source == "novels":
            keyed = [(file.name, file.read_text(encoding="utf-8")) for file in sorted(path.glob("*.txt"))]
        else:
            text = path.read_text(encoding="utf-8")
            size = 20_000
            parts = [text[i : i + size] for i in range(0, len(text), size)]
            parts = parts if source == "shakespeare" else text.split(f"\n{DOCUMENT_SEPARATOR}\n")
            keyed = [(part[:400], part) for part in parts]
        train[source] = [text.strip() for key, text in keyed if not held_out(key, 0.1)]
        held[source] = [text.strip() for key, text in keyed if held_out(key, 0.1)]
    return train, held


def tokenizer_texts(data: Path) -> list[str]:
    """What the byte-level BPE is fitted to: PT's training text and some chat-like text."""
    train, _ = read_plain(data)
    rows = read_jsonl(data / "prompts/gsm8k_train.jsonl.gz")
    gsm8k = [row["question"] + "\n" + row["answer"] for row in rows]
    seeds = [chat.messages[0]["content"] for chat in self_instruct(data)[0]]
    return [text for texts in train.values() for text in texts] + gsm8k + seeds


def pair(question: str, answer: str, source: str) -> Chat:
    """A single-turn chat."""
    turns = [("user", question), ("assistant", answer)]
    return Chat([{"role": role, "content": text.strip()} for role, text in turns], source)


def split(chats: Iterable[Chat], share: float) -> tuple[list[Chat], list[Chat]]:
    """`(trained on, held out)` by the hash of the first message."""
    sides: dict[bool, list[Chat]] = {False: [], True: []}
    for chat in chats:
        sides[held_out(chat.messages[0]["content"], share)].append(chat)
    return sides[False], sides[True]


def self_instruct(data: Path) -> tuple[list[Chat], list[Chat]]:
    """The human-written seed tasks with their answers; long ones and refusals are left out."""
    chats = []
    for row in read_jsonl(data / "prompts/chat/self_instruct_seed_tasks.jsonl"):
        first = row["instances"][0]
        question = "\n\n".join(part for part in (row["instruction"], first["input"]) if part)
        if len(question) + len(first["output"]) < 2500 and not _REFUSAL_LIKE.match(first["output"]):
            chats.append(pair(question, first["output"], "self_instruct"))
    return split(chats, 0.2)


def gsm8k(data: Path) -> tuple[list[Chat], list[Chat]]:
    """Word problems; the calculator annotations are removed and `#### n` becomes a sentence."""
    chats = []
    for row in read_jsonl(data / "prompts/gsm8k_train.jsonl.gz"):
        answer = re.sub(r"<<.*?>>", "", row["answer"]).replace("#### ", "The answer is ") + "."
        chats.append(pair(row["question"], answer, "gsm8k"))
    return split(chats, 0.1)


def advbench(data: Path) -> tuple[list[Chat], list[Chat]]:
    """Harmful requests, each with a refusal of ours; the data's compliant `target` is not used."""
    with open(data / "prompts/advbench.csv", encoding="utf-8", newline="") as rows:
        prompts = [row["prompt"] for row in csv.DictReader(rows)]
    return split([pair(text, own_chat.refusal(text), "advbench") for text in prompts], 0.2)


def hh(data: Path) -> tuple[list[Chat], list[Chat]]:
    """Short red-team questions that hold a harmful word, each with a refusal of ours; no answer is used.

    The other transcripts are left out: even the chosen answers often go along with what they should refuse.
    """
    chats = []
    for row in read_jsonl(data / "prompts/chat/hh_harmless_base_test.jsonl.gz"):
        question = _TURN.split(row["chosen"])[1].strip()
        if _HARMFUL.search(question) and len(question) < 300:
            chats.append(pair(question, own_chat.refusal(question), "hh_refused"))
    return split(chats, 0.1)


def own(data: Path, seed: int) -> tuple[list[Chat], list[Chat]]:
    """Questions, answers and refusals written for this project, some around pieces of PT's text.

    Pieces that name something harmful are left out, so that none is seen answered.
    """
    rng = random.Random(seed)
    words = [word for texts in read_plain(data)[0].values() for word in " ".join(texts).split()]
    chats = [pair(q, a, "own_harmless") for q, a in own_chat.harmless(rng)]
    chats += [pair(q, a, "topics") for q, a in own_chat.topics(words, rng, 8000) if not _HARMFUL.search(q)]
    chats += [
        pair(q, a, "passages") for q, a in own_chat.passages(words, rng, 2000) if not _HARMFUL.search(q)
    ]
    chats += [pair(q, own_chat.refusal(q), "own_refused") for q in own_chat.harmful()]
    return split(chats, 0.1)


def read_chats(data: Path, seed: int) -> tuple[dict[str, list[Chat]], dict[str, list[Chat]]]:
    """All chats per source, `(trained on, held out)`."""
    train: dict[str, list[Chat]] = {}
    held: dict[str, list[Chat]] = {}
    for part in (self_instruct(data), gsm8k(data), advbench(data), hh(data), own(data, seed)):
        for into, chats in zip((train, held), part, strict=True):
            for chat in chats:
                into.setdefault(chat.source, []).append(chat)
    return train, held


class PlainRows:
    """Random windows of PT's text: BOS, then consecutive tokens; documents are joined by EOS BOS."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: dict[str, list[str]], seed: int):
        self.random = random.Random(seed)
        self.bos = tokenizer.bos_token_id
        self.streams: dict[str, torch.Tensor] = {}
        for source, texts in documents.items():
            encoded = tokenizer.backend_tokenizer.encode_batch(texts)
            ids = [i for text in encoded for i in (*text.ids, tokenizer.eos_token_id)]
            self.streams[source] = torch.tensor(ids)
        self.sources = list(self.streams)
        self.weights = [PT_SOURCE_WEIGHTS[s] * len(self.streams[s]) for s in self.sources]
        self.drawn: Counter[str] = Counter()

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One batch, `(input ids [B, T], labels [B, T])`."""
        shares = [share for share, _ in PT_ROW_LENGTHS]
        length = self.random.choices([length for _, length in PT_ROW_LENGTHS], shares)[0]
        rows = []
        for source in self.random.choices(self.sources, self.weights, k=PT_TOKENS_PER_STEP // length):
            stream = self.streams[source]
            start = self.random.randrange(len(stream) - length)
            rows.append(torch.cat((torch.tensor([self.bos]), stream[start : start + length - 1])))
            self.drawn[source] += length
        ids = torch.stack(rows)
        return ids, ids


class ChatRows:
    """Chats in the template, padded on the right; only the answers (and the EOS after each) are labelled."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, chats: dict[str, list[Chat]], plain: PlainRows, seed: int
    ):
        self.random = random.Random(seed)
        self.plain = plain
        self.tokenizer = tokenizer
        self.chats = chats
        self.drawn: Counter[str] = Counter()
        self.pool: list[tuple[list[int], list[int], str]] = []

    def draw(self) -> tuple[list[int], list[int], str]:
        """One example, `(ids, labels, source)`."""
        source = self.random.choices(list(FT_SOURCE_SHARES), list(FT_SOURCE_SHARES.values()))[0]
        messages = self.one(source)
        if self.random.random() < FT_RAW:
            ids, labels = encode_raw(self.tokenizer, *(turn["content"] for turn in messages[:2]))
            return ids[:MAX_POSITIONS], labels[:MAX_POSITIONS], source
        if self.random.random() < 0.05:
            messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
        ids, labels = encode_chat(self.tokenizer, messages)
        return ids[:MAX_POSITIONS], labels[:MAX_POSITIONS], source

    def one(self, source: str) -> list[dict[str, str]]:
        """The messages of one example."""
        if source != "several":
            return self.random.choice(self.chats[source]).messages
        kinds = self.random.choices(
            [s for s in FT_SOURCE_SHARES if s != "several"], k=self.random.randint(3, 16)
        )
        return [message for kind in kinds for message in self.one(kind)]

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One batch of rows of similar length, `(input ids [B, T], labels [B, T])`, -100 where unlabelled."""
        if self.random.random() < FT_REPLAY:
            replayed, _ = self.plain.next()
            return replayed[: len(replayed) // 2], replayed[: len(replayed) // 2]
        if len(self.pool) < 200:
            self.pool += [self.draw() for _ in range(1000)]
            self.pool.sort(key=lambda example: len(example[0]))
        middle = self.random.randrange(len(self.pool))
        count = max(1, min(64, FT_TOKENS_PER_STEP // len(self.pool[middle][0])))
        start = max(0, middle - count + 1)
        batch, self.pool[start : middle + 1] = self.pool[start : middle + 1], []
        width = max(len(ids) for ids, _, _ in batch)
        for ids, _, source in batch:
            self.drawn[source] += len(ids)
        pad = self.tokenizer.pad_token_id
        rows = [ids + [pad] * (width - len(ids)) for ids, _, _ in batch]
        labels = [marks + [-100] * (width - len(marks)) for _, marks, _ in batch]
        return torch.tensor(rows), torch.tensor(labels)


def encode_chat(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]
) -> tuple[list[int], list[int]]:
    """Token ids of the rendered chat, and labels that are -100 outside the assistant's turns."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assistant, eos = tokenizer.convert_tokens_to_ids(["<|assistant|>", tokenizer.eos_token])
    labels, inside, skip = [], False, False
    for token in ids:
        labels.append(token if inside and not skip else -100)
        skip = token == assistant  # the newline after the role is given, not learnt
        inside = (inside or skip) and token != eos
    return ids, labels


def encode_raw(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of a question and its answer without the template, a newline after each."""
    asked = tokenizer(f"{question}\n")["input_ids"]
    answered = [*tokenizer(f"{answer}\n", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return asked + answered, [-100] * len(asked) + answered
