"""One pass over the prompt that scores it: FT's stream, and PT's layers on the rows that are read.

At alpha = 1 the residual stream is FT's own, so f_PT(x_l) needs PT's keys and values of all T tokens and,
for the R last-token rows only, the rest of PT's layer. Extra work: PT's key/value share of a pass (3.9 %
for Llama-3-8B). FT's own last layer shrinks to rows too, which gives about 1/L of a pass back. The paper
and all else pay two passes.

With rows in float32 (``wide_rows``) a score is made of rows alone: FT's layers run on all tokens for the
stream, keys and values, and on the rows again for their contribution to it.

Shape suffixes: T tokens of the batch, R rows (one per request), L layers, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution

from tuco_vllm.engine.compat import VllmConfig, support_torch_compile
from tuco_vllm.engine.rows import last_tokens
from tuco_vllm.engine.rows_projection import Both
from tuco_vllm.engine.stock_layers import (
    Again,
    keep_rows,
    layer_arguments,
    query_rows,
    rows_again,
    stream_on_rows,
)
from tuco_vllm.engine.stock_models import decoder_of, first_stream, ft_model, pt_model, without_head


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "rows": 0, "inputs_embeds": 0})
class ScoringModel(nn.Module):
    """FT's layers and PT's, interleaved; returns norms instead of hidden states.

    ``architecture`` is both models', ``pt_config`` PT's Hugging Face config; FT's is the engine's own.
    ``wide``: rows are float32, and the model is not.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        architecture: str,
        pt_config: Any,
        wide: bool,
    ) -> None:
        super().__init__()
        self.ft = without_head(ft_model(vllm_config, architecture, f"{prefix}.ft"))
        self.pt = pt_model(vllm_config, pt_config, architecture, f"{prefix}.pt")
        self.ft_layers, self.pt_layers = (list(decoder_of(model).layers) for model in (self.ft, self.pt))
        self.num_layers = len(self.ft_layers)
        self.hidden_size: int = pt_config.get_text_config().hidden_size
        self.ft_again = nn.ModuleList()
        """FT's layers but the last, whose own run is on rows; empty where rows are the model's dtype."""
        if wide:
            self.ft_again.extend(rows_again(ft, vllm_config, last_tokens) for ft in self.ft_layers[:-1])
        for layer in self.ft_layers[:-1]:
            keep_rows(layer)
        for layer in [self.ft_layers[-1], *self.pt_layers]:
            self.rows_layer_name = query_rows(layer, vllm_config, last_tokens, wide)
        """The engine's name of one layer on rows, whose attention metadata holds them (``rows``)."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """FT's embeddings ``[T, H]``."""
        return self.ft.embed_input_ids(input_ids)

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, rows: Tensor, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Norms ``[R, 4 L]`` float32, layer-major, in ``decomposition.NORM_COLUMNS``' order."""
        x_TH: Any = first_stream(self.ft, input_ids, inputs_embeds)
        delta_TH: Any = None  # FT's MLP output of the layer before, not yet added to the stream
        count = rows.shape[0]
        cum_ptc_RH = torch.zeros(count, self.hidden_size, dtype=torch.float32, device=x_TH.device)
        cum_ftc_RH = torch.zeros_like(cum_ptc_RH)
        # Zeros, though all of it is written: from empty, torch 2.13 fails to generate C++ for twelve layers.
        norms_RL4 = torch.zeros(count, self.num_layers, 4, dtype=torch.float32, device=x_TH.device)
        at_both, at_rows = Both(positions, positions[rows]), Both(positions[rows], positions[rows])

        for index, (ft, pt) in enumerate(zip(self.ft_layers, self.pt_layers, strict=True)):
            # FT exactly as vLLM's own model runs it, fused add + norm included, which on a GPU overwrites its
            # inputs: PT, which needs those, runs before.
            is_last = index == self.num_layers - 1  # past it nothing reads FT's other tokens
            arguments = layer_arguments(x_TH, delta_TH, rows)
            again = self.ft_again[index] if index < len(self.ft_again) else None
            x_RH = stream_on_rows(x_TH, delta_TH, rows, torch.float32) if again else x_TH
            pt_mlp_RH, pt_done = pt(positions=at_both, **arguments)
            delta_TH, ft_done = ft(positions=at_both if is_last else positions, **arguments)
            x_TH = ft_done.x_TH
            ft_mlp, ft_mlp_rows_R = delta_TH, None if is_last else rows
            if again:
                stream = Again(x_RH, ft_done.attention_RH)
                ft_mlp, ft_done = again(positions=at_rows, hidden_states=stream, residual=None)
                ft_mlp_rows_R = None
            accumulate_contribution(
                pt_done.attention_RH,
                pt_mlp_RH,
                ft_done.attention_RH,
                ft_mlp,
                cum_ptc_RH,
                cum_ftc_RH,
                norms_RL4,
                index,
                mlp_rows_R=ft_mlp_rows_R,
            )
        return norms_RL4.flatten(1)
