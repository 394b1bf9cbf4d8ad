"""What all tests of this folder share: they need a CUDA device, or ``--dry-gpu``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu.modes import has_gpu, to_run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        modes = metafunc.module.MODES
        if metafunc.config.getoption("--dry-gpu"):
            modes = to_run(modes)
        metafunc.parametrize("engine", modes, ids=lambda mode: mode.id, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if has_gpu() or config.getoption("--dry-gpu"):
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _engines_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Engines are asked what they run on by a function that is sent to them.
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        # Triton multiplies float32 as TF32, 11 bits, unless told; the bounds are those of 24.
        patch.setenv("TRITON_F32_DEFAULT", "ieee")
        yield
