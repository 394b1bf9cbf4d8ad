"""Steered and scored completions on a CUDA device are the oracle's, whatever runs beside them."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import steered
import tiny_models
from counters import counter
from gpu import judge, modes
from gpu.judge import Case
from gpu.modes import Mode
from vllm import SamplingParams

from tuco_vllm import TucoLLM
from tuco_vllm.engine.generator import attach_scores, with_steering
from tuco_vllm.steering import PLAIN, Steering, parse_scale

pytestmark = pytest.mark.gpu

MODES = [
    Mode("TRITON_ATTN", "eager", "float32", "llama"),
    Mode("TRITON_ATTN", "PIECEWISE", "float32", "qwen3", asynchronous=False),
    Mode("TRITON_ATTN", "FULL_AND_PIECEWISE", "float32", "mistral_windowed_ft"),
    Mode("FLASH_ATTN", "eager", "bfloat16", "qwen3", asynchronous=False),
    Mode("FLASH_ATTN", "FULL_AND_PIECEWISE", "bfloat16", "llama"),
    Mode("FLASH_ATTN", "PIECEWISE", "bfloat16", "mistral"),
    Mode("TRITON_ATTN", "FULL_AND_PIECEWISE", "float32", "llama", sequences=8),
]
GREEDY = {"temperature": 0.0, "ignore_eos": True}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}

Alphas = Sequence[steered.Alpha | None]


class Engine:
    """A mode's running engine and its pair."""

    def __init__(self, mode: Mode, pair: tuple[str, str], **more: Any) -> None:
        self.mode, self.pair = mode, pair
        self.tuco = TucoLLM(*pair, task="generate", **mode.engine_args(**more))
        self.llm = self.tuco._engine.llm

    def complete(self, prompts: Sequence[list[int]], alphas: Alphas, **params: Any) -> list[list[Case]]:
        """Every sample of requests that are all queued before the first step."""
        sampling = SamplingParams(**params)
        wishes = [with_steering(sampling, scored(alpha)) for alpha in alphas]
        self.llm.sleep(level=0)
        self.llm.enqueue([{"prompt_token_ids": prompt} for prompt in prompts], wishes, use_tqdm=False)
        self.llm.wake_up(tags=["scheduling"])
        outputs = self.llm.wait_for_completion(use_tqdm=False)
        for output in outputs:
            for completion in output.outputs:
                attach_scores(completion)
        return [
            [Case(prompt, alpha, completion) for completion in output.outputs]
            for prompt, alpha, output in zip(prompts, alphas, outputs, strict=True)
        ]

    def greedy(self, prompts: Sequence[list[int]], alphas: Alphas, tokens: int, **params: Any) -> list[Case]:
        """The same, of one sample each: the likeliest tokens."""
        return [case for [case] in self.complete(prompts, alphas, max_tokens=tokens, **GREEDY, **params)]

    def check(self, cases: Sequence[Case]) -> None:
        judge.assert_true(self.pair, self.mode.dtype, cases)


def scored(alpha: steered.Alpha | None) -> Steering:
    """What a request with scores asks for; without an alpha, a plain one."""
    if alpha is None:
        return PLAIN
    scale = parse_scale(alpha)
    return Steering(scale.alpha, True, None, scale.layers)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, pair_dirs) -> Iterator[Engine]:
    mode: Mode = request.param
    running = Engine(mode, pair_dirs(mode.pair, mode.dtype))
    yield running
    running.tuco.close()


def mixed(count: int, **kwargs: int) -> tuple[list[list[int]], list[steered.Alpha | None]]:
    """Requests of ten alphas, and among them some that ask for nothing."""
    prompts, alphas = steered.requests(count, **kwargs)
    return prompts, [None if place % 6 == 5 else alpha for place, alpha in enumerate(alphas)]


def test_runs_what_was_asked_for(engine: Engine) -> None:
    modes.assert_runs_as(
        engine.mode,
        engine.llm.llm_engine,
        asynchronous=engine.mode.asynchronous is not False,  # vLLM's default is on
        layers=tiny_models.SHAPE["num_hidden_layers"],
    )


def test_a_mixed_batch_then_warm(engine: Engine) -> None:
    prompts, alphas = mixed(64)
    engine.check(engine.greedy(prompts, alphas, 8))
    hits = counter(engine.llm, "prefix_cache_hits")
    engine.check(engine.greedy(prompts, alphas, 8))
    assert counter(engine.llm, "prefix_cache_hits") > hits, "the second round tested nothing new"


def test_alone_as_in_a_batch(engine: Engine) -> None:
    prompts, alphas = mixed(24, seed=1)
    together = engine.greedy(prompts, alphas, 8)
    alone = []
    for prompt, alpha in zip(prompts, alphas, strict=True):
        alone += engine.greedy([prompt], [alpha], 8)
    engine.check(together)
    engine.check(alone)
    if engine.mode.dtype == "float32":  # in 16 bits a tie falls either way
        for a, b in zip(together, alone, strict=True):
            if a.alpha is None:
                assert a.chosen == b.chosen
            else:
                steered.assert_same(a.completion, b.completion, f"alpha {a.alpha}, alone")


