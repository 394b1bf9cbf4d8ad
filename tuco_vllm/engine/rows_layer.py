"""A decoder layer that caches keys and values of all tokens and does everything else on R rows.

Used for every PT layer, and for FT's last one: past it nothing reads the other tokens, so their queries,
attention, output projection and MLP are never computed. One class serves all families whose layer is
"norm, attention, norm, MLP"; what a family does to queries and keys is in two methods its file overrides.
Module names are Hugging Face's, so a checkpoint maps by prefix (``weights``).

Shape suffixes: T tokens of the batch, R rows, H hidden size, Q and K the query and key widths of this
tensor-parallel rank.
"""

import copy
from typing import Any

from torch import Tensor, nn
from tuco_kernels import add_rms_norm, rows_rms_norm

from tuco_vllm.engine.compat import (
    Attention,
    ColumnParallelLinear,
    QKVParallelLinear,
    RMSNorm,
    RowParallelLinear,
    VllmConfig,
    get_attn_backend,
    get_rope,
    get_tensor_model_parallel_world_size,
)
from tuco_vllm.engine.rows import Selection, last_tokens, rows_backend


class RowsAttention(nn.Module):
    """Attention of R rows over the paged cache of their requests.

    Everything comes from ``config``, the layer's own model's: PT's rope, biases and window are PT's, also
    where FT's differ. ``prefix`` names the KV cache and must be unique in the engine; ``select`` says which
    rows of a batch the queries are.
    """

    def __init__(
        self, vllm_config: VllmConfig, config: Any, layer: int, prefix: str, select: Selection
    ) -> None:
        super().__init__()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        tp_size = get_tensor_model_parallel_world_size()
        qkv_bias, output_bias = self.biases(config)
        self.q_proj = ColumnParallelLinear(
            config.hidden_size, heads * self.head_dim, bias=qkv_bias, prefix=f"{prefix}.q_proj"
        )
        # In-tree precedent for total_num_heads=0: vllm/model_executor/models/cohere_asr.py.
        self.kv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            total_num_heads=0,
            total_num_kv_heads=kv_heads,
            bias=qkv_bias,
            prefix=f"{prefix}.kv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_dim, config.hidden_size, bias=output_bias, prefix=f"{prefix}.o_proj"
        )
        self.rotary_emb = build_rope(vllm_config, config, self.head_dim)
        self.attn = self._build_attention(
            vllm_config,
            (heads // tp_size, max(1, kv_heads // tp_size)),
            sliding_window(config, layer),
            f"{prefix}.attn",
            select,
        )

    def _build_attention(
        self,
        vllm_config: VllmConfig,
        heads: tuple[int, int],
        window: int | None,
        prefix: str,
        select: Selection,
    ) -> Attention:
        # vLLM gives a layer without a window the cache config's, which is FT's: hand it a copy without one.
        cache_config = copy.copy(vllm_config.cache_config)
        cache_config.sliding_window = None
        backend = get_attn_backend(
            self.head_dim,
            vllm_config.model_config.dtype,
            cache_config.cache_dtype,
            use_mla=False,
            has_sliding_window=window is not None,
        )
        return Attention(
            heads[0],
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=heads[1],
            cache_config=cache_config,
            per_layer_sliding_window=window,
            attn_backend=rows_backend(backend, select),
            prefix=prefix,
        )

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool]:
        """Whether (q, k, v) and the output projection have biases. Families override."""
        bias = bool(getattr(config, "attention_bias", False))
        return bias, bias

    def prepare_query(self, positions_R: Tensor, query_RQ: Tensor) -> Tensor:
        """From projection to attention, queries. Families override."""
        return self.rotary_emb(positions_R, query_RQ, None)[0]

    def prepare_key(self, positions_T: Tensor, key_TK: Tensor) -> Tensor:
        """From projection to cache, keys. Families override."""
        return self.rotary_emb(positions_T, key_TK, None)[0]

    def forward(self, positions_T: Tensor, normed_TH: Tensor, rows_R: Tensor) -> Tensor:
        """K and V of all T tokens into the cache; the rows' attention output ``[R, H]``."""
        key_TK, value_TK = self.kv_proj(normed_TH)[0].chunk(2, dim=-1)
        query_RQ = self.q_proj(normed_TH[rows_R])[0]
        query_RQ = self.prepare_query(positions_T[rows_R], query_RQ)
        key_TK = self.prepare_key(positions_T, key_TK)
        return self.o_proj(self.attn(query_RQ, key_TK, value_TK))[0]


