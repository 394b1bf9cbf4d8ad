"""Runs vLLM's Model Runner V2, which is the default on GPUs, on a CPU, in a process that does only this.

V2 refuses a CPU because it finds no Triton backend there. It gets one that says "active" and compiles
nothing, with Triton's interpreter behind it. Real are then the V2 runner, its input preparation, attention
metadata, block tables and pooling; not covered are CUDA graphs (but for the padding that they bring, see
``padded_batches``), streams, tensor parallelism and Triton's compiled code. The engines run inside the
process, one after the other, so that what ``prepare`` sets up holds for them.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import graphs_on_cpu


def prepare() -> None:
    """Once, before triton and vllm are imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    pretend_triton_has_a_cpu_backend()


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

    # Whether a sum of integers overflows is checked in no compiled kernel, and takes a quarter of the time.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
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


@contextmanager
def padded_batches(sizes: list[int]) -> Iterator[None]:
    """Every step in here is padded as if piecewise CUDA graphs had been captured for ``sizes`` tokens.

    All that reads and writes padded batches is then real; left out is that graphs are recorded and replayed.
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
    own, CudaGraphManager.dispatch = CudaGraphManager.dispatch, dispatch
    try:
        yield
    finally:
        CudaGraphManager.dispatch = own
    assert any(added), "no step was padded"


def run(spec: dict[str, Any]) -> Any:
    """``spec``: pt, ft, engine_args and either

    rounds: lists of token-id prompts; returns each round's norms; or
    rows: ScoredTokens, twice by an engine of ``task``; returns RowScores of each, of both rounds; or
    generate: requests, each a prompt, an alpha (None: plain FT), whether it is scored (``tuco``, True if left
    out) and fields of SamplingParams; returns what two rounds of them (or as many as ``times`` says) gave, a
    list of completions for each request, and the engine's counters.

    With pad_to, a list of sizes, batches are padded (``padded_batches``). With graphs, such a list, graphs
    are imitated while it generates (``graphs_on_cpu``), and "steps" counts them.
    """
    if "graphs" in spec:
        with graphs_on_cpu.imitated(spec["graphs"]) as seen:
            return {**generate(spec), "steps": dict(seen)}
    with padded_batches(spec["pad_to"]) if "pad_to" in spec else nullcontext():
        return next(does(spec) for key, does in WAYS.items() if key in spec)


def score(spec: dict[str, Any]) -> list[Any]:
    import torch

    from tuco_vllm.config import resolve_pair
    from tuco_vllm.engine.scorer import Scorer

    with closing(Scorer(resolve_pair(spec["pt"], spec["ft"]), **spec["engine_args"])) as scorer:
        assert_runs_v2(scorer.engine)
        rounds = [scorer.stream(enumerate(prompts)) for prompts in spec["rounds"]]
        # In NumPy's arrays: a tensor would cross to the tests' process in shared memory.
        return [torch.stack([norms for _, norms in stream]).numpy() for stream in rounds]


def generate(spec: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    from tuco_vllm import TucoLLM

    with TucoLLM(spec["pt"], spec["ft"], task="generate", **spec["engine_args"]) as llm:
        engine = llm._engine.llm
        assert_runs_v2(engine.llm_engine)
        if "graphs" in spec:
            runner = runner_of(engine.llm_engine)
            layers = runner.vllm_config.compilation_config.static_forward_context
            graphs_on_cpu.poison_cache(runner.model, layers)
        prompts, params = [], []
        for request in spec["generate"]:
            fields = dict(request)
            prompts.append({"prompt_token_ids": fields.pop("prompt")})
            alpha, scored = fields.pop("alpha"), fields.pop("tuco", True)
            wish = None if alpha is None else {"alpha": alpha, "tuco": scored}
            params.append(SamplingParams(**fields, extra_args=wish))
        lora = llm._engine._adapters.of(llm.pair.ft.adapter)
        rounds = [
            engine.generate(prompts, params, use_tqdm=False, lora_request=lora)
            for _ in range(spec.get("times", 2))
        ]
        return {
            "rounds": [[[completed(c) for c in output.outputs] for output in outputs] for outputs in rounds],
            "counters": {m.name: m.value for m in engine.get_metrics() if hasattr(m, "value")},
        }


def read_rows(spec: dict[str, Any]) -> list[Any]:
    from tuco_vllm import TucoLLM

    with TucoLLM(spec["pt"], spec["ft"], task=spec["task"], **spec["engine_args"]) as llm:
        engine = llm._engine.llm.llm_engine if spec["task"] == "generate" else llm._engine.engine
        assert_runs_v2(engine)
        rounds = [llm._engine.stream(enumerate(spec["rows"])) for _ in range(2)]
        return [
            [[each if each is None else each.numpy() for each in rows] for _, rows in stream]
            for stream in rounds
        ]


WAYS = {"rounds": score, "rows": read_rows, "generate": generate}
"""What a spec's key asks for."""


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


def runner_of(engine: Any) -> Any:
    return engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def assert_runs_v2(engine: Any) -> None:
    bases = [base.__module__ for base in type(runner_of(engine)).__mro__]
    assert "vllm.v1.worker.gpu.model_runner" in bases, f"not the V2 runner: {bases}"
