"""Engine options under which scores would be wrong are refused by name, before weights load.

The configurations are vLLM's own, as its engine makes them: an option that moves there is missed here.
"""

from dataclasses import is_dataclass, replace
from typing import Any

import engines
import pytest

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.arguments import pair_arguments
from tuco_vllm.engine.compat import CUDAGraphMode
from tuco_vllm.engine.pair_config import configure, refuse_unsupported, rows_are_wide
from tuco_vllm.families import FAMILIES


@pytest.fixture(scope="module")
def configured(pair_dirs):
    """vLLM's configuration of an engine of a pair, which asks ``configure``."""
    pair = resolve_pair(*pair_dirs("llama", "float32"))

    def configure(runner: str = "generate", **options: Any) -> Any:
        arguments = replace(pair_arguments(pair, runner, {}), max_model_len=64, **options)
        with engines.only_configured():
            return arguments.create_engine_config()

    return configure


NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
DRAFTS = {"method": "ngram_gpu", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
DECODE_RANKS = {"tensor_parallel_size": 2, "decode_context_parallel_size": 2}
KV_TRANSFER = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"quantization": "fp8"}, "quantization"),
        (DECODE_RANKS, "decode context parallelism"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism"),
        ({"tensor_parallel_size": 2, "enable_expert_parallel": True}, "expert parallelism"),
        ({"enable_dbo": True}, "micro-batching"),
        ({"enable_batch_sharded_sampling": True}, "batch-sharded sampling"),
        ({"enable_lora": True}, "LoRA"),
        ({"kv_transfer_config": KV_TRANSFER}, "KV transfer"),
        ({"watermark_config": {"key": 1}}, "watermarking"),
        ({"enable_return_routed_experts": True}, "enable_return_routed_experts"),
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        # Their loaders read FT's weights only: PT's would stay whatever memory held.
        ({"load_format": "runai_streamer"}, "load_format runai_streamer"),
        ({"load_format": "pt"}, "load_format pt"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype fp8"),
        ({"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        ({"speculative_config": DRAFTS}, "speculative decoding other than ngram"),
        ({"runner": "pooling", "speculative_config": NGRAM}, "speculative decoding"),
        # vLLM picks the code of a range by a size that may be our rows' and not the tokens'.
        ({"compilation_config": {"compile_sizes": [8]}}, "compile_sizes"),
        ({"runner": "pooling", "compilation_config": {"compile_ranges_endpoints": [16]}}, "compile_ranges"),
        ({"compilation_config": {"pass_config": {"fuse_allreduce_rms": True}}}, "fuse_allreduce_rms"),
    ],
)
def test_what_would_be_wrong_is_refused(configured, option, named):
    with pytest.raises(ValueError, match=f"TucoForCausalLM does not support .*{named}"):
        refuse_unsupported(
            configured(**option)
        )  # asked again where a model is built: by then vLLM knows more


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"runner": "pooling"},
        {"load_format": "dummy"},
        {"kv_cache_dtype": "bfloat16"},
        {"speculative_config": NGRAM},
    ],
)
def test_what_works_is_not(configured, option):
    configured(**option)


@pytest.mark.parametrize("runner", ["pooling", "generate"])
def test_compiled_code_has_one_range_and_no_fusion_that_adds_one(configured, runner):
    config = configured(runner)
    compilation, most = config.compilation_config, config.scheduler_config.max_num_batched_tokens
    assert compilation.compile_ranges_endpoints == [most]
    assert not compilation.compile_sizes
    assert compilation.pass_config.fuse_allreduce_rms is False


@pytest.mark.parametrize(
    ("runner", "given", "mode"),
    [
        ("pooling", None, CUDAGraphMode.NONE),
        ("pooling", "PIECEWISE", CUDAGraphMode.PIECEWISE),
        ("generate", None, None),
        ("generate", "NONE", CUDAGraphMode.NONE),
    ],
)
def test_an_engine_that_scores_captures_no_graphs_unless_it_is_told_to(configured, runner, given, mode):
    config = configured(runner)
    compilation = config.compilation_config
    compilation.cudagraph_mode = None if given is None else CUDAGraphMode[given]  # as where vLLM asks us
    config.scheduler_config.scheduler_cls, config.parallel_config.worker_cls = None, "auto"
    configure(config)
    assert compilation.cudagraph_mode == mode


class Config:
    """``real`` without the attribute at the path ``missing``; ``read`` has the paths that were looked at."""

    def __init__(self, real: Any, missing: str | None = None, path: str = "", read: Any = None) -> None:
        self.real, self.missing, self.path = real, missing, path
        self.read: list[str] = [] if read is None else read

    def __getattr__(self, name: str) -> Any:
        path = f"{self.path}.{name}".lstrip(".")
        self.read.append(path)
        if path == self.missing:
            raise AttributeError(f"{type(self.real).__name__} has no attribute {name}")
        value = getattr(self.real, name)
        return Config(value, self.missing, path, self.read) if is_dataclass(value) else value


def test_a_name_that_moved_ends_the_start_not_the_refusal(configured):
    config = configured()
    whole = Config(config)
    refuse_unsupported(whole)
    assert "parallel_config.use_ubatching" in whole.read
    assert "aux_output_config.enable_return_routed_experts" in whole.read
    for path in dict.fromkeys(whole.read):
        with pytest.raises(AttributeError, match=f"has no attribute {path.rpartition('.')[2]}$"):
            refuse_unsupported(Config(config, path))


ROWS = [
    # family, runner, dtype, what was asked, whether the rows are float32 beside a 16-bit model
    ("Llama", "pooling", "bfloat16", "auto", True),
    ("Llama", "pooling", "float16", "float32", True),
    ("Llama", "pooling", "bfloat16", "model", False),
    ("Llama", "pooling", "float32", "auto", False),
    ("Llama", "pooling", "float32", "float32", False),
    ("Llama", "generate", "bfloat16", "auto", False),
    ("Mixtral", "pooling", "bfloat16", "auto", False),
    ("Mixtral", "pooling", "float32", "float32", False),
    ("Llama", "generate", "bfloat16", "float32", "rows of an engine that generates are the model's dtype"),
    ("Mixtral", "pooling", "bfloat16", "float32", "rows of Mixtral are the model's dtype"),
    (
        "Llama",
        "pooling",
        "bfloat16",
        "float64",
        "tuco_row_dtype is 'float64': it must be one of auto, float32",
    ),
]


@pytest.mark.parametrize(("family", "runner", "dtype", "asked", "wide"), ROWS)
def test_which_rows_are_float32(configured, family, runner, dtype, asked, wide):
    config = configured(runner, dtype=dtype)
    config.model_config.hf_config.tuco_row_dtype = asked
    row = FAMILIES[f"{family}ForCausalLM"]
    if isinstance(wide, bool):
        assert rows_are_wide(config, row) == wide
        return
    with pytest.raises(ValueError, match=wide):
        rows_are_wide(config, row)
