"""What a person reads where a file system or an object store refuses to write or to read."""

from collections.abc import Iterator
from contextlib import contextmanager

from tuco_vllm.errors import InputError, TucoError


class OutputError(TucoError):
    """The output cannot be written (disk full, rights lost, store gone); what was published stays."""

    reason = ""
    """What the file system or the store said, without the rest of the message."""


def unwritable(path: object, reason: str) -> OutputError:
    """The error where ``path`` cannot be written."""
    error = OutputError(
        f"cannot write {path}: {reason}; finished parts stay, "
        "and the same command (without --overwrite) goes on from there"
    )
    error.reason = reason
    return error


def unreadable(path: object, reason: str) -> InputError:
    """The error where ``path`` is there, or may be, and cannot be read."""
    return InputError(f"cannot read {path}: {reason}")


@contextmanager
def refusals(path: object) -> Iterator[None]:
    """Turn the file system's refusals to write into OutputError."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error


@contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn the file system's refusals to read into InputError, but for FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
