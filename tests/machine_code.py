"""What Triton's compiler makes of the kernels, for an NVIDIA GPU that need not be here.

    python tests/machine_code.py 90 bf16 512                         Hopper, bfloat16, D = 512
    python tests/machine_code.py 90 bf16 512 BLOCK_N=256 maxnreg=    other launch options

Prints JSON, a line for each kernel, as `triton_loss.tiles` launches it: bytes of shared memory and
of machine code, whether there are Hopper's (wgmma) or older GPUs' matrix instructions (mma) and
copies that nobody waits for (async), registers of a thread, and spills: registers put into memory
or fetched from there between the first matrix product and the last (counted for Hopper only).
Where D is no multiple of 64 the kernels have ids and torn tiles.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

os.environ.pop("TRITON_INTERPRET", None)  # with it Triton compiles nothing

import torch
import triton
from miniclip_kernels import triton_blocks, triton_loss
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TYPES = {"dA": "*{}", "a_ids": "*i64", "b_ids": "*i64", "room": "fp32",
         "weight": "fp32"} | dict.fromkeys(
    ("M", "N", "label_offset", "splits", "groups"), "i32")
# Descriptors, and the tiles that are loaded or (G) stored.
TILES = {"A": ("BLOCK_M", "BLOCK_K"), "B": ("BLOCK_N", "BLOCK_K"), "G": ("BLOCK_M", "BLOCK_N"),
         "A_slices": ("BLOCK_M", "BLOCK_D"), "B_slices": ("BLOCK_N", "BLOCK_D")}


def compiled(kernel, dtype, options, architecture, constants):
    """A kernel with its launch options and constants, for features of this dtype."""
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
        signature[name] = (f"tensordesc<{dtype}[{rows},{columns}]>" if architecture >= 90 else
                           ("*" + dtype, "i32"))  # the base and a stride
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if signature[name][0] == "*" or name in ("M", "N")}
    aligned |= {(i, 0): [["tt.divisibility", 16]] for i, name in enumerate(names)
                if isinstance(signature[name], tuple)}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()},
                       aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch)


def figures(kernel) -> dict:
    """What a compiled kernel needs and has."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        lines = subprocess.run([triton.knobs.nvidia.nvdisasm.path, "-c", file.name], check=True,
                               capture_output=True, text=True).stdout.splitlines()
    products = [i for i, line in enumerate(lines) if "GMMA" in line] or [0]
    return {"shared": kernel.metadata.shared, "cubin": len(kernel.asm["cubin"]),
            "wgmma": "wgmma.mma_async" in kernel.asm["ptx"],
            "mma": "mma.sync" in kernel.asm["ptx"], "async": "cp.async" in kernel.asm["ptx"],
            "registers": 1 + max(int(x) for line in lines for x in re.findall(r"\bR(\d+)", line)),
            "spills": sum("LDL" in x or "STL" in x for x in lines[products[0]:products[-1]])}


def main(architecture, dtype, D, *changes):
    """Compile each kernel for the most that it can be asked for, and for one direction alone."""
    architecture, D = int(architecture), int(D)
    changes = {name: int(x) if x else None for name, _, x in (c.partition("=") for c in changes)}
    hard = {"D": D, "HAS_IDS": D % 64 > 0, "RAGGED": D % 64 > 0, "BOTH": True, "ROWS": True,
            "COLUMNS": True, "SCALE": True, "BOOST": triton_loss.boost(DTYPES[dtype])}
    found = {}
    for name, options in triton_loss.tiles(DTYPES[dtype], D, divmod(architecture, 10)).items():
        options |= {key: x for key, x in changes.items() if key in (*options, "maxnreg")}
        options = {key: x for key, x in options.items() if x is not None}
        kernel = getattr(triton_blocks if name == "block" else triton_loss, name + "_kernel")
        found[name] = figures(compiled(kernel, dtype, options, architecture, hard))
        one_way = hard | dict.fromkeys(("BOTH", "ROWS", "SCALE"), False) | {
            "COLUMNS": name == "gradient"}  # direction "rows"; for dT in the gradient
        compiled(kernel, dtype, options, architecture, one_way)
    print("{" + ",\n ".join(f'"{name}": {json.dumps(x)}' for name, x in found.items()) + "}")


if __name__ == "__main__":
    main(*sys.argv[1:])
