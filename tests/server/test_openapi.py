"""alpha and tuco in the description of vLLM's routes."""

from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

from tuco_vllm.server.openapi import describe_fields
from tuco_vllm.steering import Limits


class CompletionRequest(BaseModel):
    prompt: str


class ChatCompletionRequest(BaseModel):
    messages: list[str]


def test_the_fields_stand_in_the_bodies_of_both_routes():
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest) -> None: ...

    @app.post("/v1/chat/completions")
    async def chat(body: ChatCompletionRequest) -> None: ...

    describe_fields(app, Limits(-0.5, 1.5, 6))
    first, second = (TestClient(app).get("/openapi.json").json() for _ in range(2))
    assert first == second
    for name, own in (("CompletionRequest", "prompt"), ("ChatCompletionRequest", "messages")):
        schema = first["components"]["schemas"][name]
        assert set(schema["properties"]) == {own, "alpha", "tuco"}
        assert schema["required"] == [own]
        number, by_layers, null = schema["properties"]["alpha"]["anyOf"]
        assert number == {"type": "number", "minimum": -0.5, "maximum": 1.5}
        assert null == {"type": "null"}
        layers = {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 5},
            "minItems": 2,
            "maxItems": 2,
        }
        assert by_layers["properties"] == {"value": number, "layers": layers}
        assert (by_layers["required"], by_layers["additionalProperties"]) == (["value", "layers"], False)
        assert all(schema["properties"][field]["description"] for field in ("alpha", "tuco"))
