"""The cells of ``make test`` and of ``make test-full`` are what they are called: pairwise covers."""

from itertools import combinations
from itertools import product as product_of

import pytest
import tiny_models
from cells import COVER, EAGER, QUICK, SLOW, Cell, product

FAMILIES = {"llama", "mistral", "gemma2"}
"""Those of ``COVER``: two norms; a window; four norms, windows on some layers."""


def settings(cell, **more):
    return {
        "compiled": cell.compiled,
        "dtype": cell.dtype,
        "chunked": cell.chunk is not None,
        "tensor_parallel": cell.tensor_parallel,
        **more,
    }


def met(settings_of_cells):
    return {pair for each in settings_of_cells for pair in combinations(sorted(each.items()), 2)}


def combined():
    """Llama's whole product: what can meet."""
    return [settings(cell) for cell in product() if cell.pair == "llama" and cell.dtype != "float16"]


def test_every_two_settings_meet_in_a_cell():
    """Variants of a family (llama_mha) count as it."""
    families = {cell.pair.partition("_")[0] for cell in COVER}
    assert families == FAMILIES
    wanted = met({**each, "family": family} for each in combined() for family in families)
    assert wanted == met(settings(cell, family=cell.pair.partition("_")[0]) for cell in COVER)


@pytest.mark.parametrize("pair", tiny_models.PAIRS)
def test_every_two_settings_meet_for_every_pair(pair):
    assert met(combined()) <= met(settings(cell) for cell in product() if cell.pair == pair)


def test_what_make_test_runs_has_every_setting_and_all_families_eager_in_both_dtypes():
    daily = [cell for cell in [*COVER, *EAGER] if cell not in SLOW]
    for name, values in settings(Cell("llama")).items():
        assert {settings(cell)[name] for cell in daily} > {values}
    eager = {(cell.pair.partition("_")[0], cell.dtype) for cell in daily if not cell.compiled}
    assert eager == set(product_of(FAMILIES, ("float32", "bfloat16")))
    assert QUICK in daily


def test_llamas_product_is_whole():
    assert len({cell for cell in product() if cell.pair == "llama" and cell.chunk in (None, 48)}) == 16


def test_the_product_holds_the_cover():
    assert {*COVER, *EAGER} <= set(product())
    assert set(SLOW) <= set(COVER)


def test_no_cell_is_run_twice():
    assert len(set(product())) == len(product())
    assert Cell("llama") in product()
