"""What a request asks of us, around a fake vLLM: what that is handed, what is refused, what goes through."""

import json

import pytest
from server.fake_vllm import FakeVllm, post

from tuco_vllm.server.errors import RequestError
from tuco_vllm.server.middleware import GENERATING, STEERABLE
from tuco_vllm.server.wishes import read_wish, refuse_elsewhere, with_model
from tuco_vllm.steering import ALPHA_LAYERS, LIMITS, Limits, steering_of

NAN, INFINITY = float("nan"), float("inf")
BAD_ALPHAS = [NAN, INFINITY, -INFINITY, -0.5, -1e-9, 2.0001, 3, 10**400, "0.5", "", True, False, [1.0], {}]
BAD_ALPHAS += [{"value": 0.5}, {"value": NAN, "layers": [0, 1]}, {"value": True, "layers": [0, 1]}]
BAD_ALPHAS += [
    {"value": 0.5, "layers": layers} for layers in ([1, 0], [0, 1.0], [True, 1], "01", [0, 3], None)
]
BAD_ALPHAS += [{"value": 0.5, "layers": [0, 1], "more": 1}]
BAD_TUCOS = ["layer", "true", "", 1, 0, 1.0, [True], {"layers": True}]


@pytest.mark.parametrize("path", STEERABLE)
@pytest.mark.parametrize(
    ("fields", "handed"),
    [
        ({"alpha": 0.5}, {"alpha": 0.5}),
        ({"alpha": 0}, {"alpha": 0.0}),
        ({"alpha": 1, "tuco": True}, {"alpha": 1.0, "tuco": "layers"}),
        ({"tuco": "layers"}, {"alpha": 1.0, "tuco": "layers"}),
        ({"vllm_xargs": {"alpha": 1.5, "other": 7}}, {"alpha": 1.5, "other": 7}),
        ({"alpha": 1.5, "vllm_xargs": {"alpha": 1.5}}, {"alpha": 1.5}),
        ({"vllm_xargs": {"tuco": True}}, {"alpha": 1.0, "tuco": "layers"}),
        ({"alpha": None, "tuco": "layers", "vllm_xargs": None}, {"alpha": 1.0, "tuco": "layers"}),
        ({"alpha": 1.0}, None),
        ({"vllm_xargs": {"alpha": 1, "other": 7}}, {"other": 7}),
        ({"alpha": 1, "tuco": False}, None),
        ({"alpha": {"value": 0.5, "layers": [0, 1]}}, {"alpha": 0.5, ALPHA_LAYERS: [0, 1]}),
        (
            {"vllm_xargs": {"alpha": {"value": 0.5, "layers": [1, 2]}, "other": [7]}, "tuco": True},
            {"alpha": 0.5, ALPHA_LAYERS: [1, 2], "tuco": "layers", "other": [7]},
        ),
        (
            {
                "alpha": {"value": 0, "layers": [2, 2]},
                "vllm_xargs": {"alpha": {"layers": [2, 2], "value": 0.0}},
            },
            {"alpha": 0.0, ALPHA_LAYERS: [2, 2]},
        ),
        ({"alpha": {"value": 0.5, "layers": [0, 2]}}, {"alpha": 0.5}),  # all three
        ({"alpha": {"value": 1, "layers": [0, 1]}, "vllm_xargs": {"other": 7}}, {"other": 7}),
        ({"alpha": None, "tuco": None}, None),
    ],
)
def test_wishes_reach_vllm_in_its_own_field(path, fields, handed):
    app = FakeVllm()
    assert post(app, {"prompt": "p", **fields}, path).status_code == 200
    request = app.requests[0]
    assert request.get("vllm_xargs") == handed
    assert {"alpha", "tuco"}.isdisjoint(request)
    assert request["prompt"] == "p"
    if handed and "alpha" in handed:
        assert type(handed["alpha"]) is type(request["vllm_xargs"]["alpha"])


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("value", [0.5, {"value": 0.5, "layers": [1, 2]}])
def test_vllms_own_request_models_hand_a_wish_on_as_it_is(value, scored):
    """Their ``vllm_xargs`` are strings, numbers and lists of these."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    wish = here(json.dumps({"vllm_xargs": {"alpha": value}, "tuco": scored}).encode())
    xargs = json.loads(wish.body)["vllm_xargs"]
    for request in (
        CompletionRequest(model="m", prompt="p", vllm_xargs=xargs),
        ChatCompletionRequest(model="m", messages=[], vllm_xargs=xargs),
    ):
        assert steering_of(request.to_sampling_params(1, {}).extra_args) == wish.steering


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":   "p", "temperature": NaN}',
        b'{"prompt": "the \\"alpha\\" and the omega"}',
        b'{"prompt": "caf\\u00e9", "n": 1}',
        b'{"messages": [{"alpha": 3}], "vllm_xargs": {"k": "v"}}',
    ],
)
def test_other_requests_go_through_byte_by_byte(body):
    app = FakeVllm()
    answer = post(app, body)
    assert app.bodies == [body]
    assert app.receivers == [None]
    assert "tuco" not in answer.text


@pytest.mark.parametrize(
    "body",
    [b'{"\\u0061lpha": 0.5}', json.dumps({"alpha": 0.5}).encode("utf-16"), b'{"alpha": 9, "alpha": 0.5}'],
)
def test_however_the_name_is_spelt(body):
    app = FakeVllm()
    post(app, body)
    assert app.requests[0]["vllm_xargs"] == {"alpha": 0.5}


@pytest.mark.parametrize("body", [b'{"alpha": ', b'["alpha", 3]', b'{"alpha": 1} "tuco"', b'"alpha"'])
def test_what_is_no_json_object_is_left_to_vllm(body):
    app = FakeVllm()
    with pytest.raises((ValueError, AttributeError)):  # the fake does not take it
        post(app, body)
    assert app.bodies == [body]


# Refusals.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("field", "value"), [*(("alpha", v) for v in BAD_ALPHAS), *(("tuco", v) for v in BAD_TUCOS)]
)
def test_bad_values_are_refused_by_name(field, value, nested, stream):
    app = FakeVllm()
    body = {"prompt": "p", "stream": stream} | ({"vllm_xargs": {field: value}} if nested else {field: value})
    answer = post(app, body)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert (error["type"], error["param"]) == ("BadRequestError", field)
    assert field in error["message"]
    assert len(error["message"]) < 200
    assert not app.bodies


def test_a_number_beyond_all_floats_is_refused():
    assert post(FakeVllm(), b'{"alpha": 1e999}').json()["error"]["param"] == "alpha"
    assert post(FakeVllm(), b'{"alpha": ' + b"[" * 10**5 + b"]" * 10**5 + b"}").status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"alpha": 0.5, "vllm_xargs": {"alpha": 0.6}}, "alpha"),
        ({"tuco": True, "vllm_xargs": {"tuco": "layers"}}, "tuco"),
        ({"alpha": {"value": 0.5, "layers": [0, 1]}, "vllm_xargs": {"alpha": 0.5}}, "alpha"),
        ({"alpha": {"value": 0.5, "layers": [0, 1]}, "use_beam_search": True}, "use_beam_search"),
        ({"alpha": 0.5, "vllm_xargs": 5}, "vllm_xargs"),
        ({"alpha": 0.5, "use_beam_search": True}, "use_beam_search"),
        ({"tuco": True, "use_beam_search": True}, "use_beam_search"),
    ],
)
def test_contradictions_are_refused(body, param):
    app = FakeVllm()
    assert post(app, body).json()["error"]["param"] == param
    assert not app.bodies
    assert post(app, {"alpha": 1.0, "use_beam_search": True}).status_code == 200


@pytest.mark.parametrize("path", GENERATING)
def test_routes_that_cannot_steer_say_so(path):
    app = FakeVllm()
    engines = {"sampling_params": {"extra_args": {"alpha": 99}}}
    layers = {"value": 0.5, "layers": [0, 1]}
    for body in (
        {"alpha": 0.5},
        {"alpha": layers},
        {"vllm_xargs": {"alpha": layers}},
        {"tuco": True},
        {"vllm_xargs": {"alpha": NAN}},
        {"alpha": 10**400},
        engines,
    ):
        assert post(app, body, path).status_code == 400
    assert not app.bodies
    plain = b'{"prompt":  "p"}'
    assert post(app, plain, path).status_code == 200
    assert app.bodies == [plain]


GENERATING_NOTHING = {
    *("/tokenize", "/detokenize", "/v1/messages/count_tokens"),
    # These put an answer that is there already into other words, and may bring the request it was for.
    *("/v1/completions/derender", "/v1/chat/completions/derender"),
    *("/v1/responses/{response_id}/cancel", "/inference/v1/abort_requests", "/abort_requests", "/ping"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/{adapter_name}"),
    *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/fault_tolerance/apply", "/collective_rpc"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/release_kv_cache_memory"),
    *("/sleep", "/wake_up", "/pause", "/resume", "/init_weight_transfer_engine"),
    *("/shutdown_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update"),
    *("/update_weights", "/finish_weight_update", "/update_weight_version", "/weight_checker"),
}
"""vLLM's routes that take a body and generate nothing."""


