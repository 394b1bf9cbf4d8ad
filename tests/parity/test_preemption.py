"""Scores survive preemption."""

import pytest
from cells import Cell
from scored import assert_true_when_preempted


@pytest.mark.usefixtures("in_process")
def test_preempted_prompts_score_the_same(pair_dirs) -> None:
    cell = Cell("llama")
    assert_true_when_preempted(pair_dirs(cell.pair, cell.dtype), cell.dtype, cell.engine_args())
