"""Scores on a CUDA device are the oracle's: backends, graphs, scheduling, chunks, cache, preemption."""

import random
from collections.abc import Iterator, Sequence

import pytest
import tiny_models
import torch
from gpu import modes
from gpu.modes import Mode
from torch import Tensor
from truth import assert_close, true_norms, tuco

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.scorer import Scorer
from tuco_vllm.errors import EngineError

pytestmark = pytest.mark.gpu

# Asynchronous scheduling is vLLM's default for generation, not for pooling.
MODES = [
    Mode("FLASH_ATTN", "eager", "bfloat16", "llama"),
    Mode("FLASH_ATTN", "PIECEWISE", "bfloat16", "qwen3", asynchronous=True),
    Mode("FLASH_ATTN", "FULL_AND_PIECEWISE", "bfloat16", "mistral_windowed_ft", chunk=512),
    Mode("TRITON_ATTN", "eager", "float32", "mistral_windowed_ft", asynchronous=True, chunk=512),
    Mode("TRITON_ATTN", "PIECEWISE", "float32", "llama"),
    Mode("TRITON_ATTN", "FULL_AND_PIECEWISE", "float32", "llama_mha", asynchronous=True),
    Mode("TRITON_ATTN", "PIECEWISE", "bfloat16", "mistral", asynchronous=True, chunk=512),
]


class Engine:
    """A mode's running engine and its pair."""

    def __init__(self, mode: Mode, pair: tuple[str, str], **more) -> None:
        self.mode, self.pair = mode, pair
        self.scorer = Scorer(resolve_pair(*pair), **mode.engine_args(**more))

    def norms(self, prompts: Sequence[list[int]]) -> Tensor:
        return torch.stack([norms for _, norms in self.scorer.stream(enumerate(prompts))])

    def norms_of_one_batch(self, prompts: Sequence[list[int]]) -> Tensor:
        """All queued before the first step, so that the step's size is theirs and no accident."""
        self.scorer.engine.sleep(level=0)
        names = [self.scorer.submit(prompt) for prompt in prompts]
        self.scorer.engine.wake_up(tags=["scheduling"])
        done: dict[str, Tensor] = {}
        while len(done) < len(names):
            done.update(self.scorer.step())
        return torch.stack([done[name] for name in names])

    def check(self, prompts: list[list[int]]) -> None:
        assert_close(self.norms(prompts), self.pair, prompts, self.mode.dtype)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, pair_dirs) -> Iterator[Engine]:
    mode: Mode = request.param
    running = Engine(mode, pair_dirs(mode.pair, mode.dtype))
    yield running
    running.scorer.close()


def test_runs_what_was_asked_for(engine: Engine) -> None:
    layers = tiny_models.SHAPE["num_hidden_layers"] + 1  # PT's, and FT's last
    modes.assert_runs_as(
        engine.mode, engine.scorer.engine, asynchronous=bool(engine.mode.asynchronous), layers=layers
    )


def test_batched_then_warm(engine: Engine) -> None:
    prompts = tiny_models.prompts(24)  # of one token to the longest the engine takes
    engine.check(prompts)
    hits = modes.counter(engine.scorer.engine, "prefix_cache_hits")
    engine.check(prompts)
    assert modes.counter(engine.scorer.engine, "prefix_cache_hits") > hits, "the second round tested nothing"


def test_shared_prefixes(engine: Engine) -> None:
    _, stem = tiny_models.prompts(2, seed=2, longest=200)
    tails = tiny_models.prompts(8, seed=3, longest=50)
    # Ends in the middle of a block, on its edge, one past it; prefixes of each other; one prompt twice.
    cuts = [stem[:n] for n in (31, 32, 33, 64, 96, 97, 128, 160)]
    engine.check([stem, *[stem + tail for tail in tails], *cuts, stem])
    engine.check([cut + tail for cut, tail in zip(cuts, tails, strict=True)])


def test_many_at_once_in_any_order(engine: Engine) -> None:
    prompts = tiny_models.prompts(220, seed=4, longest=90)
    random.Random(5).shuffle(prompts)
    engine.check(prompts)


def test_pad_rows(engine: Engine) -> None:
    """Steps between two captured sizes, of one token a request and of a few; the larger ones leave rows of
    their own behind in the buffers of the smaller ones."""
    for seed, count in enumerate([*modes.BETWEEN, *reversed(modes.BETWEEN)], start=10):
        for longest in (1, 3):
            if count * longest > max(modes.CAPTURED):
                continue
            generator = random.Random(1000 * seed + longest)
            prompts = [
                [generator.randrange(3, tiny_models.PT_VOCAB) for _ in range(generator.randint(1, longest))]
                for _ in range(count)
            ]
            norms = engine.norms_of_one_batch(prompts)
            assert_close_to_rounding(norms, engine, prompts)


def assert_close_to_rounding(norms: Tensor, engine: Engine, prompts: list[list[int]]) -> None:
    """In bfloat16 the bound is what Hugging Face is off by on the same prompts: of one or two prompts that
    is a matter of luck, so more are put beside them."""
    if engine.mode.dtype == "bfloat16":
        more = tiny_models.prompts(24, seed=9, longest=20)
        norms, prompts = torch.cat([norms, engine.norms(more)]), prompts + more
    assert_close(norms, engine.pair, prompts, engine.mode.dtype)


def test_the_comparison_would_notice(engine: Engine) -> None:
    """A score of the neighbouring prompt, or one token less of context, is far outside the tolerance."""
    prompts = tiny_models.prompts(8, seed=6)
    norms = engine.norms(prompts)
    with pytest.raises(AssertionError):
        assert_close(norms.roll(1, dims=0), engine.pair, prompts, engine.mode.dtype)
    shorter = [prompt[1:] or prompt for prompt in prompts]
    moved = (tuco(norms) - tuco(true_norms(engine.pair, shorter))).abs()
    assert moved[1:].max() > 1e-4


@pytest.mark.parametrize(
    ("graphs", "breakable", "named"),
    [("FULL", "0", "cudagraph_mode FULL"), ("PIECEWISE", "1", "breakable CUDA graphs")],
)
def test_graphs_that_would_freeze_the_rows_are_refused(
    graphs, breakable, named, pair_dirs, monkeypatch
) -> None:
    """They would replay the rows of the batch they were captured with."""
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", breakable)
    mode = Mode("TRITON_ATTN", graphs, "float32", "llama")
    args = mode.engine_args(compilation_config={"cudagraph_mode": graphs})
    with pytest.raises(EngineError, match=named):
        Scorer(resolve_pair(*pair_dirs(mode.pair, mode.dtype)), **args)


def test_preempted(pair_dirs) -> None:
    """A cache far too small for the prompts that run at once."""
    mode = Mode("TRITON_ATTN", "PIECEWISE", "float32", "llama", asynchronous=True)
    engine = Engine(
        mode,
        pair_dirs(mode.pair, mode.dtype),
        num_gpu_blocks_override=14,  # one prompt of the longest takes 8
        long_prefill_token_threshold=32,  # so that all running prompts grow together, and collide
        max_num_seqs=8,
        max_num_batched_tokens=256,
    )
    try:
        prompts = [prompt for seed in range(12) for prompt in tiny_models.prompts(2, seed=seed)]
        norms = engine.norms(prompts)
        preemptions = modes.counter(engine.scorer.engine, "num_preemptions")
    finally:
        engine.scorer.close()
    assert preemptions > 0, "nothing was preempted: this test tested nothing"
    assert_close(norms, engine.pair, prompts, mode.dtype)
