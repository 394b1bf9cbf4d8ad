"""What engines of adapters are made of: LoRA on a CPU, slots of rows, refusals, names of a server."""

import os
import shutil
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import engines
import pytest
import tiny_models
import tolerances
import torch
from tiny_adapters import LAYERS, Made, make_adapter
from truth import norm_errors
from vllm.lora.ops.torch_ops import bgmv_expand

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.adapter_requests import AdapterRequests, adapter_arguments, routed
from tuco_vllm.engine.adapter_rows import RowSlots
from tuco_vllm.engine.adapter_runner import _add_by_adapter
from tuco_vllm.engine.arguments import pair_arguments
from tuco_vllm.engine.scheduler import expect_rows_fit
from tuco_vllm.engine.served_adapters import ServedAdapters, add_adapters
from tuco_vllm.errors import InputError
from tuco_vllm.oracle import Oracle
from tuco_vllm.score_requests import Adapted, ScoredTokens
from tuco_vllm.steering import FT_STREAM, PT_STREAM, Asked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def base(pair_dirs) -> str:
    return pair_dirs("llama", "float32")[1]


@pytest.fixture(scope="module")
def made(base, tmp_path_factory) -> Made:
    return make_adapter(base, tmp_path_factory.mktemp("one"), 7)


@pytest.fixture(scope="module")
def pair(base, made) -> Any:
    return resolve_pair(base, made.adapter)


def test_vllm_still_gives_a_token_without_an_adapter_the_last_one() -> None:
    """Where this fails, vLLM has mended it: ``mend_on_cpu`` need not give embedding and head a slot more."""
    out, slots = torch.zeros(1, 3), torch.arange(12.0).view(2, 3, 2)
    bgmv_expand(torch.ones(1, 2), slots, out, torch.tensor([-1]), True)
    assert torch.equal(out[0], slots[1].sum(-1))


