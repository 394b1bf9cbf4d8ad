"""What V1's runner and V2's model state keep of a request's wishes: parsed once, gone with the request."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams

from tuco_vllm.engine import steering_v1, steering_v2
from tuco_vllm.steering import Steering


@pytest.fixture(params=[steering_v1, steering_v2], ids=["V1", "V2"])
def parsed(request, monkeypatch):
    """How often each alpha was parsed, by the one module or the other."""
    count: Counter[float] = Counter()
    steering_of = request.param.steering_of

    def parse(wishes, limits):
        count[wishes["alpha"]] += 1
        return steering_of(wishes, limits)

    monkeypatch.setattr(request.param, "steering_of", parse)
    return request.param, count


class Rows:
    """What a runner tells of the step."""

    def prepare(self, starts, num_logits, steerings, computed, prompts):
        self.steerings = steerings


class StockRunner:
    """Of vLLM's V1 runner what ours is put over."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(num_reqs=0, req_ids=[], num_computed_tokens_cpu=np.zeros(9))
        self.query_start_loc = SimpleNamespace(np=np.arange(100))
        self.model = SimpleNamespace(rows=Rows(), rows_known=lambda requests: None)
        self.device = SimpleNamespace(type="cuda")

    def _prepare_inputs(self, scheduler_output, num_scheduled_tokens):
        return None, None


class V1(steering_v1.SteeringRunner, StockRunner):
    def step(self, new, names, gone=(), resumed=()):
        for name in gone:
            del self.requests[name]
        self.requests |= {data.req_id: SimpleNamespace(num_prompt_tokens=3) for data in new}
        self.input_batch.num_reqs, self.input_batch.req_ids = len(names), [*names, "a slot that is free"]
        self._prepare_inputs(SimpleNamespace(scheduled_new_reqs=new), None)
        return self.model.rows.steerings

    def kept(self):
        return self.requests


class V2(steering_v2.SteeringModelState):
    def __init__(self) -> None:
        self.steerings, self._pieces = {}, {}
        self.model = SimpleNamespace(rows=Rows(), rows_known=lambda requests: None)

    def step(self, new, names, gone=(), resumed=()):
        for name in (*gone, *(data.req_id for data in resumed)):
            self.remove_request(name)
        for data in (*new, *resumed):  # to V2 a resumed request is a new one
            self.add_request(0, data)
        ends = np.arange(len(names) + 1)
        self.prepare_attn(
            SimpleNamespace(
                num_reqs=len(names),
                req_ids=names,
                query_start_loc_np=ends,
                cu_num_logits_np=ends,
                num_computed_tokens_np=ends[1:],
            )
        )
        return self.model.rows.steerings

    def kept(self):
        return self.steerings


@pytest.fixture
def runner(parsed, monkeypatch):
    if parsed[0] is steering_v1:
        return V1()
    stock = steering_v2.DefaultModelState
    for name in ("add_request", "remove_request", "prepare_attn"):
        monkeypatch.setattr(stock, name, lambda self, *args, **kwargs: None)
    return V2()


def new(name: str, alpha: float, *, scored: bool = False) -> Any:
    params = SamplingParams(extra_args={"alpha": alpha, "tuco": scored})
    return SimpleNamespace(req_id=name, sampling_params=params)


def test_alpha_is_parsed_when_a_request_comes(runner, parsed):
    module, count = parsed
    one, two = new("one", 0.5), new("two", 1, scored=True)
    assert runner.step([one], ["one"]) == [Steering(0.5)]
    both = [Steering(1.0, True), Steering(0.5)]
    assert runner.step([two], ["two", "one"]) == runner.step([], ["two", "one"]) == both
    assert runner.step([], ["two"]) == [Steering(1.0, True)]  # the other is preempted
    assert runner.step([], ["two", "one"], resumed=[one]) == both
    assert count == {0.5: 1 if module is steering_v1 else 2, 1: 1}


def test_a_name_that_comes_again_is_a_new_request(runner):
    assert runner.step([new("a", 0.5)], ["a"]) == [Steering(0.5)]
    assert runner.step([new("a", 0.25)], ["a"], gone=["a"]) == [Steering(0.25)]
    assert runner.step([new("a", 1)], ["a"], gone=["a"]) == [Steering()]


def test_of_thousands_of_requests_nothing_stays(runner):
    last: list[str] = []
    for n in range(5000):
        name = f"request {n}"
        runner.step([new(name, n % 3 / 2, scored=n % 2 == 0)], [name], gone=last)
        last = [name]
    assert len(runner.kept()) <= 1
    runner.step([], [], gone=last)
    assert not runner.kept()
