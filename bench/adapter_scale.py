"""Scaling an adapter is not scaling what fine-tuning contributes: how far apart are the two?

    python bench/adapter_scale.py --ft ADAPTER --prompts FILE [--alphas 0.5,0.75,1.25,1.5]

Def. 5.1 scales FTC_l = f_FT(x_l) - f_PT(x_l), the layer's whole change, on the stream that this gives. With
W + alpha s B A in every adapted weight the same is so to first order in B A only: between the products of a
layer are a softmax, gates and norms. Both are taken in float64 by the oracle. Of each alpha, in the mean over
the prompts' next-token distributions: the total variation between the two, beside that of each from plain FT.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from provenance import append, provenance
from torch import Tensor
from transformers import AutoModelForCausalLM

from tuco_vllm.adapter import CONFIG
from tuco_vllm.config import ModelPair, resolve_pair
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompts import PromptEncoder, load_tokenizer


def main() -> None:
    """Print and record a line an alpha."""
    arguments = _arguments()
    pair = resolve_pair(arguments.pt, arguments.ft)
    encoder = PromptEncoder(load_tokenizer(pair.ft.tokenizer_directory))
    lines = arguments.prompts.read_text(encoding="utf-8").splitlines()[: arguments.count]
    prompts = [encoder.encode([{"role": "user", "content": line}]).token_ids for line in lines]
    head = _head(pair)
    plain, scaled_by = _oracle(pair, 1.0), {alpha: _oracle(pair, alpha) for alpha in arguments.alphas}
    ft = [_next(plain, prompt, 1.0, head) for prompt in prompts]
    found = {}
    for alpha, scaled in scaled_by.items():
        steered = [_next(plain, prompt, alpha, head) for prompt in prompts]
        adapter = [_next(scaled, prompt, 1.0, head) for prompt in prompts]
        pairs = list(zip(steered, adapter, strict=True))
        found[str(alpha)] = {
            "between": _apart(steered, adapter),
            "def_5_1_from_ft": _apart(steered, ft),
            "scaled_from_ft": _apart(adapter, ft),
            "other_tokens": sum(int(a.argmax() != b.argmax()) for a, b in pairs),
        }
        print(alpha, found[str(alpha)], flush=True)
    record = {"pair": f"{pair.pt.name} {pair.ft.name}", "prompts": len(prompts), "total_variation": found}
    append("adapter_scale", {"bench": "adapter_scale", **record, "provenance": provenance()})


def _oracle(pair: ModelPair, alpha: float) -> Oracle:
    """Of the pair with its adapter scaled by ``alpha``."""
    assert pair.ft.adapter is not None
    with TemporaryDirectory() as directory:
        place = Path(directory) / "adapter"
        shutil.copytree(pair.ft.adapter.directory, place)
        config = json.loads((place / CONFIG).read_text())
        config["lora_alpha"] *= alpha
        config["alpha_pattern"] = {name: a * alpha for name, a in (config.get("alpha_pattern") or {}).items()}
        (place / CONFIG).write_text(json.dumps(config))
        adapter = resolve_pair(pair.pt.directory, place).ft.adapter
        directories = pair.pt.directory, pair.ft.directory
        return Oracle(*directories, dtype=torch.float64, adapter=adapter)


def _head(pair: ModelPair) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(pair.pt.directory, dtype=torch.float64)
    return model.get_output_embeddings().weight.detach()


def _next(oracle: Oracle, prompt: list[int], alpha: float, head_VH: Tensor) -> Tensor:
    """Probabilities ``[V]`` of the token after a prompt."""
    return (oracle.steer(prompt, alpha)[1][-1] @ head_VH.T).softmax(-1)


def _apart(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x - y).abs().sum()) / 2 for x, y in zip(a, b, strict=True)) / len(a)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--pt", help="default: the base that the adapter names")
    parser.add_argument("--ft", required=True, help="a LoRA adapter")
    parser.add_argument("--prompts", type=Path, required=True, help="text, a prompt a line")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--alphas", type=_numbers, default="0.5,0.75,1.25,1.5", help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