def test_every_route_of_vllm_is_known(monkeypatch):
    """A route that is new in vLLM has to be put on one of the lists; so has another transport than HTTP."""
    from tuco_vllm.engine import compat

    for name in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ENABLE_COHERE_API"):
        monkeypatch.setenv(name, "1")
    parser = compat.make_arg_parser(compat.FlexibleArgumentParser())
    arguments = parser.parse_args(["--enable-scale-out", "--enable-fault-tolerance"])
    routes = compat.build_app(arguments, ("generate",), None).routes
    other = [route for route in routes if not getattr(route, "methods", None)]
    assert [route.path for route in other] == ["/metrics"]
    taking = {route.path for route in routes if route not in other and route.methods - {"GET", "HEAD"}}
    assert taking - GENERATING_NOTHING - {*STEERABLE, *GENERATING} == set()
    assert taking >= {*STEERABLE, *GENERATING} - {
        "/cohere/v2/chat",
        "/cohere/v2/chat/render",
    }  # of another package


# What comes back.


def here(body):
    return read_wish(body, LIMITS)


def test_bounds_are_the_servers():
    def alpha(value):
        return read_wish(json.dumps({"alpha": value}).encode(), Limits(-1.0, 1.5)).steering.alpha

    assert (alpha(-0.5), alpha(1.5), alpha({"value": -1, "layers": [0, 9]})) == (-0.5, 1.5, -1.0)
    for value in (-1.1, 1.6, {"value": -1.1, "layers": [0, 9]}):
        with pytest.raises(RequestError, match=r"must be a number from -1 to 1\.5, not"):
            alpha(value)


