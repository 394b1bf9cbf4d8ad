"""What a pair demands of an engine's configuration, before any weight is loaded.

vLLM asks the config class of an architecture (``MODELS_CONFIG_MAP``) when an engine is configured, in the
process that the user sees. So an option that cannot work is refused there, and an engine gets the scheduler
and the worker that steering or scoring needs, however it was started.
"""

from typing import Any

import torch

from tuco_vllm.config import ROW_DTYPES
from tuco_vllm.engine.compat import CUDAGraphMode, VllmConfig, breakable_cuda_graphs, current_platform
from tuco_vllm.engine.plugin import ADAPTERS
from tuco_vllm.families import Family

SCHEDULERS = {
    "generate": "tuco_vllm.engine.scheduler.steering_scheduler",
    "pooling": "tuco_vllm.engine.prefix_scheduler.scoring_scheduler",
}
"""vLLM's kind of runner -> what it calls in place of a scheduler class."""

WORKER = "tuco_vllm.engine.worker.PairWorker"
_LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "dummy")
_CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16")


def configure(vllm_config: VllmConfig) -> None:
    """Refuse what cannot work (ValueError), and name our scheduler and worker where they are needed."""
    adapters = has_adapters(vllm_config)
    if not adapters and getattr(vllm_config.model_config.hf_config, "tuco_pt", None) is None:
        raise ValueError('no pre-trained model: add "tuco_pt": DIR to hf_overrides, or use tuco_vllm.TucoLLM')
    refuse_unsupported(vllm_config)
    _fit_compilation(vllm_config)
    runner = vllm_config.model_config.runner_type
    if runner not in SCHEDULERS:
        return
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    if scheduler.scheduler_cls not in (None, SCHEDULERS[runner]):
        raise ValueError(f"TuCo brings its own scheduler, {SCHEDULERS[runner]}: leave scheduler_cls unset")
    if parallel.worker_cls not in ("auto", WORKER):
        raise ValueError(f"TuCo brings its own worker, {WORKER}: leave worker_cls unset")
    scheduler.scheduler_cls, parallel.worker_cls = SCHEDULERS[runner], WORKER


def _fit_compilation(vllm_config: VllmConfig) -> None:
    """What of vLLM's defaults for compiled code is not for a pair; what a user has set stands.

    Graphs gain nothing where steps have thousands of tokens (none is replayed above 512), and would have as
    many rows as tokens in small ones. ``fuse_allreduce_rms`` begins a range of its
    own (``_compile_ranges``).
    """
    compilation = vllm_config.compilation_config
    if vllm_config.model_config.runner_type == "pooling" and compilation.cudagraph_mode is None:
        compilation.cudagraph_mode = CUDAGraphMode.NONE
    if compilation.pass_config.fuse_allreduce_rms is None:
        compilation.pass_config.fuse_allreduce_rms = False


def _compile_ranges(vllm_config: VllmConfig) -> dict[str, bool]:
    """What would have a step's code chosen by its size: refused, reason -> whether it is there.

    vLLM compares a range with the *first* symbolic size of a compiled piece, which may be of our rows and
    not of the tokens: a piece compiled for few tokens would run many.
    """
    compilation = vllm_config.compilation_config
    most = vllm_config.scheduler_config.max_num_batched_tokens
    ends = compilation.compile_ranges_endpoints or []
    return {
        "compile_sizes (code for one size of step)": bool(compilation.compile_sizes),
        "compile_ranges_endpoints (more than one range of sizes)": any(1 < end < most for end in ends),
        "pass_config.fuse_allreduce_rms (which adds a range of sizes)": bool(
            compilation.pass_config.fuse_allreduce_rms
        ),
    }


def has_adapters(vllm_config: VllmConfig) -> bool:
    """Whether the engine is one of a base model and adapters, by its architecture."""
    return ADAPTERS in (vllm_config.model_config.hf_config.architectures or [])


