"""FT's own stream inside the scoring engine is stock vLLM's, bit for bit, up to its pruned last layer.

Two engines of this process, hooks on every FT attention and MLP. The last layer computes its R rows alone, so
there the comparison is of the final hidden row, within the tolerance.
"""

import json
import shutil
from pathlib import Path

import pytest
from ft_stream import assert_stream_is_stock, start

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize(
    ("pair_name", "dtype"),
    [
        ("llama", "float32"),
        ("mistral_windowed_ft", "float32"),
        ("qwen3", "float32"),
        ("llama", "bfloat16"),
        ("gemma2", "bfloat16"),
        pytest.param("granite", "bfloat16", marks=pytest.mark.slow),
        pytest.param("mistral_windowed_ft", "bfloat16", marks=pytest.mark.slow),
        pytest.param("qwen3", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_ft_stream_is_stock_vllm(pair_name: str, dtype: str, pair_dirs) -> None:
    assert_stream_is_stock(*pair_dirs(pair_name, dtype), dtype)


def test_pt_is_part_of_the_compile_key(pair_dirs, tmp_path: Path) -> None:
    """PT's eps is a constant of the compiled graph, and vLLM's cache key knows FT's config only."""
    pt, ft = pair_dirs("llama", "float32")
    changing = tmp_path / "pt"  # one path: a path alone may enter the key
    shutil.copytree(pt, changing)
    config = json.loads((changing / "config.json").read_text())
    keys = []
    for eps in (1e-5, 1e-5, 0.1):
        (changing / "config.json").write_text(json.dumps(config | {"rms_norm_eps": eps}))
        llm = start("tuco", str(changing), ft, "float32")
        keys.append(llm.llm_engine.vllm_config.compute_hash())
        llm.llm_engine.engine_core.shutdown()
    assert keys[0] == keys[1] != keys[2]
