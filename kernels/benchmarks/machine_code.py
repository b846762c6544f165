"""What Triton's compiler makes of the kernels, for an NVIDIA GPU that need not be here.

    python kernels/benchmarks/machine_code.py 90 bf16 512    Hopper, bfloat16, D = 512
    … 90 bf16 512 BLOCK_N=256 maxnreg=                       with other launch options

The loss and its gradients are called in the usual way. The driver compiles every launch for the GPU
but does not run it. So Triton specialises the arguments as usual: a length of 1 is compiled as a
constant, a missing tensor as none.

Prints JSON, a line for each kernel: bytes of shared memory and of machine code, whether there are
Hopper's (wgmma) or older GPUs' matrix instructions (mma) and asynchronous copies (async), registers
of a thread, and spills: registers stored to memory or loaded from it between the first matrix
product and the last (counted for Hopper only). Each figure is the worst of a kernel's variants
(ids, ragged tiles, one direction).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from types import SimpleNamespace

os.environ.pop("TRITON_INTERPRET", None)  # with it Triton compiles nothing

import torch
import triton
from miniclip_kernels import (
    backends,
    triton_blocks,
    triton_hopper,
    triton_hopper_sigmoid,
    triton_loss,
    triton_sigmoid,
    triton_tiles,
)
from miniclip_kernels.backends import EVERY_GRADIENT, Labels
from triton.backends.compiler import GPUTarget

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# M, N, offset, both directions, captions.
WHOLE = [(1024, 1024, 0, True, False)]
TORN = [(1000, 1000, 0, True, True), (1000, 1010, 5, False, True)]
CONSTANT = [(1, 1, 0, True, False), (1, 9, 8, False, False), (70, 71, 1, False, False)]


def sizes(architecture, dtype, D):
    """Whole tiles, or ragged ones; where "hopper" runs, also lengths of 1, which are constants."""
    if D % 64 == 0:
        return WHOLE
    narrow = architecture // 10 == 9 and dtype.itemsize == 2 and D <= 512
    return TORN + CONSTANT if narrow else TORN


class Absent:
    """Triton's driver for a GPU that is not here: it compiles every launch and runs none."""

    def __init__(self, architecture):
        self.target = GPUTarget("cuda", architecture, 32)
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (0, 0, 0, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 2**20})

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target

    def launcher_cls(self, source, metadata):
        assert metadata.global_scratch_size == 0, "a launch would need memory that is not allocated"
        return lambda *_: None


def pretend(architecture):
    """From now on, this process acts as if it had a GPU of this architecture."""
    triton.runtime.driver.set_active(Absent(architecture))
    triton_tiles.architecture = lambda device: divmod(architecture, 10)
    triton_hopper.programs = lambda device: 132
    backends.check = lambda backend, features: None


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


def worst(variants) -> dict:
    """The worst figures of several kernels: the largest need, and only what all of them have."""
    return {key: all(x[key] for x in variants) if isinstance(value, bool)
            else max(x[key] for x in variants) for key, value in variants[0].items()}


def changed(usual, changes):
    """`triton_tiles.launch_options` with some values changed; None removes an option."""
    def launch_options(*arguments):
        options = dict(usual(*arguments))
        for name, value in changes.items():
            if name in options or name == "maxnreg":
                options[name] = value
        return {name: value for name, value in options.items() if value is not None}
    return launch_options


def compiled(architecture, dtype, D, changes, sizes):
    """{kernel: [every variant that these sizes launch]}."""
    pretend(architecture)
    triton_tiles.launch_options = changed(triton_tiles.launch_options, changes)
    for I, T, scale, labels in inputs(dtype, D, sizes):  # noqa: E741
        _, r, c = triton_loss.forward(I, T, scale, labels)
        for module in (triton_loss, triton_blocks):
            module.backward(scale, I, T, scale, r, c, labels)
    found = {"sums": triton_loss.sums_kernel, "finish": triton_loss.finish_kernel,
             "block": triton_blocks.block_kernel, "gradient": triton_loss.gradient_kernel}
    hopper = architecture // 10 == 9 and dtype.itemsize == 2 and D <= backends.TRITON_FEATURES
    if hopper:
        for I, T, scale, labels in inputs(dtype, D, sizes):  # noqa: E741
            _, r, c = triton_hopper.forward(I, T, scale, labels)
            triton_hopper.backward(scale, I, T, scale, r, c, labels)
        found |= {"hopper, sums": triton_hopper.sums_kernel,
                  "hopper, block": triton_hopper.block_kernel}
    if D % 64 == 0 or dtype == torch.float32:  # of the sigmoid loss few: they take their time
        found |= compiled_sigmoid(*next(inputs(dtype, D, sizes)), hopper)
    return {name: launched(kernel) for name, kernel in found.items()}


def compiled_sigmoid(I, T, scale, labels, hopper):  # noqa: E741
    """The sigmoid loss's kernels, launched for these features; "hopper" too where it runs."""
    ways = [triton_sigmoid.in_registers, triton_sigmoid.in_blocks]
    found = {"sigmoid": triton_sigmoid.rows_kernel,
             "sigmoid, block": triton_sigmoid.sigmoid_block_kernel}
    if hopper:
        ways.append(partial(triton_sigmoid.in_blocks, write=triton_hopper_sigmoid.write))
        found["hopper, sigmoid"] = triton_hopper_sigmoid.sigmoid_kernel
    for sigmoid in ways:
        sigmoid(I, T, scale, scale, labels, EVERY_GRADIENT)
    return found


def inputs(dtype, D, sizes):
    """The arguments of a forward pass, for each of these sizes."""
    for M, N, offset, both, captions in sizes:
        ids = (torch.arange(M), torch.arange(N)) if captions else (None, None)
        yield (torch.ones(M, D, dtype=dtype), torch.ones(N, D, dtype=dtype), torch.tensor(14.3),
               Labels(offset, both, *ids))


def launched(kernel):
    """Every variant of it."""
    return list(kernel.device_caches[0][0].values())


def main(architecture, dtype, D, *changes):
    changes = {name: int(x) if x else None for name, _, x in (c.partition("=") for c in changes)}
    architecture, dtype, D = int(architecture), DTYPES[dtype], int(D)
    found = compiled(architecture, dtype, D, changes, sizes(architecture, dtype, D))
    print("{" + ",\n ".join(f'"{name}": {json.dumps(worst([figures(x) for x in variants]))}'
                            for name, variants in found.items()) + "}")


if __name__ == "__main__":
    main(*sys.argv[1:])
