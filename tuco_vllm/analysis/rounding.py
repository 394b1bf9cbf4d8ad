"""Whether scores are so small that the engine's rounding is part of them."""

ROUNDING = {
    ("bfloat16", "bfloat16"): 2e-3,
    ("bfloat16", "float32"): 3e-4,
    ("float16", "float16"): 2.5e-4,
    ("float16", "float32"): 4e-5,
}
"""(dtype, row dtype) -> by how much a small TuCo is measured too high, about. Measured for bfloat16 on pairs
with a TuCo of 0.001 to 0.006 (bench/results/precision.jsonl); float16 has three bits more, an eighth."""

NOTABLE = 0.05
"""Share of TuCo from which an error is worth a warning: effects of a few hundredths of it are reported."""


def rounding_warning(dtype: str, row_dtype: str, median: float) -> str | None:
    """What to say of a run whose scores have this median, or None where rounding is none of its worries."""
    rounding = ROUNDING.get((dtype, row_dtype), 0.0)
    if rounding <= NOTABLE * median:
        return None
    mend = "--dtype float32"
    if row_dtype != "float32":  # not asked for, or a family that has no such rows
        mend = "--row-dtype auto, where a family has float32 rows, or --dtype float32"
    return (
        f"Half of the scores are below {median:.4f}, and rounding in {dtype} alone adds about {rounding:.0e} "
        f"to such scores: tuco doctor measures it for this pair; {mend} makes it smaller."
    )
