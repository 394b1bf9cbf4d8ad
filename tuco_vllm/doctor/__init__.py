"""``tuco doctor``: what would work here, and what the scores of a given pair are worth."""

from pathlib import Path

from rich.console import Console

from tuco_vllm.config import resolve_pair
from tuco_vllm.doctor.environment import print_environment
from tuco_vllm.errors import EngineError, InputError


def run_doctor(pt: str | None = None, ft: str | None = None, prompts: Path | None = None) -> int:
    """Print versions, backend and checks; with a pair, examine it too, in engines of its own.

    ``prompts``: a file as ``tuco score`` reads them; the demo's if None. Returns 0 when scoring would work, 3
    when the installation is at fault; raises InputError when the models or prompts are.
    """
    console = Console()
    healthy = print_environment(console)
    if ft is None and pt is None:
        return 0 if healthy else 3
    if ft is None:
        raise InputError("a pair is two models: give --ft too")
    pair = resolve_pair(pt, ft)
    sizes = ", ".join(f"{key} {value}" for key, value in pair.ft.sizes.items())
    console.print(f"Pair fits: {pair.ft.architecture}, {sizes}")
    console.print(f"  PT {pair.pt.directory}  {pair.pt.fingerprint[:16]}")
    if pair.note:
        console.print(f"  {pair.note}")
    console.print(f"  FT {pair.ft.source}  {pair.ft.fingerprint[:16]}")
    if not healthy:
        raise EngineError("the pair was not examined: see the table for what is missing")
    from tuco_vllm.doctor.examination import examine  # torch and vLLM, which may be what is missing

    examine(pair, prompts, console)
    return 0
