"""What can be said of a pair beyond its shapes: which tensors training left alone, what the template does,
and whether the identities that define steering hold in the engine that will serve it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tuco_vllm.api import TucoLLM
from tuco_vllm.checkpoint_files import weight_files
from tuco_vllm.config import ModelPair
from tuco_vllm.oracle import Oracle, layer_updates

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class SharedTensors:
    """Tensors of one name and shape in both checkpoints."""

    equal: list[str]
    """Equal to the bit: frozen in training, or not this model's fine-tune at all if they are all."""
    different: list[str]
    only_in_one: list[str]
    """Of one checkpoint alone, or of two shapes (an extended vocabulary)."""

    def summary(self) -> list[str]:
        """Lines for people: how many are equal, and which, layers in ranges."""
        total = len(self.equal) + len(self.different)
        lines = [f"{len(self.equal)} of {total} tensors are equal in both"]
        lines += [f"  {name}" for name in _by_layer(self.equal)]
        if self.only_in_one:
            lines.append(f"{len(self.only_in_one)} are in one only, or have two shapes:")
            lines += [f"  {name}" for name in _by_layer(self.only_in_one)]
        return lines


def shared_tensors(pair: ModelPair) -> SharedTensors:
    """Compare both checkpoints' tensors; those whose first rows differ are not read further."""
    with ExitStack() as stack:
        pt, ft = (_tensors(stack, checkpoint.directory) for checkpoint in (pair.pt, pair.ft))
        equal, different, single = [], [], sorted(pt.keys() ^ ft.keys())
        for name in sorted(pt.keys() & ft.keys(), key=_natural):
            a, b = pt[name].get_slice(name), ft[name].get_slice(name)
            if a.get_shape() != b.get_shape():
                single.append(name)
            elif torch.equal(a[:1], b[:1]) and torch.equal(a[:], b[:]):
                equal.append(name)
            else:
                different.append(name)
    return SharedTensors(equal, different, single)


def _tensors(stack: ExitStack, directory: Path) -> dict[str, Any]:
    """Tensor name -> the open file that holds it."""
    files = [stack.enter_context(safe_open(file, "pt")) for file in weight_files(directory)]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118, it is no mapping


def _natural(name: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def _by_layer(names: Iterable[str]) -> list[str]:
    """Names with the layers they stand for: ``model.layers.0-3,7.mlp.up_proj.weight``."""
    layers = defaultdict[str, list[int]](list)
    for name in names:
        found = _LAYER.search(name)
        layers[_LAYER.sub(".*.", name, count=1)] += [int(found[1])] if found else []
    return [name.replace("*", _ranges(numbers), 1) if numbers else name for name, numbers in layers.items()]


def _ranges(numbers: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def template_facts(pt: PreTrainedTokenizerBase, ft: PreTrainedTokenizerBase) -> list[str]:
    """What a user should know of how chats and strings become tokens, a line each."""
    facts = []
    text = "The ferry was late again: 17 people, naïve or not, waited.\n\n東京"
    if pt.encode(text) != ft.encode(text):
        facts.append("the two tokenizers differ: PT's layers read tokens that PT was not trained on")
    try:
        template = ft.get_chat_template()
    except ValueError:
        return [*facts, "FT has no chat template: chats cannot be scored, strings are scored raw"]
    chat = [{"role": "user", "content": "How do I bake bread?"}]

    def render(generation_prompt: bool) -> str:
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation_prompt}
        return str(ft.apply_chat_template(chat, chat_template=template, **options))

    try:
        whole, without = render(True), render(False)
    except Exception as error:  # a template is a program: it may raise anything
        return [*facts, f"FT's chat template refuses a single user turn: {error}"]
    facts.append(f"a chat becomes {whole!r}")
    if whole == without:
        facts.append(
            "its chat template ignores add_generation_prompt: a chat's score is of its last turn's end"
        )
    starts_with_bos = ft.encode("a")[:1] == [ft.bos_token_id]
    if starts_with_bos and ft.encode(whole, add_special_tokens=False)[:1] != [ft.bos_token_id]:
        facts.append("strings begin with the BOS token, chats do not: the template leaves it out")
    return facts


@dataclass(frozen=True)
class Steered:
    """The identities of Def. 5.1, as one generating engine keeps them."""

    one_is_ft: bool
    """alpha = 1 with scores gives the very tokens of plain FT."""
    zero_error: float
    """Largest |dTuCo| of the alpha = 0 stream's tokens against the reference on that stream."""
    zero_distance: float
    """How far TuCo moves at most, by the reference, if those tokens are FT's stream's: what the error must
    stay below to mean anything."""

    def summary(self) -> list[str]:
        """A line for each identity, and whether it holds."""
        told_apart = self.zero_error < self.zero_distance / 2
        holds = "holds" if told_apart else "CANNOT BE TOLD from alpha = 1 at this dtype"
        return [
            f"alpha = 1 is FT, token by token: {'holds' if self.one_is_ft else 'DOES NOT HOLD'}",
            f"alpha = 0 is PT's layers: {holds} (TuCo is {self.zero_error:.1e} off on that stream, "
            f"{self.zero_distance:.1e} from it on FT's)",
        ]


def steer_both_ways(
    llm: TucoLLM, prompts: Sequence[list[int]], reference: Oracle, tokens: int = 3
) -> Steered:
    """Generate greedily at alpha 1 and 0, and hold the scores of the latter to ``reference``."""
    from tuco_vllm.engine.generator import SamplingParams

    greedy = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    plain = llm.generate(prompts, greedy, scores=False)
    scored = llm.generate(prompts, greedy)
    steered = llm.generate(prompts, greedy, alpha=0.0)
    same = [a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(plain, scored, strict=True)]
    errors, distances = [], []
    for prompt, output in zip(prompts, steered, strict=True):
        completion = output.outputs[0]
        sequence = [*prompt, *completion.token_ids[:-1]]
        zero, one = (_tuco(reference.steer(sequence, alpha)[0])[len(prompt) - 1 :] for alpha in (0.0, 1.0))
        errors.append((torch.tensor(completion.tuco, dtype=zero.dtype) - zero).abs().max())
        distances.append((zero - one).abs().max())
    return Steered(all(same), float(max(errors)), float(max(distances)))


def _tuco(norms_TL7: Tensor) -> Tensor:
    ptc, ftc = norms_TL7[:, -1, 2].double(), norms_TL7[:, -1, 3].double()
    return ftc / (ptc + ftc).clamp_min(torch.finfo(torch.float64).tiny)


@torch.inference_mode()
def stream_error(reference: Oracle, prompt: Sequence[int]) -> float:
    """|x_L - (x_0 + sum of f_FT)|_1 / |x_L|_1 at the last token: 0 if layers only ever add to the stream.

    A model that scales or normalises the stream between its layers has no such decomposition.
    """
    ids_1T = torch.tensor([list(prompt)])
    last = (torch.tensor([0]), torch.tensor([len(prompt) - 1]))
    inputs, updates = layer_updates(reference.ft, {"input_ids": ids_1T}, last)
    x_L = inputs[-1][last] + updates[-1]
    return float((x_L - inputs[0][last] - sum(updates)).abs().sum() / x_L.abs().sum())
