"""Imports of bench/paper, which is no package."""

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def paper():
    """Imports one of its modules. Their names are short, so none stays behind for other tests to find."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder in (BENCH, BENCH / "real_pair", BENCH / "paper"):
            patch.syspath_prepend(folder)
        yield importlib.import_module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(BENCH)):
            del sys.modules[name]
