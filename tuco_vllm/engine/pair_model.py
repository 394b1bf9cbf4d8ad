"""TucoForCausalLM: the model class that vLLM loads for a pair (PT, FT).

``LLM(model=ft, hf_overrides={"architectures": ["TucoForCausalLM"], "tuco_pt": pt})`` is all it takes.
With ``runner="pooling"`` it scores: the forward returns norms in place of hidden states, and the pooler
hands each request its row. With ``runner="generate"`` it is FT, by vLLM's own class: at alpha = 1 without
scores PT contributes nothing, so it is not even loaded.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tuco_vllm.config import ModelPair, resolve_pair
from tuco_vllm.engine.compat import AutoWeightsLoader, Pooler, VllmConfig, get_config
from tuco_vllm.engine.families import family_of
from tuco_vllm.engine.rows import LastRows
from tuco_vllm.engine.scoring_model import ScoringModel
from tuco_vllm.engine.weights import SAFETENSORS, parameter_names, pt_source


class ContributionPooler(Pooler):
    """Hands request i the i-th row of what the model returned, as ``[L, 4]`` float32.

    Stateless: chunked prefill and prefix caching stay on, and a chunk that does not end its prompt gets a
    row that the runner discards.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers

    def get_supported_tasks(self) -> set[Any]:
        """vLLM's name for "numbers of any shape, one tensor a request"."""
        return {"classify"}

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor]:
        """``[T, 4 L]`` -> one ``[L, 4]`` a request."""
        rows = len(pooling_metadata.pooling_params)
        return list(hidden_states[:rows].reshape(rows, -1, 4))


class TucoForCausalLM(nn.Module):
    """A pre-trained and a fine-tuned model in one engine.

    Config (``hf_overrides``): ``tuco_pt``, PT's directory or hub id. Raises InputError or ValueError,
    naming the mend, for a pair or an engine option that cannot be scored correctly.
    """

    is_pooling_model = True
    default_seq_pooling_type = "LAST"
    default_tok_pooling_type = "ALL"
    attn_type = "decoder"
    score_type = "bi-encoder"
    # What vLLM's loader reads of a model class: see weights.SAFETENSORS.
    allow_patterns_overrides = SAFETENSORS
    fall_back_to_pt_during_load = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        refuse_unsupported(vllm_config)
        has_weights = vllm_config.load_config.load_format != "dummy"
        pair = pair_of(vllm_config, weights=has_weights)
        self.family = family_of(pair.ft.architecture)
        self.scores = vllm_config.model_config.runner_type == "pooling"
        if not self.scores:
            self.stock = self.family.StockModel(vllm_config=vllm_config, prefix=prefix)
            return

        pt_config = get_config(pair.pt.directory, trust_remote_code=False, config_format="hf")
        # vLLM keys its compile cache by FT's config; what PT's brings into the graph must be in the key too.
        vllm_config.additional_config["tuco_pt_config"] = pt_config.to_json_string()
        if has_weights:
            self.secondary_weights = (pt_source(str(pair.pt.directory)),)
        self.model = ScoringModel(
            vllm_config=vllm_config, prefix="model", family=self.family, pt_config=pt_config
        )
        self.rows = LastRows(vllm_config, self.model.rows_layer_name)
        self.pooler = ContributionPooler(self.model.num_layers)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """FT's embeddings, the x_0 of both models."""
        return (self.model if self.scores else self.stock).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Generating: FT's hidden states ``[T, H]``. Scoring: ``[T, 4 L]`` float32, row i for request i.

        A request has at least one token, so the R rows of norms fit; the rest is zeros that nobody reads
        (vLLM's runners take for granted that a model returns T rows).
        """
        if not self.scores:
            return self.stock(input_ids, positions, intermediate_tensors, inputs_embeds)
        num_tokens = positions.shape[-1]
        rows_R = self.rows.of_this_batch(num_tokens)
        norms_RN = self.model(input_ids, positions, rows_R, inputs_embeds)
        return nn.functional.pad(norms_RN, (0, 0, 0, num_tokens - norms_RN.shape[0]))

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """FT's logits; asked for by the generate runner only."""
        return self.stock.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Both checkpoints' tensors, as vLLM's loader streams them; returns the parameters filled."""
        if not self.scores:
            return {f"stock.{name}" for name in self.stock.load_weights(weights)}
        names = parameter_names(weights, self.family.MAPPER, self.model.num_layers)
        return AutoWeightsLoader(self).load_weights(names)


def pair_of(vllm_config: VllmConfig, *, weights: bool) -> ModelPair:
    """The checked pair that an engine was started with."""
    model = vllm_config.model_config
    pt = getattr(model.hf_config, "tuco_pt", None)
    if pt is None:
        raise ValueError('no pre-trained model: add "tuco_pt": DIR to hf_overrides, or use tuco_vllm.TucoLLM')
    ft = f"{model.model}@{model.revision}" if model.revision else model.model
    return resolve_pair(pt, ft, trust_remote_code=model.trust_remote_code, weights=weights)


def refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Engine options under which scores would be wrong or the engine would fail later, each by name."""
    parallel = vllm_config.parallel_config
    reasons = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "micro-batching (DBO)": getattr(parallel, "use_ubatching", False),
        "quantization": vllm_config.quant_config is not None,
        "LoRA": vllm_config.lora_config is not None,
        "speculative decoding": vllm_config.speculative_config is not None,
        "KV transfer": vllm_config.kv_transfer_config is not None,
    }
    for reason, present in reasons.items():
        if present:
            raise ValueError(f"TucoForCausalLM does not support {reason} yet: start the engine without it")
    if vllm_config.model_config.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"unsupported dtype {vllm_config.model_config.dtype}")
