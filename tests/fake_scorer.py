"""An engine without a model: scores are a function of the token ids, so any loss or swap of rows shows."""

from __future__ import annotations  # transformers' types below are for the reader only

import hashlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from fake_checkpoint import write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tuco_vllm.corpus.feeder import Feeder
from tuco_vllm.corpus.worker import EngineFacts, Report, Worker
from tuco_vllm.errors import EngineError
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.records import TucoScore
from tuco_vllm.score_requests import Adapted, EngineInput, RowScores, ScoredTokens
from tuco_vllm.steering import FT_STREAM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LAYERS = 3
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_tokenizer(*, template: str | None = TEMPLATE, special: bool = True) -> PreTrainedTokenizerFast:
    """Every byte has a token; with ``special``, strings come between <s> (0) and </s> (1)."""
    # Takes seconds, and Ray's workers, which import this file for the scorer, need none.
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


def write_pair(directory: Path, **tokenizer) -> tuple[Path, Path]:
    """Model directories for PT and FT that pass every check made before weights load."""
    pt, ft = write_model(directory / "pt"), write_model(directory / "ft", rope_theta=5e4)
    byte_level_tokenizer(**tokenizer).save_pretrained(ft)
    return pt, ft


def fake_norms(token_ids: list[int]) -> list[list[float]]:
    digest = hashlib.sha256(repr(token_ids).encode()).digest()
    return [[1.0 + digest[7 * layer + column] for column in range(7)] for layer in range(LAYERS)]


def fake_rows(asked: ScoredTokens) -> RowScores:
    """The prompt's norms, and of each row what was read up to it; streams and log-probabilities that say
    whose they are and what of."""
    wish, of_ft = asked.asked, asked.asked.stream == FT_STREAM
    prompt, rows = asked.token_ids[: wish.last + 1], range(wish.first, len(asked.token_ids))
    tucos = [fake_tuco(asked.token_ids[: row + 1]) for row in rows]
    return RowScores(
        np.array(fake_norms(prompt), np.float32) if of_ft else None,
        np.array(tucos, np.float32) if of_ft else None,
        np.array([len(prompt), 3.0 if of_ft else 1.0], np.float32) if wish.state else None,
        np.array([-token - of_ft for token in wish.targets], np.float32) if wish.targets else None,
    )


def fake_answer(asked: EngineInput | Adapted) -> RowScores | np.ndarray:
    """Under another adapter than the engine's own, that of other tokens."""
    if isinstance(asked, Adapted):
        return np.array(fake_norms([*asked.asked, hash(asked.adapter.name)]))
    return fake_rows(asked) if isinstance(asked, ScoredTokens) else np.array(fake_norms(asked))


def fake_tuco(token_ids: list[int]) -> float:
    return fake_score(token_ids).tuco


def fake_score(token_ids: list[int]) -> TucoScore:
    return TucoScore.from_norms(fake_norms(token_ids), len(token_ids))


def make_encoder(ft: Path, **options) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(ft), **options)


class FakeScorer:
    """Has what a pipeline uses of an engine: takes any number of prompts, finishes up to ``window`` a step.

    Once it has scored ``dies_after`` prompts it is dead.
    """

    vllm_version = "0.0.fake"
    dtype = row_dtype = "float32"
    num_layers = LAYERS

    def __init__(self, place=0, engines=1, *, max_model_len=64, window=4, dies_after=None):
        self.max_model_len = max_model_len
        self.scored = 0
        self._queue = deque()
        self._names = 0
        self._window, self._dies_after = window, dies_after
        self.max_num_seqs = window

    def submit(self, asked):
        plain = asked.asked if isinstance(asked, Adapted) else asked
        token_ids = plain.token_ids if isinstance(plain, ScoredTokens) else plain
        assert 0 < len(token_ids) <= self.max_model_len
        self._names += 1
        self._queue.append((str(self._names), asked))
        return str(self._names)

    def step(self):
        if self._dies_after is not None and self.scored + self._window > self._dies_after:
            raise EngineError("the engine died")
        now = [self._queue.popleft() for _ in range(min(self._window, len(self._queue)))]
        self.scored += len(now)
        return [(name, fake_answer(asked)) for name, asked in now]

    def close(self):
        pass


class LocalWorkers:
    """One worker in this process, around one ``engine`` that is not replaced when it dies."""

    opened = 0
    """How many there have been."""
    shared = None
    """The encoder's."""

    def __init__(self, job, ft, engine=None, **scorer):
        self._job, self._ft = job, ft
        self.closed = False
        self._scorer = engine or FakeScorer(**scorer)
        self._starts = iter([self._scorer])
        self._worker = None

    def __enter__(self):
        type(self).opened += 1
        self.tokenizer = load_tokenizer(Path(self._ft))
        self._feeder = Feeder(self._start)
        return self

    def _start(self):
        engine = next(self._starts, None)
        if engine is None:
            raise EngineError("the engine died")
        return engine

    def __exit__(self, *_):
        self.closed = True
        self._feeder.close()

    @property
    def rows_scored(self):
        return self._scorer.scored

    def scored(self, work, units):
        encoder = self._job.encoder(self.tokenizer, None)
        encoder.shared = self.shared
        self._worker = Worker(self._feeder, encoder, self.facts(), work)
        for unit in units:
            yield Report(self._worker.score(unit), 0, "here:1", 1, self._feeder.busy_seconds, 0.001)

    def facts(self):
        return EngineFacts.of(self._scorer)

    def starts(self):
        return {}

    def states(self):
        return {0: "ready"}

    def in_hand(self):
        return []
