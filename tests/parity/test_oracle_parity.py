"""The engine's norms are the float64 oracle's, whatever the batch, the chunks, the cache or the graph.

One engine a cell (``cells``), and all of ``scored.ScoresAreTrue`` on it.
"""

from collections.abc import Iterator

import pytest
import tiny_models
import torch
from cells import COVER, Cell, product
from scored import ScoresAreTrue, ScoringEngine
from truth import assert_close


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        cells = product() if metafunc.config.getoption("--full") else COVER
        metafunc.parametrize("engine", cells, ids=lambda cell: cell.id, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, pair_dirs) -> Iterator[ScoringEngine]:
    cell: Cell = request.param
    running = ScoringEngine(pair_dirs(cell.pair, cell.dtype), cell.dtype, cell.engine_args())
    yield running
    running.scorer.close()


class TestEveryCell(ScoresAreTrue):
    def test_alone(self, engine: ScoringEngine) -> None:
        prompts = tiny_models.prompts(6, seed=1)
        alone = torch.cat([engine.norms([prompt]) for prompt in prompts])
        assert_close(alone, engine.pair, prompts, engine.dtype)
