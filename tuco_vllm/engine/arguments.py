"""vLLM's engine arguments for a pair: what users may set, what the pair sets, what a CPU needs."""

import os
from typing import Any

from vllm import EngineArgs

from tuco_vllm.config import ModelPair
from tuco_vllm.engine.adapter_requests import adapter_arguments
from tuco_vllm.engine.compat import UsageContext, current_platform
from tuco_vllm.engine.parent_watch import name_starter
from tuco_vllm.engine.plugin import ADAPTERS, ARCHITECTURE, let_vllm_load_us
from tuco_vllm.errors import InputError
from tuco_vllm.steering import Limits

FIXED = ("model", "runner", "convert", "hf_overrides", "quantization", "tokenizer", "config_format")
"""Engine arguments that are not the user's: a pair sets them, or they must stay as they are."""


_COMPILING_PAYS = 1e9
"""Tokens times hidden size from which torch.compile pays on a CPU. Measured on two cores with 12 layers of
512, in float32: compiling takes 140 s of processor time while others use them too, and gains 35 µs a token
(eager and compiled cells of bench/results/score.jsonl), which is 2e9. An idle machine compiles faster."""


STEP_TOKENS = 32_768
STEP_PROMPTS = 1024
"""Tokens and prompts a step of an engine that scores on a GPU. PT's weights are read in every step, for few
rows: 10 % of stock vLLM's time at 2048 tokens (Llama-3-8B on an H100, on paper), 0.7 % at 32768."""


class ScoringArguments(EngineArgs):
    """EngineArgs whose defaults are for scoring on a GPU: vLLM's are an online server's.

    Asynchronous scheduling stays vLLM's default too, which is off for pooling (0.32, vllm/config/vllm.py: it
    "negatively impacts performance of pooling models"). Only what nobody has set is ours, and vLLM goes on to
    fit it to the rest: no more sequences than tokens, no more tokens than the sequences can have, a whole
    prompt where prompts may not be cut.
    """

    @classmethod
    def get_batch_defaults(cls, world_size: int) -> tuple[dict[Any, int], dict[Any, int]]:
        """(tokens, sequences) of a step, by who asks."""
        if not current_platform.is_cuda_alike():
            return super().get_batch_defaults(world_size)
        contexts = (None, *UsageContext)
        return dict.fromkeys(contexts, STEP_TOKENS), dict.fromkeys(contexts, STEP_PROMPTS)


def pair_arguments(pair: ModelPair, runner: str, engine_args: dict[str, Any], **overrides: Any) -> EngineArgs:
    """EngineArgs of a pair under ``runner`` ("pooling" or "generate"); ``overrides`` go to ``hf_overrides``.

    Raises InputError for arguments that the pair fixes itself, and for those that vLLM does not have.
    """
    for name in engine_args:
        if name in FIXED:
            raise InputError(f"{name}= is set by tuco itself: leave it out")
        if name not in EngineArgs.__dataclass_fields__:
            raise InputError(f"vLLM has no engine argument {name}")
    if runner == "generate" and engine_args.get("pipeline_parallel_size", 1) > 1:
        raise InputError("pipeline parallelism is for engines that score: use tensor_parallel_size")
    stages = engine_args.get("pipeline_parallel_size", 1) > 1
    if stages and engine_args.get("enforce_eager") and current_platform.is_cpu():
        raise InputError(
            "vLLM cannot run pipeline stages on a CPU without torch.compile (a stage has no room for what "
            "comes from the one before): leave enforce_eager out"
        )
    let_vllm_load_us()
    name_starter()
    settings = pair_settings(pair, runner, **overrides)
    defaults = {"disable_log_stats": True, **adapter_arguments(pair)}
    kind = ScoringArguments if runner == "pooling" else EngineArgs
    arguments = kind(**{**defaults, **engine_args, **settings})
    complete(arguments, pair)
    return arguments


def pair_settings(pair: ModelPair, runner: str, **overrides: Any) -> dict[str, Any]:
    """What makes an engine the pair's, whatever else it is told; ``overrides`` go to ``hf_overrides``."""
    kind: dict[str, Any] = {"architectures": [ARCHITECTURE], "tuco_pt": str(pair.pt.directory)}
    if pair.ft.adapter is not None:
        kind = {"architectures": [ADAPTERS]}
    tokenizer = pair.ft.tokenizer_directory
    return {
        **({} if tokenizer == pair.ft.directory else {"tokenizer": str(tokenizer)}),
        "model": str(pair.ft.directory),
        "runner": runner,
        "hf_overrides": {**kind, **overrides},
        "config_format": "hf",  # Mistral's repositories carry a second format of config and weights
    }


