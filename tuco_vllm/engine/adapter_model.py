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
from tuco_vllm.engine.adapter_layers import (
    Step,
    layer_arguments,
    lora_mapping,
    open_projection,
    positions_of,
    stack_rows,
)
from tuco_vllm.engine.adapter_rows import Rows, RowSlots, adapt, rows_of_both
from tuco_vllm.engine.adapter_rows import positions_of as positions_of_rows
from tuco_vllm.engine.compat import VllmConfig, support_torch_compile
from tuco_vllm.engine.heads import HEAD, PutAside
from tuco_vllm.engine.rows import Selection
from tuco_vllm.engine.stock_layers import stream_on_rows
from tuco_vllm.engine.stock_models import decoder_of, first_stream, ft_model


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "rows": 0})
class AdapterScoringModel(nn.Module):
    """FT's layers with PT's rows behind their tokens; returns norms instead of hidden states.

    ``architecture`` is the base's; ``wide``: rows are float32, and the model is not (``adapter_rows``);
    ``select`` says which rows a batch has.
    """

    is_last_stage = True

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", architecture: str, wide: bool, select: Selection
    ) -> None:
        super().__init__()
        self.ft = ft_model(vllm_config, architecture, f"{prefix}.ft")
        self.ft_aside = PutAside(self.ft, HEAD)
        self.layers = list(decoder_of(self.ft).layers)
        self.num_layers = len(self.layers)
        self.hidden_size: int = vllm_config.model_config.hf_text_config.hidden_size
        most = vllm_config.scheduler_config.max_num_batched_tokens
        self.slots = RowSlots(most, vllm_config.device_config.device)
        self.wide = wide
        # In no list of modules: vLLM would wrap their linear layers too.
        self.rows_of_both: Any = tuple(
            rows_of_both(layer, vllm_config, select, self.slots) if wide else None for layer in self.layers
        )
        for layer in self.layers:
            self.rows_layer_name = stack_rows(layer, vllm_config, select)
            """The engine's name of one layer on rows, whose attention metadata holds them (``rows``)."""

    def adapters_wrapped(self) -> None:
        """Once vLLM has put its LoRA layers around the linear ones."""
        for layer, both in zip(self.layers, self.rows_of_both, strict=True):
            open_projection(layer)
            if both is not None:
                adapt(both, layer, self.slots)
        self._mapping: Any = (lora_mapping(self.layers[0]),)

    def tell_rows(self, rows: Tensor) -> None:
        """Which adapters the rows of the step have that runs next. Outside compiled code."""
        if self.wide:
            self.slots.set(self._mapping[0].token_lora_indices, rows)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Norms ``[R, 7 L]`` float32, layer-major, in ``decomposition.NORM_COLUMNS``' order; and FT's stream
        behind the last layer ``[R, H]`` float32."""
        count, tokens, H = rows.shape[0], positions.shape[0], self.hidden_size
        step = Step(rows, apart=[] if self.wide else None)
        # vLLM's LoRA embeds all that it has mapped.
        x: Any = first_stream(self.ft, torch.cat([input_ids, input_ids[rows[: step.behind]]]), None)
        delta: Any = None  # MLP output of the layer before, not yet added to the stream
        of_tokens, of_rows = positions_of(positions, step), positions_of_rows(positions, rows)
        cum_ptc_RH, cum_ftc_RH = (positions.new_zeros(count, H, dtype=torch.float32) for _ in range(2))
        size = (count, self.num_layers, len(NORM_COLUMNS))
        norms_RL7 = positions.new_zeros(size, dtype=torch.float32)

        layers: Any = zip(self.layers, self.rows_of_both, strict=True)
        for index, (layer, both) in enumerate(layers):
            x_RH = stream_on_rows(x, delta, rows, torch.float32)
            delta, done = layer(positions=of_tokens, **layer_arguments(x, delta, step))
            x, pt_mlp, ft_mlp = done.x, delta[tokens:], delta
            mlp_rows_R: Any = rows
            if step.apart is not None:
                stream = Rows(x_RH, done.of_ft_SH, step.apart.pop())
                mlp, done = both(positions=of_rows, hidden_states=stream, residual=None)
                pt_mlp, ft_mlp = mlp.chunk(2)
                mlp_rows_R = None
            accumulate_contribution(
                done.of_pt_SH,
                pt_mlp,
                done.of_ft_SH,
                ft_mlp,
                cum_ptc_RH,
                cum_ftc_RH,
                norms_RL7,
                index,
                mlp_rows_R=mlp_rows_R,
            )
        last_RH = ft_mlp if mlp_rows_R is None else ft_mlp[rows].float()
        return norms_RL7.flatten(1), x_RH + done.of_ft_SH.float() + last_RH
