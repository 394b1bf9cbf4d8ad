"""What does ``tuco score`` cost beside its engine, how far does it scale, does it hold for a million rows?

    python bench/corpus.py [--ratio [PAIR]] [--engines 1 2] [--resume] [--stages]  # all four if none is named
    python bench/corpus.py --long 1000000 [--data DIR] [--minutes 120]

Physics. A row costs its engine FLOPs; all else is work of other processes: parse, tokenise, pack (reader and
tokenisers), unpack and turn norms into columns (the engine's actor), unpack and write (the driver), and Ray's
scheduling, a fixed price for each chunk of up to 2048 rows. Where every process has a core of its own only
starting and stopping shows: the first chunk's way to the engine and the last one's from it. The ratio to a
bare engine then nears 1 as the run gets longer. It stays below where cores are shared: vLLM on a CPU binds
its compute threads to all cores but one, and on two cores everything else, EngineCore's own scheduling
included, has the other one.

Clocks. Bare engine: ``Scorer`` in a fresh process, prompts tokenised before; from the first submission to the
last result. Pipeline: run.json's ``score_seconds`` of a fresh ``tuco score``, from the engine being ready
(less the first chunk's way from its actor to the driver, milliseconds) to the last part on disk and the mark
of success; the first chunk is tokenised by then. ``wall`` is the whole command: imports, survey, Ray, engine.

Method. The sides take turns on the same prompts, the order turned round each time, new prompts each round;
ratios are taken within a round, then their median. Both sides find the same compiled code in vLLM's cache:
a first turn that does not count puts it there and tells how many rows make ``--seconds``. Engine settings,
environment and cores are the same; the cores that engines are bound to are in the record, and a run whose
sides differ there is not comparable and says so.

Two engines on one machine without GPU share its cores. On two cores one engine computes on one, vLLM keeping
the other free; two engines are bound to one core each, which they share with all the rest. So the ratio is no
measure of scaling, it shows what the second core is worth. The clock starts with the first engine that
scores; another may still be starting then, and slow the first one down by that, so such a corpus must take
much longer than a start does (``--seconds 120``). ``rows_by_engine`` in the record shows it.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import provenance
from corpus_long import long_run, plot
from corpus_model import projection, prompts, row_costs
from corpus_runs import LONG, in_own_process, measure_cell, resume_costs, score_command
from corpus_stages import ray_costs, stage_costs, vocabulary, write_lines
from models import SHAPES, SMOKE_SHAPES, write_pair
from rich.console import Console
from rich.table import Table

from tuco_vllm.demo import FT, PT

SHORT = 15
CELLS = (("demo", LONG), ("demo", SHORT), ("gqa", LONG))
PAIRS = ("demo", "gqa")
H200_8B = 30_000.0
"""Tokens/s of an engine: an assumption, of an H200 and a pair of 8B models."""
LAYERS_8B = 32
NAME = "corpus.jsonl"
Record = dict[str, Any]


def main() -> None:
    """Measure what was asked: tables and a last line of JSON on stdout, records in bench/results."""
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is stopped ends its processes
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    origin = provenance.provenance()
    if options.data:
        origin["command"] = origin["command"].replace(str(options.data), "DIR")
    # An engine chooses its own threads here, as it does for users: a turn's ``engine_cores`` says which.
    del os.environ["OMP_NUM_THREADS"], origin["threads"]
    os.environ.update(VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
    console = Console(width=110, highlight=False)
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as directory:
        for measured in modes(options, Path(directory), console):
            record = {"bench": "corpus", **measured, "eager": options.eager, "provenance": origin}
            records.append(record)
            if options.record:
                provenance.append("corpus", record)
    keys = ("mode", "pair", "tokens", "ratios", "floors", "first_to_saturate", "rows", "every_id_once")
    summary = [{key: record[key] for key in keys if key in record} for record in records]
    print(json.dumps({"bench": "corpus", "recorded": options.record, "records": summary}), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0],
        epilog="Without --ratio, --engines, --resume, --stages or --long: all of them but --long, with "
        "engines 1 and 2. Nothing else should run on the machine; a GPU or a cluster is not needed.",
    )
    add = parser.add_argument
    add(
        "--ratio",
        nargs="*",
        choices=PAIRS,
        metavar="PAIR",
        help="pipeline / bare engine, floor 0.90, goal 0.97: two cells of the demo pair, one of the gqa pair",
    )
    add("--engines", type=int, nargs="+", metavar="N", help="the same corpus with these numbers of engines")
    add("--resume", action="store_true", help="what going on costs at 0, 10, 50 and 90 percent done")
    add("--stages", action="store_true", help="each stage by itself, Ray's share, what saturates first")
    add("--long", type=int, metavar="ROWS", help="score so many short prompts, watching memory")
    add("--minutes", type=float, metavar="M", help="with --long: stop after M minutes and project the rest")
    add("--data", type=Path, metavar="DIR", help="words from DIR/text/*.txt; default: of the demo prompts")
    add("--seconds", type=float, default=30.0, help="least length of a turn; default: %(default)s")
    add("--rounds", type=int, default=3, help="turns of each side, 3 at least; default: %(default)s")
    add("--resume-rows", type=int, default=100_000, metavar="ROWS", help="default: %(default)s")
    add(
        "--resume-rounds",
        type=int,
        default=1,
        metavar="N",
        help="resumes at each share; default: %(default)s",
    )
    add("--eager", action="store_true", help="no torch.compile on either side")
    add("--no-record", dest="record", action="store_false", help="append nothing to bench/results")
    add("--quick", action="store_true", help="a smoke run: tiny, one round, eager, nothing recorded")
    options = parser.parse_args()
    if options.ratio == []:
        options.ratio = PAIRS
    if not (options.ratio or options.engines or options.resume or options.stages or options.long):
        options.ratio, options.engines = PAIRS, [1, 2]
        options.resume = options.stages = True
    if options.quick:
        options.record, options.eager, options.rounds, options.seconds = False, True, 1, 1.0
        options.resume_rows = min(options.resume_rows, 3000)
    elif options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    if options.resume_rows < 1500:
        parser.error("--resume-rows: the last tenth must hold a chunk; take 1500 at least")
    return options


def modes(options: argparse.Namespace, scratch: Path, console: Console) -> Iterator[Record]:
    """What each mode that was asked for measured, shown and yielded at once."""
    words = vocabulary(options.data)
    speeds: dict[str, float] = {}
    for place, (name, tokens) in enumerate(CELLS):
        sides = {0, 1} if name in (options.ratio or ()) else set()
        if place == 0:
            sides.update(options.engines or ())
        if sides:
            pair = pair_of(name, options.quick, scratch)
            cell = {"pair": name, **measure_cell(pair, tokens, sorted(sides), words, options, scratch)}
            if name == "demo":
                speeds[str(tokens)] = next(iter(cell["tokens_per_second"].values()))
            console.print(turns_table(cell))
            yield cell
    if options.resume:
        found = resume_costs((str(PT), str(FT)), words, options, scratch)
        console.print_json(data=found)
        yield {"mode": "resume", "pair": "demo", **found}
    if options.stages:
        yield measure_stages(words, speeds, options, scratch, console)
    if options.long:
        yield measure_long(words, options, scratch, console)


def pair_of(name: str, quick: bool, scratch: Path) -> tuple[str, str]:
    """The directories of a pair: the bundled one, or a random one of a benchmark's shape."""
    if name == "demo":
        return str(PT), str(FT)
    if not (scratch / name).exists():
        pair = write_pair((SMOKE_SHAPES if quick else SHAPES)[name], scratch / name, "bfloat16")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(FT / file, pair[1])
    return str(scratch / name / "pt"), str(scratch / name / "ft")


