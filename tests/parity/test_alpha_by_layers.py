"""Alpha by layers, looked at from inside: which layers of PT run, and what reaches FT's.

That the answers are right is ``test_steering``'s.
"""

from collections.abc import Iterator
from typing import Any

import engines
import pytest
import steered
import tiny_models
import torch
from torch import Tensor
from vllm import SamplingParams

from tuco_vllm import TucoLLM
from tuco_vllm.engine.stock_layers import Pending, Stream
from tuco_vllm.errors import InputError

pytestmark = pytest.mark.quick

BLOCK = 32
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": BLOCK,
    "kv_cache_memory_bytes": 64 << 20,
    "async_scheduling": False,
    "seed": 0,
}
STEM = (steered.prompts(1, longest=90, seed=3)[0] * 64)[: 2 * BLOCK]
OTHER = [9, *STEM[:50]]


class Layers:
    """Both models' layers of an engine in this process, watched."""

    def __init__(self, llm: TucoLLM) -> None:
        self.llm = llm
        executor = llm._engine.llm.llm_engine.engine_core.engine_core.model_executor
        self.runner = executor.driver_worker.worker.model_runner
        model = self.runner.model.model
        self.pt_ran: list[list[int]] = []
        """Of each step, the layers in which PT ran."""
        self.ft_inputs: list[list[tuple[Any, ...]]] = []
        """Of each step, what FT's layers were given: what is not yet added to the stream, and the stream."""
        self.caches = [self._cache_of(name) for name in model.attention_names]
        """PT's, by layer."""
        for index, (ft, pt) in enumerate(zip(model.ft_layers, model.pt_layers, strict=True)):
            pt.register_forward_pre_hook(lambda *_, index=index: self.pt_ran[-1].append(index))
            ft.register_forward_pre_hook(self._keep, with_kwargs=True)
        model.ft_layers[0].register_forward_pre_hook(self._begin, prepend=True)
        model.pt_layers[0].register_forward_pre_hook(self._begin, prepend=True)
        self._layers_of_ft = len(model.ft_layers)

    def ask(self, *requests: tuple[list[int], Any, bool], tokens: int = 1) -> list[Any]:
        """Completions of (prompt, alpha, scored), which vLLM is told of at once."""
        greedy = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        params = [greedy.clone() for _ in requests]
        for each, (_, alpha, scored) in zip(params, requests, strict=True):
            each.extra_args = {"alpha": alpha, "tuco": scored}
        prompts: Any = [{"prompt_token_ids": prompt} for prompt, *_ in requests]
        self.pt_ran.clear()
        self.ft_inputs.clear()
        outputs = self.llm._engine.llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def _begin(self, *_: Any) -> None:
        if not self.ft_inputs or len(self.ft_inputs[-1]) == self._layers_of_ft:
            self.pt_ran.append([])
            self.ft_inputs.append([])

    def _keep(self, _: Any, args: Any, given: dict[str, Any]) -> None:
        states = given.get("hidden_states", args[1] if len(args) > 1 else None)
        residual = given.get("residual", args[2] if len(args) > 2 else None)
        states = states.x if isinstance(states, Stream) else states
        residual = residual.x_TH if isinstance(residual, Pending) else residual
        self.ft_inputs[-1].append((states.clone(), None if residual is None else residual.clone()))

    def _cache_of(self, name: str) -> Tensor:
        return self.runner.compilation_config.static_forward_context[name].kv_cache


@pytest.fixture(scope="module")
def layers(pair_dirs) -> Iterator[Layers]:
    with (
        engines.in_this_process(),
        TucoLLM(*pair_dirs("llama", "float32"), task="generate", min_alpha=-1.0, **ENGINE) as llm,
    ):
        yield Layers(llm)


FIRST, MIDDLE, LAST = (steered.in_layers(0.5, layer, layer) for layer in range(3))
ALL = [0, 1, 2]


