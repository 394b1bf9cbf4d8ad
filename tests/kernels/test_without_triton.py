"""Triton is optional: without it the twins serve, and a launcher says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # what `import triton` then finds: nothing
import torch
from tuco_kernels import accumulate_contribution, dual_rms_norm, steer_residual
from tuco_kernels.accumulate_contribution import accumulate_contribution_triton
from tuco_kernels.dual_rms_norm import dual_rms_norm_triton
from tuco_kernels.steer_residual import steer_residual_triton

x, g, alpha, rows = torch.ones(2, 8), torch.ones(8), torch.zeros(2), torch.arange(2)
norms = torch.zeros(2, 1, 7)
accumulate_contribution(x, x, x, x, x.clone(), x.clone(), norms, 0)
steer_residual(x.clone(), alpha, rows, x, x, x)
print(norms[0, 0, :4].tolist(), dual_rms_norm(x, x, g, g, 0.0, 0.0)[0][0, 0].item())
for launch, arguments in (
    (dual_rms_norm_triton, (x, x, None, [g], [0.0], False, False, False)),
    (accumulate_contribution_triton, (x, x, x, x, x, x, norms, 0)),
    (steer_residual_triton, (x, alpha, rows, x, x, x)),
):
    try:
        launch(*arguments)
    except RuntimeError as error:
        print(error)
"""


def test_the_twins_serve():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "kernels")}
    command = [sys.executable, "-c", WITHOUT_TRITON]
    session = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert session.returncode == 0, session.stderr
    results, *errors = session.stdout.splitlines()
    assert results == "[16.0, 0.0, 24.0, 8.0] 1.0"
    assert len(errors) == 3
    assert all("needs Triton" in error for error in errors)
