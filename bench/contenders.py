"""Six ways to score the same prompts, each alive in a process of its own.

Processes live through a whole run and wait on a pipe while another one works, so contenders can take turns
and a slow minute of the machine hits all of them. An engine runs inside its contender's process
(``VLLM_ENABLE_V1_MULTIPROCESSING=0``): wall time has no other process in it, and the process's CPU time is
all of the work.
"""

import json
import os
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tuco_vllm.score_requests import ScoredTokens
from tuco_vllm.steering import ROWS

Prompts = Sequence[list[int] | ScoredTokens]
Norms = list[list[list[float]]]  # [prompt][layer][column of decomposition.NORM_COLUMNS]
Run = Callable[[Prompts], Any]


@dataclass(frozen=True)
class Spec:
    """What every contender is built from."""

    pt: str
    ft: str
    dtype: str
    compiled: bool
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int = 2048
    kv_cache_memory_bytes: int = 1 << 30
    adapter: str = ""
    """Of contenders that run PT under one, which then is its base."""

    def engine_args(self) -> dict[str, Any]:
        """The settings of every vLLM engine."""
        ours = ("pt", "ft", "compiled", "adapter")
        given = {name: value for name, value in asdict(self).items() if name not in ours}
        return {
            "runner": "pooling",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "enforce_eager": not self.compiled,
            **given,
        }


def set_environment() -> None:
    """Threads, allocator and vLLM's switches, the same for all contenders, which inherit them.

    glibc by default hands large blocks back to the kernel and faults them in anew, or does not, by thresholds
    that move with a process's history: a lottery of several percent between contenders (``Turn.faults``).
    Fixed thresholds keep what was allocated.
    """
    os.environ.update(
        OMP_NUM_THREADS=str(len(os.sched_getaffinity(0))),
        MALLOC_MMAP_THRESHOLD_=str(32 << 20),  # the most that glibc takes
        MALLOC_TRIM_THRESHOLD_=str(4 << 30),
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
    )


def tuco(spec: Spec) -> Run:
    """Ours: one pass, PT on the last rows."""
    return _vllm(spec, "classify", architectures=["TucoForCausalLM"], tuco_pt=spec.pt)


def tuco_model_rows(spec: Spec) -> Run:
    """Ours with rows in a 16-bit model's dtype, as "--row-dtype model" has it."""
    overrides = {"tuco_pt": spec.pt, "tuco_row_dtype": "model"}
    return _vllm(spec, "classify", architectures=["TucoForCausalLM"], **overrides)


def stock(spec: Spec) -> Run:
    """FT alone, by vLLM's own LlamaForCausalLM: the prefill that scoring rides on."""
    return _vllm(spec, "embed")


def stock_adapter(spec: Spec) -> Run:
    """PT under the adapter, by vLLM itself."""
    return _vllm(spec, "embed")


def stock_adapter_grouped(spec: Spec) -> Run:
    """The same with the products that ours has of LoRA on a CPU (``adapter_runner.mend_on_cpu``)."""
    return _vllm(spec, "embed", grouped=True)


def tuco_adapter(spec: Spec) -> Run:
    """Ours, of PT and the adapter."""
    return _vllm(spec, "classify", architectures=["TucoAdaptersForCausalLM"])


def tuco_adapter_model_rows(spec: Spec) -> Run:
    """The same with rows in a 16-bit model's dtype."""
    return _vllm(spec, "classify", architectures=["TucoAdaptersForCausalLM"], tuco_row_dtype="model")


def pt_all_tokens(spec: Spec) -> Run:
    """Two passes inside vLLM."""
    from two_pass_model import ARCHITECTURE, TwoPassForCausalLM
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, TwoPassForCausalLM)
    return _vllm(spec, "classify", architectures=[ARCHITECTURE], tuco_pt=spec.pt)


def hf_batch1(spec: Spec) -> Run:
    """The Hugging Face reference, one prompt at a time."""
    return _hugging_face(_oracle(spec), batch_size=1)


def hf_batched(spec: Spec) -> Run:
    """The Hugging Face reference as one would run it on a corpus: sorted by length, padded, batches of 8."""
    return _hugging_face(_oracle(spec), batch_size=8)


def hf_causal_lms(spec: Spec) -> Run:
    """The same with models that have their head, padding on the left and a mask (``two_causal_lms``)."""
    import torch
    from two_causal_lms import TwoCausalLMs

    return _hugging_face(TwoCausalLMs(spec.pt, spec.ft, getattr(torch, spec.dtype)), batch_size=8)


CONTENDERS = {
    builder.__name__: builder
    for builder in (tuco, tuco_model_rows, stock, pt_all_tokens, hf_batch1, hf_batched, hf_causal_lms)
}
_OF_ADAPTERS = (stock_adapter, stock_adapter_grouped, tuco_adapter, tuco_adapter_model_rows)
ADAPTERS = {builder.__name__: builder for builder in _OF_ADAPTERS}
"""Of a base and an adapter (``adapters.py``)."""

