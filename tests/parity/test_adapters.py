"""A base and LoRA adapters of it in one engine: scores are those of the base and the model PEFT merges.

Every test that a full pair's engine must pass, then what is an adapter's own: several at once, each kind of
LoRA, one replaced under its path. ``tiny_adapters`` makes them.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import steered
import tiny_models
import tolerances
import torch
from cells import Cell
from counters import counter
from scored import (
    ScoresAreTrue,
    ScoringEngine,
    assert_own_streams_are_true,
    assert_responses_are_true,
    assert_true_when_preempted,
)
from tiny_adapters import Made
from truth import assert_close, true_norms, tuco
from vllm import SamplingParams

from tuco_vllm import TucoLLM
from tuco_vllm.config import resolve_adapter, resolve_pair
from tuco_vllm.engine import adapter_pair
from tuco_vllm.engine.scorer import Scorer
from tuco_vllm.families import FAMILIES
from tuco_vllm.score_requests import Adapted

pytestmark = [pytest.mark.usefixtures("in_process"), pytest.mark.engine]

STEERED: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": tiny_models.MAX_LEN,
    "block_size": 32,
    "kv_cache_memory_bytes": 256 << 20,
    "max_num_batched_tokens": 96,
    "max_num_seqs": 64,
}


def families(*in_make_test: str) -> list[Any]:
    """Pairs of all families that have adapters; those that are not named are slow, an engine each."""
    return [
        pytest.param(family.pair, marks=() if family.pair in in_make_test else pytest.mark.slow)
        for family in FAMILIES.values()
        if family.float32_rows and not family.text_half
    ]


def adapter_engine(base: str, made: Made, dtype: str, engine_args: dict[str, Any]) -> ScoringEngine:
    """Of a base and one adapter, judged by that base and the merged model."""
    return ScoringEngine((base, made.merged), dtype, engine_args, resolve_pair(base, made.adapter))


@pytest.fixture(scope="module")
def base(pair_dirs: Any) -> str:
    return str(pair_dirs("llama", "float32")[1])


@pytest.fixture(params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)], scope="class")
def engine(request: Any, pair_dirs: Any, adapter_of: Any) -> Iterator[ScoringEngine]:
    dtype = request.param
    directory = pair_dirs("llama", dtype)[1]
    made = adapter_of(directory, 3, dtype=dtype)
    own = adapter_engine(directory, made, dtype, Cell("llama", dtype=dtype, chunk=48).engine_args())
    with closing(own.scorer):
        yield own


class TestOneAdapter(ScoresAreTrue):
    """As of any pair. What is slow here, other tests of adapters see too, of smaller batches."""

    @pytest.mark.slow
    def test_many_at_once_in_any_order(self, engine: ScoringEngine) -> None:
        super().test_many_at_once_in_any_order(engine)

    @pytest.mark.slow
    def test_shared_prefixes(self, engine: ScoringEngine) -> None:
        super().test_shared_prefixes(engine)

    @pytest.mark.slow
    def test_streams_side_by_side(self, engine: ScoringEngine) -> None:
        super().test_streams_side_by_side(engine)

    @pytest.mark.slow
    def test_the_comparison_would_notice(self, engine: ScoringEngine) -> None:
        super().test_the_comparison_would_notice(engine)


@pytest.mark.parametrize("name", families("gemma2", "phi3"))
def test_every_family(name: str, pair_dirs: Any, adapter_of: Any) -> None:
    directory = pair_dirs(name, "float32")[1]
    engine = adapter_engine(
        directory, adapter_of(directory, 4), "float32", Cell(name, chunk=48).engine_args()
    )
    with closing(engine.scorer):
        for _ in range(2):
            engine.check(tiny_models.prompts(12))


@pytest.mark.parametrize("name", families())
def test_rows_in_float32_are_the_oracles(
    name: str, pair_dirs: Any, adapter_of: Any, monkeypatch: Any
) -> None:
    """Their arithmetic is held to the oracle where nothing else is rounded: in a model of float32."""
    monkeypatch.setattr(adapter_pair, "rows_are_wide", lambda *_: True)
    directory = pair_dirs(name, "float32")[1]
    engine = adapter_engine(
        directory, adapter_of(directory, 5), "float32", Cell(name, chunk=48).engine_args()
    )
    with closing(engine.scorer):
        for _ in range(2):
            engine.check(tiny_models.prompts(12))


def kinds(base: str, adapter_of: Callable[..., Made]) -> list[Made]:
    """Adapters of one base that differ in all that PEFT lets them."""
    attention = ["q_proj", "v_proj", "o_proj"]
    return [
        adapter_of(base, 11, r=4),
        adapter_of(base, 12, r=64, lora_alpha=8),
        adapter_of(base, 13, use_rslora=True, r=16, target_modules=attention),
        adapter_of(base, 14, rank_pattern={"down_proj": 32}, alpha_pattern={"layers.0.self_attn.q_proj": 3}),
        adapter_of(base, 15, target_modules=["embed_tokens", "lm_head", "up_proj"]),
        adapter_of(base, 16, layers_to_transform=[1], target_modules=["down_proj"]),
    ]


@pytest.mark.parametrize("wide", [False, True])
def test_every_kind_mixed_with_the_others_and_the_base(
    base: str, adapter_of: Any, monkeypatch: Any, wide: bool
) -> None:
    """Each prompt under each adapter, neighbours under others; a second time from the prefix cache."""
    monkeypatch.setattr(adapter_pair, "rows_are_wide", lambda *_: wide)
    made = kinds(base, adapter_of)
    pair = resolve_pair(base, made[0].adapter)
    adapters = [resolve_adapter(each.adapter, pair.pt)[0] for each in made]
    prompts = tiny_models.prompts(6, longest=150)
    prompts.append(prompts[1][:64] + prompts[2])
    args = Cell("llama", chunk=48).engine_args() | {"max_loras": 3, "max_lora_rank": 64}
    with closing(Scorer(pair, **args)) as scorer:
        for turn in range(2):
            hits = counter(scorer.engine, "prefix_cache_hits")
            asked = [(n, prompt) for prompt in prompts for n in range(len(made))]
            found = [norms for _, norms in scorer.stream((n, Adapted(p, adapters[n])) for n, p in asked)]
            assert turn == 0 or counter(scorer.engine, "prefix_cache_hits") > hits
            for n, each in enumerate(made):
                mine = torch.stack([norms for norms, (of, _) in zip(found, asked, strict=True) if of == n])
                assert_close(mine, (base, each.merged), prompts, "float32")
    truth = torch.stack([tuco(true_norms((base, each.merged), prompts)) for each in made])
    apart = (truth[:, None] - truth[None]).abs().mean(-1) + torch.eye(len(made))
    assert apart.min() > 1e-3, "two adapters are too alike: one in place of the other would not be seen"


def test_a_request_without_an_adapter_is_the_base(base: str, adapter_of: Any) -> None:
    """Beside requests with one: on a CPU vLLM 0.32 gives it the last slot's (``mend_on_cpu``)."""
    modules = ["embed_tokens", "q_proj", "down_proj"]
    pair = resolve_pair(base, adapter_of(base, 17, target_modules=modules).adapter)
    prompts = tiny_models.prompts(8, longest=120)
    with closing(Scorer(pair, **Cell("llama", chunk=48).engine_args())) as scorer:
        own, scorer._adapter = scorer._adapter, None
        asked = [Adapted(prompt, own) if n % 2 else prompt for n, prompt in enumerate(prompts)]
        found = torch.stack([norms for _, norms in scorer.stream(enumerate(asked))])
    assert_close(found[0::2], (base, base), prompts[0::2], "float32")
    assert (tuco(found[0::2]) == 0).all()
    assert (tuco(found[1::2]) > 0.1).all()


