"""TucoForCausalLM: the model class that vLLM loads for a pair (PT, FT).

``LLM(model=ft, hf_overrides={"architectures": ["TucoForCausalLM"], "tuco_pt": pt})`` is all it takes.
With ``runner="pooling"`` it scores: the forward returns norms in place of hidden states, and the pooler
hands each request its row. With ``runner="generate"`` it is FT, by vLLM's own class, in every step in which
nobody asks for scores or steers; a step in which somebody does runs ``SteeringModel`` over FT's layers.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tuco_vllm.config import ModelPair, resolve_pair
from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.compat import (
    CUDAGraphMode,
    IntermediateTensors,
    VllmConfig,
    get_config,
    get_forward_context,
    set_model_tag,
)
from tuco_vllm.engine.heads import log_probs
from tuco_vllm.engine.own_stream import OwnStream
from tuco_vllm.engine.pair_config import SCHEDULERS, refuse_unsupported, rows_are_wide
from tuco_vllm.engine.parent_watch import end_with_parent
from tuco_vllm.engine.pooler import ContributionPooler
from tuco_vllm.engine.row_pieces import RowValues, targets_of_readings, with_rows
from tuco_vllm.engine.scoring_model import (
    ScoringModel,
    for_the_next_stage,
    from_a_stage_before,
    own_for_the_next_stage,
)
from tuco_vllm.engine.scoring_rows import ScoringRows, StepReads
from tuco_vllm.engine.start_stages import tell
from tuco_vllm.engine.steering_model import SteeringModel
from tuco_vllm.engine.steering_rows import SteeringRows
from tuco_vllm.engine.step_plan import StepPlan
from tuco_vllm.engine.stock_models import decoder_of, first_stream, ft_model
from tuco_vllm.engine.weights import SAFETENSORS, load_pair, pt_source
from tuco_vllm.families import FAMILIES
from tuco_vllm.steering import FT_STREAM, PT_STREAM


class TucoForCausalLM(nn.Module):
    """A pre-trained and a fine-tuned model in one engine.

    Config (``hf_overrides``): ``tuco_pt``, PT's directory or hub id; ``tuco_row_dtype``, as ``rows_are_wide``
    has it. Raises InputError or ValueError,
    naming the mend, for a pair or an engine option that cannot be scored correctly.
    """

    is_pooling_model = True
    default_seq_pooling_type = "LAST"
    default_tok_pooling_type = "ALL"
    attn_type = "decoder"
    supports_pp = True
    score_type = "bi-encoder"
    # What vLLM's loader reads of a model class: see weights.SAFETENSORS.
    allow_patterns_overrides = SAFETENSORS
    fall_back_to_pt_during_load = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        end_with_parent()
        tell("weights")
        refuse_unsupported(vllm_config)
        has_weights = vllm_config.load_config.load_format != "dummy"
        pair = pair_of(vllm_config, weights=has_weights)
        architecture = FAMILIES[pair.ft.architecture].text_half or pair.ft.architecture
        self.scores_prompts = vllm_config.model_config.runner_type == "pooling"

        pt_config = get_config(pair.pt.directory, trust_remote_code=False, config_format="hf")
        # vLLM keys its compile cache by FT's config; what PT's brings into the graph must be in the key too.
        vllm_config.additional_config["tuco_pt_config"] = pt_config.to_json_string()
        if has_weights:
            self.secondary_weights = (pt_source(str(pair.pt.directory)),)
        self.model: Any
        self.pair, self.dtype, self.wide = pair, vllm_config.model_config.dtype, False
        self._pt_layers: OwnStream | None = None
        self._has_heads = False
        if self.scores_prompts:
            self.wide = rows_are_wide(vllm_config, FAMILIES[pair.ft.architecture])
            vllm_config.additional_config["tuco_wide_rows"] = self.wide
            self.rows: Any = ScoringRows(vllm_config)
            self.model = ScoringModel(
                vllm_config=vllm_config,
                prefix="model",
                architecture=architecture,
                pt_config=pt_config,
                wide=self.wide,
                select=self.rows.select,
            )
            self.pooler = ContributionPooler()
            # What the first forward takes is, where there is anything to compile, compiling.
            self._first = "first step" if vllm_config.model_config.enforce_eager else "compile"
            return

        if vllm_config.scheduler_config.scheduler_cls != SCHEDULERS["generate"]:
            raise ValueError("no scheduler of TuCo's: is tuco in VLLM_PLUGINS?")
        self.stock = ft_model(vllm_config, architecture, prefix)
        self.rows = SteeringRows(vllm_config)
        with set_model_tag("tuco_steering"):
            self.model = SteeringModel(
                vllm_config=vllm_config,
                prefix="model",
                architecture=architecture,
                pt_config=pt_config,
                ft_model=self.stock,
                select=self.rows.select,
            )
        self._scores: Tensor | None = None

    def get_model_state_cls(self) -> type[Any]:
        """Runner V2's way to a model's own state."""
        from tuco_vllm.engine.scoring_v2 import ScoringModelState
        from tuco_vllm.engine.steering_v2 import SteeringModelState

        return ScoringModelState if self.scores_prompts else SteeringModelState

    def rows_known(self, requests: int) -> None:
        """The rows of a step, of so many requests, have been set (``rows``)."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """FT's embeddings, the x_0 of both models."""
        return (self.model if self.scores_prompts else self.stock).embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Generating: FT's hidden states ``[T, H]``, of each request's steered stream. Scoring: ``[T, 7 L]``
        float32, the rows of the batch's requests in order.

        Rows are tokens, so the R rows of norms fit; the rest is zeros that nobody reads
        (vLLM's runners take for granted that a model returns T rows). A pipeline stage but the last returns
        what the next one needs.
        """
        if not self.scores_prompts:
            return self._generate(input_ids, positions, intermediate_tensors, inputs_embeds)
        reads = self.rows.take_reads()
        if reads is not None and not reads.of_ft:
            return self._pt_alone(reads, input_ids, positions, intermediate_tensors)
        num_tokens = positions.shape[-1]
        rows_R = self.rows.of_this_batch(num_tokens, self.model.rows_layer_name, reads is not None)
        if self._first:
            tell(self._first)
        made = self._run(input_ids, positions, rows_R, inputs_embeds, intermediate_tensors)
        if self._first:
            self._first = ""
            tell("warm-up")
        if isinstance(made, IntermediateTensors):
            return for_the_next_stage(made, num_tokens)
        norms_RN, states_RH = made
        if reads is not None:
            logps_R = self._log_probs(FT_STREAM, states_RH, reads.targets_R)
            self.pooler.values = RowValues(states_RH=states_RH, logps_R=logps_R)
        return nn.functional.pad(norms_RN, (0, 0, 0, num_tokens - norms_RN.shape[0]))

    def _run(self, *inputs: Any) -> Any:
        """What an engine that scores computes of FT's stream."""
        return self.model(*inputs)

    def _pt_alone(self, reads: StepReads, ids: Any, positions: Tensor, before: Any) -> Any:
        """A step of an engine that scores on a stream of PT's own."""
        made = self._own_stream(reads, ids, positions, before)
        if isinstance(made, Tensor):
            return own_for_the_next_stage(self.model, made)
        self.pooler.values = made
        return positions.new_zeros(len(positions), self.num_numbers, dtype=torch.float32)

    def _generate(self, input_ids: Any, positions: Tensor, intermediate: Any, embeds: Any) -> Tensor:
        """FT where no row needs PT, else FT and PT's rows; scores are kept for the sampler."""
        step = self.rows.take_step()
        self._scores = None
        context = get_forward_context()
        if step.reads is not None:
            values = self._own_stream(step.reads, input_ids, positions, None)
            none = positions.new_full((step.num_logits, self.num_numbers), torch.nan, dtype=torch.float32)
            self._scores = with_rows(none, values, step.readings)
            return positions.new_zeros(len(positions), self.model.hidden_size, dtype=self.dtype)
        if step.plan is None:
            profiling = context.attn_metadata is None
            if profiling and context.cudagraph_runtime_mode == CUDAGraphMode.NONE and len(positions) > 4:
                self._profile(input_ids, positions, embeds)
            self.rows.capture(self.model, input_ids, positions, embeds)
            return self.stock(input_ids, positions, intermediate, embeds)
        plan, readings = step.plan, step.readings
        size = self.rows.padded_size(step, len(positions))
        with self.rows.slots_of(plan, self.model.attention_names, size):
            hidden_TH, norms_CN, states_CH = self._steered(plan, size, input_ids, positions, embeds)
        if len(plan.pt_layers) < self.model.num_layers:  # nobody is scored
            return hidden_TH
        self._scores = self.rows.by_logits(plan, norms_CN)
        if readings:
            logps_C = self._log_probs(FT_STREAM, states_CH, targets_of_readings(readings, len(norms_CN)))
            norms_CLN = norms_CN.unflatten(1, (-1, len(NORM_COLUMNS)))
            self._scores = with_rows(self._scores, RowValues(norms_CLN, states_CH, logps_C), readings)
        return hidden_TH

    def _profile(self, input_ids: Any, positions: Tensor, embeds: Any) -> None:
        """Compile the other half, and let vLLM see the memory it takes."""
        self.model(input_ids, positions, *self.rows.for_profiling(len(positions)), inputs_embeds=embeds)

    def _steered(self, plan: StepPlan, size: Any, input_ids: Any, positions: Tensor, embeds: Any) -> Any:
        """``SteeringModel``'s answer to a step; its norms are of no use where PT is not in all layers."""
        arguments = (input_ids, positions, *self.rows.tensors(plan, size), embeds)
        if len(plan.pt_layers) < self.model.num_layers:
            return self.model.forward(*arguments, pt_layers=plan.pt_layers.tolist())
        return self.model(*arguments)

    def _own_stream(self, reads: StepReads, ids: Any, positions: Tensor, before: Any) -> Any:
        """What is read of PT's layers on their own stream, RowValues; from a stage that is not the last that
        stream itself."""
        get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE
        if self._pt_layers is None:
            self._pt_layers = OwnStream(self.model.own_pt_layers, self.wide, self.dtype)
        if before is not None:
            x_TH = before["stream"]
        else:
            whole_pt = reads.stream == PT_STREAM and self._has_heads
            x_TH = first_stream(self.pt if whole_pt else self.ft, ids, None)
        if not self.model.is_last_stage:
            return self._pt_layers(x_TH, positions, None)
        states_RH = self._pt_layers(x_TH, positions, self.rows.on_device(reads.rows_R))
        return RowValues(None, states_RH, self._log_probs(reads.stream, states_RH, reads.targets_R))

    def _log_probs(self, stream: str, states_RH: Tensor, targets_R: Any) -> Tensor:
        """``[R]``: of each row with a target its log-probability, NaN without ``load_heads``; else 0."""
        logps_R = states_RH.new_full((len(states_RH),), 0.0 if self._has_heads else torch.nan)
        wanted = np.flatnonzero(targets_R >= 0)
        if len(wanted) and self._has_heads:
            model, rows = (self.ft if stream == FT_STREAM else self.pt), self.rows.on_device(wanted)
            targets = self.rows.on_device(targets_R[wanted])
            logps_R[rows] = log_probs(model, decoder_of(model).norm, states_RH, rows, targets)
        return logps_R

    def load_heads(self) -> None:
        """Load what log-probabilities need of both models (``heads``). Idempotent."""
        if self.scores_prompts:
            self.model.ft_aside.restore(self.pair.ft.directory)
        self.model.pt_aside.restore(self.pair.pt.directory)
        self._has_heads = True

    @property
    def ft(self) -> Any:
        """FT, as vLLM has it."""
        return self.model.ft if self.scores_prompts else self.stock

    @property
    def pt(self) -> Any:
        """PT, as vLLM has it, but for its layers."""
        return self.model.pt

    @property
    def num_numbers(self) -> int:
        """Norms of a row, 7 L."""
        return self.model.num_layers * len(NORM_COLUMNS)

    def take_scores(self) -> Tensor | None:
        """Norms ``[rows of logits, 7 L]`` of the step that has just run, NaN without PT, and behind them the
        scores of prompts' rows (``with_rows``); once."""
        scores, self._scores = self._scores, None
        return scores

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """Room for what comes from the pipeline stage before."""
        return from_a_stage_before(self.model, batch_size, dtype, device)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """FT's logits; asked for by the generate runner only."""
        return self.stock.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Both checkpoints' tensors, as vLLM's loader streams them; returns the parameters filled."""
        return load_pair(weights, self, "model.ft" if self.scores_prompts else "stock", "model.pt")


def pair_of(vllm_config: VllmConfig, *, weights: bool) -> ModelPair:
    """The checked pair that an engine was started with."""
    model = vllm_config.model_config
    pt = getattr(model.hf_config, "tuco_pt", None)
    if pt is None:
        raise ValueError('no pre-trained model: add "tuco_pt": DIR to hf_overrides, or use tuco_vllm.TucoLLM')
    ft = f"{model.model}@{model.revision}" if model.revision else model.model
    return resolve_pair(pt, ft, trust_remote_code=model.trust_remote_code, weights=weights)
