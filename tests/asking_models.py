"""A pair and an engine for sweeps, without a model: log p is a function of prompt, token and alpha."""

import hashlib
import json
import math
from contextlib import nullcontext

from fake_checkpoint import write_model
from fake_scorer import TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tuco_vllm.prompts import PromptEncoder, load_tokenizer

LAYERS = 2  # of fake_checkpoint's models


def write_pair(directory):
    """Model directories whose tokenizer has " A" to " D", " Yes" and " No" as tokens."""
    from transformers import PreTrainedTokenizerFast

    pt, ft = write_model(directory / "pt"), write_model(directory / "ft", rope_theta=5e4)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" A B C D Yes No" * 9], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(ft)
    return str(pt), str(ft)


class FakeEngine:
    """``log p`` by ``of(prompt ids, token, alpha)``; counts its starts, and ends as ``dies_at`` says."""

    max_model_len = 4096

    def __init__(self, of=None, dies_at=None):
        self.of, self.dies_at = of or by_hash, dies_at
        self.starts, self.calls = 0, []

    def next_logps(self, prompts, tokens, alpha):
        if self.dies_at is not None and len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(list(zip(map(tuple, prompts), map(tuple, tokens), alpha, strict=True)))
        return [
            [self.of(prompt, token, scale) for token in each]
            for prompt, each, scale in zip(prompts, tokens, alpha, strict=True)
        ]

    def opened(self, expected_tokens):
        self.starts += 1
        return nullcontext(self)


def by_hash(prompt, token, scale):
    digest = hashlib.sha256(repr((list(prompt), token, scale)).encode()).digest()
    return math.log((digest[0] + 1) / 2000)


def encoder_of(ft):
    return PromptEncoder(load_tokenizer(ft), vocab_size=300)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(count, task="colours", **more):
    """Rows of our own format; the prompt says which answer is right."""
    return [
        {
            "prompt": f"{task} {place} {'xy'[place % 2]}",
            "options": ["x", "y"],
            "answer": place % 2,
            "task": task,
        }
        | more
        for place in range(count)
    ]
