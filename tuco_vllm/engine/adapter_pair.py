"""TucoAdaptersForCausalLM: the model class that vLLM loads for a base model and LoRA adapters of it.

``LLM(model=base, enable_lora=True, hf_overrides={"architectures": ["TucoAdaptersForCausalLM"]})`` is all it
takes. PT is the base, and FT the base with each request's own adapter; a request without one is PT's own.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from tuco_vllm.config import resolve_pair
from tuco_vllm.engine.adapter_model import AdapterScoringModel
from tuco_vllm.engine.compat import SupportsLoRA, VllmConfig, WeightsMapper
from tuco_vllm.engine.pair_config import refuse_unsupported, rows_are_wide
from tuco_vllm.engine.pair_model import TucoForCausalLM
from tuco_vllm.engine.parent_watch import end_with_parent
from tuco_vllm.engine.pooler import ContributionPooler
from tuco_vllm.engine.scoring_rows import ScoringRows
from tuco_vllm.engine.start_stages import tell
from tuco_vllm.engine.weights import load_pair
from tuco_vllm.families import FAMILIES


class TucoAdaptersForCausalLM(TucoForCausalLM, SupportsLoRA):
    """A base model and adapters of it in one engine. Raises as ``TucoForCausalLM`` does."""

    supports_pp = False
    lora_skip_prefixes: ClassVar[list[str]] = ["lm_head"]
    """Nothing that is scored passes the head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        end_with_parent()
        tell("weights")
        refuse_unsupported(vllm_config)
        model = vllm_config.model_config
        self.config = model.hf_config
        has_weights = vllm_config.load_config.load_format != "dummy"
        self.pair = resolve_pair(model.model, model.model, weights=has_weights)
        self.dtype, self.scores_prompts = model.dtype, True
        self.wide = rows_are_wide(vllm_config, FAMILIES[self.pair.ft.architecture])
        self._has_heads = False
        self.mapped = (0, 0)
        """Tokens of the batch, and rows behind them, in vLLM's mapping of adapters (``adapters_v1``)."""
        self.rows: Any = ScoringRows(vllm_config)
        self.model = AdapterScoringModel(
            vllm_config=vllm_config,
            prefix="model",
            architecture=self.pair.ft.architecture,
            wide=self.wide,
            select=self.rows.select,
        )
        self.pooler = ContributionPooler()
        self._first = "first step"
        self.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"model.": "model.ft.model."})
        self.packed_modules_mapping = self.ft.packed_modules_mapping
        embeddings = getattr(self.ft, "embedding_modules", {})
        self.embedding_modules = {name: kind for name, kind in embeddings.items() if name != "lm_head"}

    def adapters_wrapped(self) -> None:
        """Once vLLM has put its LoRA layers around the linear ones."""
        self.model.adapters_wrapped()

    def rows_behind(self, rows: int) -> int:
        """How many of a step's rows stand behind its tokens, in vLLM's eyes."""
        return 0 if self.wide else rows

    def _run(self, input_ids: Tensor, positions: Tensor, rows_R: Tensor, *_: Any) -> Any:
        tokens, rows = self.mapped
        if (len(positions), self.rows_behind(len(rows_R))) != (tokens, rows):
            raise RuntimeError(
                f"adapters are mapped for {tokens} tokens and {rows} rows, the step has {len(positions)} and "
                f"{len(rows_R)}: please report this"
            )
        self.model.tell_rows(rows_R)
        return self.model(input_ids, positions, rows_R)

    def load_heads(self) -> None:
        """Load what log-probabilities need of the base. Idempotent."""
        self.model.ft_aside.restore(self.pair.ft.directory)
        self._has_heads = True

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The base's tensors, as vLLM's loader streams them; returns the parameters filled."""
        return load_pair(weights, self, "model.ft", "")
