"""§5.2: text as in pre-training has a lower TuCo than chats. Is that text, template, or length?

The paper's contrast is web text in raw windows of 97 tokens against dialogues in the template. Beside it each
of content and template is changed alone, at equal length: HH's questions and web text cut to as many tokens,
both in the template and both raw. MT-bench's questions stand for chats that nobody would refuse.
"""

from asked import first_turns, mt_bench, web_windows
from findings import Figure, Finding, Told, higher, summaries
from setting import Setting, chat, regrouped

from tuco_vllm.analysis.statistics import paired_difference

WINDOW, POOL_TOKENS = 97, 256
HH, HH_RAW, MT = "HH in template", "HH raw", "MT-bench in template"
WEB, WEB_CHAT, WEB_RAW = "web raw, 97 tokens", "web in template, HH's length", "web raw, HH's length"


def findings(setting: Setting) -> Told:
    """Score and compare."""
    n = setting.rows(200)
    texts = first_turns(setting, n)
    asked = setting.file(
        "web_text-asked.jsonl", lambda: [{"id": name, "prompt": text} for name, text in texts]
    )
    pool = setting.work / f"web-{POOL_TOKENS}.jsonl"
    web_windows(setting, POOL_TOKENS, setting.rows(600, least=40))
    counted = ("--id-column", "id", "--model", str(setting.ft), "--pool", str(pool))
    as_chats = setting.built("length-control", "web_text-chats.jsonl", asked, *counted)
    raw = setting.built("length-control", "web_text-raw.jsonl", asked, *counted, "--raw")
    mt = mt_bench(setting, setting.rows(80))
    rows = [
        *regrouped(({"id": name, "behaviour": name, "messages": chat(text)} for name, text in texts), HH),
        *regrouped(({"id": name, "behaviour": name, "prompt": text} for name, text in texts), HH_RAW),
        *regrouped(({"id": f"{place}", "messages": chat(text)} for place, text in enumerate(mt)), MT),
        *regrouped(web_windows(setting, WINDOW, n), WEB),
        *regrouped(as_chats, WEB_CHAT),
        *regrouped(raw, WEB_RAW),
    ]
    scores = setting.scored("web_text", rows, "--no-layers")
    template = paired_difference(*scores.pairs(HH, HH_RAW))
    main = Finding(
        "Web text has a lower TuCo than chats",
        "AUC 0.63 to 1.0",
        higher(scores, HH, WEB),
        controls=[
            higher(scores, MT, WEB),
            higher(scores, HH, HH_RAW, "the template alone: AUC: HH in it over raw"),
            Figure("the same, difference of each text's TuCo", template, 0.0),
            higher(scores, WEB_CHAT, WEB_RAW, "the template alone: AUC: web text in it over raw"),
        ],
    )
    alone = Finding(
        "… and so it is by what is said alone: both in the template, equally long",
        "–",
        higher(scores, HH, WEB_CHAT),
        controls=[higher(scores, HH_RAW, WEB_RAW, "both raw, equally long: AUC: HH over web")],
    )
    return Told([main, alone], summaries(scores), errors=scores.errors)