def test_one_replaced_under_its_path(base: str, adapter_of: Any, tmp_path: Path) -> None:
    first, second = adapter_of(base, 18), adapter_of(base, 19)
    place = tmp_path / "adapter"
    shutil.copytree(first.adapter, place)
    pair, prompts = resolve_pair(base, place), tiny_models.prompts(6)
    with closing(Scorer(pair, **Cell("llama").engine_args())) as scorer:
        for made in (first, second, first):
            shutil.copytree(made.adapter, place, dirs_exist_ok=True)
            adapter = resolve_adapter(place, pair.pt)[0]
            asked = enumerate(Adapted(prompt, adapter) for prompt in prompts)
            found = torch.stack([norms for _, norms in scorer.stream(asked)])
            assert_close(found, (base, made.merged), prompts, "float32")


@pytest.mark.slow  # what generates is preempted in ``test_steering_matrix``
def test_preempted(base: str, adapter_of: Any) -> None:
    made = adapter_of(base, 20)
    args = Cell("llama").engine_args()
    assert_true_when_preempted((base, made.merged), "float32", args, resolve_pair(base, made.adapter))


@pytest.mark.slow
def test_a_light_adapter_is_measured(pair_dirs: Any, adapter_of: Any) -> None:
    """In bfloat16, with rows in float32 and without."""
    base, prompts = pair_dirs("llama", "bfloat16")[1], tiny_models.prompts(32, seed=3)
    made = adapter_of(base, 21, strength=0.002, dtype="bfloat16")
    truth = tuco(true_norms((base, made.merged), prompts))
    assert truth.mean() < 0.01
    errors = {}
    for row_dtype in ("auto", "model"):
        arguments = Cell("llama", dtype="bfloat16", chunk=48).engine_args()
        with closing(Scorer(resolve_pair(base, made.adapter), row_dtype=row_dtype, **arguments)) as scorer:
            assert scorer.row_dtype == {"auto": "float32", "model": "bfloat16"}[row_dtype]
            norms = torch.stack([norms for _, norms in scorer.stream(enumerate(prompts))])
        errors[row_dtype] = (tuco(norms) - truth).abs().mean()
    print(f"mean |dTuCo| of {truth.mean():.4f}: {errors}")
    assert errors["auto"] <= tolerances.WIDE_ROWS * errors["model"]


GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("name", families("gemma2"))
def test_adapters_and_alphas_mixed(name: str, pair_dirs: Any, adapter_of: Any) -> None:
    """Texts under two adapters, every alpha and range, scored and not, over shared prefixes; then again."""
    base = pair_dirs(name, "float32")[1]
    made = [adapter_of(base, 22), adapter_of(base, 23, r=16, strength=0.3)]
    prompts, alphas = steered.requests(20, longest=90)
    prompts += [prompts[1][:64] + prompt[:9] for prompt in prompts[:8]]
    alphas += alphas[4:12]
    places = [made[(n // 2) % 2] for n in range(len(prompts))]
    args = STEERED | {"max_loras": 2, "max_lora_rank": 16}
    with closing(TucoLLM(base, made[0].adapter, task="generate", **args)) as llm:
        loras = [None if each is made[0] else each.adapter for each in places]
        for scores in (True, False, True):
            outputs = llm.generate(prompts, GREEDY, alphas, scores=scores, lora=loras)
            for prompt, alpha, each, output in zip(prompts, alphas, places, outputs, strict=True):
                pair, completion = (base, each.merged), output.outputs[0]
                steered.assert_greedy(pair, prompt, alpha, completion.token_ids)
                if scores:
                    norms = completion.tuco_norms
                    steered.assert_scored(pair, prompt, alpha, completion.token_ids, norms)


def test_generating_engines_score_as_well(base: str, adapter_of: Any) -> None:
    """Responses, traces, OutputCo and rewards, under the pair's adapter and another."""
    made = [adapter_of(base, 24), adapter_of(base, 25)]
    with closing(TucoLLM(base, made[0].adapter, task="generate", **STEERED)) as llm:
        own = [resolve_adapter(each.adapter, llm.pair.pt)[0] for each in made]

        def under(adapter: Any) -> Any:
            return lambda items: llm._engine.stream((key, Adapted(asked, adapter)) for key, asked in items)

        for each, adapter in zip(made, own, strict=True):
            assert_responses_are_true(under(adapter), (base, each.merged), "float32")
            assert_own_streams_are_true(under(adapter), (base, each.merged), "float32")


def test_base_weights_exist_once(base: str, adapter_of: Any) -> None:
    """By storage: all tensors of an engine are those of vLLM's own model with its LoRA layers."""
    pair = resolve_pair(base, adapter_of(base, 26).adapter)
    with closing(Scorer(pair, **Cell("llama").engine_args())) as scorer:
        model = scorer.engine.model_executor.driver_worker.worker.get_model()
        whole, stock = _bytes(model), _bytes(model.ft)
    assert 0 < stock <= whole <= 1.01 * stock


def _bytes(model: torch.nn.Module) -> int:
    """Of all tensors that a model's modules hold, each storage once; attributes and tuples of them too."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple | list):
            for each in value:
                visit(each)
        elif isinstance(value, dict):
            visit(list(value.values()))

    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("kv_cache", "_modules"):
                visit(value)
    return sum(seen.values())
