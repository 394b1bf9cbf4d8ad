"""The command line of `tuco serve`: vLLM's flags, with the pair's own values in their places."""

import os
import signal
import socket

import engines
import pytest

from tuco_vllm.config import Checkpoint, resolve_pair
from tuco_vllm.engine import arguments
from tuco_vllm.engine.arguments import alpha_bounds
from tuco_vllm.errors import InputError
from tuco_vllm.server import app
from tuco_vllm.steering import LIMITS, Limits


@pytest.fixture
def parse(pair_dirs, monkeypatch):
    from tuco_vllm.engine import serving

    for name in ("VLLM_WORKER_MULTIPROC_METHOD", "TUCO_VLLM_OWNER"):
        monkeypatch.setenv(name, "spawn")  # set for good otherwise
    pair = resolve_pair(*pair_dirs("llama", "float32"))
    return lambda *flags, limits=LIMITS: serving.parse_arguments(pair, flags, limits)


def test_the_pair_is_set_and_the_rest_is_vllms(parse, pair_dirs):
    pt, ft = pair_dirs("llama", "float32")
    parsed = parse(
        "--port", "8001", "--max-model-len=1k", "--served-model-name", "a", "b", limits=Limits(-0.5, 1.5)
    )
    assert (parsed.model, parsed.runner, parsed.config_format) == (ft, "generate", "hf")
    assert parsed.hf_overrides == {
        "architectures": ["TucoForCausalLM"],
        "tuco_pt": pt,
        "tuco_min_alpha": -0.5,
        "tuco_max_alpha": 1.5,
    }
    assert (parsed.host, parsed.port, parsed.max_model_len) == ("127.0.0.1", 8001, 1000)
    assert parsed.served_model_name == ["a", "b"]
    assert parse("--host=0.0.0.0").host == "0.0.0.0"
    assert parse().tokenizer_mode == "hf"  # for a Mistral repository vLLM would take another than ours
    assert parse("--tokenizer-mode=slow").tokenizer_mode == "slow"
    assert parse().served_model_name == [ft]


