"""The plain way to score inside vLLM, as a contender: PT's whole layers on all tokens, two passes.

What the paper states ("essentially equivalent to running two forward passes"), given vLLM's own layers,
paged caches and chunked prefill, and the same norms on the same rows: the difference to ``tuco`` is the
execution plan and nothing else.

Shape suffixes: T tokens of the batch, R rows (one per request), L layers, H hidden size.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader

from tuco_vllm.engine.compat import VllmConfig, get_config, get_forward_context, support_torch_compile
from tuco_vllm.engine.pooler import ContributionPooler
from tuco_vllm.engine.weights import PT_PREFIX, pt_source

ARCHITECTURE = "TwoPassForCausalLM"


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "rows": 0})
class TwoPassModel(nn.Module):
    """FT's stack and PT's, both stock, each PT layer fed with FT's stream."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", pt_config: Any) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        count = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(vllm_config, f"{prefix}.layers.{layer}") for layer in range(count)
        )
        self.pt_layers = nn.ModuleList(
            LlamaDecoderLayer(vllm_config, f"{prefix}.pt_layers.{count + layer}", config=pt_config)
            for layer in range(count)
        )

    def forward(self, input_ids: Tensor | None, positions: Tensor, rows: Tensor) -> Tensor:
        """Norms ``[R, 7 L]`` float32, in the order of ``decomposition.NORM_COLUMNS``."""
        x_TH: Any = self.embed_tokens(input_ids)
        mlp_TH: Any = torch.zeros_like(x_TH)
        cum_ptc_RH = torch.zeros(rows.shape[0], self.hidden_size, dtype=torch.float32, device=x_TH.device)
        cum_ftc_RH = torch.zeros_like(cum_ptc_RH)
        norms_RL7 = torch.empty(len(rows), len(self.layers), 7, dtype=torch.float32, device=x_TH.device)
        ft: Any
        for index, (ft, pt) in enumerate(zip(self.layers, self.pt_layers, strict=True)):
            normed_TH, x_TH = ft.input_layernorm(mlp_TH, x_TH)
            # A copy, since the fused add + norm inside may write into the stream it is given.
            pt_attention_RH, pt_mlp_TH, _ = _layer(
                pt, positions, pt.input_layernorm(x_TH), x_TH.clone(), rows
            )
            ft_attention_RH, mlp_TH, x_TH = _layer(ft, positions, normed_TH, x_TH, rows)
            accumulate_contribution(
                pt_attention_RH,
                pt_mlp_TH[rows],
                ft_attention_RH,
                mlp_TH[rows],
                cum_ptc_RH,
                cum_ftc_RH,
                norms_RL7,
                index,
            )
        return norms_RL7.flatten(1)


def _layer(
    layer: Any, positions_T: Tensor, normed_TH: Tensor, x_TH: Tensor, rows_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A stock layer on all tokens: A(x) on the rows, M(x + A(x)), x + A(x)."""
    attention_TH = layer.self_attn(positions=positions_T, hidden_states=normed_TH)
    attention_RH = attention_TH[rows_R]
    normed_TH, x_TH = layer.post_attention_layernorm(attention_TH, x_TH)
    return attention_RH, layer.mlp(normed_TH), x_TH


class TwoPassForCausalLM(nn.Module):
    """What vLLM loads: the model above, its rows, its pooler, both checkpoints. Config: TucoForCausalLM's."""

    is_pooling_model = True
    default_seq_pooling_type = "LAST"
    default_tok_pooling_type = "ALL"
    attn_type = "decoder"
    score_type = "bi-encoder"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        pt_config = get_config(config.tuco_pt, trust_remote_code=False, config_format="hf")
        self.secondary_weights = (pt_source(config.tuco_pt),)
        self.model = TwoPassModel(vllm_config=vllm_config, prefix="model", pt_config=pt_config)
        self.pooler = ContributionPooler(config.num_hidden_layers)
        self.max_rows = vllm_config.scheduler_config.max_num_seqs

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """FT's embeddings."""
        return self.model.embed_tokens(input_ids)

    def forward(self, input_ids: Tensor | None, positions: Tensor, *_: Any, **__: Any) -> Tensor:
        """``[T, 7 L]`` float32, row i for request i."""
        metadata: Any = get_forward_context().attn_metadata
        if metadata is None:  # a warm-up without requests; one row would be compiled in as a constant
            rows_R = torch.zeros(self.max_rows, dtype=torch.long, device=positions.device)
        else:
            rows_R = metadata["model.layers.0.self_attn.attn"].query_start_loc[1:].long() - 1
        norms_RN = self.model(input_ids, positions, rows_R)
        return nn.functional.pad(norms_RN, (0, 0, 0, len(positions) - len(norms_RN)))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """FT's tensors, then PT's, by the stock mapper."""
        return AutoWeightsLoader(self).load_weights(LlamaModel.hf_to_vllm_mapper.apply(_wanted(weights)))


def _wanted(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        if name.startswith("model.layers.") or name == "model.embed_tokens.weight":
            yield name, tensor
        elif name.startswith(f"{PT_PREFIX}model.layers."):
            yield name.removeprefix(PT_PREFIX).replace("model.layers.", "model.pt_layers.", 1), tensor
