"""Which rows a step has, and a request's scores put together: chunks, preemption, rows that are missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tuco_vllm.engine.row_pieces import RowPieces, RowValues, row_scores
from tuco_vllm.engine.scoring_rows import reads_of_step, rows_asked, rows_of_step, targets_of
from tuco_vllm.errors import EngineError
from tuco_vllm.score_requests import ScoredTokens
from tuco_vllm.steering import Asked

LAYERS = 2


def norms(*positions: int) -> torch.Tensor:
    """``[R, L, 7]``, each row known by its position: its TuCo is position / 100."""
    rows = torch.zeros(len(positions), LAYERS, 7)
    for row, position in enumerate(positions):
        rows[row] = position
        rows[row, -1, 2:4] = torch.tensor([100.0 - position, position])
    return rows


def values(*positions: int) -> RowValues:
    return RowValues(norms(*positions))


def test_what_is_asked_rides_in_the_params():
    assert rows_asked(SimpleNamespace(extra_kwargs=None)) is None
    assert rows_asked(SimpleNamespace(extra_kwargs={"other": 1})) is None
    assert rows_asked(SimpleNamespace(extra_kwargs={"tuco_rows": list(Asked(3, 5))})) == Asked(3, 5)


def test_prompts_alone_have_a_row_each():
    assert rows_of_step([None, None], np.array([0, 7]), np.array([5, 1])) is None


@pytest.mark.parametrize(
    ("first", "computed", "scheduled", "rows"),
    [
        (9, 0, 10, 1),  # a response of one token
        (4, 0, 10, 6),
        (0, 0, 10, 10),  # a trace
        (4, 0, 3, 1),  # a chunk before the first row
        (4, 0, 4, 1),  # that ends just before it
        (4, 0, 5, 1),
        (4, 3, 4, 3),
        (4, 5, 4, 4),  # a chunk after it
    ],
)
def test_a_chunk_has_the_rows_from_the_first_on(first, computed, scheduled, rows):
    counts = rows_of_step([Asked(first, first), None], np.array([computed, 2]), np.array([scheduled, 8]))
    assert counts.tolist() == [rows, 1]


def test_chunks_are_put_together():
    pieces, asked = RowPieces(), Asked(4, 5)
    pieces.add(values(3), 4, asked)  # stands for none
    assert not pieces.whole(4, asked).numel()
    pieces.add(values(4, 5), 6, asked)
    pieces.add(values(6, 7, 8), 9, asked)
    whole = pieces.whole(9, asked)
    assert torch.equal(whole[: LAYERS * 7].view(LAYERS, 7), norms(5)[0])
    assert whole[LAYERS * 7 :].tolist() == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08])


def test_after_a_preemption_all_come_again_in_other_chunks():
    pieces, asked = RowPieces(), Asked(4, 4)
    pieces.add(values(4, 5), 6, asked)
    pieces.add(values(6, 7), 8, asked)
    pieces.add(values(4, 5, 6), 7, asked)
    assert not pieces.whole(8, asked).numel()
    pieces.add(values(7), 8, asked)
    assert pieces.whole(8, asked)[LAYERS * 7 :].tolist() == pytest.approx([0.04, 0.05, 0.06, 0.07])


def test_a_missing_row_leaves_nothing():
    pieces, asked = RowPieces(), Asked(4, 4)
    pieces.add(values(6, 7), 8, asked)  # the cache gave what was to be read
    assert not pieces.whole(8, asked).numel()


@pytest.mark.parametrize(
    ("end", "count", "targets"),
    [
        (6, 6, [-1, -1, -1, -1, 7, 8]),
        (7, 3, [7, 8, 9]),
        (4, 2, [-1, -1]),  # a chunk before the prompt's last token
        (6, 1, [8]),
        (9, 4, [8, 9, -1, -1]),
    ],
)
def test_targets_lie_at_the_rows_that_produce_them(end, count, targets):
    assert targets_of(Asked(2, 4, (7, 8, 9)), end, count).tolist() == targets
    assert targets_of(Asked(2, 4), end, count).tolist() == [-1] * count
    assert targets_of(None, end, count).tolist() == [-1] * count


def test_streams_and_log_probabilities_come_along():
    pieces, asked = RowPieces(), Asked(2, 4, (7, 8), state=True)
    logps, states = torch.tensor([0.0, 0.0, -1.0, -2.0]), torch.arange(12.0).view(4, 3)
    for start, end in ((0, 2), (2, 4)):
        chunk = RowValues(norms(*range(2 + start, 2 + end)), states[start:end], logps[start:end])
        pieces.add(chunk, 2 + end, asked)
    found = row_scores(pieces.whole(6, asked), ScoredTokens([0] * 6, asked), LAYERS)
    assert torch.equal(found.norms, norms(4)[0])
    assert found.tucos.tolist() == pytest.approx([0.02, 0.03, 0.04, 0.05])
    assert found.state.tolist() == [6.0, 7.0, 8.0]
    assert found.logps.tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(
    "asked", [Asked(2, 2, state=True, stream="pt-layers"), Asked(2, 2, (7, 8), stream="pt")]
)
def test_pt_alone_has_no_scores(asked):
    pieces = RowPieces()
    pieces.add(RowValues(norms(2, 3), torch.ones(2, 3), torch.tensor([-1.0, -2.0])), 4, asked)
    found = row_scores(pieces.whole(4, asked), ScoredTokens([0] * 4, asked), LAYERS)
    assert found.norms is found.tucos is None
    assert found.state is None if asked.targets else found.state.tolist() == [1.0, 1.0, 1.0]
    assert found.logps is None if asked.state else found.logps.tolist() == [-1.0, -2.0]


def test_lost_rows_are_an_error():
    with pytest.raises(EngineError, match="has lost rows"):
        row_scores(torch.empty(0), ScoredTokens([0] * 4, Asked(2, 2)), LAYERS)


def test_streams_do_not_meet_in_a_step():
    alone = Asked(1, 1, state=True, stream="pt-layers")
    counts = np.array([0, 0]), np.array([2, 2])
    assert reads_of_step([alone, alone], *counts).stream == "pt-layers"
    for other in (None, Asked(1, 1), Asked(1, 1, (3,), stream="pt")):
        with pytest.raises(RuntimeError, match="requests of the streams"):
            reads_of_step([alone, other], *counts)


def test_nothing_over_nothing_is_zero():
    pieces = RowPieces()
    pieces.add(RowValues(torch.zeros(1, LAYERS, 7)), 1, Asked(0, 0))
    assert pieces.whole(1, Asked(0, 0))[-1] == 0.0
