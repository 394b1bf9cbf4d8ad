"""The same parity on Model Runner V2, the default on GPUs, run on a CPU (``v2_on_cpu``)."""

import pytest
import tiny_models
import torch
from cells import Cell
from truth import assert_close, assert_own_streams_close, assert_rows_close, read

from tuco_vllm.records import TucoScore
from tuco_vllm.score_requests import ALL_MORE, RowScores, engine_inputs

# The interpreter is slow: few and short prompts, small steps.
CELLS = [
    Cell("llama", chunk=32),
    Cell("mistral", chunk=48),
    Cell("qwen3"),
    pytest.param(Cell("olmo3", chunk=48), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_v2_matches_the_oracle(cell: Cell, pair_dirs, on_v2) -> None:
    pt, ft = pair_dirs(cell.pair, cell.dtype)
    prompts = tiny_models.prompts(10, longest=100)
    stem = prompts[1]
    rounds = [prompts, prompts, [stem[:n] + prompts[3] for n in (32, 33, 64)]]  # cold, warm, shared prefix
    engine_args = {**cell.engine_args(), "max_num_seqs": 8}
    found = on_v2({"pt": pt, "ft": ft, "engine_args": engine_args, "rounds": rounds})
    for prompts, norms in zip(rounds, found, strict=True):
        assert_close(torch.from_numpy(norms), (pt, ft), prompts, cell.dtype)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("pair", "score"),
        ("pair", "generate"),
        ("adapter", "score"),
        pytest.param("adapter", "generate", marks=pytest.mark.slow),
    ],
)
def test_v2_reads_rows(kind: str, task: str, models_of, on_v2) -> None:
    """Responses and traces, cut into chunks; then again, from the cache."""
    cell = Cell("llama", chunk=48)
    pair, models = models_of(kind, cell.pair)
    short, long = tiny_models.prompts(2, seed=8, longest=90)
    asked = [read(long, answer) for answer in (long[:1], long[:40], short)]
    asked += [read(short, long, trace=True), read(long, None, trace=True)]
    texts = [(long, short), (short, long[:70])]
    inputs = [engine_inputs(prompt, response, ALL_MORE) for prompt, response in texts]
    first = len(asked)
    asked += [tokens for several in inputs for tokens in several]
    engine_args = {**cell.engine_args(), "max_num_seqs": 4}
    spec = {"pt": models[0], "ft": models[1], "engine_args": engine_args, "task": task, "rows": asked}
    for found in on_v2(spec):
        parts = [
            RowScores(*(each if each is None else torch.from_numpy(each) for each in one)) for one in found
        ]
        assert_rows_close(parts[:first], asked[:first], pair, cell.dtype)
        answers = iter(parts[first:])
        scores = [
            TucoScore.of([next(answers) for _ in several], several, response, ALL_MORE)
            for several, (_, response) in zip(inputs, texts, strict=True)
        ]
        assert_own_streams_close(scores, texts, pair, cell.dtype)
