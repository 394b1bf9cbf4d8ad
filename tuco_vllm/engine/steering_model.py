"""A step in which requests steer, or want scores: FT's layers, and PT's on the rows that need them.

FT runs as vLLM's own layers, on all tokens. Steering (paper Def. 5.1) wants x + PTC + alpha * FTC where FT's
layer would leave x + FTC + PTC; vLLM adds a layer's MLP output to the stream only inside the next layer's
fused norm, so what is not yet added is corrected in place,

    M_FT  <-  M_FT - (1 - alpha) * FTC,      FTC = f_FT(x) - f_PT(x),

on the rows with alpha != 1 and no others. Rows with alpha = 1 are FT's bit for bit, by construction.

Index spaces are ``step_plan``'s: T tokens of the batch, U tokens with PT's keys and values, S rows of PT,
C scored rows; L layers, H hidden size.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution, steer_residual

from tuco_vllm.engine.compat import VllmConfig, support_torch_compile
from tuco_vllm.engine.rows import Selection


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": 0,
        "tokens_U": 0,
        "rows_S": 0,
        "rows_in_U": 0,
        "alpha_S": 0,
        "scored_in_S": 0,
        "inputs_embeds": 0,
    }
)
class SteeringModel(nn.Module):
    """PT's layers beside those of ``ft_model``, vLLM's stock model, which stays its owner's.

    ``family`` is a module of ``families``, ``pt_config`` PT's Hugging Face config.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        family: ModuleType,
        pt_config: Any,
        ft_model: nn.Module,
        select: Selection,
    ) -> None:
        super().__init__()
        ft_config = vllm_config.model_config.hf_config
        self.num_layers = count = ft_config.num_hidden_layers
        self.hidden_size = ft_config.hidden_size
        self.ft: Any = (ft_model,)  # in a tuple: a child module would be loaded and counted twice
        # PT's KV caches are layers count .. 2*count - 1 of the engine: vLLM wants unique layer indices.
        names = [f"{prefix}.pt_layers.{count + layer}" for layer in range(count)]
        self.pt_layers = nn.ModuleList(
            family.RowsLayer(vllm_config, pt_config, layer, name, select) for layer, name in enumerate(names)
        )
        self.attention_names = [f"{name}.self_attn.attn" for name in names]
        """The engine's names of PT's attention layers."""

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        tokens_U: Tensor,
        rows_S: Tensor,
        rows_in_U: Tensor,
        alpha_S: Tensor,
        scored_in_S: Tensor,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """FT's final hidden states of the steered stream ``[T, H]``, and norms ``[C, 4 L]`` float32 of the
        unscaled contributions on it, layer-major, in ``decomposition.NORM_COLUMNS``' order."""
        ft_model = self.ft[0]
        x_TH = inputs_embeds if inputs_embeds is not None else ft_model.embed_tokens(input_ids)
        positions_U = positions[tokens_U]
        scored_C = rows_S[scored_in_S]
        delta_TH: Any = None  # FT's MLP output of the layer before, steered, not yet added to the stream
        count = scored_in_S.shape[0]
        cum_ptc_CH = torch.zeros(count, self.hidden_size, dtype=torch.float32, device=x_TH.device)
        cum_ftc_CH = torch.zeros_like(cum_ptc_CH)
        norms_CL4 = torch.zeros(count, self.num_layers, 4, dtype=torch.float32, device=x_TH.device)

        pt: Any
        for layer, (ft, pt) in enumerate(zip(ft_model.layers, self.pt_layers, strict=True)):
            # As in ScoringModel: vLLM's fused ops may overwrite their inputs, all other readers come first.
            delta_UH = None if delta_TH is None else delta_TH[tokens_U]
            pt_normed_UH = pt.norm_input(delta_UH, x_TH[tokens_U])
            if delta_TH is None:
                normed_TH = ft.input_layernorm(x_TH)
            else:
                normed_TH, x_TH = ft.input_layernorm(delta_TH, x_TH)
            pt_attention_SH, pt_mlp_SH = pt(positions_U, pt_normed_UH, rows_in_U, x_TH, rows_S)
            attention_TH = ft.self_attn(positions=positions, hidden_states=normed_TH)
            ft_attention_SH = attention_TH[rows_S]
            normed_TH, x_TH = ft.post_attention_layernorm(attention_TH, x_TH)
            delta_TH = ft.mlp(normed_TH)

            accumulate_contribution(
                pt_attention_SH[scored_in_S],
                pt_mlp_SH[scored_in_S],
                ft_attention_SH,
                delta_TH,
                cum_ptc_CH,
                cum_ftc_CH,
                norms_CL4,
                layer,
                attention_rows_R=scored_in_S,
                mlp_rows_R=scored_C,
            )
            steer_residual(delta_TH, alpha_S, rows_S, pt_attention_SH, pt_mlp_SH, ft_attention_SH)

        hidden_TH, _ = ft_model.norm(delta_TH, x_TH)
        return hidden_TH, norms_CL4.flatten(1)