def alpha_bounds(limits: Limits) -> dict[str, float]:
    """What says to the scheduler of an engine which alphas it takes, in ``hf_overrides``."""
    return {"tuco_min_alpha": limits.lowest, "tuco_max_alpha": limits.highest}


def complete(arguments: Any, pair: ModelPair) -> None:
    """Set what ``arguments`` (EngineArgs, or a command line's namespace of them) leave open."""
    if arguments.tokenizer_mode == "auto":  # of Mistral's repositories that is another one than ours
        arguments.tokenizer_mode = "hf"
    stated = pair.ft.config.get("dtype", pair.ft.config.get("torch_dtype"))
    if arguments.dtype == "auto" and stated == "float32":
        # What vLLM generates with. To pool it takes float16, whose range a large model's stream may leave,
        # and which a CPU computes slowly.
        arguments.dtype = str(current_platform.supported_dtypes[0]).removeprefix("torch.")
    if current_platform.is_cpu():
        _fit_to_cpu(arguments)


def eager_or_compiled(
    pair: ModelPair, engine_args: dict[str, Any], tokens: int | None
) -> tuple[dict[str, Any], str]:
    """``engine_args`` for an engine that will score about so many tokens, and in words what was chosen.

    On a CPU vLLM compiles every layer by itself: seconds for each, whatever its width. What that gains is
    passes over activations, so it grows with tokens, layers and hidden size; the layers cancel out. On GPUs,
    where nothing of this is measured, and where nobody knows how many tokens there will be, vLLM's default
    stands.
    """
    if engine_args.get("enforce_eager"):
        return engine_args, "eager, as asked"
    if pair.ft.adapter is not None and current_platform.is_cpu():
        return engine_args, "eager: vLLM does not compile LoRA on a CPU"
    if tokens is None or not current_platform.is_cpu() or engine_args.get("pipeline_parallel_size", 1) > 1:
        return engine_args, ""
    pays = _COMPILING_PAYS / pair.ft.sizes["hidden_size"]
    why = f"about {tokens:,} tokens are left and compiling pays from {pays:,.0f} on"
    if tokens < pays:
        return {**engine_args, "enforce_eager": True}, f"eager: {why}"
    return engine_args, f"compiled: {why}"


def share_cpu(place: int, engines: int, engine_args: dict[str, Any]) -> dict[str, Any]:
    """``engine_args`` for one of several engines of a machine without GPU: its share of cores and memory.

    Binds the engine that this process will start to every ``engines``-th core from ``place`` on, by vLLM's
    environment variable, unless that is set. Nothing is shared out for a single engine or on GPUs.
    """
    if engines == 1 or not current_platform.is_cpu():
        return engine_args
    ranks = engine_args.get("tensor_parallel_size", 1) * engine_args.get("pipeline_parallel_size", 1)
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", _core_lists(cores[place::engines] or cores, ranks))
    if "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return engine_args
    return {"kv_cache_memory_bytes": max(_free_memory() // (4 * engines), 1 << 30), **engine_args}


def _fit_to_cpu(arguments: Any) -> None:
    """Memory and cores, where nothing is said of them.

    vLLM's CPU defaults are a server's: nearly all memory for the KV cache, one NUMA node for each rank.
    Scoring needs the cache for prompts in flight only, so a quarter of the free memory is plenty. What the
    caller or the environment says stands. The core that vLLM keeps free for its other processes stays so:
    without it, on two cores, small models ran at less than half the speed.
    """
    ranks = arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    if ranks > 1:
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", _core_lists(cores, ranks))
    chosen = arguments.kv_cache_memory_bytes is not None or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if not chosen and arguments.gpu_memory_utilization == EngineArgs.gpu_memory_utilization:
        arguments.kv_cache_memory_bytes = max(_free_memory() // 4, 1 << 30)


def _core_lists(cores: list[str], ranks: int) -> str:
    """VLLM_CPU_OMP_THREADS_BIND for ``ranks`` that share ``cores``."""
    return "|".join(",".join(cores[rank::ranks]) or cores[0] for rank in range(ranks))


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
