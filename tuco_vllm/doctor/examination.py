"""One pair looked at from all sides: its files, its prompts, its scores beside the truth, its steering."""

import logging
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from tuco_vllm.api import TucoLLM
from tuco_vllm.config import ModelPair
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.readers import read_records
from tuco_vllm.corpus.rows import source_row
from tuco_vllm.demo import PROMPTS
from tuco_vllm.doctor.pair_checks import shared_tensors, steer_both_ways, stream_error, template_facts
from tuco_vllm.doctor.precision import Precision, compare
from tuco_vllm.errors import InputError
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder, load_tokenizer

SAMPLE_PROMPTS, SAMPLE_TOKENS = 12, 256
"""What is scored of a file: so many of its prompts, evenly spread, and of each so many of its last tokens."""

STEERED_PROMPTS, STEERED_TOKENS = 2, 64
"""What is steered of that."""


def examine(pair: ModelPair, prompts: Path | None, console: Console) -> None:
    """Print what is found; starts a scoring engine, then a generating one. Raises InputError, EngineError."""
    pt_tokenizer, tokenizer = (load_tokenizer(side.tokenizer_directory) for side in (pair.pt, pair.ft))
    path = prompts or PROMPTS
    sample = sample_of(path, tokenizer, pair)
    adapter = pair.ft.adapter
    _say(console, "Weights", shared_tensors(pair).summary() if adapter is None else adapter.summary())
    _say(console, "Prompts", template_facts(pt_tokenizer, tokenizer))
    console.print(
        f"Scoring {len(sample)} prompts of {path.name}, then with a float32 reference from disk ..."
    )
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # that weights are on disk is meant
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    reference = Oracle(
        pair.pt.directory, pair.ft.directory, dtype=torch.float32, from_disk=True, adapter=adapter
    )
    engine: dict[str, Any] = {"enforce_eager": True, "max_model_len": SAMPLE_TOKENS}
    with TucoLLM(pair.pt.directory, pair.ft.source, **engine) as llm:
        scores, dtype = llm.score(list(sample)), llm.dtype
        if llm.row_dtype != dtype:
            dtype = f"{dtype} with {llm.row_dtype} rows"
    found = compare(scores, sample, reference, dtype)
    console.print(_precision_table(found))
    console.print(found.verdict())
    short = [ids[-STEERED_TOKENS:] for ids in sample[:STEERED_PROMPTS]]
    with TucoLLM(pair.pt.directory, pair.ft.source, task="generate", **engine) as llm:
        steered = steer_both_ways(llm, short, reference)
    residual = f"x_L = x_0 + P + F in the reference, to {stream_error(reference, short[0]):.1e}"
    _say(console, "Identities", [*steered.summary(), residual])


def sample_of(path: Path, tokenizer: PreTrainedTokenizerBase, pair: ModelPair) -> list[list[int]]:
    """Token ids of some of a file's prompts, evenly spread. Raises InputError if none can be scored."""
    encoder = PromptEncoder(
        tokenizer,
        vocab_size=pair.ft.config.get("vocab_size"),
        on_long="truncate-left",
        max_model_len=SAMPLE_TOKENS - 1,  # a completion has a token at least
    )
    good, reason = [], "it has no rows"
    files = find_inputs([str(path)], out=path.parent / "_tuco")
    for record in islice(chain.from_iterable(map(read_records, files)), 1000):
        row = source_row(record, "", Columns(score="prompt"))
        try:
            if row.error is not None or row.prompt is None:
                raise PromptError(row.error or "a row has no prompt")
            good.append(encoder.encode(row.prompt).token_ids)
        except PromptError as error:
            reason = str(error)
    if not good:
        raise InputError(f"no prompt of {path} can be scored: {reason}")
    return good[:: -(-len(good) // SAMPLE_PROMPTS)]


def _say(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(title, style="bold")
    for line in lines:
        console.print(Text(f"  {line}"))  # as it is: names and templates may have brackets


def _precision_table(found: Precision) -> Table:
    table = Table(title=f"TuCo in {found.dtype}, beside float32", title_justify="left")
    for column in ("", "mean", "min", "max"):
        table.add_column(column, justify="right" if column else "left")

    def row(name: str, values: NDArray[np.float64]) -> None:
        table.add_row(name, *(f"{value:.2e}" for value in (values.mean(), values.min(), values.max())))

    row("TuCo, reference", found.truth)
    row("TuCo, engine", found.truth + found.error)
    row("error", found.error)
    row("|error|", np.abs(found.error))
    return table
