"""What every scoring engine is asked, on a CPU and on a GPU: are its norms the oracle's?"""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import tiny_models
import torch
from counters import counter
from torch import Tensor
from truth import assert_close, assert_own_streams_close, assert_rows_close, read, true_norms, tuco

from tuco_vllm.config import ModelPair, resolve_pair
from tuco_vllm.engine.scorer import Scorer
from tuco_vllm.records import TucoScore
from tuco_vllm.score_requests import ALL_MORE, engine_inputs


class ScoringEngine:
    """A running engine, the directories of its pair and the dtype that its norms are judged in."""

    def __init__(
        self, pair: tuple[str, str], dtype: str, engine_args: dict[str, Any], checked: ModelPair | None = None
    ) -> None:
        """``checked`` is the engine's pair, where it is not that of the directories it is judged by."""
        self.pair, self.dtype = pair, dtype
        self.scorer = Scorer(checked or resolve_pair(*pair), **engine_args)

    def norms(self, prompts: Sequence[list[int]]) -> Tensor:
        results = list(self.scorer.stream(enumerate(prompts)))
        assert [key for key, _ in results] == list(range(len(prompts)))
        return torch.stack([norms for _, norms in results])

    def check(self, prompts: list[list[int]]) -> None:
        assert_close(self.norms(prompts), self.pair, prompts, self.dtype)


