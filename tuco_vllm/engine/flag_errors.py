"""What is wrong with flags of `tuco serve`, in one line that names the flag, and before weights are loaded.

vLLM tells most of it, but in many kinds of exception, and some only once the engine has started.
"""

import pkgutil
from argparse import Namespace
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from tuco_vllm.errors import InputError

_FILES = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "tool_parser_plugin", "reasoning_parser_plugin")
TLS = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers")
"""vLLM's names of the flags and uvicorn's of its options."""


def refuse_unusable(arguments: Namespace) -> None:
    """Raise InputError for files, certificates and imports that vLLM would look at later, or never."""
    for name in _FILES:
        path = getattr(arguments, name)
        if path and not Path(path).is_file():
            raise InputError(f"{flag(name)}: there is no file {path}")
    for name in arguments.middleware:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"--middleware {name} cannot be imported: {error}") from error
    if not isinstance(arguments.default_chat_template_kwargs, dict | None):
        raise InputError("--default-chat-template-kwargs must be a JSON object")
    if arguments.ssl_keyfile and not arguments.ssl_certfile:
        raise InputError("--ssl-keyfile needs --ssl-certfile")
    try:
        uvicorn.Config(_no_app, log_config=None, **{name: getattr(arguments, name) for name in TLS}).load()
    except (OSError, ValueError) as error:  # ssl.SSLError is the former
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{', '.join(map(flag, TLS))} do not fit together: {reason}") from error


def reason(error: Exception, arguments: Namespace) -> str:
    """What an exception of vLLM's says, in one line, with the flag where it names a field."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        named = flag(field) if hasattr(arguments, field) else f"{error.title}.{field}"
        text = f"{named}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")
    else:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
    return " ".join(text.split())[:500]


def flag(name: str) -> str:
    """``ssl_keyfile`` as it is written on a command line."""
    return f"--{name.replace('_', '-')}"


async def _no_app(scope: object, receive: object, send: object) -> None:
    """Is never served."""
