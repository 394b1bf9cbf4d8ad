"""What is asked: requests, attacks and texts from the developers' data, without what FT was trained on.

JailbreakBench has some of AdvBench's requests word for word, so its behaviours are screened against those
that FT learnt to refuse. Of each file a fixed seed draws as many as a part wants.
"""

import csv
import gzip
import json
import random
import sys
from pathlib import Path

from setting import Row, Setting, read_jsonl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real_pair"))

from prompts import Sets, read_sets

PAIR_SEED = 0
"""Of ``bench/real_pair/make.py``, whose split this is."""
SLOT = "[INSERT PROMPT HERE]"


def sets(setting: Setting) -> Sets:
    """The requests that the pair was trained on, and those held out."""
    for name in ("advbench.csv", "gsm8k_test.jsonl", "chat/mt_bench_questions.jsonl"):
        setting.given(f"prompts/{name}")
    return read_sets(setting.data, PAIR_SEED)


def drawn(rows: list, count: int, seed: str) -> list:
    """So many of them, in their order."""
    places = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[place] for place in sorted(places)]


def harmless(setting: Setting, count: int) -> list[tuple[str, str]]:
    """(id, request): MT-bench and GSM8K, as many of either as there are."""
    found = [(f"harmless:{place}", text) for place, text in enumerate(sets(setting).harmless_held_out)]
    return drawn(found, count, "harmless")


def mt_bench(setting: Setting, count: int) -> list[str]:
    """MT-bench's questions: chats that nobody would refuse."""
    path = setting.given("prompts/chat/mt_bench_questions.jsonl")
    texts, known = [row["turns"][0] for row in read_jsonl(path)], set(sets(setting).harmless_held_out)
    return drawn([text for text in texts if text in known], count, "mt")


def held_out(setting: Setting, count: int) -> list[tuple[str, str, str]]:
    """(id, request, the beginning of an answer that complies) of AdvBench, which FT was not trained on."""
    lines = csv.DictReader(setting.given("prompts/advbench.csv").open(newline="", encoding="utf-8"))
    targets = {row["prompt"]: row["target"] for row in lines}
    found = [(f"adv:{n}", text, targets[text]) for n, text in enumerate(sets(setting).harmful_held_out)]
    return drawn(found, count, "held out")


def attacked(setting: Setting) -> list[Row]:
    """JailbreakBench's GCG prompts, of each goal and target model one, with ``goal`` and ``suffix``.

    Only those that are their goal with something behind it, and whose goal FT was not trained on.
    """
    known = {prompt for prompt, _ in sets(setting).harmful_train}
    rows = {}
    for row in read_jsonl(setting.given("prompts/jailbreaks/jbb_gcg.jsonl")):
        goal, prompt = row["goal"], row["prompt"]
        if prompt.startswith(goal) and len(prompt) > len(goal) and goal not in known:
            rows[row["id"], row["target_model"]] = {
                "id": f"jbb:{row['id']}",
                "goal": goal,
                "prompt": prompt,
                "suffix": prompt[len(goal) :],
                "model": row["target_model"],
            }
    return list(rows.values())


def one_a_goal(rows: list[Row]) -> list[Row]:
    """One of each goal's attacks, drawn: rows of one goal are no independent evidence."""
    by_goal: dict[str, list[Row]] = {}
    for row in rows:
        by_goal.setdefault(row["id"], []).append(row)
    return [random.Random(f"attack {name}").choice(own) for name, own in by_goal.items()]


def aim_template(setting: Setting) -> str:
    """The AIM template with ``SLOT``, as JailbreakBench's artifacts use it."""
    row = read_jsonl(setting.given("prompts/jailbreaks/jbb_jbc_aim.jsonl"))[0]
    return row["prompt"].replace(row["goal"], SLOT)


def templates(setting: Setting, count: int) -> list[Row]:
    """``id`` and ``template`` of GPTFuzzer's jailbreak templates."""
    path = setting.given("prompts/jailbreaks/templates_gptfuzzer.csv")
    rows = [row for row in csv.DictReader(path.open(newline="", encoding="utf-8")) if SLOT in row["template"]]
    return drawn([{"id": row["id"], "template": row["template"]} for row in rows], count, "templates")


def first_turns(setting: Setting, count: int) -> list[tuple[str, str]]:
    """(id, text) of HH's dialogues: what the human says first."""
    data = gzip.decompress(setting.given("prompts/chat/hh_harmless_base_test.jsonl.gz").read_bytes()).decode()
    told = [json.loads(line)["chosen"] for line in data.split("\n") if line.strip()]
    texts = [each.partition("\n\nHuman:")[2].partition("\n\nAssistant:")[0].strip() for each in told]
    different = list(dict.fromkeys(text for text in texts if text))
    return drawn([(f"hh:{place}", text) for place, text in enumerate(different)], count, "hh")


def questions_with_answers(setting: Setting) -> list[tuple[str, str]]:
    """Short harmless questions of MMLU and the right choice's text: examples that comply with nothing."""
    path = setting.given("prompts/mmlu/test_first100.csv")
    rows = csv.DictReader(path.open(newline="", encoding="utf-8"))
    pairs = {row["question"]: row[row["answer"]] for row in rows}
    return [(asked, told) for asked, told in pairs.items() if told.strip() and len(asked) + len(told) <= 120]


def web_windows(setting: Setting, tokens: int, count: int) -> list[Row]:
    """Web text in windows of so many tokens, raw, by ``tuco build windows``."""
    web = setting.given("text/web_c4_a.txt")
    options = ("--separator", "<|doc|>", "--tokens", str(tokens), "--limit", str(count))
    name = f"web-{tokens}.jsonl"
    return setting.built("windows", name, web, *options, "--model", str(setting.ft))
