"""What each process of gpu.py is: vLLM engines, the Hugging Face reference, the bare machine, the kernels.

An engine is two processes, as users have it: the caller's here, and vLLM's EngineCore. Its settings are the
same for every contender, and vLLM's defaults where nothing else is said. Two are set for the time they save,
not for speed: CUDA graphs are captured for a dozen batch sizes (those that are measured among them) instead
of fifty, and the KV cache is as large as a turn needs, because several engines share the device.
"""

import os
import time
from dataclasses import dataclass, field
from typing import Any

GRAPH_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
Prompts = list[list[int]]
Wish = tuple[float, bool]
"""(alpha, scored) of one request."""


@dataclass(frozen=True)
class Spec:
    """What a process is built from."""

    role: str
    pt: str
    ft: str
    on_gpu: bool
    compiled: bool
    max_model_len: int
    max_num_seqs: int
    step_tokens: int
    kv_cache_bytes: int
    caches: str
    """A folder for the compilers' caches, which no other process uses."""
    more_arguments: dict[str, Any] = field(default_factory=dict)

    def engine_args(self) -> dict[str, Any]:
        """The settings of a vLLM engine."""
        settings: dict[str, Any] = {
            "runner": "generate" if self.role.startswith("generating") else "pooling",
            "dtype": "bfloat16",
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.step_tokens,
            "kv_cache_memory_bytes": self.kv_cache_bytes,
            "enforce_eager": not self.compiled or self.role == "two passes",
            "worker_extension_cls": "gpu_profile.WorkerTrace",
        }
        if settings["runner"] == "pooling":
            settings["enable_prefix_caching"] = False
        if self.on_gpu:
            settings["gpu_memory_utilization"] = 0.01  # the cache's size is given: only checked against
            if not settings["enforce_eager"]:
                settings["compilation_config"] = {
                    "cudagraph_capture_sizes": [size for size in GRAPH_SIZES if size <= self.step_tokens]
                }
        return settings | self.more_arguments


def build(spec: Spec) -> Any:
    """The process's object, whose methods the parent calls."""
    os.environ["VLLM_CACHE_ROOT"] = spec.caches
    if spec.role in ("machine", "kernels"):
        return Machine() if spec.role == "machine" else Kernels()
    if spec.role == "hugging face":
        return HuggingFace(spec)
    return Engine(spec)


class Engine:
    """A vLLM engine: stock FT, our pair, or PT's whole layers on all tokens."""

    def __init__(self, spec: Spec) -> None:
        overrides: dict[str, Any] = {}
        if spec.role.endswith("tuco"):
            overrides = {"architectures": ["TucoForCausalLM"], "tuco_pt": spec.pt}
        elif spec.role == "two passes":
            # Registered in this process only, so the engine must live in it.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            from two_pass_model import ARCHITECTURE, TwoPassForCausalLM
            from vllm import ModelRegistry

            ModelRegistry.register_model(ARCHITECTURE, TwoPassForCausalLM)
            overrides = {"architectures": [ARCHITECTURE], "tuco_pt": spec.pt}
        from vllm import EngineArgs, LLMEngine

        arguments = EngineArgs(model=spec.ft, hf_overrides=overrides, **spec.engine_args())
        self.engine = LLMEngine.from_engine_args(arguments)
        self.task: Any = "classify" if overrides else "embed"

    def score(self, prompts: Prompts) -> float:
        """Seconds from the first prompt handed over to the last result."""
        import torch
        from vllm import PoolingParams

        params = PoolingParams(task=self.task)
        start = time.perf_counter()
        results = self._drain(prompts, [params] * len(prompts))
        seconds = time.perf_counter() - start
        numbers = torch.stack([result.outputs.data for result in results])
        if not bool(torch.isfinite(numbers).all()):
            raise RuntimeError("not all results are finite")
        return seconds

    def generate(self, prompts: Prompts, tokens: int, wishes: list[Wish] | None) -> float:
        """Seconds for ``tokens`` new tokens of each prompt, greedy; ``wishes`` None says nothing of alpha."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from tuco_vllm.engine.generator import with_steering
        from tuco_vllm.steering import Steering

        one = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        params = [one] * len(prompts)
        if wishes is not None:
            params = [with_steering(one, Steering(*wish)) for wish in wishes]
        start = time.perf_counter()
        results = self._drain(prompts, params)
        seconds = time.perf_counter() - start
        for index, result in enumerate(results):
            completion = result.outputs[0]
            scored = wishes is not None and wishes[index][1]
            rows = completion.routed_experts
            if len(completion.token_ids) != tokens or (rows is not None) != scored:
                raise RuntimeError("a completion is short, or its scores are missing or not asked for")
            if scored and len(rows) != tokens:
                raise RuntimeError(f"{len(rows)} rows of scores for {tokens} tokens")
        return seconds

    def trace(self, verb: str, *arguments: Any) -> dict[str, Any]:
        """The profile of one turn of ``score`` or ``generate``, after one that warms the profiler up."""
        for _ in range(2):
            self.engine.collective_rpc("bench_trace_start")
            seconds = getattr(self, verb)(*arguments)
            profile = self.engine.collective_rpc("bench_trace_stop")[0]
        return {"seconds": round(seconds, 4), **profile}

    def kv_bytes(self) -> dict[str, Any]:
        """What the KV cache takes, by the engine's own configuration."""
        return self.engine.collective_rpc("bench_kv_bytes")[0]

    def _drain(self, prompts: Prompts, params: list[Any]) -> list[Any]:
        for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            self.engine.add_request(str(index), {"prompt_token_ids": prompt}, one)
        results: dict[str, Any] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                results[output.request_id] = output
        return [results[str(index)] for index in range(len(prompts))]