class RowsLayer(nn.Module):
    """One decoder layer on R rows. Subclasses name their family's attention and MLP."""

    attention_cls: type[RowsAttention] = RowsAttention

    def __init__(
        self,
        vllm_config: VllmConfig,
        config: Any,
        layer: int,
        prefix: str,
        select: Selection = last_tokens,
    ) -> None:
        super().__init__()
        self.self_attn = self.attention_cls(vllm_config, config, layer, f"{prefix}.self_attn", select)
        self.mlp = self.build_mlp(config, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norms_rounded_sum = norms_rounded_sum(vllm_config)

    @staticmethod
    def build_mlp(config: Any, prefix: str) -> nn.Module:
        """The family's stock MLP."""
        raise TypeError("a family's RowsLayer names its MLP")

    def norm_input(self, delta_TH: Tensor | None, x_TH: Tensor) -> Tensor:
        """This layer's input, normalised: of x = ``x_TH + delta_TH``, as vLLM's layers pass the stream on (a
        residual, and the last MLP's output not yet added). Writes into neither."""
        norm = self.input_layernorm
        return add_rms_norm(
            delta_TH, x_TH, norm.weight, norm.variance_epsilon, round_sum=self.norms_rounded_sum
        )

    def forward(
        self, positions_T: Tensor, normed_TH: Tensor, rows_R: Tensor, x_TH: Tensor, x_rows_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A(x) and M(x + A(x)) on the rows, apart, each ``[R, H]`` (paper §3).

        ``normed_TH`` is ``norm_input``'s; the stream x itself is read at the rows only, which may be other
        places (``x_rows_R``) of a longer ``x_TH``.
        """
        attention_RH = self.self_attn(positions_T, normed_TH, rows_R)
        norm = self.post_attention_layernorm
        normed_RH = rows_rms_norm(
            attention_RH,
            x_TH,
            x_rows_R,
            norm.weight,
            norm.variance_epsilon,
            round_sum=self.norms_rounded_sum,
        )
        return attention_RH, self.mlp(normed_RH)


def norms_rounded_sum(vllm_config: VllmConfig) -> bool:
    """Whether vLLM's fused add and norm rounds the sum to 16 bits *before* it normalises.

    Its own ("native") implementation does not, its CUDA kernel, the choice without torch.compile, does. PT's
    norms must round where FT's do: the other place put a pair's bfloat16 noise floor at 5e-3.
    """
    priority: Any = vllm_config.kernel_config.ir_op_priority
    return bool(priority.fused_add_rms_norm) and priority.fused_add_rms_norm[0] != "native"


def sliding_window(config: Any, layer: int) -> int | None:
    """The attention window of one layer in tokens, by its model's own config; None is full attention."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def build_rope(vllm_config: VllmConfig, config: Any, head_dim: int) -> nn.Module:
    """Rotary embedding by the model's own config, valid for all positions the engine may see.

    FT may have a longer context than PT. Where positions are only a table (default and llama3 rope) the
    table is made longer; elsewhere a table too short is refused, since reading past it is undefined.
    """
    max_model_len = vllm_config.model_config.max_model_len
    max_position = config.max_position_embeddings
    if config.rope_parameters.get("rope_type", "default") in ("default", "llama3"):
        max_position = max(max_position, max_model_len)
    rope = get_rope(head_dim, max_position=max_position, rope_parameters=config.rope_parameters)
    if rope.cos_sin_cache.shape[0] < max_model_len:
        raise ValueError(
            f"the pre-trained model's rope covers {rope.cos_sin_cache.shape[0]} positions, the engine allows "
            f"{max_model_len}: set max_model_len to {rope.cos_sin_cache.shape[0]} or less"
        )
    return rope
