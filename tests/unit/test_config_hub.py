"""Hub ids: from the cache without a network, one message for each way in which the hub fails."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.errors as hub
import pytest
from fake_checkpoint import write_model
from huggingface_hub.utils import get_session

from tuco_vllm import hub as tuco_hub
from tuco_vllm.config import Checkpoint, resolve_pair
from tuco_vllm.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache_model(home: Path, repository: str, revision: str = "main") -> Path:
    """A model as the hub's client keeps it in its cache."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    return write_model(folder / "snapshots" / COMMIT)


def resolve_offline(home: Path, pt: str, ft: str) -> str:
    """What a process without network says; its own process, as the hub's client reads HF_* on import."""
    code = (
        "import sys; from tuco_vllm.config import *; from tuco_vllm.errors import InputError\n"
        "try: pair = resolve_pair(*sys.argv[1:]); print(pair.ft.name, pair.ft.directory)\n"
        "except InputError as error: print(error)"
    )
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", code, pt, ft]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_hub_ids_come_from_the_cache(tmp_path):
    base = cache_model(tmp_path, "org/base")
    tuned = cache_model(tmp_path, "org/tuned", "v2")
    assert resolve_offline(tmp_path, "org/base", "org/tuned@v2") == f"org/tuned@v2 {tuned}"
    assert resolve_offline(tmp_path, "org/base", f"org/base@{COMMIT}") == f"org/base@{COMMIT} {base}"
    for absent in ("org/tuned", "org/absent", "org/base@v1"):
        message = resolve_offline(tmp_path, "org/base", absent)
        assert message.startswith(f"{absent}: no such directory, not (wholly) in the hub cache")
        assert "HF_HUB_OFFLINE=1" in message


def hub_error(kind: type[hub.HfHubHTTPError]) -> hub.HfHubHTTPError:
    request = get_session().build_request("GET", "http://localhost")
    response = type("Response", (), {"headers": {}, "request": request, "status_code": 403})()
    return kind("server's words\nover lines", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: hub_error(hub.GatedRepoError), "is gated: accept its terms"),
        (lambda: hub_error(hub.RepositoryNotFoundError), "no such model on the hub"),
        (lambda: hub_error(hub.RevisionNotFoundError), "org/model has no revision 'v2'"),
        (lambda: hub.LocalEntryNotFoundError("words"), "the hub is out of reach"),
        (lambda: hub.HFValidationError("words"), "no such model on the hub"),
        (lambda: OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_each_failure_of_the_hub_has_its_own_message(tmp_path, monkeypatch, error, message):
    ft = write_model(tmp_path / "ft")

    def fail(*_, **__):
        raise error()

    monkeypatch.setattr(tuco_hub, "snapshot_download", fail)
    with pytest.raises(InputError) as caught:
        resolve_pair("org/model@v2", ft)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_fetched_after_the_configs_fit_and_at_the_same_commit(tmp_path, monkeypatch):
    fetched = []
    ft = write_model(tmp_path / "ft")
    snapshot = write_model(tmp_path / COMMIT, hidden_size=32)

    def download(repository, *, revision, allow_patterns, ignore_patterns, local_files_only):
        assert not local_files_only
        fetched.append((repository, revision, "*.safetensors" in allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(tuco_hub, "snapshot_download", download)
    with pytest.raises(InputError, match="hidden_size 32 and 16"):
        resolve_pair("org/model", ft)
    assert fetched == [("org/model", None, False)]
    write_model(snapshot)
    resolve_pair("org/model@v2", ft)
    assert fetched[1:] == [("org/model", "v2", False), ("org/model", COMMIT, True)]


def test_a_directory_goes_before_a_hub_id(tmp_path, monkeypatch):
    write_model(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuco_hub, "snapshot_download", None)
    assert resolve_pair("org/model", "org/model").pt == Checkpoint(
        "org/model", tmp_path / "org" / "model", {}
    )