@pytest.mark.parametrize(
    ("wishes", "ran"),
    [
        ([(MIDDLE, False)], [1]),
        ([(MIDDLE, False), (1.0, False)], [1]),
        ([(FIRST, False), (LAST, False)], [0, 2]),
        ([(steered.in_layers(0.0, 1, 2), False), (LAST, False)], [1, 2]),
        ([(MIDDLE, True)], ALL),
        ([(MIDDLE, False), (1.0, True)], ALL),
        ([(MIDDLE, False), (0.5, False)], ALL),
        ([(steered.in_layers(1.0, 1, 1), False)], []),
        ([(1.0, False)], []),
    ],
)
def test_pt_runs_in_the_layers_of_a_step(layers, wishes, ran) -> None:
    """The prompts' step, and the one of their second tokens."""
    layers.ask(*((OTHER[place:], *wish) for place, wish in enumerate(wishes)), tokens=2)
    assert layers.pt_ran == [ran, ran]


def test_a_request_that_ends_takes_its_layers_with_it(layers) -> None:
    layers.ask((OTHER[3:], FIRST, False), tokens=3)
    assert layers.pt_ran == [[0]] * 3
    layers.ask((OTHER[2:], 1.0, True), (OTHER[5:], LAST, False))
    assert layers.pt_ran == [ALL]


@pytest.mark.parametrize(
    ("alpha", "scored", "same"), [(LAST, False, 3), (LAST, True, 3), (MIDDLE, False, 2), (FIRST, False, 1)]
)
def test_up_to_its_range_a_stream_is_fts_bit_for_bit(layers, alpha, scored, same) -> None:
    prompt = [3, *OTHER]
    assert layers.llm._engine.llm.reset_prefix_cache()  # a step of one token less rounds differently
    layers.ask((prompt, 1.0, False))
    [plain] = layers.ft_inputs
    layers.ask((prompt, alpha, scored))
    [steered_inputs] = layers.ft_inputs
    alike = [
        all(a is b is None or torch.equal(a, b) for a, b in zip(one, two, strict=True))
        for one, two in zip(plain, steered_inputs, strict=True)
    ]
    assert alike == [index < same for index in range(3)]


def test_what_stands_in_pts_cache_outside_a_range_reaches_nobody(layers) -> None:
    """Blocks of an unscored range are taken up beside a scored request, for which PT runs in all layers."""
    wishes = (([*STEM, 7, 8], LAST, False), (OTHER, 1.0, True))
    assert layers.llm._engine.llm.reset_prefix_cache()
    for cache in layers.caches:
        cache.zero_()
    layers.ask(([*STEM, 7], LAST, False))
    written = [cache != 0 for cache in layers.caches]
    assert [bool(each.any()) for each in written] == [False, False, True]
    for cache in layers.caches[:2]:
        cache[written[2]] = float("nan")
    steered_one, scored_one = layers.ask(*wishes, tokens=4)
    assert layers.pt_ran == [ALL] * 4
    assert sum(len(step[0][0]) for step in layers.ft_inputs[:1]) == 2 + len(OTHER), "no prefix was cached"
    assert all(states.isfinite().all() for step in layers.ft_inputs for states, _ in step)
    pair = layers.llm.pair.pt.name, layers.llm.pair.ft.name
    steered.assert_greedy(pair, wishes[0][0], LAST, steered_one.token_ids)
    steered.assert_true(pair, OTHER, 1.0, scored_one.token_ids, scored_one.routed_experts)


def test_below_zero_where_the_engine_allows_it(layers) -> None:
    pair = layers.llm.pair.pt.name, layers.llm.pair.ft.name
    alphas = [-0.5, steered.in_layers(-1.0, 1, 2)]
    greedy = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    for output, alpha in zip(layers.llm.generate([OTHER] * 2, greedy, alphas), alphas, strict=True):
        completion = output.outputs[0]
        steered.assert_true(pair, OTHER, alpha, completion.token_ids, completion.tuco_norms)
    assert layers.ask((OTHER, -1.25, False), tokens=2)[0].finish_reason == "error"
    with pytest.raises(InputError, match=r"alpha must be a number from -1 to 2, not -1\.25"):
        layers.llm.generate([OTHER], greedy, -1.25)
