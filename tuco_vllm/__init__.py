"""TuCo on vLLM: how much fine-tuning contributes to each response, at the cost of about one forward pass.

Kept light on purpose: every vLLM process of an environment imports this package through the plugin entry
point, so torch and vllm load only when ``TucoLLM`` is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuco_vllm.api import TucoLLM
    from tuco_vllm.records import TucoScore

__all__ = ["TucoLLM", "TucoScore", "__version__"]
__version__ = "0.1.0"

SUPPORTED_VLLM = ("0.32.", "0.33.")
"""What the versions of vLLM begin with whose private surface ``engine.compat`` knows."""


def __getattr__(name: str) -> Any:
    if name == "TucoLLM":
        from tuco_vllm.api import TucoLLM

        return TucoLLM
    if name == "TucoScore":
        from tuco_vllm.records import TucoScore

        return TucoScore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
