"""Where a model's files are: a directory, or the Hugging Face hub's cache, filled where it must be."""

import os
import re
from pathlib import Path

from huggingface_hub import errors as hub
from huggingface_hub import get_safetensors_metadata, snapshot_download

from tuco_vllm.errors import InputError

CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
"""All that a model has beside weights."""

_OTHER_FORMATS = ["*/*", "consolidated*"]  # of the same weights


def find_model(role: str, name: str) -> Path:
    """The directory of a model: as given, or the hub's snapshot of it with all but the weights."""
    path = local_path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{role} {name} is a file: give the model's directory")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        raise InputError(f"{role} {name}: there is no such directory (and a hub id is org/name[@revision])")
    return fetch(name, CONFIG_FILES)


def local_path(name: str) -> Path:
    """A name as a path, whether it is there or not."""
    return Path(os.path.expanduser(name))  # Path.expanduser raises on an unknown ~user


def fetch(name: str, patterns: list[str], commit: str | None = None, at_hand: bool = False) -> Path:
    """Files of a hub id from the local cache or, unless they must be ``at_hand``, the hub.

    ``commit`` keeps two fetches on one version.
    """
    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=commit or revision or None,
                allow_patterns=patterns,
                ignore_patterns=_OTHER_FORMATS,
                local_files_only=at_hand,
            )
        )
    except hub.GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise InputError(
            f"{name} is gated: accept its terms on its hub page, then log in (hf auth login, or set HF_TOKEN)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(f"{repository} has no revision {revision!r} on the hub") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise InputError(
            f"{name}: no such directory, and no such model on the hub (if it is private, set HF_TOKEN)"
        ) from error
    except hub.LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: no such directory, not (wholly) in the hub cache, and the hub is out of reach (no "
            f"network, or HF_HUB_OFFLINE=1): fetch it where it is not, with hf download {repository}"
        ) from error
    except Exception as error:  # proxies, TLS, a full disk: to the caller, one thing
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{name} could not be fetched: {type(error).__name__}: {reason}") from error


def weight_shapes(name: str, commit: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a hub model's tensors by name, from the headers of its safetensors files: a few kilobytes."""
    repository, _, _ = name.partition("@")
    try:
        found = get_safetensors_metadata(repository, revision=commit)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{name}: the headers of its weights could not be read from the hub ({type(error).__name__}: "
            f"{reason}): fetch it with hf download {repository}"
        ) from error
    files = found.files_metadata.values()
    return {tensor: tuple(info.shape) for file in files for tensor, info in file.tensors.items()}
