"""``tuco status``: how far a run is."""

import argparse

from tuco_vllm.errors import InputError

TEXT = "How far a running or finished tuco score is."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    parser.add_argument("directory", metavar="DIR|URL", help="its --out")


def run(arguments: argparse.Namespace) -> int:
    """Print one line, and the table of what is there. Returns the exit code."""
    from tuco_vllm.analysis.tables import print_status
    from tuco_vllm.corpus.directory import JobDirectory
    from tuco_vllm.records import STATE
    from tuco_vllm.store import store_at

    store = store_at(arguments.directory)
    store.look()
    if not store.list(STATE):
        raise InputError(f"{store.where} holds no tuco run: name the --out of a tuco score")
    print_status(store, JobDirectory(store).running())
    return 0
