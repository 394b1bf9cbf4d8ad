"""A step in which requests under adapters steer, or want scores: FT's tokens and PT's rows in one run.

As ``steering_model`` has it, on the layers that ``adapter_layers`` opens: PT's rows stand behind FT's tokens,
so each weight is read once for both. PT runs in every layer of such a step, also where requests steer a range
of them: rows that are not there would have to leave vLLM's mapping of adapters within a step.

Index spaces are ``step_plan``'s: T, U, S, C; L layers, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution, steer_residual

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.adapter_layers import Step, layer_arguments, open_projection, positions_of, stack_rows
from tuco_vllm.engine.compat import VllmConfig, support_torch_compile
from tuco_vllm.engine.rows import Selection
from tuco_vllm.engine.stock_layers import Pending, open_norm, stream_on_rows
from tuco_vllm.engine.stock_models import decoder_of, first_stream


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": 0,
        "tokens_U": 0,
        "rows_S": 0,
        "rows_in_U": 0,
        "alpha_LS": 1,
        "scored_in_S": 0,
    }
)
class AdapterSteeringModel(nn.Module):
    """The layers of ``ft_model``, vLLM's stock model of the base, which stays its owner's."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", ft_model: nn.Module, select: Selection
    ) -> None:
        super().__init__()
        self.ft: Any = (ft_model,)  # in a tuple: a child module would be loaded and counted twice
        self.layers = list(decoder_of(ft_model).layers)
        self.num_layers = len(self.layers)
        self.hidden_size: int = vllm_config.model_config.hf_text_config.hidden_size
        self.attention_names = [stack_rows(layer, vllm_config, select) for layer in self.layers]
        """The engine's names of PT's attention layers."""
        open_norm(decoder_of(ft_model).norm, self.layers[-1])

    def adapters_wrapped(self) -> None:
        """Once vLLM has put its LoRA layers around the linear ones."""
        for layer in self.layers:
            open_projection(layer)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        tokens_U: Tensor,
        rows_S: Tensor,
        rows_in_U: Tensor,
        alpha_LS: Tensor,
        scored_in_S: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of ``steering_model.SteeringModel``."""
        [ft_model], tokens = self.ft, positions.shape[0]
        step = Step(rows_S, tokens_U)
        # vLLM's LoRA embeds all that it has mapped.
        x: Any = first_stream(ft_model, torch.cat([input_ids, input_ids[rows_S]]), None)
        delta: Any = None  # MLP output of the layer before, steered, not yet added to the stream
        of_tokens, scored_C = positions_of(positions, step), rows_S[scored_in_S]
        count = scored_in_S.shape[0]
        cum_ptc_CH = torch.zeros(count, self.hidden_size, dtype=torch.float32, device=x.device)
        cum_ftc_CH = torch.zeros_like(cum_ptc_CH)
        size = (count, self.num_layers, len(NORM_COLUMNS))
        norms_CL7 = torch.zeros(*size, dtype=torch.float32, device=x.device)

        for index, layer in enumerate(self.layers):
            delta, done = layer(positions=of_tokens, **layer_arguments(x, delta, step))
            x, pt_update = done.x, (done.of_pt_SH, delta[tokens:])
            accumulate_contribution(
                pt_update[0][scored_in_S],
                pt_update[1][scored_in_S],
                done.of_ft_SH,
                delta,
                cum_ptc_CH,
                cum_ftc_CH,
                norms_CL7,
                index,
                attention_rows_R=scored_in_S,
                mlp_rows_R=scored_C,
            )
            steer_residual(delta, alpha_LS[index], rows_S, *pt_update, done.of_ft_SH)

        states_CH = stream_on_rows(x, delta, scored_C, torch.float32)
        hidden_TH, _ = decoder_of(ft_model).norm(delta[:tokens], Pending(x[:tokens], rows_S))
        return hidden_TH, norms_CL7.flatten(1), states_CH
