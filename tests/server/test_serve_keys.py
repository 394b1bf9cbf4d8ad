"""What a server with a key does for those who do not have it."""

from pathlib import Path

import httpx
from server.served import MODEL

from tuco_vllm.server.page import ASSETS


def test_what_the_key_guards(server):
    routes = {"/v1/tuco/score": 401, "/v1/completions": 401, "/v1/models": 401}
    routes |= {"/tuco": 200, "/health": 200, "/metrics": 200} | {f"/tuco/{name}": 200 for name in ASSETS}
    for path, status in routes.items():
        method = "POST" if path in ("/v1/tuco/score", "/v1/completions") else "GET"
        content = '{"input": "a", "prompt": "a", "alpha": 7}' if method == "POST" else None
        assert httpx.request(method, server.url + path, content=content).status_code == status, path


def test_readme_says_which_routes_ask_for_no_key(server):
    readme = (Path(__file__).parents[2] / "tuco_vllm/server/README.md").read_text()
    document = httpx.get(f"{server.url}/openapi.json").json()
    posts = [path for path, kinds in document["paths"].items() if "post" in kinds]
    bare = [path for path in posts if httpx.post(server.url + path, json={}).status_code != 401]
    assert not [path for path in bare if f"`{path}`" not in readme]
    computing = {
        "/invocations": {"model": MODEL, "prompt": "a", "max_tokens": 1},
        "/generative_scoring": {"model": MODEL, "query": "a", "items": ["b"], "label_token_ids": [5]},
        "/tokenize": {"model": MODEL, "prompt": "a"},
        "/detokenize": {"model": MODEL, "tokens": [5]},
    }
    for path, body in computing.items():
        assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200, path
        assert path in bare
    for name in ("CompletionRequest", "ChatCompletionRequest"):
        assert {"alpha", "tuco"} <= set(document["components"]["schemas"][name]["properties"])
