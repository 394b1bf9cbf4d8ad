"""Who gets which unit: a unit that processes have died on is alone in its process, two of them too."""

from collections import deque

import pytest

from tuco_vllm.corpus.driver import Workers
from tuco_vllm.corpus.trials import Trial
from tuco_vllm.corpus.unit import Unit
from tuco_vllm.corpus.worker_process import WorkerProcess


class Actor:
    """Says yes to a unit, and remembers it."""

    def __init__(self):
        self.given = []
        self.score = self

    def remote(self, number, unit, *close):
        self.given.append((unit.number, bool(close)))
        return object()


def unit(number):
    return Unit(number, 0, 0, number, 1, 0)


@pytest.fixture
def workers():
    """Of a job in which processes have died on the units 0 (once) and 1 (twice)."""

    def call(count):
        made = Workers(None, None, None)
        made._watch = None
        made._workers = [WorkerProcess(number, actor=Actor(), ready=True) for number in range(count)]
        made._again, made._trials = deque([unit(0), unit(1)]), {0: Trial(1), 1: Trial(2)}
        return made

    return call


def given(workers):
    return [worker.actor.given for worker in workers._workers]


def test_one_worker_has_one_suspect_and_nothing_else(workers):
    one, source = workers(1), iter([unit(2), unit(3)])
    for _ in range(3):
        one._hand_out(source)
    assert given(one) == [[(0, False)]]
    [worker] = one._workers
    worker.held.clear()
    worker.exclusive = False  # as when it is done
    one._hand_out(source)
    assert given(one) == [[(0, False), (1, True)]], "the second a row at a time"
    worker.held.clear()
    worker.exclusive = False
    one._hand_out(source)
    assert given(one)[0][2:] == [(2, False), (3, False)]


def test_a_worker_that_is_kept_for_a_suspect_gets_no_more_units(workers):
    """The emptiest are kept; they finish what they have."""
    three, source = workers(3), map(unit, range(2, 20))
    three._workers[0].held = {object(): unit(2)}
    three._workers[1].held = {object(): unit(3), object(): unit(4)}
    three._hand_out(source)
    assert given(three) == [[], [], [(0, False)]]
    three._hand_out(source)
    assert given(three) == [[], [], [(0, False)]], "0 is kept for the other one, 1 is full"
    three._workers[0].held.clear()
    three._hand_out(source)
    assert given(three) == [[(1, True)], [], [(0, False)]]
