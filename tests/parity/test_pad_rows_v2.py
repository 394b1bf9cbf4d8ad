"""Batches padded as for piecewise CUDA graphs, on Model Runner V2 run on a CPU (``v2_on_cpu``)."""

import pytest
import steered
import tiny_models
import torch
from cells import Cell
from truth import assert_close

PAD_TO = [4, 16, 48, 64]
"""No size that the prompts below often come to by themselves."""


@pytest.mark.parametrize(
    "cell",
    [
        Cell("mistral_windowed_ft", chunk=48),
        pytest.param(Cell("qwen3", compiled=True, chunk=48), marks=pytest.mark.slow),
    ],
    ids=lambda cell: cell.id,
)
def test_scores(cell: Cell, pair_dirs, on_v2) -> None:
    """Few rows after many, in the same buffers; among them requests of a single token."""
    pt, ft = pair_dirs(cell.pair, cell.dtype)
    rounds = [
        tiny_models.prompts(9, longest=60),
        *(tiny_models.prompts(n, longest=3, seed=n) for n in (5, 2, 1)),
    ]
    engine_args = {**cell.engine_args(), "max_num_seqs": 8}
    spec = {"pt": pt, "ft": ft, "engine_args": engine_args, "rounds": rounds, "pad_to": PAD_TO}
    for prompts, norms in zip(rounds, on_v2(spec), strict=True):
        assert_close(torch.from_numpy(norms), (pt, ft), prompts, cell.dtype)


def test_steered(pair_dirs, on_v2) -> None:
    """Mixed batches, and plain ones once the others have ended."""
    cell = Cell("mistral_windowed_ft", chunk=48)
    pair = pair_dirs(cell.pair, cell.dtype)
    prompts, alphas = steered.requests(6, longest=30)
    wishes = [None if place % 3 == 2 else alpha for place, alpha in enumerate(alphas)]
    requests = [
        {
            "prompt": prompt,
            "alpha": alpha,
            "temperature": 0.0,
            "ignore_eos": True,
            "max_tokens": 6 if alpha is None else 3,
        }
        for prompt, alpha in zip(prompts, wishes, strict=True)
    ]
    engine_args = {**cell.engine_args(), "max_num_seqs": 8, "disable_log_stats": False}
    spec = {"pt": pair[0], "ft": pair[1], "engine_args": engine_args, "generate": requests, "pad_to": PAD_TO}
    for completions in on_v2(spec)["rounds"]:
        steered.assert_round_is_true(pair, requests, completions)
