"""Time and memory of the loss, over the number of pairs N: every backend, and every peer.

    python kernels/benchmarks/bench_clip_loss.py     make bench        the backends on this CPU
    … --gpu                                          make bench-gpu    miniclip and peers on CUDA
    … --plot                                         make bench-plots  draw the records again

Inputs are N pairs of random unit vectors with D features, and the scale 1/0.07 as a tensor. The
gradients of all three are computed. "forward" is the forward pass of training: it keeps what the
backward pass needs. Units: ms_p20, ms_p50 and ms_p80 are milliseconds, percentiles of one call's
time, on a GPU by its own clock and without waiting for Python (`times`). host_ms is how long Python
takes to launch a call on the GPU, where that might matter. extra_mb is the highest memory beyond
inputs and gradients, in 10⁶ bytes. share_of_peak is 2N²D (forward) or 8N²D operations (both) over
the median time, over the rate of a large matrix product of the same device in the same run (on a
CPU in float32). Implementations take turns, so other load on the machine affects all of them alike.
The caches are not cleared between calls. Loss and gradients are compared as well: ours get no
figures if their results differ from the others'. One file per device: kernels/results/DEVICE.json.
"""

import argparse
import json
import sys
from pathlib import Path

import measuring
import records
import torch
from measuring import ONCE, BrokenDevice, Cell, D, inputs, measure
from peers import CPU_IMPLS, GPU_IMPLS, OURS
from records import RESULTS, draw, table, verdict, write

CPU_SIZES = (512, 1024, 2048, 4096, 8192)
GPU_SIZES = (65536, 16384, 4096, 32768, 256, 1024, 8192, 131072)  # the most informative first
PEERS_TO = 65536  # the largest N of every implementation that LARGEST does not name
LARGEST = {"numpy": 1024, "tiled": 2**13, "blocks": 2**17, "registers": 2**17, "miniclip": 2**20}
WIDTHS = (256, 768, 1024)  # D, at N = PEERS_TO, only for ours


def plan(cuda, sizes, impls):
    """(N, D, implementations) of every step."""
    steps = [(N, D) for N in sizes or (GPU_SIZES if cuda else CPU_SIZES)]
    if cuda and not sizes:
        steps += [(PEERS_TO, width) for width in WIDTHS] + [(ONCE, D)]
    for N, width in steps:
        names = [name for name in impls if N <= LARGEST.get(name, PEERS_TO)
                 and (width == D or name in OURS and name != "tiled")]
        if names:
            yield N, width, names


def show(row):
    extra, share = row["extra_mb"], row["share_of_peak"]
    print(f"{row['impl']:18} {row['pass']:17} {row['N']:>9,} {row['D']:>5} ", row["error"] or
          f"{row['ms_p20']:>9.4g} {row['ms_p50']:>9.4g} {row['ms_p80']:>9.4g} {extra:>10,.1f} "
          f"{share:>8.1%}", flush=True)


def benchmark(cuda, sizes, impls, folder) -> Path:
    """Measure, print and write, step by step: a run that is cut off loses only its last step.

    Raises BrokenDevice as `Cell.attempt` does.
    """
    losses, record = GPU_IMPLS if cuda else CPU_IMPLS, records.machine(cuda)
    path = folder / records.file_name(record["device"])
    print(f"{record['device']}, torch {record['torch']}: matrix product "
          f"{record['peak_tflops']:,g} TFLOP/s, copy {record['copy_gb_s']:,g} GB/s\n"
          f"{'':36} {'N':>9} {'D':>5}  {'ms p20':>9} {'p50':>9} {'p80':>9} {'extra MB':>10} "
          f"{'of peak':>8}")
    for N, width, names in plan(cuda, sizes, impls or losses):
        if cuda:
            torch.compiler.reset()  # compile separately for every N
        features = inputs(N, width, cuda)
        cells = [Cell(name, losses[name], both, features)
                 for both in (False, True) for name in names if both or N < ONCE]
        try:
            # NumPy's threads go on spinning after its products, and would steal PyTorch's cores.
            for group in ("torch", "numpy"):
                if turns := [x for x in cells if (x.impl == "numpy") == (group == "numpy")]:
                    measure(turns, cuda)
        finally:  # write complete cells, also after a broken GPU or an interrupt
            rows = [cell.row(record["peak_tflops"]) for cell in cells
                    if cell.finished or cell.error is not None]
            for row in rows:
                show(row)
            record["rows"] = sorted(record["rows"] + rows, key=lambda row: (
                row["D"] != D, row["D"], row["N"]))
            if rows:
                write(record, path)
    return path


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="time and memory of the loss over N")
    parser.add_argument("--gpu", action="store_true", help="miniclip and its peers on CUDA")
    parser.add_argument("--plot", action="store_true", help="only draw what was recorded")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--sizes", type=positive, nargs="+", help="N; default: a whole range")
    parser.add_argument("--impls", nargs="+", metavar="NAME", help="only these; default: all")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # of memory_elsewhere
    options = parser.parse_args()
    if options.memory:
        print(measuring.extra_memory(options.memory[0], int(options.memory[1])))
        return 0
    if options.gpu and not torch.cuda.is_available():
        print("benchmark: --gpu needs CUDA, and torch sees none on this machine", file=sys.stderr)
        return 2
    known = GPU_IMPLS if options.gpu else CPU_IMPLS
    if unknown := set(options.impls or ()) - set(known):
        parser.error(f"not among {', '.join(known)}: {', '.join(sorted(unknown))}")
    if not list(plan(options.gpu, options.sizes, options.impls or known)):
        parser.error(f"N too large: numpy is measured up to {LARGEST['numpy']:,}, others up to "
                     f"{PEERS_TO:,}, miniclip up to {LARGEST['miniclip']:,}")
    paths = sorted(options.out.glob("*.json"))
    if options.plot and not paths:
        print(f"benchmark: no records to draw in {options.out}", file=sys.stderr)
        return 2
    if not options.plot:
        options.out.mkdir(parents=True, exist_ok=True)
        try:
            paths = [benchmark(options.gpu, options.sizes, options.impls, options.out)]
        except BrokenDevice as error:
            print(f"benchmark: {error}; what was measured before is in {options.out}",
                  file=sys.stderr)
            return 1
    for path in paths:
        draw(path)
        record = json.loads(path.read_text())
        print(f"\n{path}: {record['device']}\n\n{table(record)}")
    if not options.plot and not options.gpu:
        print(f"\n{verdict(record)}\ntriton is not among them: on a CPU it runs in its "
              "interpreter, which is what would be measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
