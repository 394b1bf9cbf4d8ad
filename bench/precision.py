"""How wrong is a score in 16 bits? Rows in float32, in the model's dtype, and Hugging Face, against float64.

    python bench/precision.py                        a random pair, PT and FT ever nearer to each other
    python bench/precision.py --pt P --ft F          a pair of yours (two models in float64 must fit); or an
                                                     adapter, which PEFT's way adds in Hugging Face's model

For each way, over the prompts: mean |dTuCo|, max |dTuCo|, bias (the mean of dTuCo), beside TuCo itself. All
ways see the same weights, which are 16-bit; the truth is float64 arithmetic on them. "Attention rounded" is
float64 with only queries, keys, values and attention's output rounded: caches and vLLM's attention are of 16
bits, so no engine gets below it (Llama pairs only). One record a pair, in bench/results/precision.jsonl.
"""

import argparse
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from provenance import append, provenance
from torch import Tensor

from tuco_vllm.config import ModelPair, resolve_pair
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompts import PromptEncoder, load_tokenizer

DISTANCES = (0.003, 0.03, 0.3)
"""Of random pairs: FT is PT plus so much of its weights' spread, in random directions."""

SHAPE = {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)  # small products; two threads on busy cores spin
    for name, pair, prompts in _pairs(arguments):
        record = {"pair": name, "dtype": arguments.dtype, "prompts": len(prompts), **_tokens(prompts)}
        record["ways"] = measured(pair, prompts, arguments.dtype)
        _print(record)
        append("precision", {**record, "provenance": provenance()})


def measured(pair: ModelPair, prompts: list[list[int]], dtype: str) -> dict[str, dict[str, float]]:
    """Way -> its errors; "float64" has the truth's own mean."""
    true_N = _hugging_face(pair, prompts, torch.float64)
    ways = {"float64": {"tuco": float(true_N.mean())}}
    ways["hugging face"] = _errors(_hugging_face(pair, prompts, getattr(torch, dtype)), true_N)
    if pair.ft.architecture == "LlamaForCausalLM":
        with _rounded_attention(getattr(torch, dtype)):
            ways["attention rounded"] = _errors(_hugging_face(pair, prompts, torch.float64), true_N)
    for rows in ("model", "float32"):
        ways[f"engine, rows {rows}"] = _errors(_engine(pair, prompts, dtype, rows), true_N)
    return ways


def _errors(found_N: Tensor, true_N: Tensor) -> dict[str, float]:
    error_N = found_N - true_N
    return {
        "mean": float(error_N.abs().mean()),
        "max": float(error_N.abs().max()),
        "bias": float(error_N.mean()),
    }


def _hugging_face(pair: ModelPair, prompts: list[list[int]], dtype: torch.dtype) -> Tensor:
    oracle = Oracle(pair.pt.directory, pair.ft.directory, dtype=dtype, adapter=pair.ft.adapter)
    return _tuco(torch.cat([oracle.norms([prompt]) for prompt in prompts]))


@contextmanager
def _rounded_attention(dtype: torch.dtype) -> Iterator[None]:
    from transformers.models.llama import modeling_llama

    exact = modeling_llama.eager_attention_forward

    def rounded(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Any:
        query, key, value = (tensor.to(dtype).double() for tensor in (query, key, value))
        output, weights = exact(module, query, key, value, *rest, **more)
        return output.to(dtype).double(), weights

    modeling_llama.eager_attention_forward = rounded
    try:
        yield
    finally:
        modeling_llama.eager_attention_forward = exact


def _engine(pair: ModelPair, prompts: list[list[int]], dtype: str, rows: str) -> Tensor:
    from tuco_vllm.engine.scorer import Scorer

    longest = max(map(len, prompts))
    scorer = Scorer(pair, row_dtype=rows, dtype=dtype, max_model_len=longest, enforce_eager=True)
    norms_NL7 = torch.stack([norms for _, norms in scorer.stream(enumerate(prompts))])
    scorer.close()
    return _tuco(norms_NL7)


def _tuco(norms_NL7: Tensor) -> Tensor:
    last = norms_NL7[:, -1].double()
    return last[:, 3] / (last[:, 2] + last[:, 3])


def _pairs(arguments: argparse.Namespace) -> Iterator[tuple[str, ModelPair, list[list[int]]]]:
    if arguments.ft:
        pair = resolve_pair(arguments.pt, arguments.ft)
        encoder = PromptEncoder(load_tokenizer(pair.ft.tokenizer_directory))
        lines = arguments.prompts.read_text(encoding="utf-8").splitlines()[: arguments.count]
        chats = [[{"role": "user", "content": line}] for line in lines]
        yield f"{pair.pt.name} {pair.ft.name}", pair, [encoder.encode(chat).token_ids for chat in chats]
        return
    draw = random.Random(7)
    prompts = [draw.choices(range(512), k=draw.randrange(20, 400)) for _ in range(arguments.count)]
    for distance in DISTANCES:
        with TemporaryDirectory(prefix="tuco-precision-") as directory:
            yield f"random, {distance}", _random_pair(Path(directory), distance, arguments.dtype), prompts


def _random_pair(directory: Path, distance: float, dtype: str) -> ModelPair:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=512, intermediate_size=704, max_position_embeddings=512, **SHAPE)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # PT's own spread, that of a trained model rather than of a fresh one
            parameter.data.normal_(0, parameter.shape[1] ** -0.5)
    model.to(getattr(torch, dtype)).save_pretrained(directory / "pt")
    for parameter in model.float().parameters():
        parameter.data += torch.randn_like(parameter) * parameter.std() * distance
    model.to(getattr(torch, dtype)).save_pretrained(directory / "ft")
    return resolve_pair(directory / "pt", directory / "ft")


def _tokens(prompts: list[list[int]]) -> dict[str, int]:
    return {"shortest": min(map(len, prompts)), "longest": max(map(len, prompts))}


def _print(record: dict[str, Any]) -> None:
    ways = record["ways"]
    tuco = ways["float64"]["tuco"]
    print(f"{record['pair']}, {record['dtype']}: TuCo {tuco:.2e}, {record['prompts']} prompts")
    for way, errors in ways.items():
        if way != "float64":
            mean, most, bias = errors["mean"], errors["max"], errors["bias"]
            print(f"  {way:24} mean {mean:.1e}  max {most:.1e}  bias {bias:+.1e}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pt")
    parser.add_argument("--ft")
    parser.add_argument("--prompts", type=Path, help="text, a prompt a line, for --pt and --ft")
    parser.add_argument("--count", type=int, default=32, help="prompts, default: %(default)s")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    arguments = parser.parse_args()
    if bool(arguments.ft) != bool(arguments.prompts) or (arguments.pt and not arguments.ft):
        parser.error("--ft and --prompts belong together, and --pt with them unless FT is an adapter")
    return arguments


if __name__ == "__main__":
    main()
