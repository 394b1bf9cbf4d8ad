"""Types of options that several commands have."""

import argparse


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)
