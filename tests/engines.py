"""Where the tests' vLLM engines run, by the one variable that vLLM reads when any of them is configured.

Unset or "1": in processes of their own, as users run them. That takes 20 seconds, nearly all of them imports.
"0": in this process, where each but the first takes two. What vLLM keeps in a process is then shared: the
distributed groups, which a closed engine takes with it, and caches of what does not depend on the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VARIABLE = "VLLM_ENABLE_V1_MULTIPROCESSING"


@contextmanager
def in_this_process(wanted: bool = True) -> Iterator[None]:
    """Engines that are started in here run in this process, one after the other, and are closed in here."""
    if not wanted:
        yield
        return
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "0")
        # As in an engine's own process on two cores. More threads than cores spin, at ten times the CPU time;
        # and the first engine makes this function do nothing, for good.
        torch.set_num_threads(1)
        yield
    assert not torch.distributed.is_initialized(), "an engine of this process was not closed"


@contextmanager
def only_configured() -> Iterator[None]:
    """Where no engine starts, one may be configured all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        yield


@contextmanager
def refused() -> Iterator[None]:
    """No engine starts in here, nor in a process that is started in here: vLLM wants a number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "a test that starts an engine is marked so: @pytest.mark.engine")
        yield
