"""``tuco build``: prompt sets of the paper's experiments, from files that users have."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuco_vllm.commands.options import engine_arguments, positive
from tuco_vllm.errors import InputError

if TYPE_CHECKING:
    from tuco_vllm.builders.outcomes import Sample, Sampling
    from tuco_vllm.builders.rows import Row

TEXT = "Prompt sets of the paper's experiments from your files: JSONL for tuco score."

_KINDS = {
    "windows": "windows of plain text of one number of tokens (paper 5.2)",
    "templates": "requests in attack templates (5.3); with harmless requests their control",
    "many-shot": "requests behind 1 to 128 question-answer pairs (5.3)",
    "refusal-shots": "requests behind 0 to 8 refused ones (5.5)",
    "languages": "the same requests in several languages (5.3)",
    "length-control": "harmless prompts, each of as many tokens as an attacked one",
    "suffix-control": "the bare requests with random suffixes, each of as many tokens as the attacked one",
    "outcomes": "samples of a model's answers: refused or not, jailbroken or not (5.4)",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    kinds = parser.add_subparsers(title="kinds", dest="kind", required=True, metavar="KIND")
    subs = {}
    for name, text in _KINDS.items():
        sub = subs[name] = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = sub.add_argument
        add("inputs", nargs="+", type=Path, metavar="INPUT", help=".csv or .jsonl files, also .gz")
        add("--out", required=True, type=Path, metavar="FILE.jsonl")
        add("--prompt-column", default="prompt", metavar="NAME", help="default: %(default)s")
        add("--id-column", metavar="NAME", help="default: ids are FILE:ROW")
        add("--group", metavar="NAME", help="what the rows' column group says")
        add("--seed", type=int, default=0, help="default: %(default)s")
        add("--limit", type=positive, metavar="ROWS", help="use only so many requests, drawn by the seed")
        add("--overwrite", action="store_true", help="replace --out")
        if name not in ("windows", "many-shot", "refusal-shots", "outcomes"):
            add("--raw", action="store_true", help="prompts as they are, not as a chat's user turn")
    tokens = "a model directory or hub id, whose tokenizer counts"
    for name in ("windows", "length-control", "suffix-control"):
        subs[name].add_argument("--model", required=True, metavar="FT", help=tokens)
    add = subs["windows"].add_argument
    add("--tokens", type=positive, default=97, metavar="N", help="default: %(default)s, the paper's")
    add("--separator", metavar="LINE", help="a line between two documents of a text file")
    subs["templates"].add_argument("--templates", required=True, type=Path, metavar="FILE")
    subs["templates"].add_argument("--template-column", default="template", metavar="NAME")
    subs["templates"].add_argument("--slot", default="[INSERT PROMPT HERE]", help="default: %(default)s")
    add = subs["many-shot"].add_argument
    add("--examples", type=Path, metavar="FILE", help="question-answer pairs; default: the inputs' own")
    add("--answer-column", default="target", metavar="NAME", help="default: %(default)s")
    add("--form", choices=("turns", "text"), default="turns", help="turns of a chat, or one that shows them")
    for name, counts in (("many-shot", "1,2,4,8,16,32,64,128"), ("refusal-shots", "0,1,2,4,8")):
        subs[name].add_argument("--shots", type=_counts, default=_counts(counts), metavar="K,K,...")
    subs["languages"].add_argument(
        *("--languages", "-l"), action="append", required=True, metavar="GROUP=LANG,LANG", dest="languages"
    )
    pool = "harmless prompts to choose from"
    subs["length-control"].add_argument("--pool", required=True, type=Path, metavar="FILE", help=pool)
    subs["suffix-control"].add_argument(
        "--goal-column", default="goal", metavar="NAME", help="the bare request"
    )
    _add_sampling(subs["outcomes"])


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pt", metavar="P")
    add("--ft", required=True, metavar="F")
    add(
        "--alpha",
        type=float,
        action="append",
        metavar="A",
        help="default: 1; several times: each row at each",
    )
    add("--samples", type=positive, default=8, metavar="N", help="answers a prompt, default: %(default)s")
    add("--max-tokens", type=positive, default=30, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    add("--successes", type=positive, default=2, metavar="N", help="answers that make a jailbreak")
    add("--texts", action="store_true", help="keep the answers")
    add("--max-model-len", type=positive, metavar="TOKENS")
    add("--enforce-eager", action="store_true", help="no torch.compile, no CUDA graphs")


def run(arguments: argparse.Namespace) -> int:
    """Build the set. Returns the exit code."""
    from tuco_vllm.builders.rows import expect_free, write_rows

    if arguments.kind == "outcomes":
        return _sample(arguments)
    expect_free(arguments.out, overwrite=arguments.overwrite)
    count = write_rows(_built(arguments), arguments.out, overwrite=arguments.overwrite)
    print(f"tuco: {count:,} rows in {arguments.out}", file=sys.stderr)
    return 0


def _built(arguments: argparse.Namespace) -> "Iterable[Row]":
    from tuco_vllm.builders import attacks, shots, windows
    from tuco_vllm.builders.rows import id_in, prompt_in, read_documents, read_rows, text_in

    kind, seed = arguments.kind, arguments.seed
    if kind == "windows":
        documents = (
            each
            for path in arguments.inputs
            for each in read_documents(path, arguments.separator, arguments.prompt_column)
        )
        tokenizer = _tokenizer(arguments.model)
        found = windows.windows(documents, tokenizer, arguments.tokens, count=arguments.limit, seed=seed)
        return _grouped(found, arguments.group)
    all_rows = [row for path in arguments.inputs for row in read_rows(path)]
    rows = _drawn(all_rows, arguments)
    if kind == "languages":
        told = [{**_parallel(row, arguments), "lang": text_in(row, "lang")} for row in rows]
        built, left_out = attacks.in_languages(told, _languages(arguments.languages), raw=arguments.raw)
        if left_out:
            print(f"tuco: {left_out:,} prompts are not there in all languages: left out", file=sys.stderr)
        return built
    prompts = [(id_in(row, arguments.id_column), prompt_in(row, arguments.prompt_column)) for row in rows]
    if kind == "templates":
        column = arguments.template_column
        templates = [(id_in(row, "name"), text_in(row, column)) for row in read_rows(arguments.templates)]
        built_in = attacks.in_templates(prompts, templates, slot=arguments.slot, raw=arguments.raw)
        return _grouped(built_in, arguments.group)
    if kind == "many-shot":
        source = all_rows if arguments.examples is None else list(read_rows(arguments.examples))
        names = arguments.prompt_column, arguments.answer_column
        pairs = [(text_in(row, names[0]), text_in(row, names[1])) for row in source]
        as_text = arguments.form == "text"
        found = shots.with_shots(prompts, pairs, arguments.shots, seed=seed, as_text=as_text)
        return _grouped(found, arguments.group)
    if kind == "refusal-shots":
        pairs = [(prompt_in(row, arguments.prompt_column), shots.REFUSAL) for row in all_rows]
        found = shots.with_shots(prompts, pairs, arguments.shots, seed=seed, group="refusal-shots")
        return _grouped(found, arguments.group)
    tokenizer = _tokenizer(arguments.model)
    if kind == "length-control":
        pool = [(row["_place"], text_in(row, arguments.prompt_column)) for row in read_rows(arguments.pool)]
        return attacks.of_equal_length(prompts, pool, tokenizer, raw=arguments.raw)
    both = [
        (name, text_in(row, arguments.goal_column), prompt)
        for row, (name, prompt) in zip(rows, prompts, strict=True)
    ]
    return attacks.with_random_suffix(both, tokenizer, seed=seed, raw=arguments.raw)


def _sample(arguments: argparse.Namespace) -> int:
    """Outcomes resume by themselves, so they have a way of their own."""
    from tuco_vllm.builders.outcomes import Sampling, left, write_outcomes
    from tuco_vllm.builders.rows import expect_free, read_rows
    from tuco_vllm.config import resolve_pair
    from tuco_vllm.steering import parse_alpha

    alphas = tuple(dict.fromkeys(parse_alpha(alpha) for alpha in arguments.alpha or (1.0,)))
    names = ("samples", "max_tokens", "temperature", "successes", "seed", "texts")
    sampling = Sampling(alphas=alphas, **{name: getattr(arguments, name) for name in names})
    if not 0 <= arguments.temperature <= 10:
        raise InputError(f"--temperature {arguments.temperature:g} is not from 0 to 10")
    rows = _drawn([row for path in arguments.inputs for row in read_rows(path)], arguments)
    asked = [_request(row, arguments) for row in rows]
    if len({row["id"] for row in asked}) < len(asked):
        raise InputError("ids of the inputs repeat: name another --id-column, or none")
    pair = resolve_pair(arguments.pt, arguments.ft)
    told = f"{pair.pt.fingerprint} {pair.ft.fingerprint} {arguments.max_model_len}"
    sampling = replace(sampling, models=told)
    expect_free(arguments.out, overwrite=True)
    count = len(asked) * len(alphas) if arguments.overwrite else len(left(asked, sampling, arguments.out))
    if count:
        from tuco_vllm import TucoLLM
        from tuco_vllm.corpus.progress import start_shown

        given = engine_arguments(arguments, "max_model_len", "enforce_eager")
        with start_shown():
            llm = TucoLLM(arguments.pt, arguments.ft, task="generate", **given)
        with llm:
            if arguments.overwrite:  # an engine has started: nothing is removed before
                arguments.out.unlink(missing_ok=True)
            write_outcomes(asked, sampling, arguments.out, _sampler(llm, sampling))
    print(f"tuco: {count:,} rows sampled; all are in {arguments.out}", file=sys.stderr)
    return 0


def _sampler(llm: Any, sampling: "Sampling") -> "Sample":
    """All prompts of a call in one batch, a request a seed, without scores."""
    from tuco_vllm.engine.generator import SamplingParams

    def sample(prompts: Sequence[Any], seeds: Sequence[int], alpha: float) -> list[str]:
        own = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        params = [SamplingParams(seed=seed, **own) for seed in seeds]
        outputs = llm.generate(list(prompts), params, alpha=alpha, scores=False)
        return [output.outputs[0].text for output in outputs]

    return sample


def _request(row: "Row", arguments: argparse.Namespace) -> "Row":
    from tuco_vllm.builders.rows import id_in, text_in

    own = {**row, "id": id_in(row, arguments.id_column or "id")}
    return own if row.get("messages") else {**own, "prompt": text_in(row, arguments.prompt_column)}


def _drawn(rows: "list[Row]", arguments: argparse.Namespace) -> "list[Row]":
    import random

    if arguments.limit is None or arguments.limit >= len(rows):
        return rows
    places = random.Random(arguments.seed).sample(range(len(rows)), arguments.limit)
    return [rows[place] for place in sorted(places)]


def _parallel(row: "Row", arguments: argparse.Namespace) -> "Row":
    from tuco_vllm.builders.rows import id_in, text_in

    return {"id": id_in(row, arguments.id_column or "id"), "prompt": text_in(row, arguments.prompt_column)}


def _grouped(rows: "Iterable[Row]", group: str | None) -> "Iterable[Row]":
    return rows if group is None else ({**row, "group": group} for row in rows)


def _languages(given: Sequence[str]) -> dict[str, str]:
    groups: dict[str, str] = {}
    for each in given:
        group, equals, languages = each.partition("=")
        for language in filter(None, languages.split(",")):
            if groups.setdefault(language, group) != group:
                raise InputError(f"--languages has {language!r:.20} in two groups")
        if not (group and equals and languages):
            raise InputError(f"--languages {each!r:.60} is not GROUP=LANG,LANG")
    return groups


def _tokenizer(model: str) -> Any:
    from tuco_vllm.config import resolve_pair
    from tuco_vllm.prompts import load_tokenizer

    return load_tokenizer(resolve_pair(model, model).ft.tokenizer_directory)


def _counts(text: str) -> tuple[int, ...]:
    if not all(each.strip().isdecimal() for each in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers with commas")
    return tuple(sorted({int(each) for each in text.split(",")}))
