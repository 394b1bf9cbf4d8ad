"""Engine options under which scores would be wrong are refused by name, before weights load."""

from types import SimpleNamespace

import pytest
import torch

from tuco_vllm.engine.pair_config import refuse_unsupported


def config(**changes):
    """A configuration that is fine but for ``changes``, "part.field" each."""
    parts = {
        "parallel_config": {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1},
        "model_config": {"runner_type": "pooling", "enforce_eager": True, "dtype": torch.float32},
        "compilation_config": {"cudagraph_mode": None},
        "cache_config": {"cache_dtype": "auto", "kv_sharing_fast_prefill": False},
        "load_config": {"load_format": "auto"},
    }
    names = ("speculative_config", "quant_config", "lora_config", "kv_transfer_config")
    for place, value in changes.items():
        part, _, field = place.partition(".")
        parts[part][field] = value
    return SimpleNamespace(
        **{name: SimpleNamespace(**fields) for name, fields in parts.items()}, **dict.fromkeys(names)
    )


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism"),
        # Their loaders read FT's weights only: PT's would stay whatever memory held.
        ("load_config.load_format", "runai_streamer", "load_format runai_streamer"),
        ("load_config.load_format", "pt", "load_format pt"),
        ("cache_config.cache_dtype", "fp8", "kv_cache_dtype fp8"),
        ("model_config.dtype", torch.float64, "dtype"),
    ],
)
def test_what_would_be_wrong_is_refused(place, value, named):
    with pytest.raises(ValueError, match=named):
        refuse_unsupported(config(**{place: value}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"load_config.load_format": "dummy"}, {"cache_config.cache_dtype": "bfloat16"}],
)
def test_what_works_is_not(changes):
    refuse_unsupported(config(**changes))
