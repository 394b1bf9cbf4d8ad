"""Alpha and scores as a request states them: what is taken, what is refused, what the cache key says."""

import json
import math

import numpy as np
import pytest

from tuco_vllm.errors import InputError
from tuco_vllm.steering import PLAIN, Steering, parse_alpha, parse_tuco, steering_of


@pytest.mark.parametrize("value", [0, 1, 0.25, 2, 2.0, 1e-300])
def test_numbers_in_range_are_taken(value):
    assert parse_alpha(value) == value
    assert isinstance(parse_alpha(value), float)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -0.1, 2.01, "1", "", True, False, [1], {}, None, 10**400, 1 + 0j]
    + [json.loads(text) for text in ("1e999", "-1e999", "NaN", "-Infinity")],
)
def test_everything_else_is_refused_by_name(value):
    with pytest.raises(InputError, match=r"^alpha must be a number from 0 to 2, not "):
        parse_alpha(value)


@pytest.mark.parametrize(
    ("value", "bound", "message"),
    [
        (2.0000000001, 2.0, "from 0 to 2, not 2.0000000001"),
        (2.00000001, 2.000000001, "from 0 to 2.000000001, not 2.00000001"),
        (np.float64(2.5), 2.0, "from 0 to 2, not 2.5"),
        ("1", 2.0, "from 0 to 2, not '1'"),
        (10**400, 2.0, f"from 0 to 2, not {10**400!s:.40}"),
    ],
)
def test_a_refusal_shows_what_is_too_much(value, bound, message):
    with pytest.raises(InputError, match=f"{message}$"):
        parse_alpha(value, bound)


def test_minus_zero_is_zero():
    assert math.copysign(1.0, parse_alpha(-0.0)) == 1.0


def test_the_bound_can_be_raised_but_not_to_infinity():
    assert parse_alpha(5, max_alpha=8) == 5.0
    with pytest.raises(InputError, match="finite"):
        steering_of({"alpha": math.inf}, max_alpha=math.inf)


@pytest.mark.parametrize(("value", "wanted"), [(True, True), ("layers", True), (False, False), (None, False)])
def test_tuco_values(value, wanted):
    assert parse_tuco(value) is wanted


@pytest.mark.parametrize("value", [1, 0, "yes", "Layers", "", [], {}, 1.0])
def test_other_tuco_values_are_refused(value):
    with pytest.raises(InputError, match=r"^tuco must be true, false or"):
        parse_tuco(value)


def test_extra_args():
    assert steering_of(None) is PLAIN
    assert steering_of({"kv_transfer_params": {}}) is PLAIN
    assert steering_of({"alpha": 1, "tuco": False}) == PLAIN
    assert steering_of({"alpha": 0.5, "tuco": "layers"}) == Steering(0.5, True)


def test_the_cache_key_tells_alpha_and_whether_pt_was_written():
    kinds = [Steering(), Steering(1.0, True), Steering(0.5), Steering(0.5000000001), Steering(0.0)]
    salts = {kind.cache_salt(user) for kind in kinds for user in (None, "a")}
    assert len(salts) == 10
    assert Steering(0.5).cache_salt(None) == Steering(0.5, True).cache_salt(None)  # same K and V: shared
