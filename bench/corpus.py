"""What does ``tuco score`` cost beside its engine, how far does it scale, does it hold for a million rows?

    python bench/corpus.py [--ratio [CELL]] [--engines 1 2] [--resume] [--stages]  # all four if none is named
    python bench/corpus.py --long 1000000 [--data DIR] [--minutes 120]
    python bench/corpus.py --billion [UNITS] [--s3-units UNITS]

Physics. A row costs its engine FLOPs; all else is work of the worker's process around it: parse, tokenise,
turn norms into columns, write the part. It has a core for that, and two units at a time, so only starting
and stopping shows: the first chunk's way to the engine and the last one's from it. The ratio to a bare
engine then nears 1 as the run gets longer. It stays below where cores are shared: vLLM on a CPU binds its
compute threads to all cores but one, and on two cores everything else, EngineCore's own scheduling included,
has the other one.

Clocks. Bare engine: ``Scorer`` in a fresh process, prompts tokenised before; from the first submission to
the last result. Pipeline: run.json's ``score_seconds`` of a fresh ``tuco score``, from the engine being
ready, before the first row is read, to the last part on disk. ``wall`` is the whole
command: imports, survey, Ray, engine.

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
from typing import Any

import provenance
from corpus_billion import billion
from corpus_driver import TOKENS_PER_SECOND, driver_costs
from corpus_long import long_run, plot
from corpus_model import prompts
from corpus_runs import LONG, in_own_process, measure_cell, resume_costs, score_command
from corpus_stages import stage_costs, vocabulary, write_lines
from corpus_tables import driver_table, stages_table, turns_table
from models import SHAPES, SMOKE_SHAPES, write_pair
from rich.console import Console

from tuco_vllm.demo import FT, PT

SHORT = 15
CELLS = {"demo": ("demo", LONG), "demo-short": ("demo", SHORT), "gqa": ("gqa", LONG)}
"""A pair and its prompts' tokens; the first is also what numbers of engines are compared on."""
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
    keys = ("mode", "pair", "tokens", "ratios", "floors", "ceilings", "rows", "every_id_once")
    summary = [{key: record[key] for key in keys if key in record} for record in records]
    print(json.dumps({"bench": "corpus", "recorded": options.record, "records": summary}), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0],
        epilog="Without --ratio, --engines, --resume, --stages, --long or --billion: the first four, with "
        "engines 1 and 2. Nothing else should run on the machine; a GPU or a cluster is not needed.",
    )
    add = parser.add_argument
    add(
        "--ratio",
        nargs="*",
        choices=CELLS,
        metavar="CELL",
        help=f"pipeline / bare engine; cells: {', '.join(CELLS)}; all if none is named",
    )
    add("--engines", type=int, nargs="+", metavar="N", help="the same corpus with these numbers of engines")
    add("--resume", action="store_true", help="what going on costs at 0, 10, 50 and 90 percent done")
    add("--stages", action="store_true", help="what a row costs a worker, each stage of it, and the driver")
    few = "the driver beside these numbers of engines, with --stages; default: 1 8 64"
    add("--driver-engines", type=int, nargs="+", metavar="N", help=few)
    add("--long", type=int, metavar="ROWS", help="score so many short prompts, watching memory")
    add("--minutes", type=float, metavar="M", help="with --long: stop after M minutes and project the rest")
    units = "a made-up job of so many parts: plan, resume at 90 percent, status; default: %(const)s"
    add("--billion", type=int, nargs="?", const=100_000, metavar="UNITS", help=units)
    few = "with --billion: the same on an S3 server, moto's, with so many; default: %(default)s"
    add("--s3-units", type=int, default=5000, metavar="UNITS", help=few)
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
        options.ratio = list(CELLS)
    named = (options.ratio, options.engines, options.resume, options.stages, options.long, options.billion)
    if not any(named):
        options.ratio, options.engines = list(CELLS), [1, 2]
        options.resume = options.stages = True
    if options.quick:
        options.record, options.eager, options.rounds, options.seconds = False, True, 1, 1.0
        options.resume_rows = min(options.resume_rows, 3000)
        options.driver_engines = options.driver_engines or [1, 4]
        options.billion = options.billion and min(options.billion, 2000)
        options.s3_units = min(options.s3_units, 300)
    elif options.rounds < 3:
        parser.error("a ratio needs 3 rounds at least")
    if options.resume_rows < 1500:
        parser.error("--resume-rows: the last tenth must hold a chunk; take 1500 at least")
    options.driver_engines = options.driver_engines or [1, 8, 64]
    return options


def modes(options: argparse.Namespace, scratch: Path, console: Console) -> Iterator[Record]:
    """What each mode that was asked for measured, shown and yielded at once."""
    words = vocabulary(options.data)
    for place, (cell, (name, tokens)) in enumerate(CELLS.items()):
        sides = {0, 1} if cell in (options.ratio or ()) else set()
        if place == 0:
            sides.update(options.engines or ())
        if sides:
            pair = pair_of(name, options.quick, scratch)
            found = {"pair": name, **measure_cell(pair, tokens, sorted(sides), words, options, scratch)}
            console.print(turns_table(found))
            yield found
    if options.resume:
        found = resume_costs((str(PT), str(FT)), words, options, scratch)
        console.print_json(data=found)
        yield {"mode": "resume", "pair": "demo", **found}
    if options.stages:
        yield measure_stages(words, options, scratch, console)
        yield from measure_driver(options, scratch, console)
    if options.billion:
        yield from measure_billion(options, scratch, console)
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
    words: dict[str, int], options: argparse.Namespace, scratch: Path, console: Console
) -> Record:
    """A worker's costs of short and of long rows."""
    stages = {}
    for tokens, rows in ((SHORT, 20_000), (LONG, 4_000)):
        folder = scratch / f"stages{tokens}"
        folder.mkdir()
        texts = list(prompts(rows // (20 if options.quick else 1), tokens, seed=0, words=words))
        costs = in_own_process(stage_costs, texts, LAYERS_8B, folder)
        rows_per_second = TOKENS_PER_SECOND / costs["tokens"]
        costs["worker_cores"] = round(rows_per_second * costs["microseconds_a_row"]["worker"] / 1e6, 4)
        stages[str(tokens)] = costs
    console.print(stages_table(stages))
    return {"mode": "stages", "stages": stages, "engine_tokens_per_second_assumed": TOKENS_PER_SECOND}


def measure_driver(options: argparse.Namespace, scratch: Path, console: Console) -> Iterator[Record]:
    """The driver's costs beside some numbers of engines that do nothing."""
    driver = []
    for engines in options.driver_engines:
        driver.append(in_own_process(driver_costs, engines, scratch, options.quick))
        yield {"mode": "driver", **driver[-1]}
    console.print(driver_table(driver))


def measure_billion(options: argparse.Namespace, scratch: Path, console: Console) -> Iterator[Record]:
    """A job too large to run, in a directory and on an S3 server."""
    for at, units in (("directory", options.billion), ("moto's S3 server", options.s3_units)):
        if units:
            found = billion(units, scratch / "billion" if at == "directory" else None)
            console.print_json(data={"at": at, **found})
            yield {"mode": "billion", "at": at, **found}


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


if __name__ == "__main__":
    main()
