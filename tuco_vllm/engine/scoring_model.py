"""One pass over the prompt that scores it: FT's stream, and PT's layers on the rows that are read.

At alpha = 1 the residual stream is FT's own, so f_PT(x_l) needs PT's keys and values of all T tokens and,
for the R last-token rows only, the rest of PT's layer. Extra work: PT's key/value share of a pass (3.9 %
for Llama-3-8B). FT's own last layer shrinks to rows too, which gives about 1/L of a pass back. The paper
and all else pay two passes.

With rows in float32 (``wide_rows``) a score is made of rows alone: FT's layers run on all tokens for the
stream, keys and values, and on the rows again for their contribution to it.

With pipeline parallelism a stage has some of the layers. To the next it hands FT's stream and the sums so
far; the rows each stage finds in its own attention metadata.

Shape suffixes: T tokens of the batch, R rows (one per prompt, more of a response), L layers, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from tuco_kernels import accumulate_contribution

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.compat import IntermediateTensors, PPMissingLayer, VllmConfig, support_torch_compile
from tuco_vllm.engine.heads import HEAD, PutAside
from tuco_vllm.engine.rows import Selection
from tuco_vllm.engine.rows_projection import Both
from tuco_vllm.engine.stock_layers import (
    Again,
    keep_rows,
    layer_arguments,
    query_rows,
    rows_again,
    stream_on_rows,
)
from tuco_vllm.engine.stock_models import decoder_of, first_stream, ft_model, pt_model

_SUMS = ("cum_ptc", "cum_ftc", "norms")


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": 0, "rows": 0, "inputs_embeds": 0, "before": 0}
)
class ScoringModel(nn.Module):
    """FT's layers and PT's, interleaved; returns norms instead of hidden states.

    ``architecture`` is both models', ``pt_config`` PT's Hugging Face config; FT's is the engine's own.
    ``wide``: rows are float32, and the model is not. ``select`` says which rows a batch has.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        architecture: str,
        pt_config: Any,
        wide: bool,
        select: Selection,
    ) -> None:
        super().__init__()
        self.ft = ft_model(vllm_config, architecture, f"{prefix}.ft")
        self.ft_aside = PutAside(self.ft, HEAD)
        self.pt, self.pt_aside = pt_model(vllm_config, pt_config, architecture, f"{prefix}.pt")
        ft_layers, pt_layers = (list(decoder_of(model).layers) for model in (self.ft, self.pt))
        self.num_layers = len(ft_layers)
        self.hidden_size: int = pt_config.get_text_config().hidden_size
        self.ft_again = nn.ModuleDict()
        """FT's layers but the last, whose own run is on rows; empty where rows are the model's dtype."""
        self.layers: list[tuple[int, Any, Any, Any]] = []
        """(number, FT's layer, PT's, FT's again or None), of this pipeline stage."""
        for index, (ft, pt) in enumerate(zip(ft_layers, pt_layers, strict=True)):
            if isinstance(ft, PPMissingLayer):
                continue
            is_last = index == self.num_layers - 1
            again = None
            if wide and not is_last:
                again = self.ft_again[str(index)] = rows_again(ft, vllm_config, select)
            if is_last:  # past it nothing reads FT's other tokens
                query_rows(ft, vllm_config, select, wide)
            else:
                keep_rows(ft)
            self.rows_layer_name = query_rows(pt, vllm_config, select, wide)
            """The engine's name of one layer on rows, whose attention metadata holds them (``rows``)."""
            self.layers.append((index, ft, pt, again))

    @property
    def own_pt_layers(self) -> list[Any]:
        """PT's layers of this pipeline stage."""
        return [pt for _, _, pt, _ in self.layers]

    @property
    def is_last_stage(self) -> bool:
        """Whether this pipeline stage has the last layer."""
        return self.layers[-1][0] == self.num_layers - 1

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """FT's embeddings ``[T, H]``."""
        return self.ft.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        rows: Tensor,
        inputs_embeds: Tensor | None = None,
        before: IntermediateTensors | None = None,
    ) -> tuple[Tensor, Tensor] | IntermediateTensors:
        """Norms ``[R, 7 L]`` float32, layer-major, in ``decomposition.NORM_COLUMNS``' order; and FT's stream
        behind the last layer ``[R, H]`` float32.

        ``before`` is what the pipeline stage before has returned, its sums padded to T rows; a stage that is
        not the last returns such, padded to nothing.
        """
        count, H, L, N = rows.shape[0], self.hidden_size, self.num_layers, len(NORM_COLUMNS)
        if before is None:
            x_TH: Any = first_stream(self.ft, input_ids, inputs_embeds)
            delta_TH: Any = None  # FT's MLP output of the layer before, not yet added to the stream
            # Zeros, though all is written: from empty, torch 2.13 fails to generate C++ for twelve layers.
            sums = [positions.new_zeros(count, size, dtype=torch.float32) for size in (H, H, N * L)]
        else:
            x_TH, delta_TH = before["stream"], before["delta"]
            sums = [before[name][:count].clone() for name in _SUMS]
        cum_ptc_RH, cum_ftc_RH, norms_RL7 = sums[0], sums[1], sums[2].view(count, L, N)
        at_both, at_rows = Both(positions, positions[rows]), Both(positions[rows], positions[rows])

        for index, ft, pt, again in self.layers:
            # FT exactly as vLLM's own model runs it, fused add + norm included, which on a GPU overwrites its
            # inputs: PT, which needs those, runs before.
            is_last = index == L - 1
            arguments = layer_arguments(x_TH, delta_TH, rows)
            if again or is_last:
                x_RH = stream_on_rows(x_TH, delta_TH, rows, torch.float32)
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
                norms_RL7,
                index,
                mlp_rows_R=ft_mlp_rows_R,
            )
        if is_last:
            return sums[2], x_RH + ft_done.attention_RH.float() + delta_TH.float()
        return IntermediateTensors({"stream": x_TH, "delta": delta_TH, **dict(zip(_SUMS, sums, strict=True))})


def for_the_next_stage(made: IntermediateTensors, tokens: int) -> IntermediateTensors:
    """The same, sums padded to ``tokens`` rows: vLLM's runners slice all that comes to as many."""
    padded = {name: nn.functional.pad(made[name], (0, 0, 0, tokens - made[name].shape[0])) for name in _SUMS}
    return IntermediateTensors({**made.tensors, **padded})


def own_for_the_next_stage(model: ScoringModel, x_TH: Tensor) -> IntermediateTensors:
    """PT's own stream, in the form that FT's stream travels in."""
    made = from_a_stage_before(model, len(x_TH), x_TH.dtype, x_TH.device)
    return IntermediateTensors({**made.tensors, "stream": x_TH})


def from_a_stage_before(
    model: ScoringModel, tokens: int, dtype: torch.dtype, device: torch.device
) -> IntermediateTensors:
    """Room for what ``for_the_next_stage`` returns for ``tokens``."""
    sizes = (model.hidden_size, model.hidden_size, len(NORM_COLUMNS) * model.num_layers)
    sums = [torch.zeros(tokens, size, dtype=torch.float32, device=device) for size in sizes]
    stream, delta = (torch.zeros(tokens, model.hidden_size, dtype=dtype, device=device) for _ in range(2))
    return IntermediateTensors({"stream": stream, "delta": delta, **dict(zip(_SUMS, sums, strict=True))})
