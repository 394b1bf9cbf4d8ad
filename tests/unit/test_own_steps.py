"""Streams take turns: no step has requests of two, none waits for ever, and to vLLM nothing else changes."""

from collections import deque
from types import SimpleNamespace

from tuco_vllm.engine.own_steps import TakesTurns


class Queue(deque):
    """vLLM's, first come first served."""

    def add_request(self, request):
        self.append(request)

    def remove_requests(self, requests):
        gone = {id(request) for request in requests}
        kept = [request for request in self if id(request) not in gone]
        self.clear()
        self.extend(kept)


class Stock:
    """Of vLLM's scheduler what ours is put over: each step has one token of all that run."""

    def __init__(self, most=4):
        self.requests, self.running = {}, []
        self.waiting, self.kv_holding_waiting = Queue(), Queue()
        self.max_num_active_reqs = most

    def schedule(self):
        while self.waiting and len(self.running) < self.max_num_active_reqs:
            self.running.append(self.waiting.popleft())
        step = [
            request for request in self.running if request.num_computed_tokens < request.num_tokens_with_spec
        ]
        for request in step:
            request.num_computed_tokens += 1
        return [request.request_id for request in step]


class Scheduler(TakesTurns, Stock):
    def come(self, name, stream, tokens=2):
        request = SimpleNamespace(
            request_id=name,
            cache_salt=None,
            block_hashes=[1],
            update_block_hashes=lambda: None,
            num_tokens_with_spec=tokens,
            num_output_placeholders=0,
            num_computed_tokens=0,
        )
        self.to_stream(request, stream)
        self.requests[name] = request
        self.waiting.add_request(request)
        return request

    def go(self, *names):
        for name in names:
            request = self.requests.pop(name)
            if request in self.running:
                self.running.remove(request)


def test_streams_take_turns():
    scheduler = Scheduler(most=8)
    for name, stream in (("a", "ft"), ("x", "pt"), ("b", "ft"), ("y", "pt-layers"), ("z", "pt")):
        scheduler.come(name, stream)
    steps = [scheduler.schedule() for _ in range(6)]
    assert [set(step) for step in steps] == [{"y"}, {"x", "z"}, {"a", "b"}] * 2
    assert {request.request_id for request in scheduler.running} == set("abxyz")


def test_what_has_no_work_loses_no_turn():
    scheduler = Scheduler()
    scheduler.come("a", "ft", tokens=1)
    scheduler.come("x", "pt", tokens=3)
    assert [scheduler.schedule() for _ in range(4)] == [["x"], ["a"], ["x"], ["x"]]
    assert scheduler.schedule() == []  # all wait for what has been scheduled


def test_the_order_of_a_stream_stays():
    scheduler = Scheduler(most=1)
    for name, stream in (("a", "ft"), ("x", "pt"), ("b", "ft"), ("y", "pt")):
        scheduler.come(name, stream, tokens=1)
    seen = []
    while scheduler.requests:
        step = scheduler.schedule()
        seen += step
        scheduler.go(*step)
    assert sorted(seen) == ["a", "b", "x", "y"]
    assert seen.index("a") < seen.index("b")
    assert seen.index("x") < seen.index("y")


def test_without_room_nobody_waits_for_a_turn():
    scheduler = Scheduler(most=1)
    scheduler.come("a", "ft", tokens=3)
    assert scheduler.schedule() == ["a"]
    scheduler.come("x", "pt", tokens=1)
    assert scheduler.schedule() == scheduler.schedule() == ["a"]
    scheduler.go("a")
    assert scheduler.schedule() == ["x"]


def test_no_more_run_than_may():
    scheduler = Scheduler(most=3)
    for number in range(6):
        scheduler.come(f"a{number}", "ft")
    for number in range(2):  # their turn leaves room for one of the others
        scheduler.come(f"x{number}", "pt")
    for _ in range(4):
        scheduler.schedule()
        assert len(scheduler.running) <= 3
        assert scheduler.max_num_active_reqs == 3


def test_input_that_streams_is_not_let_into_another_streams_turn():
    scheduler = Scheduler()
    holding = scheduler.kv_holding_waiting
    scheduler.come("x", "pt")
    scheduler.come("a", "ft")
    seen = []
    stock, Stock.schedule = Stock.schedule, lambda self: seen.append(self.kv_holding_waiting) or stock(self)
    try:
        scheduler.schedule(), scheduler.schedule()
    finally:
        Stock.schedule = stock
    assert [queue is holding for queue in seen] == [False, True]
    assert scheduler.kv_holding_waiting is holding


def test_input_that_streams_has_turns_too():
    scheduler = Scheduler()
    scheduler.kv_holding_waiting.append("a session")
    scheduler.come("x", "pt", tokens=9)
    turns = []
    for _ in range(4):
        scheduler.schedule()
        turns.append(scheduler._turn)
    assert turns == ["pt", "ft"] * 2


def test_without_streams_of_pt_all_is_stock():
    scheduler = Scheduler()
    scheduler.come("a", "ft")
    assert scheduler.schedule() == ["a"]
    request = scheduler.come("x", "pt")
    assert request.cache_salt == "tuco-stream:pt|"  # blocks of its own
    assert request.block_hashes == []
    assert scheduler.requests["a"].cache_salt is None
    scheduler.go("x")
    scheduler.waiting.clear()
    scheduler.schedule()
    assert not scheduler._others
