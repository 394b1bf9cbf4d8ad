"""One file per architecture; ``config.FAMILIES`` is the table that names them.

A family file holds the few facts in which the architectures differ:

    StockModel    vLLM's own generation model of the family (alpha = 1 without scores)
    MAPPER        its checkpoint-to-parameter names
    stock_layer   builds vLLM's own decoder layer: FT's, so that its stream is vLLM's bit for bit
    RowsLayer     our layer on rows: PT's, and FT's last
"""

from importlib import import_module
from types import ModuleType

from tuco_vllm.config import FAMILIES


def family_of(architecture: str) -> ModuleType:
    """The family module of a Hugging Face architecture name (``config`` has refused unknown ones)."""
    return import_module(f"{__name__}.{FAMILIES[architecture]}")
