"""Where the kernels' tests run: Triton on a GPU, or in Triton's interpreter; twins in the normal session.

A test with the fixture ``device`` launches Triton. In a normal session it is a ``gpu`` test; with
TRITON_INTERPRET=1 in the environment, which must be there before Triton is imported, it runs on CPU tensors,
and nothing else in this folder does. ``test_interpreter.py`` starts that second session.
"""

import importlib
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:  # where Triton runs
        metafunc.parametrize("device", ["cpu"] if INTERPRETED else [GPU])
    if "op_device" in metafunc.fixturenames:  # where the ops and public functions run
        metafunc.parametrize("op_device", ["cpu", GPU])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not INTERPRETED:
        return
    here = Path(__file__).parent
    others = [i for i in items if i.path.is_relative_to(here) and "device" not in i.fixturenames]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(autouse=True)
def _round_as_hardware_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 to bfloat16 to nearest, ties to even; the interpreter of Triton 3.9 truncates."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(numbers, source, target, rounding_mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(numbers, source, target, rounding_mode)
        bits = torch.from_numpy(numbers.reshape(-1).copy()).to(torch.bfloat16).view(torch.int16)
        return bits.numpy().view("uint16").reshape(numbers.shape)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


class CountedKernel:
    """A Triton kernel that counts its launches, as proof that Triton and not the twin ran."""

    def __init__(self, name: str, kernel, counts: Counter) -> None:
        self.name, self.kernel, self.counts = name, kernel, counts

    def __getitem__(self, grid):
        self.counts[self.name] += 1
        return self.kernel[grid]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Kernel name -> launches so far in this test."""
    counts: Counter = Counter()
    for name in ("dual_rms_norm", "accumulate_contribution", "steer_residual"):
        module = importlib.import_module(f"tuco_kernels.{name}")
        kernel = CountedKernel(name, getattr(module, f"_{name}_kernel"), counts)
        monkeypatch.setattr(module, f"_{name}_kernel", kernel)
    return counts


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty holds NaN, so that an output element that is not written shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


@pytest.fixture
def random():
    """(shape, dtype, device, strided) -> a tensor of normal numbers, the same in every run.

    Strided: rows are further apart than they are long, and the first number is not aligned.
    """
    generator = torch.Generator().manual_seed(7)

    def make(*shape: int, dtype=torch.float32, device="cpu", strided: bool = False) -> torch.Tensor:
        if strided:
            wider = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator)
            return wider.to(device, dtype)[..., 1 : 1 + shape[-1]]
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return make
