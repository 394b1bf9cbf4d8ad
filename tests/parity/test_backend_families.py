"""Families that vLLM runs by its Transformers backend (``engine.backend_layers``): what ``make test`` asks.

The whole matrix has their cells too (``cells``).
"""

import pytest
import steered
import tiny_models
import torch
from backend_engines import completions, scores
from cells import BACKEND
from ft_stream import assert_stream_is_stock
from truth import assert_close


@pytest.mark.parametrize("name", BACKEND)
def test_scores_are_true(name: str, pair_dirs, on_backend) -> None:
    """Chunked, from a cold cache and a warm one, and behind a prefix that others left."""
    pair = pair_dirs(name, "float32")
    prompts = tiny_models.prompts(16)
    stem = prompts[1]
    rounds = [prompts, prompts, [stem[:n] + prompts[3][:40] for n in (31, 32, 33, 64, 97)]]
    for asked, norms in zip(rounds, on_backend(scores, pair, rounds), strict=True):
        assert_close(torch.from_numpy(norms), pair, asked, "float32")


@pytest.mark.parametrize("name", BACKEND)
def test_steering_is_true(name: str, pair_dirs, on_backend) -> None:
    """A mixed batch, twice; plain steps, which are the backend's own model; steps with PT in some layers."""
    pair = pair_dirs(name, "float32")
    prompts, alphas = steered.requests(14)
    ranged = [steered.RANGED[place % 2 + 1] for place in range(14)]
    *rounds, plain, in_layers = on_backend(completions, pair, prompts, alphas, ranged)
    for completed in rounds:
        for (tokens, norms), prompt, alpha in zip(completed, prompts, alphas, strict=True):
            steered.assert_true(pair, prompt, alpha, tokens, norms)
    for asked, completed in (([1.0] * 14, plain), (ranged, in_layers)):
        for tokens, prompt, alpha in zip(completed, prompts, asked, strict=True):
            steered.assert_greedy(pair, prompt, alpha, tokens)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in BACKEND),
        ("olmo3", "bfloat16"),
        pytest.param("olmo2", "bfloat16", marks=pytest.mark.slow),
        pytest.param("smollm3", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_ft_stream_is_the_backends(name: str, dtype: str, pair_dirs, on_backend) -> None:
    """Of the last layer, on rows, the code of attention is ours, and calls its module nowhere."""
    on_backend(assert_stream_is_stock, *pair_dirs(name, dtype), dtype, of_last=("mlp",))


@pytest.mark.parametrize("name", BACKEND)
def test_a_model_with_itself_scores_nothing(name: str, pair_dirs, on_backend) -> None:
    _, ft = pair_dirs(name, "bfloat16")
    [norms] = on_backend(scores, (ft, ft), [tiny_models.prompts(16)], dtype="bfloat16")
    assert norms[..., 1].max() == 0.0
