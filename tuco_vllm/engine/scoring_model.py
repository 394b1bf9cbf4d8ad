"""One pass over the prompt that scores it: FT's stream, and PT's layers on the rows that are read.

At alpha = 1 the residual stream is FT's own, so f_PT(x_l) needs PT's keys and values of all T tokens and,
for the R last-token rows only, the rest of PT's layer. Extra work: PT's key/value share of a pass (3.9 %
for Llama-3-8B). FT's own last layer shrinks to rows too, which gives about 1/L of a pass back. The paper
and all else pay two passes.

Shape suffixes: T tokens of the batch, R rows (one per request), L layers, H hidden size.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution, dual_rms_norm

from tuco_vllm.engine.compat import VllmConfig, VocabParallelEmbedding, support_torch_compile


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "rows": 0, "inputs_embeds": 0})
class ScoringModel(nn.Module):
    """FT's layers and PT's, interleaved; returns norms instead of hidden states.

    ``family`` is a module of ``families``, ``pt_config`` PT's Hugging Face config; FT's is the engine's own.
    """

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", family: ModuleType, pt_config: Any
    ) -> None:
        super().__init__()
        ft_config = vllm_config.model_config.hf_config
        self.num_layers = count = ft_config.num_hidden_layers
        self.hidden_size = ft_config.hidden_size

        self.embed_tokens = VocabParallelEmbedding(
            ft_config.vocab_size, ft_config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            [family.stock_layer(vllm_config, layer, f"{prefix}.layers.{layer}") for layer in range(count - 1)]
            + [family.RowsLayer(vllm_config, ft_config, count - 1, f"{prefix}.layers.{count - 1}")]
        )
        # PT's KV caches are layers count .. 2*count - 1 of the engine: vLLM wants unique layer indices.
        self.pt_layers = nn.ModuleList(
            [
                family.RowsLayer(vllm_config, pt_config, layer, f"{prefix}.pt_layers.{count + layer}")
                for layer in range(count)
            ]
        )
        self.rows_layer_name = f"{prefix}.pt_layers.{count}.self_attn.attn"
        """The engine's name of one layer on rows, whose attention metadata holds them (``rows``)."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """FT's embeddings ``[T, H]``."""
        return self.embed_tokens(input_ids)

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, rows: Tensor, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Norms ``[R, 4 L]`` float32, layer-major, in ``decomposition.NORM_COLUMNS``' order."""
        x_TH = inputs_embeds if inputs_embeds is not None else self.embed_tokens(input_ids)
        delta_TH: Any = None  # FT's MLP output of the layer before, not yet added to the stream
        count = rows.shape[0]
        cum_ptc_RH = torch.zeros(count, self.hidden_size, dtype=torch.float32, device=x_TH.device)
        cum_ftc_RH = torch.zeros_like(cum_ptc_RH)
        # Zeros, though all of it is written: from empty, torch 2.13 fails to generate C++ for twelve layers.
        norms_RL4 = torch.zeros(count, self.num_layers, 4, dtype=torch.float32, device=x_TH.device)

        ft: Any
        pt: Any
        for layer, (ft, pt) in enumerate(zip(self.layers[:-1], self.pt_layers[:-1], strict=True)):
            # FT exactly as vLLM's own model runs it, fused add + norm included, which on a GPU overwrites its
            # inputs: whatever else needs those has run before, or has a gathered copy.
            pt_normed_TH = pt.norm_input(delta_TH, x_TH)
            if delta_TH is None:
                normed_TH = ft.input_layernorm(x_TH)
            else:
                normed_TH, x_TH = ft.input_layernorm(delta_TH, x_TH)
            pt_attention_RH, pt_mlp_RH = pt(positions, pt_normed_TH, rows, x_TH, rows)
            attention_TH = ft.self_attn(positions=positions, hidden_states=normed_TH)
            ft_attention_RH = attention_TH[rows]
            normed_TH, x_TH = ft.post_attention_layernorm(attention_TH, x_TH)
            delta_TH = ft.mlp(normed_TH)
            accumulate_contribution(
                pt_attention_RH,
                pt_mlp_RH,
                ft_attention_RH,
                delta_TH,
                cum_ptc_RH,
                cum_ftc_RH,
                norms_RL4,
                layer,
                mlp_rows_R=rows,
            )

        ft, pt = self.layers[-1], self.pt_layers[-1]
        normed_TH, pt_normed_TH, x_TH = dual_rms_norm(
            delta_TH,
            x_TH,
            ft.input_layernorm.weight,
            pt.input_layernorm.weight,
            ft.input_layernorm.variance_epsilon,
            pt.input_layernorm.variance_epsilon,
            round_sum=ft.norms_rounded_sum,
        )
        pt_attention_RH, pt_mlp_RH = pt(positions, pt_normed_TH, rows, x_TH, rows)
        ft_attention_RH, ft_mlp_RH = ft(positions, normed_TH, rows, x_TH, rows)
        accumulate_contribution(
            pt_attention_RH,
            pt_mlp_RH,
            ft_attention_RH,
            ft_mlp_RH,
            cum_ptc_RH,
            cum_ftc_RH,
            norms_RL4,
            self.num_layers - 1,
        )
        return norms_RL4.flatten(1)
