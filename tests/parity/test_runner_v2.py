"""The same parity on Model Runner V2, the default on GPUs, run on a CPU (``v2_on_cpu``)."""

import pytest
import tiny_models
import torch
from cells import Cell
from truth import assert_close

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
