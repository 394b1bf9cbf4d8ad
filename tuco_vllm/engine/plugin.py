"""vLLM's way in: the ``vllm.general_plugins`` entry point that registers TucoForCausalLM.

Every vLLM process of the environment runs this, also those that never heard of TuCo. So it registers a
*name* (nothing is imported until the architecture is asked for), and a failure here is a log line, never
an exception in somebody else's server.
"""

import logging
import os
import sys
from typing import Any

ARCHITECTURE = "TucoForCausalLM"
ADAPTERS = "TucoAdaptersForCausalLM"
"""The architecture of a base model and LoRA adapters of it."""
_PLUGIN = "tuco"
"""Our entry point's name among ``vllm.general_plugins``."""


class _ConfiguresItsEngine:
    """vLLM's ``VerifyAndUpdateConfig`` of the architecture; what it does is ``pair_config``'s."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        from tuco_vllm.engine.pair_config import configure

        let_vllm_look_into_llvmlite()
        configure(vllm_config)

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        return


def register() -> None:
    """Register the pair models with vLLM; idempotent."""
    let_vllm_look_into_llvmlite()
    try:
        from vllm import ModelRegistry

        ModelRegistry.register_model(ARCHITECTURE, "tuco_vllm.engine.pair_model:TucoForCausalLM")
        ModelRegistry.register_model(ADAPTERS, "tuco_vllm.engine.adapter_pair:TucoAdaptersForCausalLM")

        # A private name outside compat.py: that file imports half of vLLM, and this must take milliseconds.
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        MODELS_CONFIG_MAP[ARCHITECTURE] = MODELS_CONFIG_MAP[ADAPTERS] = _ConfiguresItsEngine
    except Exception as error:  # whatever it is, an unrelated model must still load
        logging.getLogger(__name__).warning("tuco_vllm could not register %s: %s", ARCHITECTURE, error)


def let_vllm_look_into_llvmlite() -> None:
    """Let an engine start on a CPU in a process that has imported numba (shap, umap and librosa do).

    vLLM's dispatcher (triton_utils/dispatcher.py, ``_rebind_kernels``) calls ``vars(value).get`` on values of
    every module. llvmlite's library takes ``__dict__`` for one of its C functions, which has no ``get``;
    here it learns to answer with an empty dict.
    """
    library = getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None)
    functions = getattr(library, "_fntab", None)
    if isinstance(functions, dict):
        functions["__dict__"] = {}


def let_vllm_load_us() -> None:
    """Add this plugin to VLLM_PLUGINS where that is set: vLLM then loads only what it names."""
    if "VLLM_PLUGINS" in os.environ:
        named = [name for name in os.environ["VLLM_PLUGINS"].split(",") if name]
        os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*named, _PLUGIN]))
