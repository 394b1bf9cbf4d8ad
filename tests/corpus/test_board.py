"""What the board makes of deaths: trials of a chunk, suspects and poison."""

import asyncio

from tuco_vllm.corpus.board import Board, Trial


def begin(board, *alone):
    """The next attempt at a chunk; then it is alone with these rows, one after the other."""
    trial = asyncio.run(board.begin("score", 0))
    for row in alone:
        asyncio.run(board.alone("score", 0, row))
    return trial


def test_a_death_of_unknown_cause_is_an_attempt():
    board = Board()
    assert [begin(board).attempts for _ in range(3)] == [1, 2, 3]


def test_a_row_is_poison_once_it_has_killed_twice_alone():
    board = Board()
    begin(board)
    begin(board, 4)
    assert begin(board, 4) == Trial(attempts=2, suspects=(4,))
    assert begin(board) == Trial(attempts=2, poison=(4,))
    assert begin(board) == Trial(attempts=3, poison=(4,))


def test_a_death_that_only_once_met_a_row_leaves_it_a_suspect():
    board = Board()
    begin(board, 4)
    begin(board, 4, 5)
    assert begin(board, 4, 5, None) == Trial(attempts=1, suspects=(4, 5))
    assert begin(board) == Trial(attempts=2, suspects=(4, 5))


def test_a_chunk_that_is_done_is_forgotten():
    board = Board()
    begin(board, 4)
    asyncio.run(board.end("score", 0))
    assert begin(board) == Trial(attempts=1)