def test_pad_rows(engine: Engine) -> None:
    """Decode steps of sizes between two captured ones: replayed where nobody steers, and where one does, run
    as they are. Plain batches come between the mixed ones."""
    cases = []
    for seed, count in enumerate([*modes.BETWEEN, *reversed(modes.BETWEEN)], start=20):
        prompts, alphas = mixed(count, longest=3, seed=seed)
        for asked in (alphas, [None] * count, [1.0] * count):
            cases += engine.greedy(prompts, asked, 3)
    engine.check(cases)


def test_several_samples_and_logprobs(engine: Engine) -> None:
    prompts, alphas = steered.requests(8, seed=5)
    params = {"max_tokens": 8, "temperature": 1.0, "seed": 7, "n": 4, "logprobs": 2, "ignore_eos": True}
    for _ in ("cold", "warm"):
        requests = engine.complete(prompts, alphas, **params)
        assert all(len(samples) == 4 for samples in requests)
        cases = [case for samples in requests for case in samples]
        assert len({tuple(case.completion.token_ids) for case in cases}) > 8
        judge.assert_scored(engine.pair, engine.mode.dtype, cases)
        for case in cases:
            logprobs, tokens = case.completion.logprobs, case.completion.token_ids
            assert all(2 <= len(step) <= 3 and min(step) >= 0 for step in logprobs)  # no columns of ours
            if engine.mode.dtype == "float32":
                own = [step[token].logprob for step, token in zip(logprobs, tokens, strict=True)]
                steered.assert_sampled(engine.pair, *case.chosen, own)


def test_stop_strings(engine: Engine) -> None:
    """Requests that end early, each by a text of its own, beside one that goes on."""
    prompts, alphas = steered.requests(12, seed=8)
    cases, stopped = [], 0
    for whole in engine.greedy(prompts, alphas, 8):
        stop = whole.completion.text[2:4]
        if not stop.strip() or "\ufffd" in stop:
            continue
        both, wishes = [whole.prompt, prompts[0]], [whole.alpha, 0.5]
        beside = engine.complete(both, wishes, max_tokens=8, stop=[stop], **GREEDY)
        cases += [case for [case] in beside]
        cut = beside[0][0].completion
        stopped += cut.finish_reason == "stop" and len(cut.token_ids) < 8
        assert stop not in cut.text
    assert all(len(case.completion.tuco) == len(case.completion.token_ids) for case in cases)
    assert stopped > 2, "hardly any request was stopped: this tested nothing"
    judge.assert_scored(engine.pair, engine.mode.dtype, cases)


def test_the_judge_would_notice(engine: Engine) -> None:
    """Another request's scores, or another alpha's, are far outside the tolerance."""
    prompts, _ = steered.requests(12, seed=9)
    zero = engine.greedy(prompts, [0.0] * 12, 4)
    dtype = engine.mode.dtype
    judge.assert_scored(engine.pair, dtype, zero)
    norms = [case.completion.tuco_norms for case in zero]
    for case, others in zip(zero, norms[1:] + norms[:1], strict=True):
        case.completion.tuco_norms = others
    with pytest.raises(AssertionError, match="norms are"):
        judge.assert_scored(engine.pair, dtype, zero)
    half = [case._replace(alpha=0.5) for case in engine.greedy(prompts, [0.0] * 12, 4)]
    with pytest.raises(AssertionError, match="norms are"):
        judge.assert_scored(engine.pair, dtype, half)


def test_preempted(pair_dirs) -> None:
    """A cache in which requests that decode side by side run out of blocks."""
    mode = Mode("TRITON_ATTN", "FULL_AND_PIECEWISE", "float32", "llama")
    scarce = {"num_gpu_blocks_override": 14, "max_num_seqs": 8, "max_num_batched_tokens": 256}
    engine = Engine(mode, pair_dirs(mode.pair, mode.dtype), **scarce)
    try:
        prompts, alphas = mixed(16, longest=150)
        cases = engine.greedy(prompts, alphas, 40)
        preemptions = counter(engine.llm, "num_preemptions")
    finally:
        engine.tuco.close()
    assert preemptions > 0, "nothing was preempted: this test tested nothing"
    engine.check(cases)


def test_speculated(pair_dirs) -> None:
    """n-gram drafts: several rows of a request are scored in one step, rejected ones dropped."""
    mode = Mode("TRITON_ATTN", "FULL_AND_PIECEWISE", "float32", "llama_mha", chunk=128)
    engine = Engine(mode, pair_dirs(mode.pair, mode.dtype), speculative_config=NGRAM)
    try:
        prompts, alphas = mixed(18)
        prompts = [(prompt[:9] * 8)[:70] for prompt in prompts]  # repetitive, so that there are drafts
        cases = engine.greedy(prompts, alphas, 30)
        cases += engine.greedy(prompts, alphas, 12, logprobs=2)
        counts = [counter(engine.llm, f"spec_decode_num_{k}_tokens") for k in ("accepted", "draft")]
    finally:
        engine.tuco.close()
    assert 0 < counts[0] < counts[1], "no draft was accepted, or none rejected: this test tested nothing"
    engine.check(cases)
