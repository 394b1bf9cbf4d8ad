"""TucoAdaptersForCausalLM: the model class that vLLM loads for a base model and LoRA adapters of it.

``LLM(model=base, enable_lora=True, hf_overrides={"architectures": ["TucoAdaptersForCausalLM"]})`` is all it
takes. PT is the base, and FT the base with each request's own adapter; a request without one is PT's own.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from tuco_vllm.config import expect_adaptable, resolve_pair
from tuco_vllm.engine.adapter_model import AdapterScoringModel
from tuco_vllm.engine.adapter_steering import AdapterSteeringModel
from tuco_vllm.engine.compat import SupportsLoRA, VllmConfig, WeightsMapper, set_model_tag
from tuco_vllm.engine.pair_config import SCHEDULERS, refuse_unsupported, rows_are_wide
from tuco_vllm.engine.pair_model import TucoForCausalLM
from tuco_vllm.engine.parent_watch import end_with_parent
from tuco_vllm.engine.pooler import ContributionPooler
from tuco_vllm.engine.scoring_rows import ScoringRows
from tuco_vllm.engine.start_stages import tell
from tuco_vllm.engine.steering_rows import SteeringRows
from tuco_vllm.engine.step_plan import StepPlan
from tuco_vllm.engine.stock_models import ft_model
from tuco_vllm.engine.weights import load_pair
from tuco_vllm.families import FAMILIES


class TucoAdaptersForCausalLM(TucoForCausalLM, SupportsLoRA):
    """A base model and adapters of it in one engine. Raises as ``TucoForCausalLM`` does."""

    supports_pp = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        end_with_parent()
        tell("weights")
        refuse_unsupported(vllm_config)
        model = vllm_config.model_config
        self.config = model.hf_config
        has_weights = vllm_config.load_config.load_format != "dummy"
        base = f"{model.model}@{model.revision}" if model.revision else model.model
        self.pair = resolve_pair(base, base, trust_remote_code=model.trust_remote_code, weights=has_weights)
        expect_adaptable(self.pair.ft)
        self.dtype, self.wide, self._has_heads = model.dtype, False, False
        self.scores_prompts = model.runner_type == "pooling"
        self.mapped = (0, 0)
        """Tokens of the batch, and rows behind them, in vLLM's mapping of adapters (``adapter_runner``)."""
        if self.scores_prompts:
            self._build_scoring(vllm_config)
        else:
            self._build_steering(vllm_config, prefix)
        self.packed_modules_mapping = self.ft.packed_modules_mapping
        self.embedding_modules = dict(getattr(self.ft, "embedding_modules", {}))
        if self.scores_prompts:  # nothing that is scored passes the head
            self.embedding_modules.pop("lm_head", None)
            self.lora_skip_prefixes = ["lm_head"]

    def _build_scoring(self, vllm_config: VllmConfig) -> None:
        architecture = self.pair.ft.architecture
        self.wide = rows_are_wide(vllm_config, FAMILIES[architecture])
        self.rows: Any = ScoringRows(vllm_config)
        self.model: Any = AdapterScoringModel(
            vllm_config=vllm_config,
            prefix="model",
            architecture=architecture,
            wide=self.wide,
            select=self.rows.select,
        )
        self.pooler = ContributionPooler()
        self._first = "first step"
        self.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.": "model.ft.model."})

    def _build_steering(self, vllm_config: VllmConfig, prefix: str) -> None:
        if vllm_config.scheduler_config.scheduler_cls != SCHEDULERS["generate"]:
            raise ValueError("no scheduler of TuCo's: is tuco in VLLM_PLUGINS?")
        self.is_pooling_model = False  # vLLM's LoRA would ask for a pooler
        self.stock = ft_model(vllm_config, self.pair.ft.architecture, prefix)
        self.rows = SteeringRows(vllm_config)
        with set_model_tag("tuco_steering"):
            self.model = AdapterSteeringModel(
                vllm_config=vllm_config, prefix="model", ft_model=self.stock, select=self.rows.select
            )
        self._scores: Tensor | None = None
        names = {"model.": "stock.model.", "lm_head.": "stock.lm_head."}
        self.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=names)

    def adapters_wrapped(self, map_rows: Callable[[int], None]) -> None:
        """Once vLLM has put its LoRA layers around the linear ones; ``map_rows`` is the runner's."""
        self._map_rows = map_rows
        self.model.adapters_wrapped()

    def rows_known(self, requests: int) -> None:
        """How many rows stand behind the step's tokens is known."""
        self._map_rows(self.rows.count(requests))

    def set_mapped(self, tokens: int, rows: int) -> None:
        """What vLLM's mapping of adapters has of the step that runs next."""
        self.mapped = (tokens, rows)

    def rows_behind(self, rows: int) -> int:
        """How many of a step's rows stand behind its tokens, in vLLM's eyes."""
        return 0 if self.wide else rows

    def _run(self, input_ids: Tensor, positions: Tensor, rows_R: Tensor, *_: Any) -> Any:
        self._expect_mapped(len(positions), self.rows_behind(len(rows_R)))
        self.model.tell_rows(rows_R)
        return self.model(input_ids, positions, rows_R)

    def _profile(self, input_ids: Any, positions: Tensor, embeds: Any) -> None:
        if self.mapped[1]:
            self.model(input_ids, positions, *self.rows.for_profiling(len(positions)))

    def _steered(self, plan: StepPlan, size: Any, input_ids: Any, positions: Tensor, embeds: Any) -> Any:
        tokens = self.mapped[0]  # without those that a graph's size has added
        self._expect_mapped(tokens, len(plan.rows_S))
        hidden_TH, *scores = self.model(input_ids[:tokens], positions[:tokens], *self.rows.tensors(plan))
        return nn.functional.pad(hidden_TH, (0, 0, 0, len(positions) - tokens)), *scores

    def _expect_mapped(self, *tokens_and_rows: int) -> None:
        if self.mapped != tokens_and_rows:
            raise RuntimeError(
                f"adapters are mapped for {self.mapped} tokens and rows, the step has {tokens_and_rows}: "
                "please report this"
            )

    def load_heads(self) -> None:
        """Load what log-probabilities need of the base. Idempotent."""
        if self.scores_prompts:
            self.model.ft_aside.restore(self.pair.ft.directory)
        self._has_heads = True

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The base's tensors, as vLLM's loader streams them; returns the parameters filled."""
        return load_pair(weights, self, "model.ft" if self.scores_prompts else "stock", "")
