"""`tuco serve --flag`: which calibrations a server takes, and what its score route and its schema say."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from server.flags import CHATS, checker
from server.test_openapi import ChatCompletionRequest, CompletionRequest
from server.test_score_route import CHAT, JSON, Scorer

from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Bucket
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.server import app as serving_app
from tuco_vllm.server.openapi import describe_fields
from tuco_vllm.server.score import ScoreService, router
from tuco_vllm.steering import LIMITS


@pytest.fixture
def ask():
    """POST /v1/tuco/score of a server with a calibration, whose prompts' scores say how long they are."""
    import tiny_models

    def ask(body, **changes):
        app, tokenizer = FastAPI(), tiny_models.tokenizer()
        service = ScoreService(Scorer(), PromptEncoder(tokenizer), ["m", "other"], checker=checker(**changes))
        app.state.tuco = service
        app.include_router(router)
        answer = TestClient(app).post("/v1/tuco/score", content=json.dumps(body), headers=JSON)
        return [entry.get("flagged", "nothing") for entry in answer.json()["data"]]

    return ask


def test_the_score_route_says_it(ask):
    from server.fake_vllm import tuco

    raw, chat = (Bucket(2, 3, tuco(2, 0) - 1e-6),), (Bucket(1, 99, 0.0),)
    templates = {"templates": {None: raw, CHATS: chat}}
    assert ask({"input": [[5], [5, 6], [5, 6, 7], CHAT]}, **templates) == [None, True, False, True]
    assert ask({"model": "other", "input": [5, 6]}, **templates) == [None]  # of a server's names not FT's
    assert ask({"input": [7, 6]}, **templates) == [None]  # a score that overflowed
    means = {"column": "response_tuco", "templates": {None: (Bucket(2, 2, 0.2),)}}
    assert ask({"input": [5, 6], "response": [3, 4]}, **means) == [True]
    assert ask({"input": [5, 6]}, **means) == [None]


def test_the_schema_names_it():
    for given in (False, True):
        app = FastAPI()

        @app.post("/v1/completions")
        async def complete(body: CompletionRequest) -> None: ...

        @app.post("/v1/chat/completions")
        async def chat(body: ChatCompletionRequest) -> None: ...

        app.include_router(router)
        describe_fields(app, LIMITS, flags=given)
        schemas = TestClient(app).get("/openapi.json").json()["components"]["schemas"]
        assert schemas["Score"]["properties"]["flagged"]["anyOf"] == [{"type": "boolean"}, {"type": "null"}]
        told = schemas["CompletionRequest"]["properties"]["tuco"]["description"]
        assert ("`flagged`" in told) == given


@pytest.fixture
def start(pair_dirs, tmp_path, monkeypatch):
    """Start a server of the tiny pair, without its engine, with a calibration that is changed so."""
    from tuco_vllm.engine import serving

    pt, ft = pair_dirs("llama", "float32")
    pair = resolve_pair(pt, ft)
    template = PromptEncoder(load_tokenizer(pair.ft.directory)).template_sha256
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    started = []
    monkeypatch.setattr(serving, "serve", lambda arguments, _: started.append(arguments))

    def start(*vllm_flags, **changes):
        content = {
            "format": "tuco calibration",
            "version": 1,
            "pair": {
                "pt": {"name": pt, "fingerprint": pair.pt.fingerprint},
                "ft": {"name": ft, "fingerprint": pair.ft.fingerprint},
            },
            "dtype": "float32",
            "row_dtype": "float32",
            "column": "tuco",
            "direction": "below",
            "fpr": 0.05,
            "templates": [{"template": template, "buckets": [{"tokens": [1, 9], "threshold": 0.5}]}],
        }
        (tmp_path / "flags.json").write_text(json.dumps({**content, **changes}))
        flag = str(tmp_path / "flags.json")
        started.clear()
        serving_app.serve(pt, ft, ["--dtype=float32", *vllm_flags], limits=LIMITS, flag=flag)
        return started

    return start


OTHER = {"name": "org/x", "fingerprint": "x"}


@pytest.mark.parametrize(
    ("vllm_flags", "changes", "message"),
    [
        (
            [],
            {"pair": {"pt": OTHER, "ft": OTHER}},
            "is of another PT than .*: score clean rows with this pair",
        ),
        ([], {"row_dtype": "bfloat16"}, "--row-dtype model"),
        (["--dtype=bfloat16"], {}, "the server computes in bfloat16: give --dtype float32"),
        (["--dtype=half"], {}, "the server computes in float16"),
        (["--dtype=auto"], {}, "the server computes in bfloat16"),  # of a float32 model on a CPU
        ([], {"column": "output_co"}, "is of output_co, which a server does not compute"),
        (
            [],
            {"templates": [{"template": "x", "buckets": [{"tokens": [1, 9], "threshold": 0}]}]},
            "another template",
        ),
        (['--default-chat-template-kwargs={"a": 1}'], {}, "another template"),
        ([], {"version": 9}, "of version 9, not 1"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(start, vllm_flags, changes, message):
    with pytest.raises(InputError, match=message) as refused:
        start(*vllm_flags, **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("vllm_flags", [[], ["--dtype=float"]])
def test_one_that_fits_is_taken(start, vllm_flags):
    assert len(start(*vllm_flags)) == 1
    assert len(start(*vllm_flags, column="response_tuco")) == 1


def test_the_ft_is_named_where_it_is_another(start, pair_dirs):
    pair = resolve_pair(*pair_dirs("llama", "float32"))
    same = {"name": "x", "fingerprint": pair.pt.fingerprint}
    with pytest.raises(InputError, match=r"is of another FT than .* \(FT org/x\)"):
        start(pair={"pt": same, "ft": OTHER})
