"""The cells that ``make test`` runs are what they are called: a pairwise cover."""

from itertools import combinations

from cells import COVER, product


def settings(cell):
    """What a cell sets, by name; variants of a family (llama_mha) count as it."""
    family = cell.pair.partition("_")[0]
    chunked = cell.chunk is not None
    return {"family": family, "compiled": cell.compiled, "dtype": cell.dtype, "chunked": chunked} | {
        "tensor_parallel": cell.tensor_parallel
    }


def pairs(cells):
    return {pair for cell in cells for pair in combinations(sorted(settings(cell).items()), 2)}


def test_every_two_settings_meet_in_a_cell():
    wanted = pairs(cell for cell in product() if cell.dtype != "float16")
    assert wanted - pairs(COVER) == set()


def test_the_product_holds_the_cover():
    assert set(COVER) <= set(product())
