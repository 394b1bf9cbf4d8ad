"""What the options of several commands have in common."""

import argparse
from typing import Any


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def engine_arguments(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of an engine's that were given; vLLM's own defaults stand for the rest."""
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None and value is not False}