@pytest.mark.parametrize("read", [here, refuse_elsewhere])
@pytest.mark.parametrize("place", ["request", "vllm_xargs"])
@pytest.mark.parametrize("name", ["tuco_rows", ALPHA_LAYERS])
def test_what_only_we_write_is_no_field(read, place, name):
    """Rows of a prompt are what our own route asks the engine for; layers stand in alpha."""
    ours = {name: [0, 1]}
    request = {"prompt": "a", **ours} if place == "request" else {"prompt": "a", "vllm_xargs": ours}
    with pytest.raises(RequestError, match=f"{name} is no field: "):
        read(json.dumps(request).encode())


@pytest.mark.parametrize("none", [{}, {"model": None}, {"model": ""}])
def test_a_request_without_a_model_gets_one(none):
    body = json.dumps({"prompt": "a", "alpha": 0.5, **none}).encode()
    assert json.loads(with_model(body, "mine")) == {"prompt": "a", "alpha": 0.5, "model": "mine"}


@pytest.mark.parametrize(
    "body", [b'{"model": "theirs", "n": 1}', b"[1]", b"not JSON", b"", b"\xff", b"[" * 100_000], ids=range(6)
)
def test_all_other_bodies_stay_as_they_are(body):
    assert with_model(body, "mine") is body