SCORES = [name for name in (*CONTENDERS, *ADAPTERS) if not name.startswith("stock")]
"""Those that return norms."""


def _vllm(spec: Spec, task: Any, *, grouped: bool = False, **overrides: Any) -> Run:
    from vllm import EngineArgs, LLMEngine, PoolingParams
    from vllm.lora.request import LoRARequest

    args: dict[str, Any] = {"model": spec.ft, **spec.engine_args()}
    lora = None
    if spec.adapter:
        rank = json.loads(Path(spec.adapter, "adapter_config.json").read_text())["r"]
        args |= {"model": spec.pt, "enable_lora": True, "max_lora_rank": rank}
        lora = LoRARequest("adapter", 1, spec.adapter)
    engine = LLMEngine.from_engine_args(EngineArgs(hf_overrides=overrides, **args))
    if grouped:
        from tuco_vllm.engine.adapter_runner import mend_on_cpu

        mend_on_cpu(engine.model_executor.driver_worker.worker.get_model())

    def run(prompts: Prompts) -> list[Any]:
        for index, prompt in enumerate(prompts):
            ids, params = prompt, PoolingParams(task=task)
            if isinstance(prompt, ScoredTokens):
                rows = {ROWS: list(prompt.asked)}
                ids, params = prompt.token_ids, PoolingParams(task=task, extra_kwargs=rows)
                if prompt.asked.targets:
                    engine.collective_rpc("load_heads")  # once; then it does nothing
            engine.add_request(str(index), {"prompt_token_ids": ids}, params, lora_request=lora)
        results: dict[str, Any] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                results[output.request_id] = output.outputs.data
        return [results[str(index)] for index in range(len(prompts))]

    return run


def _oracle(spec: Spec) -> Any:
    import torch

    from tuco_vllm.oracle import Oracle

    # "sdpa" is the fast one, but drops Gemma 2's soft-caps.
    capped = "final_logit_softcapping" in Path(spec.ft, "config.json").read_text()
    attention = "eager" if capped else "sdpa"
    return Oracle(spec.pt, spec.ft, dtype=getattr(torch, spec.dtype), attention=attention)


def _hugging_face(pair: Any, batch_size: int) -> Run:
    """``pair`` has a method ``norms``: prompts -> ``[B, L, 7]``."""

    def run(prompts: Prompts) -> list[Any]:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        norms: list[Any] = [None] * len(prompts)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for index, norms_L7 in zip(batch, pair.norms([prompts[i] for i in batch]), strict=True):
                norms[index] = norms_L7
        return norms

    return run


@dataclass(frozen=True)
class Turn:
    """One contender's turn: seconds by the clock, CPU seconds of its process and of everything else, and the
    pages that the kernel had to map for it."""

    wall: float
    cpu: float
    foreign: float
    faults: int
    norms: Norms | None


class Contender:
    """The parent's end of one contender. ``close`` it, whatever happens."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        context = get_context("spawn")
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(pipe, name, spec), name=name)
        self._process.start()
        pipe.close()
        threads = self._receive()
        if threads != int(os.environ["OMP_NUM_THREADS"]):
            raise RuntimeError(f"{name} runs on {threads} threads, not {os.environ['OMP_NUM_THREADS']}")

    def turn(self, prompts: Prompts) -> Turn:
        """Score the prompts once."""
        self._pipe.send(prompts)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} ended: its own message is above") from None


def _serve(pipe: Connection, name: str, spec: Spec) -> None:
    """A contender's process: build, then a turn for every message until the parent hangs up."""
    os.dup2(2, 1)  # stdout is the parent's table; libraries talk too
    status = 1
    try:
        _take_turns(pipe, name, spec)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)  # an in-process engine leaves threads behind


def _take_turns(pipe: Connection, name: str, spec: Spec) -> None:
    import torch

    run = (CONTENDERS | ADAPTERS)[name](spec)
    pipe.send(torch.get_num_threads())
    while True:
        try:
            prompts = pipe.recv()
        except EOFError:
            return
        faults, machine, cpu, wall = _faults(), _machine_cpu(), time.process_time(), time.perf_counter()
        result = run(prompts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        foreign = max(0.0, _machine_cpu() - machine - cpu)
        scores = name in SCORES and not any(isinstance(prompt, ScoredTokens) for prompt in prompts)
        norms = torch.stack(result).double().tolist() if scores else None
        pipe.send(Turn(wall, cpu, foreign, _faults() - faults, norms))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _machine_cpu() -> float:
    """CPU seconds that the whole machine has used, a host's theft included (steps of 10 ms)."""
    import psutil

    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.steal
