"""Triton's compiler takes the kernels, for GPUs that are not here. The interpreter can't test that.

Each test compiles machine code for NVIDIA's Ampere (8.0), Hopper (9.0) or one of both Blackwells
(10.0, 12.0), with the tiles that a launch there would take. It does so in a process of its own:
with TRITON_INTERPRET=1, which the other tests need, Triton compiles nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed here")

MACHINE_CODE = Path(__file__).parents[2] / "kernels/benchmarks/machine_code.py"
# dtype, D: aligned, or (200) ragged and with ids. KiB: shared memory of one block on the smallest
# GPU of the architecture that we care for.
SIZES = [("bf16", 512, 80), ("bf16", 512, 90), ("bf16", 512, 100), ("bf16", 512, 120),
         ("fp16", 200, 80), ("fp16", 200, 90), ("bf16", 1000, 90), ("fp32", 200, 90)]
KIB = {80: 163, 90: 227, 100: 227, 120: 99}


@pytest.mark.slow
@pytest.mark.parametrize("dtype, D, architecture", SIZES)
def test_it_compiles(dtype, D, architecture, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(MACHINE_CODE), str(architecture), dtype, str(D)], capture_output=True,
        text=True, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)})
    assert run.returncode == 0, run.stderr[-2000:]
    for name, kernel in json.loads(run.stdout).items():
        assert kernel["cubin"] > 0 and kernel["shared"] <= (KIB[architecture] - 1) * 1024, name
        assert kernel["async"], f"{name} waits for each tile of the features to arrive"
        if dtype != "fp32" and architecture == 90:
            assert kernel["wgmma"], f"{name} does without Hopper's matrix instruction"
            # With ids, or with rows alone and ragged tiles, gradient has some spills. The sigmoid
            # loss in registers, which "auto" takes for few pairs only, always has, and on Hopper.
            few = {"sigmoid": 500, "hopper, sigmoid": 150}
            if D % 64:
                few |= {"gradient": 150, "hopper, block": 10 if D > 512 else 0}
            assert kernel["spills"] <= few.get(name, 0), f"{name} fetches registers from memory"
            if "hopper" in name:
                assert kernel["registers"] <= 232, name  # what a consumer's thread gets
            # Two on a multiprocessor's 65,536 registers:
            if name in ("sums", "block", "sigmoid, block") and D <= 512:
                assert kernel["registers"] <= 128 and 2 * kernel["shared"] <= 226 * 1024, name
        if dtype != "fp32" and architecture in (80, 120):
            assert kernel["mma"], f"{name} does without the tensor cores"
