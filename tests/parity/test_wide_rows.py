"""Rows in float32 beside a 16-bit model: that they are what they should be, and what they are for.

The second run itself is held to the oracle where its arithmetic can be: in a float32 model, which has no need
of it and is made to do it. In bfloat16 the stream, keys and values are rounded, so there the errors count.
"""

from contextlib import closing
from typing import Any

import pytest
import tiny_models
import tolerances
import torch
from cells import Cell
from scored import ScoringEngine
from truth import assert_close, true_norms, tuco

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine import pair_model
from tuco_vllm.engine.scorer import Scorer
from tuco_vllm.families import FAMILIES

IN_MAKE_TEST = ("qwen3", "gemma2")
"""Norms of q; a window, four norms, soft-caps and (1 + w). The others are slow: an engine each."""

FAMILY_PAIRS = [
    pytest.param(family.pair, marks=() if family.pair in IN_MAKE_TEST else pytest.mark.slow)
    for family in FAMILIES.values()
    if family.float32_rows
]
ENGINE = {"enforce_eager": True, "max_model_len": tiny_models.MAX_LEN, "kv_cache_memory_bytes": 64 << 20}


def prompts_in_rounds() -> list[list[list[int]]]:
    """Cold, warm, then prefixes that are shared."""
    prompts = tiny_models.prompts(10)
    stem = max(prompts, key=len)
    return [prompts, prompts, [stem[:cut] + prompts[3][:40] for cut in (31, 32, 33, 64)]]


@pytest.fixture
def made_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this process run FT's rows again, whatever their dtype."""
    monkeypatch.setattr(pair_model, "rows_are_wide", lambda *_: True)


@pytest.mark.usefixtures("in_process", "made_wide")
@pytest.mark.parametrize("name", FAMILY_PAIRS)
def test_the_second_run_is_the_oracles(name: str, pair_dirs) -> None:
    pair = pair_dirs(name, "float32")
    engine = ScoringEngine(pair, "float32", Cell(name, chunk=48).engine_args())
    with closing(engine.scorer):
        for prompts in prompts_in_rounds():
            engine.check(prompts)


@pytest.mark.usefixtures("in_process", "made_wide")
def test_it_reads_the_first_runs_keys_and_values(pair_dirs, monkeypatch) -> None:
    """Had it a cache of its own, which nobody writes, scores would be far off: seen by giving it PT's."""
    from tuco_vllm.engine import stock_layers

    share = stock_layers.sharing_cache

    def share_with_pt(attn: Any, vllm_config: Any) -> Any:
        shared = share(attn, vllm_config)
        name = attn.layer_name.replace("ft.", "pt.")
        shared.kv_sharing_target_layer_name = shared.impl.kv_sharing_target_layer_name = name
        return shared

    monkeypatch.setattr(stock_layers, "sharing_cache", share_with_pt)
    pair = pair_dirs("llama", "float32")
    engine = ScoringEngine(pair, "float32", Cell("llama").engine_args())
    with closing(engine.scorer):
        prompts = tiny_models.prompts(6)
        with pytest.raises(AssertionError, match="worst"):
            assert_close(engine.norms(prompts), pair, prompts, "float32")


@pytest.fixture(scope="module")
def light_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """bfloat16 directories of a pair whose FT is PT and a little noise: TuCo is below 0.01."""
    root = tmp_path_factory.mktemp("light")
    cls, extra, _ = tiny_models.PAIRS["llama"]
    config = {**tiny_models.SHAPE, **extra, "vocab_size": tiny_models.FT_VOCAB}
    model = tiny_models.random_model(cls, config, seed=1).to(torch.bfloat16)
    model.save_pretrained(root / "pt")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.float().parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.003 * parameter.std() * noise)
    model.to(torch.bfloat16).save_pretrained(root / "ft")
    return str(root / "pt"), str(root / "ft")


@pytest.mark.usefixtures("in_process")
def test_a_light_fine_tune_is_measured(light_pair) -> None:
    prompts = tiny_models.prompts(32, seed=3)
    truth = tuco(true_norms(light_pair, prompts))
    assert truth.mean() < 0.01
    errors = {}
    for row_dtype in ("auto", "model"):
        arguments = Cell("llama", dtype="bfloat16", chunk=48).engine_args()
        scorer = Scorer(resolve_pair(*light_pair), row_dtype=row_dtype, **arguments)
        with closing(scorer):
            assert scorer.row_dtype == {"auto": "float32", "model": "bfloat16"}[row_dtype]
            norms = torch.stack([norms for _, norms in scorer.stream(enumerate(prompts))])
        errors[row_dtype] = (tuco(norms) - truth).abs().mean()
    print(f"mean |dTuCo|: {errors}")
    assert errors["auto"] <= tolerances.WIDE_ROWS * errors["model"]


@pytest.mark.usefixtures("in_process")
def test_experts_stay_in_the_models_dtype(pair_dirs) -> None:
    scorer = Scorer(resolve_pair(*pair_dirs("mixtral", "bfloat16")), **ENGINE)
    with closing(scorer):
        assert scorer.row_dtype == "bfloat16"
