"""The engine's norms are the float64 oracle's, whatever the batch, the chunks, the cache or the graph.

One engine a cell (``cells``), and all of ``scored.ScoresAreTrue`` on it.
"""

from collections.abc import Iterator
from contextlib import closing

import pytest
import tiny_models
import torch
from cells import COVER, EAGER, QUICK, SLOW, Cell, product
from engines import in_this_process
from scored import ScoresAreTrue, ScoringEngine
from truth import assert_close


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        cells = product() if metafunc.config.getoption("--full") else [*COVER, *EAGER]
        marked = [pytest.param(cell, marks=marks(cell)) for cell in cells]
        metafunc.parametrize("engine", marked, ids=lambda cell: cell.id, indirect=True, scope="module")


def marks(cell: Cell) -> list[pytest.MarkDecorator]:
    return [pytest.mark.quick] * (cell == QUICK) + [pytest.mark.slow] * (cell in SLOW)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, pair_dirs) -> Iterator[ScoringEngine]:
    cell: Cell = request.param
    pair = pair_dirs(cell.pair, cell.dtype)
    with in_this_process(cell.shares_process):
        running = ScoringEngine(pair, cell.dtype, cell.engine_args())
        with closing(running.scorer):
            yield running


class TestEveryCell(ScoresAreTrue):
    def test_alone(self, engine: ScoringEngine) -> None:
        prompts = tiny_models.prompts(6, seed=1)
        alone = torch.cat([engine.norms([prompt]) for prompt in prompts])
        assert_close(alone, engine.pair, prompts, engine.dtype)
