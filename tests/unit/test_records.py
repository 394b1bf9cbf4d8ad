import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.records import (
    LAYERS,
    PART_GLOB,
    SCALARS,
    STATE,
    SUCCESS,
    TucoScore,
    numbers_of,
    output_schema,
    part_name,
)


def test_a_score_from_norms_takes_its_scalars_from_the_right_columns():
    # [L, 7]: |PTC|, |FTC|, |P|, |F|, then |P|_2, |F|_2 and the cosine, of two layers
    layers = [[1.0, 2.0, 1.0, 3.0, 0.5, 2.5, 0.1], [5.0, 6.0, 6.0, 2.0, 3.0, 1.0, -0.2]]
    score = TucoScore.from_norms(layers, 7)
    assert score.tuco == pytest.approx(2 / 8)
    assert score.preco == pytest.approx(6 / 8)
    assert (score.ptc_norm, score.ftc_norm) == (6.0, 2.0)
    assert score.beta_max == pytest.approx(3 / 4)  # of the first layer
    assert (score.ptc_norms, score.ftc_norms) == ([1.0, 5.0], [2.0, 6.0])
    assert (score.cum_ptc_norms, score.cum_ftc_norms) == ([1.0, 6.0], [3.0, 2.0])
    assert score.tuco_l2 == pytest.approx(1 / 4)
    assert score.path_tuco == pytest.approx(8 / 14)
    assert score.cancellation == pytest.approx(1 - 2 / 8)
    assert (score.cosine, score.cosines) == (-0.2, [0.1, -0.2])
    assert score.num_prompt_tokens == 7


def test_numbers_of_many_prompts_are_those_of_each():
    norms = np.random.default_rng(0).lognormal(0, 4, (50, 33, 7)).astype(np.float32)
    norms[0], norms[1, -1, 2:4], norms[2, -1, 6] = 0.0, np.inf, np.nan
    many = numbers_of(norms)
    assert [*many] == [*SCALARS, *LAYERS]
    for place, one in enumerate(norms):
        for name, value in numbers_of(one).items():
            assert np.array_equal(many[name][place], value, equal_nan=True)


def test_sums_are_as_exact_as_scores_are_read():
    for norms in np.random.default_rng(1).lognormal(0, 4, (50, 33, 7)).astype(np.float32).tolist():
        ptc, ftc, cum_ptc, cum_ftc, *_ = (list(column) for column in zip(*norms, strict=True))
        score = TucoScore.from_norms(norms, 1)
        assert score.tuco == cum_ftc[-1] / (cum_ptc[-1] + cum_ftc[-1])
        assert score.beta_max == max(f / (p + f) for p, f in zip(cum_ptc, cum_ftc, strict=True))
        path = math.fsum(ftc) / (math.fsum(ptc) + math.fsum(ftc))
        assert score.path_tuco == pytest.approx(path, rel=1e-15)
        assert score.cancellation == pytest.approx(1 - cum_ftc[-1] / math.fsum(ftc), rel=1e-15)
        numbers = [score.tuco, score.cosine, *score.ptc_norms, *score.cosines]
        assert {type(number) for number in numbers} == {float}


def test_a_model_that_changes_nothing_contributes_nothing():
    score = TucoScore.from_norms([[0.0] * 6 + [math.nan]], 1)
    assert (score.tuco, score.preco, score.beta_max) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("column", [2, 3])
def test_norms_that_are_not_finite_give_no_number(bad, column):
    """An overflow is no model that changes nothing."""
    fine, last = [1.0] * 7, [1.0] * 7
    last[column] = bad
    if bad is math.inf:
        last[3] = bad  # FTC is FT - PTC: where PTC is infinite, it is too
    score = TucoScore.from_norms([fine, last], 1)
    assert math.isnan(score.tuco)
    assert math.isnan(score.preco)
    assert math.isnan(score.beta_max)


def test_only_ids_are_never_null():
    assert [field.name for field in output_schema() if not field.nullable] == ["id"]


def test_an_output_directory_reads_as_one_table(tmp_path):
    for part in range(2):
        pq.write_table(pa.table({"id": [str(part)]}), tmp_path / part_name(part, "job"))
    (tmp_path / SUCCESS).write_text("")
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / "run.json").write_text("{}")
    assert pq.read_table(tmp_path)["id"].to_pylist() == ["0", "1"]
    assert len(list(tmp_path.glob(PART_GLOB))) == 2


def test_parts_by_name_are_in_the_order_of_units():
    names = [part_name(unit, "job") for unit in (0, 1, 9, 10, 99_999_999)]
    assert names == sorted(names)
