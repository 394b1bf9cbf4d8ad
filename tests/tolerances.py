"""Every numeric tolerance of the test suite, each with its reason. Nowhere else.

``norms`` are errors of a per-layer L1 norm relative to |PTC_l| + |FTC_l| of that layer (relative to FTC alone
the number would blow up as PT nears FT, although nothing is wrong), of an L2 norm likewise, and of a cosine
relative to what such an error of F moves it (``truth.norm_errors``).
"""

TUCO_FLOAT32 = 1e-6
"""|dTuCo| of the float32 engine against the float64 oracle. A float32 sum of H products is off by about
sqrt(H) * 6e-8 relative; L1 norms average such errors out. Measured 4e-8 to 1.2e-7; a wrong row, window or
rope moves TuCo by 1e-3 or more."""

NORMS_FLOAT32 = 1e-5
"""Per-layer norms, same comparison. Measured 3e-7 to 7e-7; ten times that for other BLAS libraries."""

OUTPUT_CO_FLOAT32 = 1e-6
"""|dOutputCo| of the float32 engine against the oracle: two streams' L1 norms, as TUCO_FLOAT32. Measured
4e-8; steering to alpha = 0, which rounds f_FT in and out of the stream, is no nearer than 1e-7."""

LOG_PROB_FLOAT32 = 1e-4
"""A token's log-probability by the float32 engine against Hugging Face's in float64. Measured 7e-6, with
logits up to 10 and heads of a few hundred tokens."""

NOISE_FLOOR = {"float32": 1e-6, "bfloat16": 2e-3}
"""TuCo of a model paired with itself. Measured exactly 0 on a CPU: PT's norms round where FT's do, and matrix
products on few rows and on many give the same bits. Libraries that block by row count need some room; the
bound is below the 5e-3 that normalising a rounded sum costs in bfloat16."""

SIXTEEN_BIT_FACTOR = 2.0
"""The engine's largest error in bfloat16 or float16 against Hugging Face's own in it on the same prompts: the
two round at the same places, in another order. A factor, so that no absolute figure has to be invented."""

ROUTED_ROUNDINGS = 12
"""Of a mixture of experts Hugging Face's own error is the largest of so many roundings. Where two experts are
nearly level, a unit in the last place chooses the other one: errors of 4e-3 in most prompts, and of 4e-2 to
1e-1 in some, which of them depends on the order of sums. One run in two has no prompt of the kind of which
another has two."""

WIDE_ROWS = 0.65
"""Mean |dTuCo| of a light pair in bfloat16, rows in float32 against rows in bfloat16. Measured 0.47: with the
tiny pairs' sharp attention, rounding of queries, keys, values and attention's output alone is 0.43."""

ORACLE_FLOAT64 = 1e-9
"""Two ways to the same float64 number (batched, alone; sums against the stream), relative."""

FINAL_HIDDEN = {"float32": 1e-5, "bfloat16": 2e-2}
"""FT's final hidden rows against stock vLLM's, relative to the row's norm: the last layer runs on R rows
instead of T, so its matrix products are blocked differently; all before it must be equal bit for bit."""

TIED_LOGPROBS = {"float32": 1e-4, "bfloat16": 0.1}
"""Two tokens so near to each other, by stock vLLM's own logprobs, that the order in which a sum is rounded
decides between them. Logits of the tiny pairs go up to about 10, where bfloat16 has steps of 2**-5 to 2**-4;
in float32 FINAL_HIDDEN times that."""

KERNEL_NORM = {"float32": 2e-6, "float16": 1.05 * 2**-10, "bfloat16": 1.05 * 2**-7}
"""A norm kernel's outputs against float64, relative: two roundings of half a unit in the last place (to the
weight's dtype, to x's) and, all of it in float32, a sum, a tree of additions, rsqrt and a product."""

FLOAT16_SUBNORMAL = 2e-7
"""Absolute: below 6e-5 float16 is a grid of 6e-8, so two roundings and a gain of up to 4 come to 1.5e-7."""

ROUNDING_FLIPS = 1e-3
"""Share of bfloat16 outputs that may differ between a kernel and its twin: one float32 unit in rstd, from
another order of addition, moves about 3e-5 of them. Rounding at another place moves more than a tenth."""

KERNEL_L1 = 2e-6
"""A norm by a kernel against float64, relative to |PTC| + |FTC|, and a cosine: float32 additions of
H <= 2**14 terms in a tree, 14 * 6e-8."""

KERNEL_STEER = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
"""A steered element against float64, relative: one rounding, half a unit in the last place."""

KERNEL_STEER_ABSOLUTE = 5e-6
"""The same, of numbers up to 5 and |1 - alpha| up to 1.5: five float32 steps at up to 30 are off by 2e-6 each
at the very most, and half that together in practice."""

KERNEL_ROW_LINEAR = 1e-6
"""A float32 product of up to 301 terms against float64, relative to the sum of their sizes: each of at most
so many additions is off by 6e-8 of a partial sum, and they average; products of 16-bit weights add 2**-24."""

README_DECIMALS = 0.02
"""Decimals in what README's blocks print, on whatever machine they run. The demo pair is bfloat16, and each
kind of CPU rounds its products in its own way (AMX, AVX-512, neither). A wrong template or row moves a
TuCo of that pair by 0.05 or more."""
