"""An object store as a store, through obstore: S3 and what speaks like it, Google Cloud Storage, Azure.

An object appears when its upload ends, and a put on condition (If-None-Match) fails where the name is taken.
Region, endpoint and credentials are what their usual environment variables say, or for S3 the profiles of
``~/.aws``; they are read in each process and are in no pickle and no message.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from tuco_vllm.errors import InputError, TucoError
from tuco_vllm.records import STATE
from tuco_vllm.store.ranges import opened
from tuco_vllm.store.refusals import refusals, unreadable, unwritable

_TRIES, _TRY_SECONDS = 2, 120.0
"""For so long obstore repeats a request that fails. A put on condition whose answer is lost it does not
repeat: that is done here, and finds the name taken."""

_LOOK_SECONDS = 10.0
"""For so long where the store has never answered: more likely the endpoint is wrong."""

_REQUEST_SECONDS = 300
"""A part is one request, of up to hundreds of megabytes on a slow line."""

_CLIENT_OPTIONS = (
    *("allow_http", "allow_invalid_certificates"),
    *("proxy_url", "proxy_ca_certificate", "proxy_excludes"),
)
"""What obstore no longer reads from the environment (AWS_ALLOW_HTTP) once it is given any such option."""

_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
"""Where profiles are, and the variables that name another place."""

_SECRET = re.compile(r"(AWS|AZURE|GOOGLE)_\w*(KEY|SECRET|TOKEN|SAS|SIGNATURE|PASSWORD|CREDENTIAL)\w*")


@dataclass(frozen=True)
class ObjectStore:
    """A bucket, or a place in one; see ``places.Store``."""

    where: str
    """Its URL."""

    folder = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.where,)  # not the connection, which has the credentials

    def look(self) -> None:
        def refused(_: object, reason: str) -> TucoError:
            return InputError(f"cannot use --out {self.where}: {reason}{_hint(self.where)}")

        with self._asking("", refused):
            next(iter(_connected(self.where, _LOOK_SECONDS).list(STATE, chunk_size=1)), None)

    def create(self, name: str, data: bytes) -> bool:
        return self._created(name, data)

    def replace(self, name: str, data: bytes) -> None:
        with self._asking(name, unwritable):
            self._objects.put(name, data, use_multipart=False)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with refusals("the temporary folder"):
            folder = TemporaryDirectory(prefix="tuco-", ignore_cleanup_errors=True)
        with folder as path:
            yield Path(path, "part")

    def publish(self, file: Path, name: str) -> bool:
        return self._created(name, file)

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError), self._asking(name, unreadable):
            return bytes(self._objects.get(name).bytes())
        return None

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        def fetch(start: int, length: int) -> bytes:
            with self._asking(name, unreadable):
                return bytes(self._objects.get_range(name, start=start, length=length))

        with self._asking(name, unreadable):
            return opened(self._objects.head(name)["size"] if size is None else size, fetch)

    def list(self, folder: str = "") -> dict[str, int]:
        with self._asking(folder, unreadable):
            found = self._objects.list_with_delimiter(folder.rstrip("/") or None)["objects"]
        return {each["path"]: each["size"] for each in found}

    def delete(self, *names: str) -> None:
        if not names:
            return
        with self._asking(names[0], unwritable):
            try:
                self._objects.delete([*names])
            except FileNotFoundError:  # of several, others may be there
                for name in names:
                    with suppress(FileNotFoundError):
                        self._objects.delete(name)

    @cached_property
    def _objects(self) -> Any:
        return _connected(self.where, _TRY_SECONDS)

    def _created(self, name: str, data: bytes | Path) -> bool:
        from obstore.exceptions import AlreadyExistsError, GenericError

        tries = 0
        with self._asking(name, unwritable):
            while True:
                try:
                    self._objects.put(name, data, mode="create", use_multipart=False)
                    return True
                except AlreadyExistsError:
                    return False
                except GenericError:
                    tries += 1
                    if tries == _TRIES:
                        raise

    @contextmanager
    def _asking(self, name: str, refusal: Callable[[object, str], TucoError]) -> Iterator[None]:
        """Whatever obstore raises becomes a ``refusal``, but for FileNotFoundError of what is read.

        Not chained: a store's answer may repeat the request, and that its keys.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) and refusal is unreadable:
                raise
            raise refusal(f"{self.where}/{name}", _without_secrets(error)) from None


def _connected(url: str, seconds: float) -> Any:
    from obstore.store import from_url

    connect: Any = from_url
    backoff = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2}
    retries = {"max_retries": 1000, "retry_timeout": timedelta(seconds=seconds), "backoff": backoff}
    vendor = {"s3": "AWS", "s3a": "AWS", "gs": "GOOGLE"}.get(url.partition("://")[0], "AZURE")
    given = {name: os.environ.get(f"{vendor}_{name.upper()}") for name in _CLIENT_OPTIONS}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {"timeout": timedelta(seconds=_REQUEST_SECONDS), "connect_timeout": timedelta(seconds=5)}
    return connect(url, client_options=options, retry_config=retries, **_profile(url))


def _profile(url: str) -> dict[str, Any]:
    """What boto3 finds by a profile (keys, SSO, roles), which obstore does not read itself.

    Keys in the environment go first, as everywhere. Without files obstore finds a machine's own role.
    """
    if not _profiles(url) or find_spec("boto3") is None:
        return {}
    from boto3 import Session
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = Session(region_name=os.environ.get("AWS_REGION"))
    return {"credential_provider": Boto3CredentialProvider(session)} if session.get_credentials() else {}


def _profiles(url: str) -> bool:
    """Whether a profile is to be asked for the credentials of this URL."""
    files = [os.environ.get(name, usual) for name, usual in _AWS_FILES.items()]
    there = "AWS_PROFILE" in os.environ or any(Path(file).expanduser().exists() for file in files)
    return url.startswith(("s3://", "s3a://")) and not os.environ.get("AWS_ACCESS_KEY_ID") and there


def _hint(url: str) -> str:
    missing = _profiles(url) and find_spec("boto3") is None
    return " (boto3 reads the profiles of ~/.aws: pip install boto3)" if missing else ""


def _without_secrets(error: Exception) -> str:
    """What a store says, in a line; its XML may repeat a key or a signature, and so may a URL."""
    text = re.sub(r"^Generic \w+ error: ", "", str(error).partition("\n\nDebug source")[0])
    code = re.search(r"<Code>(\w+)</Code>", text)
    text = re.sub(r"\?\S*", "", text.partition("<")[0])
    for name, value in os.environ.items():
        if value and _SECRET.fullmatch(name):
            text = text.replace(value, "...")
    return " ".join(f"{text} {code[1] if code else ''}".split()) or type(error).__name__
