"""``tuco demo``: the bundled prompts through the bundled pair, by the same road as any ``tuco score``."""

from pathlib import Path
from shlex import quote

from tuco_vllm.analysis.figures import save_groups
from tuco_vllm.analysis.groups import print_groups, read_groups
from tuco_vllm.analysis.tables import print_summary
from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.actor import encoder_maker, engine_starter
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.driver import Workers
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus
from tuco_vllm.demo import FT, PROMPTS, PT
from tuco_vllm.store import store_at

BASELINE = "plain text"


def run_demo(out: Path) -> int:
    """Score ``prompts.jsonl`` into ``out``, anew each time: Parquet, a table by group, ``tuco-by-group.png``.

    Eager, because compiling takes longer than the demo itself. Returns 0; raises as ``score_corpus`` does.
    """
    job = ScoreJob(
        inputs=(str(PROMPTS),),
        out=str(out),
        columns=Columns(id="id"),
        overwrite=True,
        command=("tuco", "demo"),
    )
    pair = resolve_pair(PT, FT)
    start_engine = engine_starter(pair, Cluster(), {"enforce_eager": True})
    score_corpus(job, pair, lambda _: Workers(Cluster(), start_engine, encoder_maker(job, pair)))
    print_summary(store_at(str(out)))
    groups = read_groups(out, "group")
    print_groups(groups, BASELINE)
    picture = out / "tuco-by-group.png"
    save_groups(groups, picture, "How much of each prompt's last hidden state comes from fine-tuning")
    print(f"Parquet: {out}/part-*.parquet    Plot: {picture}")
    print(f"All that these scores show, on one page: tuco report {quote(str(out))} --against '{BASELINE}'")
    return 0
