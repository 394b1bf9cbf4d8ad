"""A TucoLLM without an engine: scores are a function of the token ids, so any loss or swap of rows shows."""

import hashlib
from collections import deque
from pathlib import Path

from fake_checkpoint import write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tuco_vllm.errors import EngineError
from tuco_vllm.prompts import load_tokenizer
from tuco_vllm.records import TucoScore

LAYERS = 3
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_tokenizer(*, template: str | None = TEMPLATE, special: bool = True) -> PreTrainedTokenizerFast:
    """Every byte has a token; with ``special``, strings come between <s> (0) and </s> (1)."""
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


def fake_score(token_ids: list[int]) -> TucoScore:
    digest = hashlib.sha256(repr(token_ids).encode()).digest()
    norms = [[1.0 + digest[4 * layer + column] for column in range(4)] for layer in range(LAYERS)]
    return TucoScore.from_norms(norms, len(token_ids))


class FakeLLM:
    """Has what the corpus driver uses of TucoLLM. Keeps ``window`` items in flight, as an engine does."""

    vllm_version = "0.0.fake"
    dtype = "float32"
    num_layers = LAYERS
    started = 0
    """How many were made."""

    def __init__(self, pt, ft, *, max_model_len=64, window=16, dies_after=None, **engine_args):
        type(self).started += 1
        self.tokenizer = load_tokenizer(Path(ft))
        self.max_model_len = max_model_len
        self.engine_args = engine_args
        self.closed = False
        self.scored = 0
        self._window, self._dies_after = window, dies_after

    def score_stream(self, items):
        in_flight = deque()
        for key, ids in items:
            in_flight.append((key, ids))
            if len(in_flight) == self._window:
                yield self._next(in_flight)
        while in_flight:
            yield self._next(in_flight)

    def _next(self, in_flight):
        if self.scored == self._dies_after:
            raise EngineError("the engine died")
        key, ids = in_flight.popleft()
        assert 0 < len(ids) <= self.max_model_len
        self.scored += 1
        return key, fake_score(ids)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True