class HuggingFace:
    """The reference as one would run it on a corpus: sorted by length, padded, as many tokens a batch as a
    step of vLLM's has."""

    def __init__(self, spec: Spec) -> None:
        import torch
        from transformers import AutoConfig, AutoModel

        from tuco_vllm.oracle import Oracle

        self.batch_tokens = spec.step_tokens
        self.device = "cuda" if spec.on_gpu else "cpu"

        class RandomPair(Oracle):
            """An Oracle of two configs, without checkpoints."""

            def __init__(self, device: str) -> None:
                self.dtype, self.device = torch.bfloat16, device
                with torch.device(device):
                    self.pt, self.ft = (
                        AutoModel.from_config(AutoConfig.from_pretrained(path), dtype=self.dtype).eval()
                        for path in (spec.pt, spec.ft)
                    )

        self.oracle = RandomPair(self.device)

    def score(self, prompts: Prompts) -> float:
        """Seconds for all prompts."""
        import torch

        start = time.perf_counter()
        ordered: list[list[int] | None] = [*sorted(prompts, key=len), None]
        batch: Prompts = []
        norms = []
        for prompt in ordered:
            if batch and (prompt is None or (len(batch) + 1) * len(prompt) > self.batch_tokens):
                norms.append(self.oracle.norms(batch).cpu())
                batch = []
            if prompt is not None:
                batch.append(prompt)
        seconds = time.perf_counter() - start
        if not all(bool(torch.isfinite(one).all()) for one in norms):
            raise RuntimeError("not all norms are finite")
        return seconds


class Machine:
    """The device's own ceilings."""

    def __init__(self) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def measure(self, squares: tuple[int, ...], copy_bytes: int, turns: int) -> dict[str, Any]:
        """Turns of bfloat16 matrix products (TFLOP/s, by side) and of a copy (GB/s read and written)."""
        import torch

        found: dict[str, Any] = {"matmul_tflops": {}, "device": self.device}
        for side in squares:
            a, b = (torch.randn(side, side, device=self.device).bfloat16() for _ in range(2))
            out = torch.empty_like(a)
            seconds = self._turns(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), turns)
            found["matmul_tflops"][str(side)] = [2 * side**3 / taken / 1e12 for taken in seconds]
        source = torch.zeros(copy_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = self._turns(lambda: target.copy_(source), turns)
        found["copy_gb_per_s"] = [2 * copy_bytes / taken / 1e9 for taken in seconds]
        return found

    def _turns(self, call: Any, turns: int, calls: int = 10) -> list[float]:
        """Seconds a call, each turn the mean of ``calls`` in a row."""
        import torch

        taken = []
        for turn in range(-1, turns):
            self._wait(torch)
            start = time.perf_counter()
            for _ in range(calls):
                call()
            self._wait(torch)
            if turn >= 0:
                taken.append((time.perf_counter() - start) / calls)
        return taken

    def _wait(self, torch: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class Kernels:
    """bench/kernels.py's turns, of our kernels and the copy alone."""

    def __init__(self) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def measure(self, kernel: str, rows: int, hidden: int, turns: int) -> dict[str, Any]:
        """The share of a copy's bandwidth that a kernel reaches (``reach``, by the medians)."""
        import torch

        import kernels

        floor = kernels.floor_bytes(kernel, rows, hidden, torch.bfloat16)
        calls = kernels.contenders(kernel, rows, hidden, torch.bfloat16, self.device)
        source = torch.zeros(floor // 2, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        calls = {name: calls[name] for name in ("ours", "vllm") if name in calls}
        calls["copy"] = lambda: target.copy_(source)
        cache = torch.empty(2**28, dtype=torch.uint8, device="cuda") if self.device == "cuda" else None
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(-3, turns):
            for name, call in calls.items():
                taken = kernels.seconds(call, self.device, cache)
                if turn >= 0:
                    times[name].append(taken)
        share = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        spread = {
            name: torch.tensor(own, dtype=torch.float64).quantile(share).tolist()
            for name, own in times.items()
        }
        reach = {name: round(spread["copy"][1] / own[1], 4) for name, own in spread.items() if name != "copy"}
        return {"kernel": kernel, "rows": rows, "hidden": hidden, "floor_bytes": floor} | {
            "seconds_p20_p50_p80": spread,
            "reach": reach,
        }
