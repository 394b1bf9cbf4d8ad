"""vLLM's way in: the ``vllm.general_plugins`` entry point that registers TucoForCausalLM.

Every vLLM process of the environment runs this, also those that never heard of TuCo. So it registers a
*name* (nothing is imported until the architecture is asked for), and a failure here is a log line, never
an exception in somebody else's server.
"""

import logging

ARCHITECTURE = "TucoForCausalLM"


def register() -> None:
    """Register the pair model with vLLM under ``ARCHITECTURE``; idempotent."""
    try:
        from vllm import ModelRegistry

        ModelRegistry.register_model(ARCHITECTURE, "tuco_vllm.engine.pair_model:TucoForCausalLM")
    except Exception as error:  # whatever it is, an unrelated model must still load
        logging.getLogger(__name__).warning("tuco_vllm could not register %s: %s", ARCHITECTURE, error)
