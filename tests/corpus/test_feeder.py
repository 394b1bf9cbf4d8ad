"""One engine for several callers: fed across calls, replaced when it dies, poison set aside."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tuco_vllm.corpus import feeder as feeding
from tuco_vllm.corpus.feeder import DEATHS_IN_A_ROW, Feeder
from tuco_vllm.errors import EngineError, EngineStartError


class Engine:
    """Finishes ``width`` requests a step; dies in the step in which it holds a poisonous prompt."""

    made = 0

    def __init__(self, *, poison=(), dies_at_steps=(), width=4):
        type(self).made += 1
        self.poison, self.dies_at_steps = set(poison), set(dies_at_steps)
        self.width = self.max_num_seqs = width
        self.queue, self.steps, self.names, self.dead, self.closed = [], 0, 0, False, False
        self.longest_queue = 0

    def submit(self, token_ids):
        self.check()
        self.names += 1
        self.queue.append((str(self.names), token_ids))
        self.longest_queue = max(self.longest_queue, len(self.queue))
        return str(self.names)

    def step(self):
        self.check()
        self.steps += 1
        now, self.queue = self.queue[: self.width], self.queue[self.width :]
        if self.steps in self.dies_at_steps or any(ids[0] in self.poison for _, ids in now):
            self.dead = True
            raise EngineError("boom")
        return [(name, torch.tensor(ids)) for name, ids in now]

    def check(self):
        if self.dead or self.closed:
            raise EngineError("boom")

    def close(self):
        self.closed = True


@pytest.fixture
def feeder():
    feeders = []

    def make(**options):
        engines = []

        def start():
            engines.append(Engine(**options))
            return engines[-1]

        feeders.append(Feeder(start))
        return feeders[-1], engines

    yield make
    for each in feeders:
        each.close()


def prompts(count, first=0):
    return [[n, n + 1] for n in range(first, first + count)]


def values(results):
    return [result if isinstance(result, str) else result.tolist() for result in results]


def test_every_caller_gets_its_own_in_order(feeder):
    feed, (engine, *_) = feeder()
    with ThreadPoolExecutor(8) as callers:
        calls = [prompts(37, first=100 * caller) for caller in range(8)]
        results = list(callers.map(feed.score, calls))
    assert [values(each) for each in results] == calls
    assert feed.score([]) == []
    assert (feed.starts, engine.longest_queue > 37) == (1, True)  # calls overlapped in the engine
    assert feed.busy_seconds > 0


def test_one_death_by_hand_costs_no_row(feeder):
    feed, engines = feeder()
    engines[0].dies_at_steps = {2}
    assert values(feed.score(prompts(30))) == prompts(30)
    assert feed.starts == 2
    assert engines[0].closed
    assert engines[1].steps < 15  # four suspects alone, the others together


def test_a_poisonous_row_is_set_aside_after_two_deaths_and_the_others_are_scored(feeder):
    feed, engines = feeder(poison={7, 19})
    results = values(feed.score(prompts(30)))
    for n, result in enumerate(results):
        expected = "the engine died twice on this row: boom" if n in (7, 19) else [n, n + 1]
        assert result == expected
    assert feed.starts == len(engines) <= 5


def test_few_are_suspects_however_many_run(feeder, monkeypatch):
    """The 700th of 1,000 that run at once kills: twice 256 others are tried alone, then it is among them."""
    monkeypatch.setattr(feeding, "MOST_SUSPECTS", 256)
    feed, engines = feeder(poison={699}, width=1000)
    results = values(feed.score(prompts(1000)))
    assert [n for n, result in enumerate(results) if isinstance(result, str)] == [699]
    assert feed.starts == len(engines) == 5
    assert max(engine.steps for engine in engines) <= 256 + 2


def test_callers_at_the_same_time_as_a_death_all_get_their_scores(feeder):
    feed, _ = feeder(poison={205})
    with ThreadPoolExecutor(4) as callers:
        results = [values(each) for each in callers.map(feed.score, [prompts(50, 100 * n) for n in range(4)])]
    bad = [result for each in results for result in each if isinstance(result, str)]
    assert bad == ["the engine died twice on this row: boom"]
    assert sum(map(len, results)) == 200


def test_engines_that_go_on_dying_are_given_up(feeder):
    feed, engines = feeder(poison=range(10_000))
    with ThreadPoolExecutor(2) as callers:
        for future in [callers.submit(feed.score, prompts(50, first)) for first in (0, 500)]:
            with pytest.raises(EngineError, match="engines died one after the other without scoring a row"):
                future.result(timeout=60)
    assert len(engines) <= DEATHS_IN_A_ROW + 1


def test_a_start_that_fails_is_tried_again(feeder):
    """What the dead engine held may not be free yet, and other engines of the job are well."""
    feed, engines = feeder()
    engines[0].dies_at_steps = {2}
    start, failures = feed._start, iter([EngineError("no memory"), EngineError("no memory")])

    def late():
        for failure in failures:
            raise failure
        return start()

    feed._start = late
    assert values(feed.score(prompts(30))) == prompts(30)
    assert (feed.starts, len(engines)) == (2, 2)


def test_an_engine_that_does_not_start_again_ends_it(feeder):
    feed, engines = feeder(poison={3})
    feed._start = lambda: (_ for _ in ()).throw(EngineError("no memory"))
    with pytest.raises(EngineStartError, match="no memory"):
        feed.score(prompts(5))
    assert len(engines) == 1


def test_a_fault_of_another_kind_reaches_the_caller(feeder):
    feed, engines = feeder()
    engines[0].step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        feed.score(prompts(5))
