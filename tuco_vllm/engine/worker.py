"""vLLM's worker of this platform for a pair: our runner on V1, and what an engine is asked beside requests.

The worker builds its stock runner, whose class is then exchanged for one with our overrides. Runner V2 has a
way of its own for models (``scoring_v2``, ``steering_v2``), which provides for neither graphs nor adapters.
"""

from tuco_vllm.engine.adapter_runner import AdapterRunner
from tuco_vllm.engine.compat import GPUModelRunnerV1, PlatformWorker
from tuco_vllm.engine.scoring_v1 import ScoringRunner
from tuco_vllm.engine.steering_v1 import SteeringRunner
from tuco_vllm.engine.step_graphs import GraphsV1, GraphsV2

_V1: dict[str, tuple[type, ...]] = {"pooling": (ScoringRunner,), "generate": (SteeringRunner, GraphsV1)}
_V2: dict[str, tuple[type, ...]] = {"pooling": (), "generate": (GraphsV2,)}
"""By the kind of engine, what is put over vLLM's runner."""


class PairWorker(PlatformWorker):
    """One rank of a pair's engine."""

    def init_device(self) -> None:
        """As stock; then the runner."""
        super().init_device()
        stock = type(self.model_runner)
        ours: tuple[type, ...] = ()
        if self.vllm_config.lora_config is not None:
            ours += (AdapterRunner,)
        runners = _V1 if issubclass(stock, GPUModelRunnerV1) else _V2
        ours += runners[self.model_config.runner_type]
        if ours:
            self.model_runner.__class__ = type(f"Pair{stock.__name__}", (*ours, stock), {})

    def load_heads(self) -> str | None:
        """What the relative reward needs of both models; asked for by name, from the engine's front.

        Returns what went wrong, and raises nothing: vLLM would leave the other ranks' answers unread.
        """
        try:
            self.get_model().load_heads()
        except Exception as error:
            return " ".join(f"{type(error).__name__}: {error}".split())
        return None
