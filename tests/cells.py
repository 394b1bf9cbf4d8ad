"""The correctness matrix of the engine: {family} x {eager, compiled} x {dtype} x {chunk} x {TP}.

``COVER`` is a pairwise cover for three families of different structure. ``make test`` runs its cells that
are not ``SLOW``, and ``EAGER``; ``product()``, for ``make test-full``, is all of these, all combinations for
Llama, and a pairwise cover for every other pair. Prompt lengths, batching, shuffling and the prefix cache's
three states vary inside each cell, on one engine.
"""

from dataclasses import dataclass
from itertools import product as combinations
from typing import Any

import tiny_models

BACKEND = ("olmo2", "olmo3", "smollm3")
"""Pairs that vLLM runs by its Transformers backend."""


@dataclass(frozen=True)
class Cell:
    """One engine. ``chunk`` is the token budget of a step: far below a prompt's length it chunks prefill."""

    pair: str
    compiled: bool = False
    dtype: str = "float32"
    chunk: int | None = None
    tensor_parallel: int = 1

    @property
    def id(self) -> str:
        mode = "compiled" if self.compiled else "eager"
        chunk = f"chunk{self.chunk}" if self.chunk else "whole"
        return f"{self.pair}-{mode}-{self.dtype}-{chunk}-tp{self.tensor_parallel}"

    @property
    def shares_process(self) -> bool:
        """Whether its engine runs in the tests' own process (``engines``).

        Compiled ones run as users run them: what torch keeps of a compiled model is not shared. Nor are the
        classes of Hugging Face's models, which vLLM's backend for them changes (``backend_engines``).
        """
        return not self.compiled and self.tensor_parallel == 1 and self.pair not in BACKEND

    def engine_args(self) -> dict[str, Any]:
        args: dict[str, Any] = {
            "dtype": self.dtype,
            "enforce_eager": not self.compiled,
            "max_model_len": tiny_models.MAX_LEN,
            "block_size": 32,  # small blocks, so that short prompts hit the prefix cache
            "enable_prefix_caching": True,
            "disable_log_stats": False,  # the tests read vLLM's counters
            "kv_cache_memory_bytes": 64 << 20,
            "tensor_parallel_size": self.tensor_parallel,
        }
        if self.chunk:
            # As many requests as tokens: the two dynamic sizes of the graph then coincide while it is traced.
            args |= {"max_num_batched_tokens": self.chunk, "max_num_seqs": min(self.chunk, 32)}
        return args


COVER = [
    Cell("llama", dtype="bfloat16", chunk=48),
    Cell("llama", compiled=True, chunk=32),
    Cell("llama_mha", tensor_parallel=2),
    Cell("mistral", tensor_parallel=2),
    Cell("mistral", compiled=True, dtype="bfloat16"),
    Cell("mistral_windowed_ft", chunk=48),
    Cell("gemma2"),
    Cell("gemma2", compiled=True, dtype="bfloat16", tensor_parallel=2, chunk=48),
]

SLOW = {
    Cell("llama", compiled=True, chunk=32): "a minute of compiling; test_pipeline_stages compiles it too",
    Cell("gemma2", compiled=True, dtype="bfloat16", tensor_parallel=2, chunk=48): "a minute of compiling",
    Cell("mistral", tensor_parallel=2): "the start of three processes, as llama_mha's",
}
"""Cells of ``COVER`` that only ``make test-full`` runs, and why; one compiled and one of two ranks stay."""

EAGER = [Cell("mistral", dtype="bfloat16"), Cell("gemma2", dtype="bfloat16", chunk=48)]
"""What ``COVER`` without ``SLOW`` lacks of the three families in both dtypes; seconds each."""

QUICK = Cell("gemma2")
"""The cell that ``make quick`` runs too."""


def product() -> list[Cell]:
    """Llama's every combination, every pair's cover; ``COVER``, of a second chunk size; one in float16."""
    settings = [*combinations((False, True), ("float32", "bfloat16"), (None, 48), (1, 2))]
    # Every two settings of two kinds meet in these five: all of the first, then one of the first each.
    pairwise = [settings[0], *(settings[0b1111 ^ 1 << bit] for bit in range(4))]
    whole = [
        Cell(pair, *values)
        for pair in tiny_models.PAIRS
        for values in (settings if pair == "llama" else pairwise)
    ]
    half = Cell("llama_mha", dtype="float16", chunk=48)
    return [*whole, *(cell for cell in [*COVER, *EAGER] if cell not in whole), half]