def test_a_server_has_the_engine_that_python_has(parse, pair_dirs, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")  # all tests' engines are smaller
    monkeypatch.setattr(arguments, "_free_memory", lambda: 40 << 30)
    monkeypatch.setattr(arguments.current_platform, "is_cpu", lambda: True)
    pair = resolve_pair(*pair_dirs("llama", "float32"))
    ours, served = arguments.pair_arguments(pair, "generate", {}, **alpha_bounds(LIMITS)), parse()
    decided = ("dtype", "tokenizer_mode", "kv_cache_memory_bytes")
    for name in (*arguments.FIXED, *decided):
        assert getattr(served, name) == getattr(ours, name), name
    assert [getattr(served, name) for name in decided] == ["bfloat16", "hf", 10 << 30]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=x"], "--model is set by tuco itself"),
        (["x"], "--model-tag is set by tuco itself"),
        (["--runner", "pooling"], "--runner is set"),
        (["--hf-overrides", '{"tuco_pt": "x"}'], "--hf-overrides is set"),
        (["--tokenizer=x"], "--tokenizer is set"),
        (["--quantization=fp8"], "--quantization is set"),
        (["--scheduler-cls=x"], "--scheduler-cls is set"),
        (["--api-server-count=2"], "--api-server-count is set"),
        (["--headless"], "--headless is set"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--port=x"], "argument --port"),
        (["--enable-auto-tool-choice"], "requires --tool-call-parser"),
        (["--chat-template=missing.jinja"], "chat template"),
        (["--config", "missing.yaml"], "--config: .*missing.yaml"),
        (["--default-chat-template-kwargs=[1]"], "--default-chat-template-kwargs must be a JSON object"),
        (["--log-config-file=missing.json"], "missing.json"),
        (["--middleware=json.nope"], "--middleware json.nope cannot be imported"),
        (["--middleware=nope"], "--middleware nope cannot be imported"),
        (["--ssl-keyfile=missing.pem"], "--ssl-keyfile: there is no file missing.pem"),
        (["--ssl-certfile=missing.pem"], "--ssl-certfile: there is no file missing.pem"),
        (["--ssl-ca-certs=missing.pem"], "--ssl-ca-certs: there is no file missing.pem"),
        ([f"--ssl-keyfile={__file__}"], "--ssl-keyfile needs --ssl-certfile"),
        ([f"--ssl-keyfile={__file__}", f"--ssl-certfile={__file__}"], "--ssl-certfile, .* do not fit"),
        (["--tool-parser-plugin=missing.py"], "--tool-parser-plugin: there is no file missing.py"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(parse, flags, message):
    with pytest.raises(InputError, match=message):
        parse(*flags)


@pytest.mark.parametrize(
    ("before", "after"), [("", "tuco"), ("other", "other,tuco"), ("tuco,other", "tuco,other")]
)
def test_plugins_that_are_named_stay(parse, monkeypatch, before, after):
    monkeypatch.setenv("VLLM_PLUGINS", before)
    parse()
    assert os.environ["VLLM_PLUGINS"] == after


def test_without_a_choice_all_plugins_load(parse, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    parse()
    assert "VLLM_PLUGINS" not in os.environ


@pytest.fixture
def serve(parse):
    """``serving.serve`` of flags, which are wrong: it does not come to its engine."""
    from tuco_vllm.engine import serving

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with engines.only_configured():
        yield lambda *flags: serving.serve(parse(*flags), None)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_taken_port_is_said_before_the_engine_starts(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port} .*--port"):
            serve(f"--port={port}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port=99999"], "cannot listen at 127.0.0.1:99999 .*0-65535.*--port"),
        (["--host=nonsense.invalid"], "cannot listen at nonsense.invalid:8000 .*--host"),
        (["--uds=/nowhere/socket"], "cannot listen at /nowhere/socket .No such file.*--uds"),
        ([f"--uds=/tmp/{'x' * 200}"], "path too long.*--uds"),
        (["--enable-auto-tool-choice", "--tool-call-parser=nope"], "--tool-call-parser .*: invalid .* nope"),
        (["--port=0", "--reasoning-parser=nope"], "Reasoning parser 'nope' not found"),
        (["--port=0", "--max-model-len=99999"], "^User-specified max_model_len .99999. is greater"),
        (["--port=0", "--max-logprobs=-5"], "^--max-logprobs: Input should be greater"),
        (
            ["--port=0", "--pipeline-parallel-size=2"],
            "^TucoForCausalLM does not support pipeline .* that generates",
        ),
    ],
)
def test_what_vllm_refuses_later_is_bad_input_too(serve, flags, message):
    with pytest.raises(InputError, match=message) as refused:
        serve(*flags)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "key", "open_"),
    [
        ([], "", False),
        (["--host=127.3.2.1"], "", False),
        (["--host=::1"], "", False),
        (["--host=localhost"], "", False),
        (["--uds=/tmp/socket", "--host=0.0.0.0"], "", False),
        (["--host=0.0.0.0", "--api-key=k"], "", False),
        (["--host=0.0.0.0"], "k", False),
        (["--host=0.0.0.0"], "", True),
        (["--host=::"], "", True),
        (["--host="], "", True),
        (["--host=some.name"], "", True),
        (["--host=0.0.0.0", "--api-key="], "k", True),  # vLLM takes the empty key, which is none
    ],
)
def test_a_server_that_is_open_to_others_says_so(pair_dirs, parse, monkeypatch, capsys, flags, key, open_):
    from tuco_vllm.engine import serving

    monkeypatch.setenv("VLLM_API_KEY", key)
    monkeypatch.setattr(serving, "serve", lambda *_: None)
    app.serve(*pair_dirs("llama", "float32"), flags, limits=LIMITS)
    assert ("without --api-key" in capsys.readouterr().err) == open_


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["ft", "PATH"]),  # the first is the one that answers name
        (["--served-model-name", "a", "b"], ["a", "b"]),
        (["--served-model-name=PATH"], ["PATH"]),
    ],
)
def test_a_directory_is_served_by_its_own_name_and_its_path(pair_dirs, monkeypatch, flags, names):
    from tuco_vllm.engine import serving

    pt, ft = pair_dirs("llama", "float32")
    served = []
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setattr(serving, "serve", lambda arguments, _: served.append(arguments.served_model_name))
    app.serve(pt, ft, [flag.replace("PATH", ft) for flag in flags], limits=LIMITS)
    assert served == [[name.replace("PATH", ft) for name in names]]


def test_names_without_a_flag(tmp_path, monkeypatch):
    (tmp_path / "chat").mkdir()
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "snapshot"  # where a hub's model lies
    for given, names in (
        ("chat", ["chat"]),
        ("chat/", ["chat", "chat/"]),
        ("./chat/../chat", ["chat", "./chat/../chat"]),
        ("/", ["/"]),
        ("org/chat", ["org/chat"]),
        ("org/chat@v2", ["org/chat@v2"]),
    ):
        assert app.served_names(Checkpoint(given, elsewhere, {})) == names
