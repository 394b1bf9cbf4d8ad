"""The paper's experiments, §5.1 to §5.5, on a pair that nobody here pre-trained, each beside its controls.

    python bench/paper/run.py --data DIR --work DIR --pair DIR [--only 5.2,5.3-attacks] [--scale 0.05]
    python bench/paper/run.py --data DIR --work DIR --toy
    python bench/paper/run.py --table

DIR of ``--pair`` is what ``bench/real_pair/make.py`` made, of ``--data`` the developers' data. Everything is
run as users run it, by ``tuco build``, ``score`` and ``sweep``; what is in ``--work`` is not run again. Each
part appends a record to ``bench/results/paper.jsonl``, from which ``README.md`` beside this file and the
figures are made. A part whose data are not there is left out, and says so.

With a ``--scale`` other than 1 it is a try: records, table and figures go into ``--work``.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import answers
import attacks
import languages
import many_shot
import provenance
import refusal_shots
import successes
import web_text
from figures import draw
from findings import Told
from setting import Absent, Setting
from table import latest, write

from tuco_vllm import demo

PARTS = {
    "5.1": answers,
    "5.2": web_text,
    "5.3-attacks": attacks,
    "5.3-many-shot": many_shot,
    "5.3-languages": languages,
    "5.4": successes,
    "5.5": refusal_shots,
}
TOY_PARTS = [name for name in PARTS if name != "5.1"]
"""The bundled pair knows no MMLU, whose examples are too long for it besides."""
NAMES = {"smollm2": "SmolLM2-135M-Instruct, taught to refuse", "toy": "the bundled toy pair"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--pair", type=Path, help="has PT and FT")
    parser.add_argument("--toy", action="store_true", help="the bundled pair")
    parser.add_argument(
        "--only", default="", metavar="PART,...", help=f"of {', '.join(PARTS)}; 5.3 is all three"
    )
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument(
        "--table", action="store_true", help="only make table and figures anew, of the records"
    )
    arguments = parser.parse_args()
    results, page = provenance.RESULTS, Path(__file__).with_name("README.md")
    if not arguments.table:
        setting = chosen(parser, arguments)
        if setting.scale != 1:
            results, page = setting.work, setting.work / "README.md"
        for name in wanted(parser, arguments):
            record(name, setting, results)
        example(setting, results)
    found = latest(results / "paper.jsonl")
    draw(found, results)
    write(found, page, NAMES, results)
    print(page)


def chosen(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Setting:
    """The pair, and a folder of its own for each scale."""
    if not arguments.data or not arguments.work or bool(arguments.pair) == arguments.toy:
        parser.error("name --data, --work, and either --pair DIR or --toy")
    name = "toy" if arguments.toy else "smollm2"
    pt, ft = (demo.PT, demo.FT) if arguments.toy else (arguments.pair / "PT", arguments.pair / "FT")
    if not (ft / "config.json").exists():
        parser.error(f"{ft} is no model: make the pair by bench/real_pair/make.py")
    work = arguments.work.resolve() / f"{name}-{arguments.scale:g}"
    work.mkdir(parents=True, exist_ok=True)
    return Setting(name, pt.resolve(), ft.resolve(), arguments.data.resolve(), work, arguments.scale)


def wanted(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """The parts that ``--only`` names."""
    known = TOY_PARTS if arguments.toy else list(PARTS)
    names = [name for name in arguments.only.split(",") if name]
    found = [part for part in known if not names or any(part == n or part.startswith(f"{n}-") for n in names)]
    if not found:
        parser.error(f"--only {arguments.only}: this pair's parts are {', '.join(known)}")
    return found


def record(name: str, setting: Setting, results: Path) -> None:
    """Run a part and append what it says."""
    origin, start = provenance.provenance(), time.monotonic()
    try:
        told: Told = PARTS[name].findings(setting)
    except Absent as absent:
        print(f"{name}: left out: {absent}", file=sys.stderr)
        return
    # Where pair and data lie is nobody's business.
    which = "--toy" if setting.pair == "toy" else "--pair DIR"
    origin["command"] = f"python bench/paper/run.py --data DIR --work DIR {which} --only {name}"
    own = {"bench": "paper", "part": name, "pair": setting.pair, "scale": setting.scale}
    own |= {"trained": trained(setting), **told.as_record()}
    own |= {"seconds": round(time.monotonic() - start, 1), "provenance": origin}
    provenance.append("paper", own, results)
    for finding in own["findings"]:
        print(f"{name}: {finding['claim']}: {finding['ours']} ({finding['verdict']})")


def example(setting: Setting, results: Path) -> None:
    """What ``tuco report`` makes of §5.3's attacks on the real pair, without their texts."""
    scores = setting.work / "attacks-scores"
    if setting.pair == "toy" or not (scores / "_SUCCESS").exists():
        return
    page = setting.work / "example-report.html"
    setting.tuco("report", str(scores), "--no-text", "--out", str(page))
    told = page.read_text(encoding="utf-8").replace(str(setting.pt.parent), "PAIR")
    (results / page.name).write_text(told.replace(str(setting.work), "WORK"), encoding="utf-8")


def trained(setting: Setting) -> dict | None:
    """How FT was made, as ``make.py`` wrote it down."""
    said = setting.ft / "trained.json"
    return json.loads(said.read_text()) if said.exists() else None


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    main()
