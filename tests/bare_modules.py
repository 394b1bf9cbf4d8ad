"""Modules of vLLM's and Hugging Face's for tests of structure alone."""

from typing import Any

from torch import nn


def bare(cls: type[nn.Module], **attributes: Any) -> Any:
    """A module without what its constructor needs an engine for."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module
