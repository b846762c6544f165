"""Which tile sizes are fastest on this GPU: each kernel's candidates, one after another.

    python kernels/benchmarks/tune_clip_loss.py    make tune-gpu
    … --features 1024                              make tune-gpu ARGS="--features 1024"

The first candidate of each kernel is what `triton_tiles.launch_options` and `triton_blocks.BLOCK`
say now. A candidate changes what it names (TILE: the height and width of a square tile). Inputs are
bfloat16 unit vectors, N = 32,768 (`--size`), D = 512 (`--features`). `sums` is timed in the forward
pass, `gradient` and `block` in the backward pass of "triton" and of "blocks". "hopper sums" and
"hopper block" are the same passes of "hopper", whose tiles are fixed. (Above 512 features it
streams both operands. "auto" does not choose that before a record says that it pays.) share_of_peak
counts 2N²D and 6N²D operations, over the rate of a large matrix product in the same run. Results
are written to kernels/results/tiles/DEVICE-D.json, best first. The script changes no setting of the
package.
"""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from bench_clip_loss import positive
from measuring import BrokenDevice, asking, check_device, in_a_line, inputs, times
from miniclip_kernels import backends, triton_blocks, triton_hopper, triton_loss, triton_tiles
from miniclip_kernels.backends import Labels
from records import RESULTS, file_name, machine, write

NAMES = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "maxnreg")
CANDIDATES = {
    "sums": [{}, *(dict(zip(NAMES, values)) for values in (
        (128, 128, 64, 8, 3, None), (128, 128, 64, 8, 2, 128), (128, 128, 32, 8, 4, 128),
        (128, 128, 128, 8, 2, None), (128, 256, 64, 8, 3, None), (128, 256, 64, 8, 4, None),
        (256, 128, 64, 8, 3, None), (64, 256, 64, 4, 3, None), (128, 64, 64, 4, 4, None))),
        {"GROUPS": 128}, {"GROUPS": 512}],
    "block": [{}, *(dict(zip(NAMES, values)) for values in (
        (128, 128, 64, 8, 2, None), (128, 128, 32, 8, 4, None), (128, 128, 128, 8, 2, None),
        (128, 256, 64, 8, 3, None), (128, 256, 64, 8, 4, None), (256, 128, 64, 8, 3, None),
        (64, 256, 64, 4, 3, None), (128, 128, 64, 4, 3, None))),
        {"BLOCK": 2048}, {"BLOCK": 4096}, {"BLOCK": 16384}, {"ONCE": True}],
    "gradient": [{}, {"num_stages": 2}, {"num_stages": 4}, {"BLOCK_K": 128, "num_stages": 2},
                 {"TILE": 64, "BLOCK_D": 512}, {"TILE": 64}, {"TILE": 64, "num_warps": 4}],
    "hopper sums": [{}],
    "hopper block": [{}, {"BLOCK": 4096}, {"BLOCK": 16384}, {"HOPPER_ONCE": True}]}
# Settings that are not launch options: where, and under which name.
MODULES = {"GROUPS": (triton_loss, "GROUPS"), "BLOCK": (triton_blocks, "BLOCK"),
           "HOPPER_ONCE": (triton_hopper, "ONCE")}
SECONDS = 0.3  # about as long is spent on each candidate


@contextmanager
def settings(kernel, candidate):
    """Within this context, the kernel is launched with the candidate's settings."""
    usual, options = triton_tiles.launch_options, dict(candidate)
    before = {place: getattr(*place) for place in MODULES.values()}
    for name in MODULES.keys() & options.keys():
        setattr(*MODULES[name], options.pop(name))
    if "TILE" in options:
        options["BLOCK_M"] = options["BLOCK_N"] = options.pop("TILE")

    def launch_options(name, *arguments):
        found = dict(usual(name, *arguments))
        if name == kernel:
            found |= options
        return {option: value for option, value in found.items() if value is not None}

    triton_tiles.launch_options = launch_options
    try:
        yield
    finally:
        triton_tiles.launch_options = usual
        for place, value in before.items():
            setattr(*place, value)


def calls(I, T, scale):  # noqa: E741
    """{kernel: the pass in which it does most of the work}."""
    labels, upstream = Labels(0, True), torch.ones_like(scale)
    _, r, c = triton_loss.forward(I, T, scale, labels)
    return {"sums": lambda: triton_loss.forward(I, T, scale, labels),
            "block": lambda: triton_blocks.backward(upstream, I, T, scale, r, c, labels),
            "gradient": lambda: triton_loss.backward(upstream, I, T, scale, r, c, labels),
            "hopper sums": lambda: triton_hopper.forward(I, T, scale, labels),
            "hopper block": lambda: triton_hopper.backward(upstream, I, T, scale, r, c, labels)}


def try_candidate(kernel, candidate, features, peak, cuda) -> dict:
    """Time one candidate. If it fails (too much shared memory, say), the error is its result."""
    row = {"kernel": kernel, "settings": candidate, "ms_p50": None, "share_of_peak": None}
    try:
        if "hopper" in kernel:
            backends.check("hopper", features[0])
        with settings(kernel, candidate):
            call = calls(*features)[kernel]
            call()  # compiles
            rough = np.median(times(call, 2, cuda))
            count, launch = max(3, min(int(SECONDS / rough), 100)), max(asking(call)) if cuda else 0
            ms = 1000 * np.median([times(call, 1, cuda, launch)[0] for _ in range(count)])
    except Exception as error:  # any of Triton's, PyTorch's or the driver's
        if cuda:
            check_device(f"{kernel}, {candidate}: {in_a_line(error)}")
        return row | {"error": in_a_line(error)}
    N, width = features[0].shape
    share = (2 if "sums" in kernel else 6) * N * N * width / (ms * 1e9 * peak)
    return row | {"ms_p50": float(f"{ms:.4g}"), "share_of_peak": round(share, 4), "error": None}


def tune(N, D, kernels, folder, cuda=True):
    """Try all candidates of these kernels, print each, and write them all, best first.

    Raises BrokenDevice if a candidate leaves the GPU unable to take more work.
    """
    record = machine(cuda)
    rows = record.pop("rows")
    record |= {"N": N, "D": D, "rows": rows}
    print(f"{record['device']}, {record['peak_tflops']:,g} TFLOP/s, N={N:,}, D={D}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(f"{record['device']} {D}")
    features = [x.detach() for x in inputs(N, D, cuda)]
    try:
        for kernel in kernels:
            for candidate in CANDIDATES[kernel]:
                row = try_candidate(kernel, candidate, features, record["peak_tflops"], cuda)
                rows.append(row)
                named = ", ".join(f"{k}={v}" for k, v in candidate.items())
                print(f"{kernel:12}", row["error"] or f"{row['ms_p50']:9.4g} ms "
                      f"{row['share_of_peak']:6.1%} ", named or "as it is", flush=True)
    finally:
        rows.sort(key=lambda row: (list(CANDIDATES).index(row["kernel"]),
                                   row["ms_p50"] or float("inf")))
        if rows:
            write(record, path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="the fastest tiles of each kernel on this GPU")
    parser.add_argument("--size", type=positive, default=32768, help="N (default 32768)")
    parser.add_argument("--features", type=positive, default=512, help="D (default 512)")
    parser.add_argument("--kernels", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--out", type=Path, default=RESULTS / "tiles", help="folder of the records")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune: needs CUDA, and torch sees none on this machine", file=sys.stderr)
        return 2
    try:
        print(tune(options.size, options.features, options.kernels, options.out))
    except BrokenDevice as error:
        print(f"tune: {error}; what was measured before is in {options.out}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
