"""Runs vLLM's Model Runner V2, which is the default on GPUs, on a CPU: a script started by its own process.

    python tests/v2_on_cpu.py SPEC.json    (what SPEC holds: see ``main``)

V2 refuses a CPU because it finds no Triton backend there. It gets one that says "active" and compiles
nothing, with Triton's interpreter behind it. Real are then the V2 runner, its input preparation, attention
metadata, block tables and pooling; not covered are CUDA graphs (but for the padding that they bring, see
``pad_batches``), streams, tensor parallelism and Triton's compiled code. The engine runs inside this process,
so that what is set up here holds for it.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def pretend_triton_has_a_cpu_backend() -> None:
    """Must run before vllm is imported: vLLM decides then whether there is Triton."""
    import triton.backends
    import triton.runtime.interpreter as interpreter
    from triton.backends.compiler import GPUTarget

    class Driver:
        is_active = staticmethod(lambda: True)
        get_current_target = staticmethod(lambda: GPUTarget("cpu", 0, 0))

    class Compiler:
        """All that torch.compile asks of one before it generates C++ for a CPU: a name for its cache key."""

        supports_target = staticmethod(lambda target: target.backend == "cpu")

        def __init__(self, target: Any) -> None:
            pass

        def hash(self) -> str:
            return "none"

    triton.backends.backends["cpu"] = SimpleNamespace(driver=Driver, compiler=Compiler)
    # vLLM's kernels mask with integers; the interpreter takes booleans only.
    builder = interpreter.InterpreterBuilder
    builder.create_masked_load = with_bool_mask(builder.create_masked_load, 1)
    builder.create_masked_store = with_bool_mask(builder.create_masked_store, 2)


def with_bool_mask(method: Any, position: int) -> Any:
    """``method`` of the interpreter's builder with its mask argument made boolean."""

    def call(self: Any, *args: Any) -> Any:
        args[position].data = args[position].data.astype(bool)
        return method(self, *args)

    return call


def pad_batches(sizes: list[int]) -> list[int]:
    """From now on every step is padded as if piecewise CUDA graphs had been captured for ``sizes`` tokens.

    All that reads and writes padded batches is then real; left out is that graphs are recorded and replayed.
    Returns a list that grows by the number of pad tokens of every step.
    """
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager

    def dispatch(_: Any, num_reqs: int, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        padded = min((size for size in sizes if size >= num_tokens), default=None)
        if padded is None:
            return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs)
        added.append(padded - num_tokens)
        return BatchExecutionDescriptor(CUDAGraphMode.PIECEWISE, padded, None)

    added: list[int] = []
    CudaGraphManager.dispatch = dispatch
    return added


def main(spec_file: str) -> None:
    """SPEC: pt, ft, engine_args, out (the file for what comes back), and either

    rounds: lists of token-id prompts; out holds each round's norms; or
    generate: requests, each a prompt, an alpha (null: plain FT) and fields of SamplingParams; out holds what
    two rounds of them gave, a list of completions for each request, and the engine's counters.

    With pad_to, a list of sizes, batches are padded (``pad_batches``).
    """
    pretend_triton_has_a_cpu_backend()
    import torch

    spec = json.loads(Path(spec_file).read_text())
    pads = pad_batches(spec["pad_to"]) if "pad_to" in spec else None
    torch.save(generate(spec) if "generate" in spec else score(spec), spec["out"])
    assert pads is None or any(pads), "no step was padded"


def score(spec: dict[str, Any]) -> Any:
    import torch

    from tuco_vllm.config import resolve_pair
    from tuco_vllm.engine.scorer import Scorer

    scorer = Scorer(resolve_pair(spec["pt"], spec["ft"]), **spec["engine_args"])
    assert_runs_v2(scorer.engine)
    return [torch.stack([n for _, n in scorer.stream(enumerate(prompts))]) for prompts in spec["rounds"]]


def generate(spec: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    from tuco_vllm import TucoLLM

    llm = TucoLLM(spec["pt"], spec["ft"], task="generate", **spec["engine_args"])
    engine = llm._engine.llm
    assert_runs_v2(engine.llm_engine)
    prompts, params = [], []
    for request in spec["generate"]:
        prompts.append({"prompt_token_ids": request.pop("prompt")})
        alpha = request.pop("alpha")
        wish = None if alpha is None else {"alpha": alpha, "tuco": True}
        params.append(SamplingParams(**request, extra_args=wish))
    rounds = [engine.generate(prompts, params, use_tqdm=False) for _ in range(2)]
    return {
        "rounds": [[[completed(c) for c in output.outputs] for output in outputs] for outputs in rounds],
        "counters": {m.name: m.value for m in engine.get_metrics() if hasattr(m, "value")},
    }


def completed(completion: Any) -> dict[str, Any]:
    """What is judged of a completion; ``logprobs`` are those of its own tokens."""
    tokens, logprobs = list(completion.token_ids), completion.logprobs
    own = logprobs and [step[token].logprob for step, token in zip(logprobs, tokens, strict=True)]
    return {
        "tokens": tokens,
        "norms": completion.routed_experts,
        "logprobs": own,
        "finish_reason": completion.finish_reason,
    }


def assert_runs_v2(engine: Any) -> None:
    runner = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    bases = [base.__module__ for base in type(runner).__mro__]
    assert "vllm.v1.worker.gpu.model_runner" in bases, f"not the V2 runner: {bases}"


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # an in-process engine leaves threads behind
