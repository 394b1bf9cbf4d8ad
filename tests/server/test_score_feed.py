"""Which choice a step's rows are handed to, on vLLM's own output processor, without an engine."""

import numpy as np
import pytest
from server.fake_vllm import rows

from tuco_vllm.engine.score_feed import RECEIVER, ResponseScores, feed_scores

vllm = pytest.importorskip("vllm")


@pytest.fixture
def processor():
    from vllm.v1.engine.output_processor import OutputProcessor

    processor = OutputProcessor(None, log_stats=False)
    feed_scores(processor)
    return processor


def add(processor, name, *, n=1, receiver=None):
    """Requests as AsyncLLM makes them; returns their ids."""
    from copy import copy

    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.engine.parallel_sampling import ParentRequest

    params = vllm.SamplingParams(n=n, max_tokens=9, detokenize=False)
    request = EngineCoreRequest(
        request_id=f"{name}-random",
        external_req_id=name,
        prompt_token_ids=[1, 2],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    queue = RequestOutputCollector(params.output_kind, request.request_id)
    token = RECEIVER.set(receiver)
    try:
        if n == 1:
            processor.add_request(request, None, None, 0, queue)
            return [request.request_id]
        parent, children = ParentRequest(request), []
        for index in range(n):
            child = copy(request)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            processor.add_request(child, None, parent, index, queue)
            children.append(child.request_id)
        return children
    finally:
        RECEIVER.reset(token)


def step(processor, name, choice, tokens, first=0, end=None):
    from vllm.v1.engine import EngineCoreOutput

    output = EngineCoreOutput(name, new_token_ids=list(tokens), finish_reason=end)
    output.routed_experts = rows(choice, len(tokens), first)
    processor.process_outputs([output])
    return output


def test_rows_go_to_their_prompt_and_sample(processor):
    prompts = []
    scores = ResponseScores(prompts.append)
    names = [add(processor, f"cmpl-x-{prompt}", n=2, receiver=scores) for prompt in range(2)]
    for first in (0, 2):
        for choice, name in enumerate(name for pair in names for name in pair):
            step(processor, name, choice, [5, 6], first)
    for choice in range(4):
        start, taken = scores.take(choice)
        assert start == 0
        np.testing.assert_array_equal(np.stack(taken), rows(choice, 4))
    assert len(prompts) == 2


def test_a_chats_name_may_end_like_a_number(processor):
    scores = ResponseScores()
    [name] = add(processor, "chatcmpl-7", receiver=scores)
    step(processor, name, 0, [5])
    assert len(scores.take(0)[1]) == 1


def test_equal_names_of_two_clients_do_not_mix(processor):
    one, two = ResponseScores(), ResponseScores()
    [first] = add(processor, "cmpl-same-0", receiver=one)
    processor.request_states["kept"] = processor.request_states.pop(first)
    [second] = add(processor, "cmpl-same-0", receiver=two)
    step(processor, "kept", 0, [5])
    step(processor, second, 0, [5, 6])
    assert (len(one.take(0)[1]), len(two.take(0)[1])) == (1, 2)


def test_a_listeners_rows_do_not_reach_vllms_answer_and_others_do(processor):
    [heard] = add(processor, "cmpl-a-0", receiver=ResponseScores())
    [unheard] = add(processor, "tuco-b-0")
    assert step(processor, heard, 0, [5]).routed_experts is None
    assert step(processor, unheard, 0, [5]).routed_experts is not None


def test_what_vllm_has_forgotten_is_not_kept(processor):
    from vllm.v1.engine import FinishReason

    scores = ResponseScores()
    [name] = add(processor, "cmpl-a-0", receiver=scores)
    step(processor, name, 0, [5], end=FinishReason.LENGTH)
    assert not processor.request_states
    step(processor, name, 0, [5])
    assert len(scores.take(0)[1]) == 1
    [name] = add(processor, "cmpl-a-0", receiver=scores)
    processor.abort_requests([name], internal=True)
    assert not processor.request_states
