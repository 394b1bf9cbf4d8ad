"""Alpha and scores as a request states them: what is taken, what is refused, what the cache key says."""

import json
import math

import numpy as np
import pytest

from tuco_vllm.errors import InputError
from tuco_vllm.steering import (
    ALPHA_LAYERS,
    ANY_NUMBER,
    PLAIN,
    Layers,
    Limits,
    Scale,
    Steering,
    parse_alpha,
    parse_scale,
    parse_tuco,
    steering_of,
)

SIX = Limits(num_layers=6)


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
        parse_alpha(value, Limits(highest=bound))


def test_minus_zero_is_zero():
    assert math.copysign(1.0, parse_alpha(-0.0)) == 1.0


def test_the_bounds_can_be_moved_but_not_to_infinity():
    assert parse_alpha(5, Limits(highest=8)) == 5.0
    assert parse_alpha(-0.5, Limits(lowest=-1)) == -0.5
    with pytest.raises(InputError, match=r"^alpha must be a number from -1\.5 to 2, not -1\.6$"):
        parse_alpha(-1.6, Limits(lowest=-1.5))
    with pytest.raises(InputError, match=r"^alpha must be a number from 0\.5 to 2, not 0\.4$"):
        parse_alpha(0.4, Limits(lowest=0.5))
    for limits in (Limits(highest=math.inf), Limits(lowest=-math.inf)):
        with pytest.raises(InputError, match="finite"):
            steering_of({"alpha": limits.highest if limits.highest > 9 else limits.lowest}, limits)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_without_bounds_a_number_is_finite(value):
    assert parse_alpha(-1e300, ANY_NUMBER) == -1e300
    with pytest.raises(InputError, match="alpha"):
        parse_alpha(value, ANY_NUMBER)


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["min_alpha", "max_alpha"])
def test_bounds_are_finite_and_have_1_between_them(name, bound):
    field, beyond = ("lowest", 1.01) if name == "min_alpha" else ("highest", 0.99)
    for bad in (bound, beyond):
        with pytest.raises(InputError, match=f"^{name} must be a finite number"):
            Limits()._replace(**{field: bad}).checked()
    for good in (Limits(1.0, 1.0), Limits(-5, 2), Limits(0.5, 1e9)):
        assert good.checked() == good


def by_layers(value, *layers):
    return {"value": value, "layers": list(layers)}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.5, Scale(0.5)),
        (by_layers(0.5, 0, 3), Scale(0.5, Layers(0, 3))),
        (by_layers(0, 5, 5), Scale(0.0, Layers(5, 5))),
        ({"layers": (2, 4), "value": 1.5}, Scale(1.5, Layers(2, 4))),
        (by_layers(0.5, 0, 5), Scale(0.5)),  # all of them
        (by_layers(1, 2, 3), Scale(1.0)),  # FT's in any layers is FT
    ],
)
def test_an_alpha_may_be_for_some_layers(value, wanted):
    assert parse_scale(value, SIX) == wanted
    assert type(parse_scale(value, SIX).alpha) is float
    assert steering_of({"alpha": value, "tuco": True}, SIX) == Steering(
        wanted.alpha, True, None, wanted.layers
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, 'alpha lacks "value": it is a number, or {"value": number, "layers": [first, last]}'),
        ({"value": 0.5}, 'alpha lacks "layers": it is a number, or'),
        ({"layers": [0, 1]}, 'alpha lacks "value"'),
        ({"value": 0.5, "layer": [0, 1]}, "alpha has no 'layer': it is a number, or"),
        ({**by_layers(0.5, 0, 1), 7: 7}, "alpha has no 7"),
        *((by_layers(v, 0, 1), "alpha.value must be a number from 0 to 2, not ") for v in (-0.1, 2.1, "1")),
        *((by_layers(v, 0, 1), "alpha.value must be a number") for v in (math.nan, None, True, [1], {})),
        *(
            ({"value": 0.5, "layers": v}, "alpha.layers must be [first, last]")
            for v in (None, 3, "01", {}, "ab")
        ),
        *((by_layers(0.5, *v), "alpha.layers must be [first, last]") for v in ([], [1], [0, 1, 2], [3, 2])),
        *(
            (by_layers(0.5, *v), "whole numbers with 0 <= first <= last")
            for v in ([-1, 2], [0.0, 1], [0, 1.0])
        ),
        *(
            (by_layers(0.5, *v), "alpha.layers must be")
            for v in ([False, 1], [0, True], ["0", "1"], [0, None])
        ),
        (by_layers(1, 3, 2), "alpha.layers must be"),  # also where it would change nothing
        (by_layers(0.5, 0, 6), "alpha.layers must end at 5: there are 6 layers, from 0 on"),
        (by_layers(0.5, 6, 10**30), "alpha.layers must end at 5"),
    ],
)
def test_no_other_mapping_is_taken(value, message):
    with pytest.raises(InputError) as error:
        parse_scale(value, SIX)
    assert str(error.value).startswith(message) or (
        message.startswith("whole") and message in str(error.value)
    )
    with pytest.raises(InputError, match="alpha"):
        steering_of({"alpha": value}, SIX)


def test_where_the_number_of_layers_is_not_known_any_range_stands():
    assert parse_scale(by_layers(0.5, 0, 99), Limits()) == Scale(0.5, Layers(0, 99))


def test_an_alpha_by_layers_travels_as_numbers_and_lists():
    steering = Steering(0.5, layers=Layers(0, 3))
    sent = json.loads(json.dumps(steering.extra_args()))
    assert sent == {"alpha": 0.5, ALPHA_LAYERS: [0, 3], "tuco": False}
    assert steering_of(sent, SIX) == steering
    for bad in ({ALPHA_LAYERS: [0, 3]}, {"alpha": by_layers(0.5, 0, 3), ALPHA_LAYERS: [0, 3]}):
        with pytest.raises(InputError, match=r"alpha\.value must be a number"):
            steering_of(bad, SIX)
    with pytest.raises(InputError, match=r"alpha\.layers must be"):
        steering_of({"alpha": 0.5, ALPHA_LAYERS: [3, 0]}, SIX)


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


def test_the_cache_key_tells_where_alpha_holds_and_where_pt_was_written():
    ranges = [Layers(0, 3), Layers(0, 4), Layers(1, 3), None]
    salts = [
        Steering(0.5, scored, None, layers).cache_salt("a") for layers in ranges for scored in (True, False)
    ]
    # The same stream: but unscored {0.5, [0, 3]} has PT's keys and values of four layers only.
    assert len(set(salts)) == 7
    assert salts[-1] == salts[-2]  # without a range PT is written in all layers, scored or not
    assert salts[:2] == ["tuco:0x1.0000000000000p-1@0-3:pt|a", "tuco:0x1.0000000000000p-1@0-3:pt@0-3|a"]
    same = (by_layers(0.5, 0, 5), 0.5), (by_layers(1.0, 0, 2), 1.0)
    for by_layer, plain in same:
        salt, of_plain = (steering_of({"alpha": alpha}, SIX).cache_salt(None) for alpha in (by_layer, plain))
        assert salt == of_plain