@pytest.mark.parametrize("slots", [[0] * 5, [1, 1, -1, 0, 0], [0, 1, 0, -1, 1], [-1] * 5, [2, 0, 0, 0, 2]])
def test_products_are_each_tokens_own(slots: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, y, sizes = random(5, 6), random(5, 7), (4, 3)
    a = tuple(random(3, 1, 2, 6) for _ in sizes)
    b = tuple(random(3, 1, size, 2) for size in sizes)
    mapping = SimpleNamespace(token_lora_indices=torch.tensor(slots), no_lora=all(slot < 0 for slot in slots))
    expected = y.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            shares = [2.0 * b_[slot, 0] @ (a_[slot, 0] @ x[token]) for a_, b_ in zip(a, b, strict=True)]
            expected[token] += torch.cat(shares)
    _add_by_adapter(mapping, y, x, a, b, 2.0, sizes, add_inputs=True)
    torch.testing.assert_close(y, expected)


def test_rows_get_their_own_adapters_product() -> None:
    x, a, b = torch.randn(4, 6), torch.randn(3, 2, 6), torch.randn(3, 5, 2)
    slots = RowSlots(8, "cpu")
    of_tokens = torch.tensor([2, 2, -1, 0, 1])
    slots.set(of_tokens, torch.tensor([1, 2, 3, 4]))
    expected = [b[2] @ (a[2] @ x[0]), torch.zeros(5), b[0] @ (a[0] @ x[2]), b[1] @ (a[1] @ x[3])]
    torch.testing.assert_close(slots.product(x, a, b), torch.stack(expected))


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        ({}, 1),
        ({"use_rslora": True, "target_modules": ["q_proj", "embed_tokens"]}, 2),
        ({"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"layers.1.mlp.up_proj": 5}}, 3),
    ],
)
def test_the_reference_puts_adapters_on_as_peft_merges_them(base, tmp_path, config, seed) -> None:
    made = make_adapter(base, tmp_path, seed, **{"target_modules": LAYERS, **config})
    adapter = resolve_pair(base, made.adapter).ft.adapter
    prompts = tiny_models.prompts(4, longest=40)
    found, merged = (
        Oracle(base, ft, adapter=own).norms(prompts) for ft, own in ((base, adapter), (made.merged, None))
    )
    assert norm_errors(found, merged).max() <= tolerances.NORMS_FLOAT32  # merged weights are held in float32


@pytest.mark.parametrize(
    ("runner", "option", "named"),
    [
        ("pooling", {"enable_lora": False}, "enable-lora"),
        ("generate", {"enable_lora": False}, "enable-lora"),
        ("pooling", {"fully_sharded_loras": True}, "fully_sharded_loras"),
        ("generate", {"lora_target_modules": ["q_proj"]}, "target_modules"),
        ("pooling", {"pipeline_parallel_size": 2}, "pipeline parallelism"),
    ],
)
def test_options_that_adapters_do_not_go_with(pair, runner, option, named) -> None:
    arguments = replace(pair_arguments(pair, runner, {}), max_model_len=64, **option)
    with engines.only_configured(), pytest.raises(ValueError, match=named):
        arguments.create_engine_config()


def test_an_engine_is_made_for_the_adapters_rank(base, tmp_path) -> None:
    pair = resolve_pair(base, make_adapter(base, tmp_path, 8, r=9).adapter)
    assert adapter_arguments(pair) == {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16}
    assert adapter_arguments(resolve_pair(base, base)) == {}
    with pytest.raises(InputError, match="max_lora_rank=16"):
        AdapterRequests(SimpleNamespace(max_lora_rank=8)).of(pair.ft.adapter)


def test_an_adapter_is_known_by_its_content(pair, base, tmp_path) -> None:
    known = AdapterRequests(SimpleNamespace(max_lora_rank=64))
    first, again = known.of(pair.ft.adapter), known.of(resolve_pair(base, pair.ft.source).ft.adapter)
    other = known.of(resolve_pair(base, make_adapter(base, tmp_path, 9).adapter).ft.adapter)
    assert first is again
    assert (first.lora_int_id, other.lora_int_id) == (1, 2)
    assert first.lora_name != other.lora_name
    assert known.of(None) is None


def test_pts_own_stream_is_the_base_without_an_adapter(pair) -> None:
    adapter = pair.ft.adapter
    of_pt = ScoredTokens([1, 2], Asked(1, 1, (5,), stream=PT_STREAM))
    on_ft = ScoredTokens([1, 2], Asked(1, 1, (5,), stream=FT_STREAM))
    assert routed(of_pt, adapter) == (on_ft, None)
    assert routed(of_pt, None) == (of_pt, None)
    assert routed(Adapted(of_pt, adapter), None) == (on_ft, None)
    assert routed(Adapted([1], adapter), None) == ([1], adapter)
    assert routed(on_ft, adapter) == (on_ft, adapter)


def test_rows_of_a_stream_that_an_engine_of_adapters_has_not() -> None:
    request: Any = SimpleNamespace(num_prompt_tokens=3, sampling_params=SimpleNamespace(max_tokens=1))
    expect_rows_fit(request, Asked(1, 2), has_adapters=True)
    expect_rows_fit(request, Asked(1, 2, stream=PT_STREAM))
    with pytest.raises(InputError, match="stream pt"):
        expect_rows_fit(request, Asked(1, 2, stream=PT_STREAM), has_adapters=True)


def flags(**given: Any) -> Namespace:
    defaults = {
        "lora_modules": None,
        "speculative_config": None,
        "enable_lora": False,
        "max_lora_rank": 16,
        "max_loras": 1,
    }
    return Namespace(**{**defaults, "served_model_name": None, **given})


def test_a_servers_adapters(pair, base, tmp_path) -> None:
    wide = make_adapter(base, tmp_path, 10, r=20).adapter
    named = replace(pair, ft=replace(pair.ft, name="mine"))
    arguments = flags(lora_modules=[SimpleNamespace(name="wide", path=wide)])
    add_adapters(arguments, named, ["base"])
    assert [(module.name, module.path) for module in arguments.lora_modules] == [
        ("mine", str(pair.ft.adapter.directory)),
        ("wide", wide),
    ]
    assert (arguments.enable_lora, arguments.max_loras, arguments.max_lora_rank) == (True, 2, 32)
    assert arguments.served_model_name == ["base"]


@pytest.mark.parametrize(("name", "path", "why"), [("mine", None, "taken"), ("base", None, "taken")])
def test_a_servers_names_are_one_each(pair, made, name, path, why) -> None:
    named = replace(pair, ft=replace(pair.ft, name="mine"))
    modules = [SimpleNamespace(name=name, path=path or made.adapter)]
    with pytest.raises(InputError, match=why):
        add_adapters(flags(lora_modules=modules), named, ["base"])


def test_a_base_and_an_adapter_of_one_name(pair) -> None:
    """As two directories may have; the mend that is named is one."""
    named = replace(pair, ft=replace(pair.ft, name="base"))
    with pytest.raises(InputError, match="--served-model-name"):
        add_adapters(flags(), named, ["base"])
    arguments = flags(served_model_name=["other"])
    add_adapters(arguments, named, ["base"])
    assert arguments.served_model_name == ["other"]


def test_a_servers_adapters_are_checked(pair, base) -> None:
    with pytest.raises(InputError, match="is no adapter"):
        add_adapters(flags(lora_modules=[SimpleNamespace(name="x", path=base)]), pair, ["base"])


def test_names_of_served_adapters(made) -> None:
    requests = {"mine": SimpleNamespace(lora_path=made.adapter)}
    served = ServedAdapters(requests)
    assert "mine" in served
    assert "base" not in served
    assert served.request("base") is None
    assert served.adapter("base") is None
    assert served.adapter("mine").rank == 8


def test_files_that_change_behind_an_adapters_name(base, made, tmp_path) -> None:
    """vLLM may read an adapter again: then it must still be the one whose keys and values are cached."""
    place = tmp_path / "adapter"
    shutil.copytree(made.adapter, place)
    known, adapter = AdapterRequests(SimpleNamespace(max_lora_rank=64)), resolve_pair(base, place).ft.adapter
    first = known.of(adapter)
    os.utime(place / "adapter_model.safetensors", (1, 1))
    assert known.of(adapter) is first
    shutil.copytree(make_adapter(base, tmp_path / "new", 11).adapter, place, dirs_exist_ok=True)
    with pytest.raises(InputError, match="have changed"):
        known.of(adapter)


def test_an_adapter_that_is_not_finite_stays_with_its_own_rows() -> None:
    x, a, b = torch.randn(2, 6), torch.randn(2, 2, 6), torch.randn(2, 5, 2)
    b[0] = torch.nan
    slots = RowSlots(8, "cpu")
    slots.set(torch.tensor([0, 1]), torch.tensor([0, 1]))
    found = slots.product(x, a, b)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], b[1] @ (a[1] @ x[1]))


def test_an_adapted_head_and_drafts(base, tmp_path) -> None:
    adapter = resolve_pair(
        base, make_adapter(base, tmp_path, 12, target_modules=["lm_head"]).adapter
    ).ft.adapter
    AdapterRequests(SimpleNamespace(max_lora_rank=8)).of(adapter)
    with pytest.raises(InputError, match="speculative"):
        AdapterRequests(SimpleNamespace(max_lora_rank=8), speculates=True).of(adapter)


def test_a_server_takes_no_adapter_that_nobody_has_checked(pair, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    with pytest.raises(InputError, match="--lora-modules"):
        add_adapters(flags(), pair, ["base"])
