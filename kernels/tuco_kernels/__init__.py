"""Three fused kernels of the two-model forward pass, in Triton, each beside its torch twin, and a product.

They know nothing of vLLM: torch and Triton only, and Triton may be absent. See ``kernels/README.md``.
"""

from tuco_kernels.accumulate_contribution import accumulate_contribution
from tuco_kernels.dual_rms_norm import add_rms_norm, dual_rms_norm, rows_rms_norm
from tuco_kernels.row_linear import row_linear
from tuco_kernels.steer_residual import steer_residual

__all__ = [
    "dual_rms_norm",
    "add_rms_norm",
    "rows_rms_norm",
    "accumulate_contribution",
    "row_linear",
    "steer_residual",
]