def rows_are_wide(vllm_config: VllmConfig, family: Family) -> bool:
    """Whether the rows that are read are computed in float32, and the model is not.

    ``hf_overrides`` may have ``tuco_row_dtype``, one of ``config.ROW_DTYPES``. "auto", the default, means
    float32 for an engine that scores, unless vLLM has the family's layers in the model's dtype only. What
    steers a text is always the model's. ValueError for what cannot be had.
    """
    model = vllm_config.model_config
    wanted = getattr(model.hf_config, "tuco_row_dtype", "auto")
    if wanted not in ROW_DTYPES:
        raise ValueError(f"tuco_row_dtype is {wanted!r}: it must be one of {', '.join(ROW_DTYPES)}")
    if model.dtype == torch.float32 or wanted == "model":
        return False
    possible = family.float32_rows and model.runner_type == "pooling"
    if wanted == "float32" and not possible:
        whose = "an engine that generates" if family.float32_rows else family.known_as
        raise ValueError(f"rows of {whose} are the model's dtype: tuco_row_dtype must be auto or model")
    return possible


def refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Engine options under which scores would be wrong or the engine would fail later, each by name.

    Attributes are read plainly: an option that vLLM has renamed must end the start, not its refusal.
    """
    parallel, model, cache = vllm_config.parallel_config, vllm_config.model_config, vllm_config.cache_config
    speculative: Any = vllm_config.speculative_config
    generates = model.runner_type == "generate"
    adapters, lora = has_adapters(vllm_config), vllm_config.lora_config
    if adapters:
        _refuse_of_adapters(vllm_config)
    full_graphs_alone = vllm_config.compilation_config.cudagraph_mode == CUDAGraphMode.FULL
    breakable = breakable_cuda_graphs() and not model.enforce_eager
    reasons = {
        "pipeline parallelism in an engine that generates": generates and parallel.pipeline_parallel_size > 1,
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "expert parallelism": parallel.enable_expert_parallel,
        "micro-batching (DBO)": parallel.use_ubatching,
        "batch-sharded sampling": bool(parallel.enable_batch_sharded_sampling),
        "quantization": vllm_config.quant_config is not None,
        "LoRA (a base model and its adapters are another pair: give the adapter as FT)": lora is not None
        and not adapters,
        "KV transfer": vllm_config.kv_transfer_config is not None,
        "watermarking": vllm_config.watermark_config is not None,
        "enable_return_routed_experts": vllm_config.aux_output_config.enable_return_routed_experts,
        "prompt embeddings": model.enable_prompt_embeds,
        # Why neither kind of CUDA graph: see ``rows``.
        "cudagraph_mode FULL (FULL_AND_PIECEWISE, vLLM's default, works)": full_graphs_alone,
        "breakable CUDA graphs (VLLM_USE_BREAKABLE_CUDAGRAPH=0 is without)": breakable,
        # Only the loaders behind these read PT's weights too; and pickles are not loaded.
        f"load_format {vllm_config.load_config.load_format}": vllm_config.load_config.load_format
        not in _LOAD_FORMATS,
        # Its error would count as fine-tuning.
        f"kv_cache_dtype {cache.cache_dtype}": cache.cache_dtype not in _CACHE_DTYPES,
        "kv_sharing_fast_prefill": bool(cache.kv_sharing_fast_prefill),
        **_compile_ranges(vllm_config),
        "speculative decoding other than ngram": speculative is not None
        and not (generates and speculative.method == "ngram"),
    }
    for reason, present in reasons.items():
        if present:
            raise ValueError(f"TucoForCausalLM does not support {reason} yet: start the engine without it")
    if model.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"unsupported dtype {model.dtype}")


def _refuse_of_adapters(vllm_config: VllmConfig) -> None:
    lora, parallel = vllm_config.lora_config, vllm_config.parallel_config
    if lora is None:
        raise ValueError("a base model and adapters need --enable-lora (enable_lora=True)")
    graphs = vllm_config.compilation_config.cudagraph_mode
    reasons = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "fully_sharded_loras": lora.fully_sharded_loras,
        "LoRA's target_modules": lora.target_modules is not None,
        "dtype float32 on a GPU (vLLM's LoRA kernels take 16 bits)": not current_platform.is_cpu()
        and vllm_config.model_config.dtype == torch.float32,
        # Of padded tokens vLLM's mapping says nothing, and PT's rows come behind them.
        f"cudagraph_mode {graphs} (NONE works)": graphs not in (None, CUDAGraphMode.NONE)
        and vllm_config.model_config.runner_type == "pooling",
    }
    for reason, present in reasons.items():
        if present:
            raise ValueError(f"a base model and adapters do not go with {reason} yet")
