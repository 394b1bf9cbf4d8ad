"""Engine arguments: a pair's dtype, and how several engines of a machine without a GPU share it."""

import os

import engines
import pytest
from vllm.usage.usage_lib import UsageContext

from tuco_vllm.config import Checkpoint, ModelPair, resolve_pair
from tuco_vllm.engine import arguments

BIND = "VLLM_CPU_OMP_THREADS_BIND"
SHAPE = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def cores(monkeypatch):
    """Eight cores, 40 GiB free, and nothing said about either."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(arguments, "_free_memory", lambda: 40 << 30)
    monkeypatch.setattr(arguments.current_platform, "is_cpu", lambda: True)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setenv(BIND, "")  # so that it is put back
    monkeypatch.delenv(BIND)


@pytest.mark.parametrize(
    ("place", "engines", "ranks", "bound"),
    [(0, 2, 1, "0,2,4,6"), (1, 3, 1, "1,4,7"), (1, 2, 2, "1,5|3,7"), (9, 20, 1, "0,1,2,3,4,5,6,7")],
)
def test_each_engine_takes_its_share(cores, place, engines, ranks, bound):
    given = {"tensor_parallel_size": ranks, "dtype": "float32"}
    shared = arguments.share_cpu(place, engines, given)
    assert os.environ[BIND] == bound
    assert shared == {"kv_cache_memory_bytes": max((40 << 30) // (4 * engines), 1 << 30), **given}


def test_one_engine_keeps_vllms_own_choice_and_what_is_said_stands(cores, monkeypatch):
    assert arguments.share_cpu(0, 1, {"dtype": "auto"}) == {"dtype": "auto"}
    assert BIND not in os.environ
    monkeypatch.setenv(BIND, "5")
    assert arguments.share_cpu(0, 2, {"kv_cache_memory_bytes": 7})["kv_cache_memory_bytes"] == 7
    assert os.environ[BIND] == "5"


@pytest.mark.parametrize(
    ("stated", "asked", "dtype"),
    [
        ({"dtype": "float32"}, {}, "bfloat16"),
        ({"torch_dtype": "float32"}, {"dtype": "auto"}, "bfloat16"),
        ({"dtype": "float32"}, {"dtype": "float32"}, "float32"),
        ({"dtype": "float16"}, {}, "auto"),
        ({}, {}, "auto"),
    ],
)
def test_scores_of_float32_checkpoints_are_not_float16s(monkeypatch, tmp_path, stated, asked, dtype):
    monkeypatch.setattr(arguments.current_platform, "is_cpu", lambda: False)  # nothing is bound or reserved
    ft = Checkpoint("ft", tmp_path, stated)
    assert arguments.pair_arguments(ModelPair(ft, ft), "pooling", asked).dtype == dtype


def test_vllm_loads_the_plugin_also_where_others_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    ft = Checkpoint("ft", tmp_path, {})
    arguments.pair_arguments(ModelPair(ft, ft), "pooling", {})
    assert os.environ["VLLM_PLUGINS"] == "another,tuco"


@pytest.mark.parametrize(
    ("tokens", "given", "on_cpu", "eager", "words"),
    [
        (1_000, {}, True, True, "eager: about 1,000 tokens are left and compiling pays from"),
        (10**9, {}, True, None, "compiled: about 1,000,000,000 tokens are left"),
        (10**9, {"enforce_eager": True}, True, True, "eager, as asked"),
        (1_000, {}, False, None, ""),
        (None, {}, True, None, ""),
    ],
)
def test_few_tokens_are_not_worth_compiling_for(monkeypatch, tmp_path, tokens, given, on_cpu, eager, words):
    monkeypatch.setattr(arguments.current_platform, "is_cpu", lambda: on_cpu)
    ft = Checkpoint("ft", tmp_path, {**SHAPE, "hidden_size": 64})
    chosen, choice = arguments.eager_or_compiled(ModelPair(ft, ft), given, tokens)
    assert chosen.get("enforce_eager") is eager
    assert choice.startswith(words)
    assert bool(choice) == bool(words)


def test_wide_models_are_compiled_for_fewer_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(arguments.current_platform, "is_cpu", lambda: True)
    modes = []
    for width in (64, 4096):
        ft = Checkpoint("ft", tmp_path, {**SHAPE, "hidden_size": width})
        modes.append(arguments.eager_or_compiled(ModelPair(ft, ft), {}, 10**6)[1].partition(":")[0])
    assert modes == ["eager", "compiled"]


@pytest.fixture
def steps(monkeypatch, pair_dirs):
    """(tokens, prompts) of a step as vLLM settles them, of what the user gave, on a described platform."""
    pair = resolve_pair(*pair_dirs("llama", "float32"))

    def settle(runner: str, on_gpu: bool, **given) -> tuple[int, int]:
        monkeypatch.setattr(arguments.current_platform, "is_cuda_alike", lambda: on_gpu)
        made = arguments.pair_arguments(pair, runner, given)
        with engines.only_configured():
            scheduling = made.create_engine_config(UsageContext.ENGINE_CONTEXT).scheduler_config
        return scheduling.max_num_batched_tokens, scheduling.max_num_seqs

    return settle


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, (32768, 1024)),
        ({"max_num_batched_tokens": 4096}, (4096, 1024)),
        ({"max_num_seqs": 2048}, (32768, 2048)),
        ({"max_num_batched_tokens": 8192, "max_num_seqs": 7}, (8192, 7)),
        # What vLLM fits to the rest: never more prompts than tokens, nor tokens than the prompts can have.
        ({"max_num_batched_tokens": 48}, (48, 48)),
        ({"max_num_seqs": 1}, (64, 1)),
    ],
)
def test_an_engine_that_scores_on_a_gpu_takes_large_steps(steps, given, settled):
    assert steps("pooling", True, max_model_len=64, **given) == settled


def test_other_engines_steps_are_vllms(steps):
    assert steps("pooling", False, max_model_len=64) == (2048, 128)
    assert steps("generate", True, max_model_len=64) == (2048, 128)
