"""A base model and LoRA adapters of it, scored in one pass: FT's stream, and the base's layers on the rows.

PT is the base, FT the base under each request's own adapter, so there is one set of weights; the layers are
vLLM's, opened by ``adapter_layers``. Extra work is that of the rows alone: keys and values of PT's come with
FT's. A request without an adapter is PT on a stream of its own, which is what OutputCo and the relative
reward compare with.

Shape suffixes: T tokens of the batch, R rows, L layers, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.adapter_layers import Step, layer_arguments, open_projection, positions_of, stack_rows
from tuco_vllm.engine.compat import VllmConfig, support_torch_compile
from tuco_vllm.engine.heads import HEAD, PutAside
from tuco_vllm.engine.rows import Selection
from tuco_vllm.engine.stock_layers import stream_on_rows
from tuco_vllm.engine.stock_models import decoder_of, first_stream, ft_model


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "rows": 0})
class AdapterScoringModel(nn.Module):
    """FT's layers with PT's rows behind their tokens; returns norms instead of hidden states.

    ``architecture`` is the base's; ``select`` says which rows a batch has.
    """

    is_last_stage = True

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", architecture: str, select: Selection
    ) -> None:
        super().__init__()
        self.ft = ft_model(vllm_config, architecture, f"{prefix}.ft")
        self.ft_aside = PutAside(self.ft, HEAD)
        self.layers = list(decoder_of(self.ft).layers)
        self.num_layers = len(self.layers)
        self.hidden_size: int = vllm_config.model_config.hf_text_config.hidden_size
        for layer in self.layers:
            self.rows_layer_name = stack_rows(layer, vllm_config, select)
            """The engine's name of one layer on rows, whose attention metadata holds them (``rows``)."""

    def adapters_wrapped(self) -> None:
        """Once vLLM has put its LoRA layers around the linear ones."""
        for layer in self.layers:
            open_projection(layer)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Norms ``[R, 7 L]`` float32, layer-major, in ``decomposition.NORM_COLUMNS``' order; and FT's stream
        behind the last layer ``[R, H]`` float32."""
        count, tokens, H = rows.shape[0], positions.shape[0], self.hidden_size
        # vLLM's LoRA embeds all that it has mapped.
        x: Any = first_stream(self.ft, torch.cat([input_ids, input_ids[rows]]), None)
        delta: Any = None  # MLP output of the layer before, not yet added to the stream
        step = Step(rows, None)
        positions_TR = positions_of(positions, step)
        cum_ptc_RH, cum_ftc_RH = (positions.new_zeros(count, H, dtype=torch.float32) for _ in range(2))
        size = (count, self.num_layers, len(NORM_COLUMNS))
        norms_RL7 = positions.new_zeros(size, dtype=torch.float32)

        for index, layer in enumerate(self.layers):
            delta, done = layer(positions=positions_TR, **layer_arguments(x, delta, step))
            x = done.x
            accumulate_contribution(
                done.of_pt_SH,
                delta[tokens:],
                done.of_ft_SH,
                delta,
                cum_ptc_RH,
                cum_ftc_RH,
                norms_RL7,
                index,
                mlp_rows_R=rows,
            )
        return norms_RL7.flatten(1), stream_on_rows(x, delta, rows, torch.float32)
