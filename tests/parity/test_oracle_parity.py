"""The engine's norms are the float64 oracle's, whatever the batch, the chunks, the cache or the graph.

One engine a cell (``cells``); inside it: alone and batched, 1 token to the longest, 220 requests at once in
shuffled order, cold, warm and shared prefixes.
"""

import random
from collections.abc import Iterator

import pytest
import tiny_models
import torch
from cells import COVER, Cell, product
from torch import Tensor
from truth import assert_close, true_norms, tuco

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.scorer import Scorer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        cells = product() if metafunc.config.getoption("--full") else COVER
        metafunc.parametrize("engine", cells, ids=lambda cell: cell.id, indirect=True, scope="module")


class Engine:
    """A cell's running engine and the directories of its pair."""

    def __init__(self, cell: Cell, pair: tuple[str, str]) -> None:
        self.cell, self.pair = cell, pair
        self.scorer = Scorer(resolve_pair(*pair), **cell.engine_args())

    def norms(self, prompts: list[list[int]]) -> Tensor:
        results = list(self.scorer.stream(enumerate(prompts)))
        assert [key for key, _ in results] == list(range(len(prompts)))
        return torch.stack([norms for _, norms in results])

    def check(self, prompts: list[list[int]]) -> None:
        assert_close(self.norms(prompts), self.pair, prompts, self.cell.dtype)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, pair_dirs) -> Iterator[Engine]:
    cell: Cell = request.param
    running = Engine(cell, pair_dirs(cell.pair, cell.dtype))
    yield running
    running.scorer.close()


def test_batched_then_warm(engine: Engine) -> None:
    prompts = tiny_models.prompts(24)
    engine.check(prompts)  # cold
    engine.check(prompts)  # every full block cached


def test_alone(engine: Engine) -> None:
    prompts = tiny_models.prompts(6, seed=1)
    alone = torch.cat([engine.norms([prompt]) for prompt in prompts])
    assert_close(alone, engine.pair, prompts, engine.cell.dtype)


def test_shared_prefixes(engine: Engine) -> None:
    _, stem = tiny_models.prompts(2, seed=2, longest=200)
    tails = tiny_models.prompts(8, seed=3, longest=50)
    # Ends in the middle of a block, on its edge, one past it; prefixes of each other; one prompt twice.
    cuts = [stem[:n] for n in (31, 32, 33, 64, 96, 97, 128, 160)]
    engine.check([stem, *[stem + tail for tail in tails], *cuts, stem])
    engine.check([cut + tail for cut, tail in zip(cuts, tails, strict=True)])


def test_many_at_once_in_any_order(engine: Engine) -> None:
    prompts = tiny_models.prompts(220, seed=4, longest=90)
    random.Random(5).shuffle(prompts)
    engine.check(prompts)


def test_the_comparison_would_notice(engine: Engine) -> None:
    """A score of the neighbouring prompt, or one token less of context, is far outside the tolerance."""
    prompts = tiny_models.prompts(8, seed=6)
    norms = engine.norms(prompts)
    with pytest.raises(AssertionError):
        assert_close(norms.roll(1, dims=0), engine.pair, prompts, engine.cell.dtype)
    shorter = [prompt[1:] or prompt for prompt in prompts]
    moved = (tuco(norms) - tuco(true_norms(engine.pair, shorter))).abs()
    assert moved[1:].max() > 1e-4
