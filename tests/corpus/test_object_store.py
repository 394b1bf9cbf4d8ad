"""An object store where it may fail: answers that are lost, a store that is gone, secrets in what it says."""

import os
import pickle
import re
import subprocess
import sys
import time

import pytest
from object_store import SECRET, environment, object_store, proxy  # noqa: F401  (a fixture)

from tuco_vllm.errors import InputError
from tuco_vllm.store import ObjectStore, OutputError, store_at
from tuco_vllm.store import objects as object_stores


@pytest.fixture
def between(object_store, monkeypatch):  # noqa: F811
    """A proxy before the server, and a store that goes through it."""
    with proxy() as through:
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment(through.server_port)["AWS_ENDPOINT_URL"])
        for name in ("_TRY_SECONDS", "_LOOK_SECONDS"):
            monkeypatch.setattr(object_stores, name, 0.2)
        yield through, store_at(object_store)


def publish(store):
    with store.scratch() as file:
        file.write_bytes(b"y")
        store.publish(file, "y")


def test_a_put_whose_answer_is_lost_is_there_once(between):
    through, store = between
    through.lose = 1
    assert not store.create("x", b"ours"), "nobody can know: what is there tells"
    assert through.lose == 0
    assert store.read("x") == b"ours"
    through.lose = 1
    store.replace("x", b"again")
    assert store.read("x") == b"again"


def test_a_store_that_does_not_answer_is_told(between):
    through, store = between
    store.look()
    store.create("x", b"x")
    through.down = True
    for act in (
        lambda: store.create("y", b"y"),
        lambda: store.replace("x", b"y"),
        lambda: store.delete("x"),
        lambda: publish(store),
    ):
        with pytest.raises(OutputError, match=rf"cannot write {store.where}/[xy]: .*; finished parts stay"):
            act()
    for act in (lambda: store.read("x"), store.list, lambda: store.open("x")):
        with pytest.raises(InputError, match=rf"cannot read {store.where}"):
            act()
    with store_at(store.where).open("x", 1) as file, pytest.raises(InputError, match="cannot read"):
        file.read()
    with pytest.raises(InputError, match=f"cannot use --out {store.where}: "):
        store.look()
    through.down = False
    assert store.list() == {"x": 1}


def test_a_bucket_that_is_not_there(object_store):  # noqa: F811
    store = store_at("s3://there-is-no-such-bucket/x")
    with pytest.raises(InputError, match=r"cannot use --out s3://there-is-no-such-bucket/x: .*NoSuchBucket"):
        store.look()
    with pytest.raises(OutputError, match="NoSuchBucket"):
        store.create("x", b"x")


ANSWER = (
    "Generic S3 error: PUT http://host/x?X-Amz-Signature=abc&X-Amz-Credential=AKIATUCOTESTS in 3ms - 403: "
    "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code>"
    f"<AWSAccessKeyId>AKIATUCOTESTS</AWSAccessKeyId><StringToSign>{SECRET}</StringToSign></Error>"
    f"\n\nDebug source:\nkey {SECRET}"
)
"""What S3 may say to a wrong key."""


class Rude:
    def put(self, *_, **__):
        raise RuntimeError(ANSWER)


def test_no_message_repeats_a_credential(object_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ObjectStore, "_objects", Rude())
    with pytest.raises(OutputError) as refused:
        store_at(object_store).replace("x", b"")
    told = str(refused.value)
    assert "SignatureDoesNotMatch" in told
    assert not re.search(f"AKIATUCOTESTS|{SECRET}|Signature=|StringToSign", told)
    assert refused.value.__suppress_context__, "nor does a traceback"
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sas-of-mine")
    said = object_stores._without_secrets(RuntimeError(f"{SECRET} or sas-of-mine is wrong"))
    assert said == "... or ... is wrong"


@pytest.fixture
def profiles(object_store, monkeypatch, tmp_path):  # noqa: F811
    """A store whose keys are in a file of two profiles, of which the second one has the keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    file = tmp_path / "credentials"
    file.write_text(f"[empty]\n[work]\naws_access_key_id = AKIAOFWORK\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return object_store


def test_keys_of_a_profile(profiles, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "work")
    store = store_at(profiles)
    store.look()
    assert store.create("x", b"x")
    assert not store.create("x", b"y")
    again = pickle.dumps(store)
    assert SECRET.encode() not in again
    assert pickle.loads(again).read("x") == b"x"
    assert object_stores._profile(profiles)["credential_provider"]()["access_key_id"] == "AKIAOFWORK"
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert object_stores._profile(profiles)["credential_provider"].config == {"region": "eu-central-1"}


def test_a_profile_that_is_not_there(profiles, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "holiday")
    with pytest.raises(InputError, match=r"cannot use --out s3://.*profile \(holiday\) could not be found"):
        store_at(profiles).look()


def test_keys_of_the_environment_go_before_a_profile(profiles, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "holiday")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATUCOTESTS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    store_at(profiles).look()


def test_profiles_want_boto3(profiles, monkeypatch):
    monkeypatch.setattr(object_stores, "find_spec", lambda _: None)
    monkeypatch.setattr(object_stores, "_LOOK_SECONDS", 0.1)
    with pytest.raises(InputError, match="pip install boto3"):
        store_at(profiles).look()


def test_a_writer_killed_in_an_upload_leaves_nothing(object_store):  # noqa: F811
    code = """
import sys
from tuco_vllm.store import store_at
store = store_at(sys.argv[1])
store.look()
print("ready", flush=True)
store.create("x", bytes(50_000_000))
"""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, object_store]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.02)
        process.kill()
    time.sleep(0.5)
    assert store_at(object_store).list() in ({}, {"x": 50_000_000})
