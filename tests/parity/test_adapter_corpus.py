"""A corpus under several adapters, by the way of ``tuco score``: one engine, and each row its adapter's."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tolerances
import torch
from cells import Cell
from fake_scorer import LocalWorkers
from truth import true_norms, tuco

from tuco_vllm.config import other_adapters, resolve_pair
from tuco_vllm.corpus.actor import engine_starter
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus
from tuco_vllm.prompts import load_tokenizer

pytestmark = [pytest.mark.usefixtures("in_process"), pytest.mark.engine]


def test_a_corpus_under_several(pair_dirs: Any, adapter_of: Any, tmp_path: Path) -> None:
    base = str(pair_dirs("llama", "float32")[1])
    made, prompts = (
        [adapter_of(base, 11, r=4), adapter_of(base, 12, r=64), adapter_of(base, 13, r=16)],
        ["one two", "three", "four five six", "seven"],
    )
    pair = resolve_pair(base, made[0].adapter)
    others = other_adapters([each.adapter for each in made[1:]], pair)
    for n, prompt in enumerate(prompts):
        (tmp_path / f"{n}.txt").write_text(prompt + "\n")
    job = ScoreJob((str(tmp_path / "*.txt"),), str(tmp_path / "out"), other_fts=others)
    scorer = engine_starter(pair, Cluster(), Cell("llama", chunk=48).engine_args(), others)(0, 1)
    tokens = [load_tokenizer(pair.ft.tokenizer_directory).encode(prompt) for prompt in prompts]
    with closing(scorer):
        score_corpus(job, pair, lambda _: LocalWorkers(job, pair.ft.tokenizer_directory, scorer))
    rows = pq.read_table(tmp_path / "out").to_pylist()
    for n, each in enumerate(made):
        truth = tuco(true_norms((base, each.merged), tokens))
        found = [row["tuco"] for row in rows if row["ft"] == each.adapter]
        assert torch.tensor(found) == pytest.approx(truth, abs=tolerances.TUCO_FLOAT32), n
