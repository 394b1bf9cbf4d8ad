"""vLLM's own scheduler with our additions, driven by a runner that samples the same token for everybody."""

import gc
import logging
import weakref
from collections import Counter
from typing import Any

import engines
import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine import scheduler as ours
from tuco_vllm.engine.arguments import pair_arguments
from tuco_vllm.engine.compat import Request, RequestError
from tuco_vllm.engine.score_columns import COLUMN
from tuco_vllm.steering import PLAIN

BLOCK, LAYERS = 16, 3


@pytest.fixture
def make_scheduler(pair_dirs):
    pair = resolve_pair(*pair_dirs("llama", "float32"))

    def make(blocks: int = 1000) -> Any:
        options = {"max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 64}
        options |= {"async_scheduling": False, "block_size": BLOCK, "kv_cache_memory_bytes": 1 << 20}
        arguments = pair_arguments(pair, "generate", options, tuco_min_alpha=-0.5, tuco_max_alpha=1.5)
        with engines.only_configured():
            config = arguments.create_engine_config()
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["a"], spec)])
        return ours.steering_scheduler(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )

    init_none_hash(sha256)
    return make


def request(name: str, *, tokens: int = 20, more: int = 2, **wishes: Any) -> Request:
    params = SamplingParams(max_tokens=more, ignore_eos=True, extra_args=wishes or None)
    hasher = get_request_block_hasher(BLOCK, sha256)
    return Request(name, [7] * tokens, params, None, block_hasher=hasher)


def run(scheduler: Any) -> dict[str, list[Any]]:
    """Let it work to the end. Returns each request's outputs."""
    outputs: dict[str, list[Any]] = {}
    while scheduler.has_requests():
        step = scheduler.schedule()
        names = list(step.num_scheduled_tokens)
        done = [scheduler.requests[n].num_computed_tokens >= scheduler.requests[n].num_tokens for n in names]
        columns = np.full((len(names), 7 * LAYERS), COLUMN, dtype=np.int32)
        logprobs = LogprobsLists(columns, np.ones(columns.shape, np.float32), np.zeros(len(names), np.int32))
        ran = ModelRunnerOutput(
            names, {n: i for i, n in enumerate(names)}, [[9] if d else [] for d in done], logprobs
        )
        for by_client in scheduler.update_from_output(step, ran).values():
            for output in by_client.outputs:
                outputs.setdefault(output.request_id, []).append(output)
    return outputs


def test_alpha_is_parsed_once_also_where_requests_are_preempted(make_scheduler, monkeypatch):
    parsed: Counter[float] = Counter()

    def parse(wishes, limits):
        parsed[wishes["alpha"]] += 1
        return steering_of(wishes, limits)

    steering_of = ours.steering_of
    monkeypatch.setattr(ours, "steering_of", parse)
    scheduler = make_scheduler(blocks=12)
    added = [request(str(n), more=40, alpha=n / 8, tuco=n % 2 == 0) for n in range(8)]
    for one in added:
        scheduler.add_request(one)
    outputs = run(scheduler)
    assert max(one.num_preemptions for one in added) > 0, "nothing was preempted: this tested nothing"
    assert parsed == {n / 8: 1 for n in range(8)}
    for n in range(8):
        rows = [output.routed_experts for output in outputs[str(n)]]
        assert len(rows) == 40
        assert all((row is not None) == (n % 2 == 0) for row in rows)


def test_of_thousands_of_requests_nothing_stays(make_scheduler, caplog):
    caplog.set_level(
        logging.CRITICAL, ours.__name__
    )  # pytest keeps what is logged, and so the requests in it
    scheduler = make_scheduler()
    alive: Any = weakref.WeakSet()
    for n in range(3000):
        wishes = [{}, {"tuco": True}, {"alpha": 0.5}, {"alpha": 9}][n % 4]  # the last cannot be had
        one = request(str(n), more=1, **wishes)
        alive.add(one)
        scheduler.add_request(one)
        if n % 7 == 0:
            scheduler.finish_requests(str(n), RequestStatus.FINISHED_ABORTED)
    del one
    run(scheduler)
    scheduler.schedule()  # the last names of finished requests leave for the workers
    gc.collect()
    assert not scheduler.requests
    assert not scheduler.grammar_compile_error_reqs
    assert len(alive) == 0


@pytest.mark.parametrize("kept", [set, dict], ids=["vLLM 0.32", "vLLM 0.33"])
def test_an_alpha_that_slips_past_the_front_ends_its_request_only(make_scheduler, kept):
    """vLLM 0.32 keeps such requests' names, 0.33 their errors."""
    scheduler = make_scheduler()
    scheduler.grammar_compile_error_reqs = errors = kept()
    layers = {"value": -0.5, "layers": [1, 2]}
    alphas = {"bad": 1.75, "worse": "1", "below": -0.75, "good": 1.25, "by layers": layers}
    alphas["beyond"] = {"value": 0.5, "layers": [1, LAYERS]}
    for name, alpha in alphas.items():
        scheduler.add_request(request(name, alpha=alpha))
    if kept is dict:
        assert errors["bad"] == RequestError(
            "validation_error", "alpha must be a number from -0.5 to 1.5, not 1.75"
        )
    assert set(errors) == {"bad", "worse", "below", "beyond"}
    assert scheduler.requests["by layers"].cache_salt == "tuco:-0x1.0000000000000p-1@1-2:pt@1-2|"
    assert scheduler.requests["beyond"].cache_salt == PLAIN.cache_salt(None)
    outputs = run(scheduler)
    assert {name: str(answer[-1].finish_reason) for name, answer in outputs.items()} == {
        **dict.fromkeys(("bad", "worse", "below", "beyond"), "error"),
        **dict.fromkeys(("good", "by layers"), "length"),
    }
    assert len(outputs["good"]) == 2


def test_input_that_streams_keeps_its_wishes(make_scheduler):
    """Its cache has one salt: a piece under another alpha would leave blocks that are not that salt's."""
    scheduler = make_scheduler()
    layers, everywhere = ({"value": 0.5, "layers": [0, last]} for last in (0, LAYERS - 1))
    first, same, other = (request("a", alpha=alpha) for alpha in (0.5, everywhere, layers))
    for piece in (first, same, other):
        piece.resumable = True
        scheduler.add_request(piece)
        assert set(scheduler.grammar_compile_error_reqs) == ({"a"} if piece is other else set())
    assert other.sampling_params.extra_args == first.sampling_params.extra_args
    assert scheduler.requests["a"].tuco_steering.alpha == 0.5
