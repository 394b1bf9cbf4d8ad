"""What several unit tests share."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bench():
    """Imports a module of the folder of benchmarks, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "bench")
        yield import_module
