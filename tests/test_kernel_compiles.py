"""Triton's compiler takes the kernels, for GPUs that are not here: what the interpreter can't say.

Compiled are the machine code of NVIDIA's Ampere (8.0), Hopper (9.0) and both Blackwells (10.0,
12.0), with the tiles that a launch there would take. In a process of its own: with
TRITON_INTERPRET=1, which the other tests need, Triton compiles nothing.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed here")

COMPILE = """
import json, re, subprocess, sys, tempfile, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from miniclip_kernels import triton_blocks, triton_loss

TYPES = {"dA": "*{}", "G": "*{}", "a_ids": "*i64", "b_ids": "*i64", "room": "fp32",
         "weight": "fp32", "boost": "fp32"} | dict.fromkeys(
    ("M", "N", "label_offset", "splits", "groups", "stride_g"), "i32")
# Descriptors of features, and the tiles that are loaded of them.
TILES = {"A": ("BLOCK_M", "BLOCK_K"), "B": ("BLOCK_N", "BLOCK_K"),
         "A_slices": ("BLOCK_M", "BLOCK_D"), "B_slices": ("BLOCK_N", "BLOCK_D")}


def compiled(kernel, dtype, options, architecture, constants):
    options = dict(options)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages", "maxnreg")
              if name in options}
    constants = constants | options | {"PRECISION": "ieee"}
    if not constants["HAS_IDS"]:
        constants |= {"a_ids": None, "b_ids": None}
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "*fp32").format(dtype)
                 for name in names}
    for name in TILES.keys() & set(names):
        rows, columns = (options.get(x, options.get("BLOCK")) for x in TILES[name])
        signature[name] = f"tensordesc<{dtype}[{rows},{columns}]>"
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if signature[name].startswith("*")
               or name in ("M", "N", "stride_g")}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()},
                       aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch)


def machine_code(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        lines = subprocess.run([triton.knobs.nvidia.nvdisasm.path, "-c", file.name], check=True,
                               capture_output=True, text=True).stdout.splitlines()
    products = [i for i, line in enumerate(lines) if "GMMA" in line] or [0]
    return {"registers": 1 + max(int(x) for line in lines for x in re.findall(r"\\bR(\\d+)", line)),
            "spills": sum("LDL" in x or "STL" in x for x in lines[products[0]:products[-1]])}


architecture, dtype, D = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tiles = triton_loss.tiles(
    {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype], D,
    divmod(architecture, 10))
hard = {"D": D, "HAS_IDS": D % 64 > 0, "RAGGED": D % 64 > 0, "BOTH": True, "ROWS": True,
        "COLUMNS": True, "SCALE": True}
found = {}
for name, options in tiles.items():
    module = triton_blocks if name == "block" else triton_loss
    kernel = compiled(getattr(module, name + "_kernel"), dtype, options, architecture, hard)
    found[name] = {"shared": kernel.metadata.shared, "cubin": len(kernel.asm["cubin"]),
                   "wgmma": "wgmma.mma_async" in kernel.asm["ptx"],
                   "mma": "mma.sync" in kernel.asm["ptx"],
                   **machine_code(kernel.asm["cubin"])}
    one_way = hard | dict.fromkeys(("BOTH", "ROWS", "SCALE"), False) | {
        "COLUMNS": name == "gradient"}  # direction "rows"; for dT in the gradient
    compiled(getattr(module, name + "_kernel"), dtype, options, architecture, one_way)
print(json.dumps(found))
"""
# dtype, D: aligned, or (200) ragged and with ids. KiB: shared memory of one block on the smallest
# GPU of the architecture that we care for.
SIZES = [("bf16", 512, 80), ("bf16", 512, 90), ("bf16", 512, 100), ("bf16", 512, 120),
         ("fp16", 200, 80), ("fp16", 200, 90), ("fp32", 200, 90)]
KIB = {80: 163, 90: 227, 100: 227, 120: 99}


@pytest.mark.parametrize("dtype, D, architecture", SIZES)
def test_it_compiles(dtype, D, architecture, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), dtype, str(D)], capture_output=True,
        text=True, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)})
    assert run.returncode == 0, run.stderr[-2000:]
    for name, kernel in json.loads(run.stdout).items():
        assert kernel["cubin"] > 0 and kernel["shared"] <= (KIB[architecture] - 1) * 1024, name
        if dtype != "fp32" and architecture == 90:
            assert kernel["wgmma"], f"{name} does without Hopper's matrix instruction"
            assert kernel["spills"] == 0, f"{name} fetches registers from memory between products"
            if name in ("sums", "block"):  # two programs on a multiprocessor of 65,536 registers
                assert kernel["registers"] <= 128 and 2 * kernel["shared"] <= 226 * 1024, name
        if dtype != "fp32" and architecture in (80, 120):
            assert kernel["mma"], f"{name} does without the tensor cores"