class ScoresAreTrue:
    """Tests of a fixture ``engine``: 1 token to the longest, 220 at once, cold, warm and shared prefixes.

    A module inherits them as ``class Test...(ScoresAreTrue)``.
    """

    def test_batched_then_warm(self, engine: ScoringEngine) -> None:
        prompts = tiny_models.prompts(24)
        engine.check(prompts)  # cold
        hits = counter(engine.scorer.engine, "prefix_cache_hits")
        engine.check(prompts)  # every full block cached
        again = counter(engine.scorer.engine, "prefix_cache_hits")
        assert again > hits, "nothing came from the cache: this tested nothing new"

    def test_shared_prefixes(self, engine: ScoringEngine) -> None:
        _, stem = tiny_models.prompts(2, seed=2, longest=200)
        tails = tiny_models.prompts(8, seed=3, longest=50)
        # Ends in the middle of a block, on its edge, one past it; prefixes of each other; one prompt twice.
        cuts = [stem[:n] for n in (31, 32, 33, 64, 96, 97, 128, 160)]
        engine.check([stem, *[stem + tail for tail in tails], *cuts, stem])
        engine.check([cut + tail for cut, tail in zip(cuts, tails, strict=True)])

    def test_many_at_once_in_any_order(self, engine: ScoringEngine) -> None:
        prompts = tiny_models.prompts(220, seed=4, longest=90)
        random.Random(5).shuffle(prompts)
        engine.check(prompts)

    def test_responses_and_traces(self, engine: ScoringEngine) -> None:
        assert_responses_are_true(engine.scorer.stream, engine.pair, engine.dtype)

    def test_answers_share_their_prompt(self, engine: ScoringEngine) -> None:
        """All blocks before the first row that is read come from the cache, for all answers but the first."""
        prompt, other = tiny_models.prompts(2, seed=31, longest=150)[1], tiny_models.prompts(9, seed=32)
        asked = [read(prompt, answer[:40]) for answer in other if answer]
        hits = counter(engine.scorer.engine, "prefix_cache_hits")
        found = [scores for _, scores in engine.scorer.stream(enumerate(asked))]
        shared = counter(engine.scorer.engine, "prefix_cache_hits") - hits
        block = engine.scorer.engine.vllm_config.cache_config.block_size
        assert shared == (len(asked) - 1) * ((len(prompt) - 1) // block * block) > 0
        if engine.dtype == "float32":  # in 16 bits one prompt is no measure of what Hugging Face is off by
            assert_rows_close(found, asked, engine.pair, engine.dtype)

    def test_streams_of_pt(self, engine: ScoringEngine) -> None:
        assert_own_streams_are_true(engine.scorer.stream, engine.pair, engine.dtype)

    def test_streams_side_by_side(self, engine: ScoringEngine) -> None:
        """A step that one of them makes finishes prompts of the other."""
        prompts = tiny_models.prompts(12, seed=7, longest=60)
        norms: list[list[Tensor]] = [[], []]
        outer = engine.scorer.stream(enumerate(prompts))
        norms[0].append(next(outer)[1])
        norms[1] += [of for _, of in engine.scorer.stream(enumerate(prompts[::-1]))]
        norms[0] += [of for _, of in outer]
        assert_close(torch.stack(norms[0]), engine.pair, prompts, engine.dtype)
        assert_close(torch.stack(norms[1]), engine.pair, prompts[::-1], engine.dtype)

    def test_the_comparison_would_notice(self, engine: ScoringEngine) -> None:
        """A score of the neighbouring prompt, or one token less of context, is far outside the tolerance."""
        prompts = tiny_models.prompts(8, seed=6)
        norms = engine.norms(prompts)
        with pytest.raises(AssertionError):
            assert_close(norms.roll(1, dims=0), engine.pair, prompts, engine.dtype)
        shorter = [prompt[1:] or prompt for prompt in prompts]
        moved = (tuco(norms) - tuco(true_norms(engine.pair, shorter))).abs()
        assert moved[1:].max() > 1e-4


def assert_responses_are_true(stream: Any, pair: tuple[str, str], dtype: str) -> None:
    """Answers to one prompt and to others, beside prompts alone; then again, when all is cached."""
    [short, long] = tiny_models.prompts(2, seed=8, longest=120)
    answers = [long[:count] for count in (1, 2, 33, 100)] + [short]
    asked: list[Any] = [read(long, answer) for answer in answers]
    for trace in (False, True):
        asked += [read(short, answer, trace=trace) for answer in answers]
    # In 16 bits, of two prompts alone Hugging Face's own largest error says little.
    asked[2:2] = tiny_models.prompts(2 if dtype == "float32" else 12, seed=9, longest=250)
    asked[7:7] = [read(long, None, trace=True)]
    for _ in range(2):
        found = [scores for _, scores in stream(enumerate(asked))]
        alone = [n for n, wish in enumerate(asked) if isinstance(wish, list)]
        assert_close(torch.stack([found[n] for n in alone]), pair, [asked[n] for n in alone], dtype)
        rows = [n for n in range(len(asked)) if n not in alone]
        assert_rows_close([found[n] for n in rows], [asked[n] for n in rows], pair, dtype)


def assert_own_streams_are_true(stream: Any, pair: tuple[str, str], dtype: str, more_texts: int = 0) -> None:
    """OutputCo and the reward, beside prompts alone, responses and a trace; then again, from the cache."""
    [short, long] = tiny_models.prompts(2, seed=8, longest=120)
    texts = [(long, long[:count]) for count in (1, 2, 33)] + [(short, long[:90]), (long[:64], short)]
    alone = [long]
    if dtype != "float32":  # of a few prompts Hugging Face's own largest error says little
        more_texts, alone = max(more_texts, 12), [long, *tiny_models.prompts(12, seed=9, longest=250)]
    others = [tiny_models.prompts(2, seed=seed, longest=120)[1] for seed in range(20, 20 + more_texts)]
    texts += [(prompt, prompt[40:]) for prompt in others]
    inputs = [engine_inputs(prompt, response, ALL_MORE) for prompt, response in texts]
    asked = [tokens for several in inputs for tokens in several]
    asked[4:4] = [*alone, read(short, long[:40]), read(long, None, trace=True)]
    beside = 4 + len(alone)
    for _ in range(2):
        found = [answer for _, answer in stream(enumerate(asked))]
        assert_close(torch.stack(found[4:beside]), pair, alone, dtype)
        assert_rows_close(found[beside : beside + 2], asked[beside : beside + 2], pair, dtype)
        answers = iter(found[:4] + found[beside + 2 :])
        scores = [
            TucoScore.of([next(answers) for _ in several], several, response, ALL_MORE)
            for several, (_, response) in zip(inputs, texts, strict=True)
        ]
        assert_own_streams_close(scores, texts, pair, dtype)


def assert_true_when_preempted(
    pair: tuple[str, str], dtype: str, engine_args: dict[str, Any], checked: ModelPair | None = None
) -> None:
    """Scores are the oracle's with a KV cache far too small for the prompts that run at once."""
    scarce = {
        "num_gpu_blocks_override": 14,  # one prompt of the longest takes 8
        "long_prefill_token_threshold": 32,  # so that all running prompts grow together, and collide
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
    }
    engine = ScoringEngine(pair, dtype, engine_args | scarce, checked)
    try:
        prompts = [prompt for seed in range(12) for prompt in tiny_models.prompts(2, seed=seed)]
        norms = engine.norms(prompts)
        preemptions = counter(engine.scorer.engine, "num_preemptions")
        halves = [
            (prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :]) for prompt in prompts if prompt[1:]
        ]
        asked = [read(*halves[place], trace=place % 3 == 0) for place in range(len(halves))]
        found = [scores for _, scores in engine.scorer.stream(enumerate(asked))]
        with_responses = counter(engine.scorer.engine, "num_preemptions") - preemptions
        assert_own_streams_are_true(engine.scorer.stream, pair, dtype, 12)
        with_streams = counter(engine.scorer.engine, "num_preemptions") - preemptions - with_responses
    finally:
        engine.scorer.close()
    assert preemptions > 0, "nothing was preempted: this tested nothing"
    assert_close(norms, pair, prompts, dtype)
    assert with_responses > 0, "no response was preempted: this tested nothing"
    assert with_streams > 0, "nothing was preempted where streams take turns: this tested nothing"
    assert_rows_close(found, asked, pair, dtype)