def measure_stages(
    words: dict[str, int],
    speeds: dict[str, float],
    options: argparse.Namespace,
    scratch: Path,
    console: Console,
) -> Record:
    """Stage costs of short and long rows, Ray's costs of a chunk, and what saturates first by both.

    ``speeds``: tokens/s of an engine here, by the tokens of its prompts, as far as they were measured.
    """
    stages = {}
    for tokens, rows in ((SHORT, 20_000), (LONG, 4_000)):
        folder = scratch / f"stages{tokens}"
        folder.mkdir()
        texts = list(prompts(rows // (20 if options.quick else 1), tokens, seed=0, words=words))
        stages[str(tokens)] = in_own_process(stage_costs, texts, FT, LAYERS_8B, folder)
    rays = [
        in_own_process(ray_costs, engines, 40 if options.quick else 400, FT, scratch)
        for engines in ((1, 4) if options.quick else (1, 4, 8))
    ]
    chunk_seconds = max(ray["cpu"]["driver"] for ray in rays)
    models = {}
    for tokens, costs in stages.items():
        known = {"assumed of an H200, 8B pair": H200_8B, "measured here, demo pair": speeds.get(tokens)}
        for name, speed in known.items():
            if speed:
                models[f"{tokens}+ tokens, {name}"] = projection(speed, row_costs(costs), chunk_seconds)
    console.print(stages_table(stages), *rays, *(model_table(*item) for item in models.items()), sep="\n")
    first = {name: [model["first_to_saturate"], model["at_engines"]] for name, model in models.items()}
    return {"mode": "stages", "stages": stages, "ray": rays, "models": models, "first_to_saturate": first}


def measure_long(
    words: dict[str, int], options: argparse.Namespace, scratch: Path, console: Console
) -> Record:
    """The million: through the command line, with the demo pair."""
    inputs, out = scratch / "long" / NAME, scratch / "long" / "out"
    inputs.parent.mkdir()
    write_lines(prompts(options.long, SHORT, seed=0, words=words), inputs)
    command = score_command((str(PT), str(FT)), inputs, out, options.eager)
    found = long_run(command, out, NAME, options.long, options.minutes)
    picture = (provenance.RESULTS if options.record else Path(tempfile.gettempdir())) / "corpus-memory.png"
    plot(found, picture)
    console.print(f"memory over rows: {picture}")
    console.print_json(data={key: value for key, value in found.items() if key != "memory_samples"})
    return {"mode": "long", "pair": "demo", "tokens": SHORT, **found}


def turns_table(cell: Record) -> Table:
    """One cell for people."""
    title = (
        f"{cell['pair']} pair, {cell['rows']:,} prompts of {cell['tokens']}+ tokens, {cell['rounds']} rounds"
    )
    for name, ratio in cell["ratios"].items():
        title += f"\n{name}: {ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f})"
    for item in cell["floors"]:
        title += f"; floor {item['floor']:.2f} {'met' if item['met'] else 'NOT MET'}, goal {item['goal']:.2f}"
    if cell["same_cores"] is False:
        title += "\nNOT COMPARABLE: the sides' engines ran on different cores"
    if not cell["all_engines_scored"]:
        title += "\nNO MEASURE OF SEVERAL ENGINES: one was still starting at the end; take more --seconds"
    layout = Table(title=title, title_justify="left", caption_justify="left")
    if len(cell["turns"].keys() - {"0"}) > 1:
        layout.caption = "engines of one machine share its cores: each has a part, beside everything else"
    layout.add_column("engines")
    words = ("seconds", "wall s", "foreign CPU s", "engines' cores", "rows by engine", "rows/s", "tokens/s")
    for heading in words:
        layout.add_column(heading, justify="right")
    for side, turns in cell["turns"].items():
        clocks = ("seconds", "wall", "foreign_cpu_seconds")
        layout.add_row(
            "bare" if side == "0" else side,
            *(f"{median(turn[clock] for turn in turns):.1f}" for clock in clocks),
            str(turns[-1]["engine_cores"]),
            str(turns[-1]["rows_by_engine"]),
            f"{cell['rows_per_second'][side]:,.1f}",
            f"{cell['tokens_per_second'][side]:,.0f}",
        )
    return layout


def stages_table(stages: Record) -> Table:
    """Rates on one core for people."""
    layout = Table(title="one core, no Ray, no engine; rows/s and MB/s of prompt text", title_justify="left")
    layout.add_column("stage")
    for tokens in stages:
        layout.add_column(f"{tokens}+ tokens: rows/s", justify="right")
        layout.add_column("MB/s", justify="right")
    for stage in next(iter(stages.values()))["rows_per_second"]:
        numbers = [(c["rows_per_second"][stage], c["MB_per_second"][stage]) for c in stages.values()]
        layout.add_row(stage, *(f"{number:,.0f}" for pair in numbers for number in pair))
    return layout


def model_table(name: str, model: Record) -> Table:
    """The projection for people."""
    first, bears = model["first_to_saturate"], model["at_engines"]
    layout = Table(
        title=f"{name}: {model['tokens_per_second_an_engine']:,} tokens/s an engine. First: {first}, "
        f"which bears {bears} engines",
        title_justify="left",
    )
    layout.add_column("load (1 = full)")
    cases = {engines: {**case, **case["load"]} for engines, case in model["cases"].items()}
    for engines in cases:
        layout.add_column(f"{engines} engines", justify="right")
    layout.add_column("bears", justify="right")
    for key in [
        *next(iter(model["cases"].values()))["load"],
        *(k for k in next(iter(cases.values())) if "_" in k),
    ]:
        most = model["engines_that_each_bears"].get(key, "")
        cells = (f"{case[key]:,.4g}" for case in cases.values())
        layout.add_row(key.replace("_", " "), *cells, "any" if most is None else str(most))
    return layout


if __name__ == "__main__":
    main()
