"""A step in which requests steer, or want scores: FT's layers, and PT's on the rows that need them.

FT runs as vLLM's own layers, on all tokens. Steering (paper Def. 5.1) wants x + PTC + alpha * FTC where FT's
layer would leave x + FTC + PTC; vLLM adds a layer's MLP output to the stream only inside the next layer's
fused norm, so what is not yet added is corrected in place,

    M_FT  <-  M_FT - (1 - alpha) * FTC,      FTC = f_FT(x) - f_PT(x),

on the rows with alpha != 1 and no others. Rows with alpha = 1 are FT's bit for bit, by construction: so is a
request in layers outside its range, whatever PT's cache holds of it there.

Index spaces are ``step_plan``'s: T tokens of the batch, U tokens with PT's keys and values, S rows of PT,
C scored rows; L layers, H hidden size. In a step that replays graphs U, S and C are T too (``graph_rows``).
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution, steer_residual

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.compat import VllmConfig, support_torch_compile
from tuco_vllm.engine.graph_rows import zero_pad_rows
from tuco_vllm.engine.rows import Selection
from tuco_vllm.engine.rows_projection import Both
from tuco_vllm.engine.stock_layers import (
    Pending,
    keep_rows,
    layer_arguments,
    open_norm,
    query_rows,
    stream_on_rows,
)
from tuco_vllm.engine.stock_models import decoder_of, first_stream, pt_model


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": 0,
        "tokens_U": 0,
        "rows_S": 0,
        "rows_in_U": 0,
        "alpha_LS": 1,
        "scored_in_S": 0,
        "inputs_embeds": 0,
    }
)
class SteeringModel(nn.Module):
    """PT's layers beside those of ``ft_model``, vLLM's stock model, which stays its owner's.

    ``architecture`` is both models', ``pt_config`` PT's Hugging Face config.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        architecture: str,
        pt_config: Any,
        ft_model: nn.Module,
        select: Selection,
    ) -> None:
        super().__init__()
        self.ft: Any = (ft_model,)  # in a tuple: a child module would be loaded and counted twice
        self.pt, self.pt_aside = pt_model(vllm_config, pt_config, architecture, f"{prefix}.pt")
        self.ft_layers, self.pt_layers = (list(decoder_of(model).layers) for model in (ft_model, self.pt))
        self.num_layers = len(self.ft_layers)
        self.hidden_size: int = pt_config.get_text_config().hidden_size
        for layer in self.ft_layers:
            keep_rows(layer)
        open_norm(decoder_of(ft_model).norm, self.ft_layers[-1])
        self.attention_names = [query_rows(layer, vllm_config, select) for layer in self.pt_layers]
        """The engine's names of PT's attention layers."""
        for name in self.attention_names:
            zero_pad_rows(vllm_config.compilation_config.static_forward_context[name])

    is_last_stage = True

    @property
    def own_pt_layers(self) -> list[Any]:
        """PT's layers."""
        return self.pt_layers

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        tokens_U: Tensor,
        rows_S: Tensor,
        rows_in_U: Tensor,
        alpha_LS: Tensor,
        scored_in_S: Tensor,
        inputs_embeds: Tensor | None = None,
        pt_layers: Collection[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """FT's final hidden states of the steered stream ``[T, H]``; norms ``[C, 7 L]`` float32 of the
        unscaled contributions on it, layer-major, in ``decomposition.NORM_COLUMNS``' order; and that stream
        behind the last layer ``[C, H]`` float32.

        With ``pt_layers`` PT runs in these layers alone, and the norms are of no use. Only ``forward`` takes
        it: what is compiled holds all layers.
        """
        [ft_model] = self.ft
        x_TH: Any = first_stream(ft_model, input_ids, inputs_embeds)
        at_both = Both(positions[tokens_U], positions[rows_S])
        scored_C = rows_S[scored_in_S]
        delta_TH: Any = None  # FT's MLP output of the layer before, steered, not yet added to the stream
        count = scored_in_S.shape[0]
        cum_ptc_CH = torch.zeros(count, self.hidden_size, dtype=torch.float32, device=x_TH.device)
        cum_ftc_CH = torch.zeros_like(cum_ptc_CH)
        size = (count, self.num_layers, len(NORM_COLUMNS))
        norms_CL7 = torch.zeros(*size, dtype=torch.float32, device=x_TH.device)

        for index, (ft, pt) in enumerate(zip(self.ft_layers, self.pt_layers, strict=True)):
            if pt_layers is not None and index not in pt_layers:
                delta_TH, ft_done = ft(positions=positions, **layer_arguments(x_TH, delta_TH, rows_S[:0]))
                x_TH = ft_done.x_TH
                continue
            # As in ScoringModel: FT's fused ops may overwrite their inputs, PT runs before.
            delta_UH = None if delta_TH is None else delta_TH[tokens_U]
            pt_arguments = layer_arguments(x_TH[tokens_U], delta_UH, rows_in_U)
            pt_mlp_SH, pt_done = pt(positions=at_both, **pt_arguments)
            delta_TH, ft_done = ft(positions=positions, **layer_arguments(x_TH, delta_TH, rows_S))
            x_TH = ft_done.x_TH
            accumulate_contribution(
                pt_done.attention_RH[scored_in_S],
                pt_mlp_SH[scored_in_S],
                ft_done.attention_RH,
                delta_TH,
                cum_ptc_CH,
                cum_ftc_CH,
                norms_CL7,
                index,
                attention_rows_R=scored_in_S,
                mlp_rows_R=scored_C,
            )
            pt_update = pt_done.attention_RH, pt_mlp_SH
            steer_residual(delta_TH, alpha_LS[index], rows_S, *pt_update, ft_done.attention_RH)

        states_CH = stream_on_rows(x_TH, delta_TH, scored_C, torch.float32)
        hidden_TH, _ = decoder_of(ft_model).norm(delta_TH, Pending(x_TH, rows_S))
        return hidden_TH, norms_CL7.flatten(1), states_CH
