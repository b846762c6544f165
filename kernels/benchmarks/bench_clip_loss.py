"""Time and memory of the loss, over the number of pairs N: every backend, and every peer.

    python tests/bench_clip_loss.py          the backends on this CPU         make bench
    python tests/bench_clip_loss.py --gpu    miniclip and its peers on CUDA   make bench-gpu
    python tests/bench_clip_loss.py --plot   draw recorded figures again      make bench-plots

Inputs are N pairs of random unit vectors with D features and the scale 1/0.07 as a tensor; asked
for are the gradients of all three. "forward" is the forward pass of training: what the backward
pass needs is kept. Units: ms_p20, ms_p50 and ms_p80 are milliseconds, percentiles of one call's
time, on a GPU by its own clock and without waiting for Python (`times`); host_ms is how long Python
takes to ask the GPU for a call, where that might count; extra_mb is the highest memory beyond
inputs and gradients, in 10⁶ bytes; share_of_peak is 2N²D (forward) or 8N²D operations (both) over
the median time, over the rate of a large matrix product of the same device in the same run (on a
CPU in float32). Peers take turns, so that whatever else the machine does meets all of them; what
one call leaves in the caches, the next finds there. Loss and gradients are compared as well: ours
have no figures if they are not what the others find. One file per device:
kernels/results/DEVICE.json.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from miniclip_kernels.clip_loss import HAS_TRITON, clip_loss

RESULTS = Path(__file__).parent.parent / "kernels/results"
D, TEMPERATURE = 512, 0.07
CPU_SIZES = (512, 1024, 2048, 4096, 8192)
GPU_SIZES = (65536, 16384, 4096, 32768, 256, 1024, 8192, 131072)  # what says most goes first
PEERS_TO = 65536  # the largest N of every implementation, but:
LARGEST = {"numpy": 1024, "tiled": 2**13, "blocks": 2**17, "registers": 2**17, "miniclip": 2**20}
ONCE = 2**20  # N from which on there is one call, forward and backward
WIDTHS = (256, 768, 1024)  # D, at N = PEERS_TO, of our own alone
CPU_SECONDS, GPU_SECONDS = 2.0, 0.5  # about as long is spent on each cell, if it is not slow
LAUNCHES = 0.02  # seconds of a call: longer ones do not wait for Python
QUEUE = 20  # calls at a time: CUDA takes some thousand launches before it is waited for
CLOCK = 2e9  # of a GPU, at most
CHUNK = 2048  # rows at a time of the chunked peer
TRUSTED = ("chunked", "eager", "dense", "registers")  # the first that is there is compared with
PASSES = ("forward", "forward+backward")
FIGURES = ("ms_p20", "ms_p50", "ms_p80", "extra_mb", "share_of_peak")
OURS = ("miniclip", "blocks", "registers", "tiled")
BLUE, ORANGE, GREEN, RED, GRAY = "#3566a8", "#d9822b", "#3a8f4d", "#c23b3b", "#8a8a8a"
COLORS = {"miniclip": BLUE, "blocks": "#1c2f4f", "registers": "#8fb3e0", "tiled": ORANGE,
          "dense": RED, "eager": RED, "compile": GREEN, "chunked": "#2a9d9d", "memeff": "#7b5ea7",
          "inf-cl": "#8c6d46", "cut-cross-entropy": "#c46aa0", "numpy": GREEN}
STYLE = {  # as the project's other pictures
    "figure.facecolor": "white", "figure.dpi": 120, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True}


# ------------------------------------------------------------------------------ the peers

# Each takes images I (N, D), texts T (N, D) and the scale s, a tensor (), and gives the loss ().
# A peer's package is imported where it is called: one that is missing costs its own row only.


def eager(I, T, s):  # noqa: E741
    """The formula of open_clip 3.3.0's ClipLoss: two N × N matrices in the features' type."""
    labels = torch.arange(len(I), device=I.device)
    return (F.cross_entropy(s * I @ T.T, labels) + F.cross_entropy(s * T @ I.T, labels)) / 2


@cache
def fused(function):
    """torch.compile with fixed shapes; made at the first use, for its import takes seconds."""
    return torch.compile(function, dynamic=False)


def chunk_sums(S, s):
    """S (C, N) before the scale → sums of exp(s·S − s) over rows (C,) and columns (N,)."""
    E = torch.exp(s * S - s)
    return E.sum(1), E.sum(0)


def chunk_gradient(S, s, row_sums, column_sums, labels, dtype):
    """G = P + Q − 2δ (C, N) in the features' type, the 2 subtracted before the cast."""
    E = torch.exp(s * S - s)
    pair = labels[:, None] == torch.arange(S.shape[1], device=S.device)
    return (E * (1 / row_sums)[:, None] + E * (1 / column_sums) - 2.0 * pair).to(dtype)


def product(A, B):
    """A @ B of 16-bit matrices in float32; CPUs have no such product, but the tests need one."""
    return torch.mm(A, B, out_dtype=torch.float32) if A.is_cuda else A.float() @ B.float()


class Chunked(torch.autograd.Function):
    """The best that plain PyTorch can do in C × N of memory: 4 products, all of them cuBLAS's.

    exp(S − s) can't overflow for unit vectors; what is done to a chunk between its products is
    fused by torch.compile (on CUDA).
    """

    @staticmethod
    def forward(ctx, I, T, s):  # noqa: E741
        sums = fused(chunk_sums) if I.is_cuda else chunk_sums
        rows, columns = torch.empty_like(I[:, 0], dtype=s.dtype), s.new_zeros(len(T))
        for i in range(0, len(I), CHUNK):
            rows[i:i + CHUNK], part = sums(product(I[i:i + CHUNK], T.T), s)
            columns += part
        ctx.save_for_backward(I, T, s, rows, columns)
        positives = s * torch.linalg.vecdot(I.float(), T.float())
        return (s + (rows.log() + columns.log()) / 2 - positives).mean()

    @staticmethod
    def backward(ctx, upstream):
        I, T, s, rows, columns = ctx.saved_tensors  # noqa: E741
        gradient = fused(chunk_gradient) if I.is_cuda else chunk_gradient
        labels, factor = torch.arange(len(I), device=I.device), upstream / (2 * len(I))
        dI, dT, ds = torch.empty_like(I), torch.zeros_like(T, dtype=s.dtype), 0
        for i in range(0, len(I), CHUNK):
            here = slice(i, i + CHUNK)
            G = gradient(product(I[here], T.T), s, rows[here], columns, labels[here], I.dtype)
            part = product(G, T)  # (C, D)
            dI[here] = part * (s * factor)
            ds += (part * I[here]).sum()
            dT += product(G.T, I[here])
        return dI, (dT * (s * factor)).to(T.dtype), ds * factor


def memeff(I, T, s):  # noqa: E741
    """memeff 0.3.1. Its temperature is a float: no gradient of the scale."""
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(TEMPERATURE, normalized_inputs=True, stable=False)
    return loss(I, T)


def inf_cl(I, T, s):  # noqa: E741
    """inf-cl 1.2.1: losses of the rows (N,), so both ways; D must be a multiple of 256."""
    from inf_cl import cal_flash_loss

    return (cal_flash_loss(I, T, scale=s).mean() + cal_flash_loss(T, I, scale=s).mean()) / 2


def cut_cross_entropy(I, T, s):  # noqa: E741
    """cut-cross-entropy 25.1.1, both ways, without the filter that drops small probabilities."""
    from cut_cross_entropy import linear_cross_entropy

    labels = torch.arange(len(I), device=I.device)
    return (linear_cross_entropy(s * I, T, labels, filter_eps=None)
            + linear_cross_entropy(s * T, I, labels, filter_eps=None)) / 2


CPU_IMPLS = {name: partial(clip_loss, backend=name) for name in ("dense", "tiled", "numpy")}
GPU_IMPLS = {
    "miniclip": clip_loss,  # "auto": "triton" for few pairs, then "hopper", or "blocks"
    "blocks": partial(clip_loss, backend="blocks"),
    "registers": partial(clip_loss, backend="triton"), "chunked": Chunked.apply,
    "compile": lambda *features: fused(eager)(*features), "eager": eager, "memeff": memeff,
    "cut-cross-entropy": cut_cross_entropy, "inf-cl": inf_cl, "tiled": CPU_IMPLS["tiled"]}


# ------------------------------------------------------------------------------ measuring


def inputs(N, D, cuda):
    """Images, texts (N, D): unit vectors in bfloat16 (float32 on a CPU); the scale (), float32."""
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    generator = torch.Generator(device).manual_seed(N)
    made = [F.normalize(torch.randn(N, D, device=device, generator=generator)).to(dtype)
            for _ in range(2)]
    made.append(torch.tensor(1 / TEMPERATURE, device=device))
    return [x.requires_grad_() for x in made]


class BrokenDevice(RuntimeError):
    """After an illegal address, say, every later call of this process fails, for that reason."""


def check_device(error: str):
    """BrokenDevice if after this error the GPU takes no work any more."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as sticky:
        raise BrokenDevice(f"the GPU takes no more work from this process: {error}") from sticky


def in_a_line(error) -> str:
    """How something failed, as a figure's place holds it."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160)


@dataclass
class Cell:
    """One implementation, one pass, one N and D: what is called, and what was found."""

    impl: str
    loss: Callable
    both: bool  # forward and backward
    features: list  # images, texts (N, D), scale ()
    estimate: float = 0.0  # seconds
    seconds: list[float] = field(default_factory=list)  # of each call
    host: list[float] = field(default_factory=list)  # the same, until all is asked of the GPU
    extra: int = 0  # bytes
    found: list[float | None] = field(default_factory=list)  # the loss, the gradients' norms
    error: str | None = None
    finished: bool = False

    def run(self):
        loss = self.loss(*self.features)
        gradients = torch.autograd.grad(loss, self.features, allow_unused=True) if self.both else ()
        return [loss, *gradients]

    def attempt(self, work, cuda):
        """A peer may fail in any way, memory included: how, in one line, is then its figure.

        BrokenDevice if nothing that follows could be measured.
        """
        if self.error is None:
            try:
                work(self, cuda)
            except Exception as error:
                self.error = in_a_line(error)
                if cuda:
                    check_device(self.error)

    def row(self, peak):
        """As results/DEVICE.json keeps it; peak in TFLOP/s."""
        N, D = self.features[0].shape
        row = {"impl": self.impl, "pass": PASSES[self.both],
               "dtype": str(self.features[0].dtype).removeprefix("torch."), "N": N, "D": D}
        if self.error is not None:
            return row | dict.fromkeys(FIGURES) | {"error": self.error}
        ms = [float(f"{1000 * x:.4g}") for x in np.percentile(self.seconds, (20, 50, 80))]
        share = (8 if self.both else 2) * N * N * D / (ms[1] * 1e9 * peak)
        extra = round(max(self.extra, 0) / 1e6, 1)
        host = {"host_ms": float(f"{1000 * np.median(self.host):.4g}")} if self.host else {}
        return row | dict(zip(FIGURES, (*ms, extra, round(share, 4)))) | host | {"error": None}


def times(call, count, cuda, launch=0.0) -> list[float]:
    """Seconds of each of `count` calls in a row, by the device's own clock.

    launch: seconds that Python takes to ask for one, at most. For half as long again, for each of
    them, a GPU is kept busy first: as in training, where the towers' work comes before the loss,
    and by the time it is done all of the loss has been asked for. What is timed is the loss, not
    the waiting for Python.
    """
    if not cuda:
        stamps = [time.perf_counter()]
        for _ in range(count):
            call()
            stamps.append(time.perf_counter())
        return [b - a for a, b in pairwise(stamps)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda._sleep(int(1.5 * launch * count * CLOCK))
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(events)]


def asking(call) -> list[float]:
    """Seconds that Python takes to ask an idle GPU for a call, five times."""
    torch.cuda.synchronize()
    found = times(call, 5, cuda=False)
    torch.cuda.synchronize()
    return found


def prepare(cell, cuda):
    """A first call, in which compilers work, and a second for its memory and rough time."""
    N = len(cell.features[0])
    if N < ONCE:
        cell.run()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() + cell.both * size(cell.features)
    begin = time.perf_counter()
    found = cell.run()
    if cuda:
        torch.cuda.synchronize()
    cell.estimate = time.perf_counter() - begin
    cell.extra = (torch.cuda.max_memory_allocated() - before if cuda
                  else memory_elsewhere(cell.impl, N)[cell.both])
    cell.found = [None if x is None else x.detach().float().norm().item() for x in found]


def turn(cell, cuda):
    """One call; on a GPU a third of all calls, after an untimed one that fetches its memory."""
    count, launch = 1, 0.0
    if cuda and cell.estimate < GPU_SECONDS:
        torch.cuda.empty_cache()
        cell.run()
        count = min(max(int(GPU_SECONDS / 3 / cell.estimate), 2), QUEUE)
        if cell.estimate < LAUNCHES:
            host = asking(cell.run)
            cell.host += host
            launch = max(host)
    cell.seconds += times(cell.run, count, cuda, launch)


def compare(cells):
    """What was computed, with what the most trusted of them found; of peers a line is all."""
    named = {(cell.impl, cell.both): cell for cell in cells if cell.error is None}
    for (impl, both), cell in named.items():
        trusted = next((named[name, both] for name in TRUSTED if (name, both) in named), cell)
        pairs = [pair for pair in zip(cell.found, trusted.found) if None not in pair]
        if not all(abs(x - y) <= 0.02 * abs(y) for x, y in pairs):  # so that NaN is wrong
            wrong = (f"loss and norms of the gradients are {numbers(cell.found)}, of "
                     f"{trusted.impl} {numbers(trusted.found)}")
            if impl in OURS:
                cell.error = wrong
            print(f"{impl}, {PASSES[both]}: {wrong}", flush=True)


def numbers(found) -> str:
    return ", ".join("none" if x is None else f"{x:.4g}" for x in found)


def measure(cells, cuda):
    """Fill the cells in, in turns: on a GPU 3, on a CPU from 3 to 50."""
    for cell in cells:
        cell.attempt(prepare, cuda)
    compare(cells)
    turns = CPU_SECONDS * len(cells) / max(sum(cell.estimate for cell in cells), 1e-6)
    turns = 3 if cuda else min(max(int(turns), 3), 50)
    if len(cells[0].features[0]) >= ONCE:
        turns = 0
        for cell in cells:
            cell.seconds = [cell.estimate]
    for _ in range(turns):
        for cell in cells:
            cell.attempt(turn, cuda)
    for cell in cells:
        cell.finished = True


def size(tensors) -> int:
    return sum(x.nbytes for x in tensors)


def peak_memory() -> int:
    """Bytes: the most that this process, or the one that started it, has ever held."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def extra_memory(impl, N) -> list[int]:
    """Bytes beyond inputs and gradients at the peak of each pass; right in a fresh process only."""
    loss = CPU_IMPLS[impl]
    Cell(impl, loss, True, inputs(64, D, False)).run()  # from here on threads and operators exist
    features = inputs(N, D, False)
    start, held = peak_memory(), []
    while peak_memory() == start:  # fill what was held once and given back: it would hide the rest
        held.append(torch.ones(2**18))  # 1 MiB
    before = peak_memory()
    found = loss(*features)
    forward = peak_memory() - before
    gradients = torch.autograd.grad(found, features)
    return [forward, peak_memory() - before - size(gradients)]


@cache
def memory_elsewhere(impl, N) -> list[int]:
    """extra_memory in a process of its own, once for both passes."""
    command = [sys.executable, __file__, "--memory", impl, str(N)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ceilings(cuda):
    """What the device can do: TFLOP/s of a matrix product, GB/s read and written by a copy.

    On a GPU as it can for longer than a moment: the second half of half a second counts.
    """
    n, numbers, count = (8192, 2**29, 300) if cuda else (2048, 2**25, 5)
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    A, B = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    x, y = torch.randn(2, numbers, device=device)
    later = slice(count // 2 if cuda else 0, None)
    product, copy = (min(np.median(times(call, count, cuda)[later]) for _ in range(4))
                     for call in (lambda: A @ B, lambda: y.copy_(x)))
    return round(2 * n**3 / product / 1e12, 3), round(8 * numbers / copy / 1e9, 1)


# ------------------------------------------------------------------------------ the record


def first_line(*command):
    """Of a command's output; None where there is no such command, or it fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.partition("\n")[0].strip()


def processor() -> str:
    """Its name, or where the system tells none its kind; and how many threads are used."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", told.read_text()) if told.exists() else []
    return f"{(names or [platform.machine()])[0].strip()}, {torch.get_num_threads()} threads"


def machine(cuda) -> dict:
    """Everything in results/DEVICE.json but the rows."""
    peak, copy = ceilings(cuda)
    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = ("git", "-C", str(RESULTS), "describe", "--always", "--dirty", "--exclude=*")
    return {"device": torch.cuda.get_device_name() if cuda else processor(),
            "driver": first_line(*driver) if cuda else None, "torch": torch.__version__,
            "triton": version("triton") if HAS_TRITON else None,
            "commit": first_line(*commit), "date": date.today().isoformat(),
            "peak_tflops": peak, "copy_gb_s": copy, "rows": []}


def file_name(device) -> str:
    """Of a device's record."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", device).strip("-") + ".json"


def write(record, path):
    """A line for each row; the whole file or, if cut off, the one before."""
    head = json.dumps(record | {"rows": []}, indent=1).removesuffix("]\n}")
    temporary = path.with_suffix(".tmp")
    rows = ",\n  ".join(map(json.dumps, record["rows"]))
    temporary.write_text(f"{head}\n  {rows}\n ]\n}}\n")
    temporary.replace(path)


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
    """Measure, print and write, step by step: a run that is cut off has lost its last step.

    BrokenDevice as `Cell.attempt` raises it.
    """
    losses, record = GPU_IMPLS if cuda else CPU_IMPLS, machine(cuda)
    path = folder / file_name(record["device"])
    print(f"{record['device']}, torch {record['torch']}: matrix product "
          f"{record['peak_tflops']:,g} TFLOP/s, copy {record['copy_gb_s']:,g} GB/s\n"
          f"{'':36} {'N':>9} {'D':>5}  {'ms p20':>9} {'p50':>9} {'p80':>9} {'extra MB':>10} "
          f"{'of peak':>8}")
    for N, width, names in plan(cuda, sizes, impls or losses):
        if cuda:
            torch.compiler.reset()  # every N compiled for itself
        features = inputs(N, width, cuda)
        cells = [Cell(name, losses[name], both, features)
                 for both in (False, True) for name in names if both or N < ONCE]
        try:
            # NumPy's threads go on spinning after its products, and would steal PyTorch's cores.
            for group in ("torch", "numpy"):
                if turns := [x for x in cells if (x.impl == "numpy") == (group == "numpy")]:
                    measure(turns, cuda)
        finally:  # also if the GPU broke down, or somebody stopped it: of whole cells
            rows = [cell.row(record["peak_tflops"]) for cell in cells
                    if cell.finished or cell.error is not None]
            for row in rows:
                show(row)
            record["rows"] = sorted(record["rows"] + rows, key=lambda row: (
                row["D"] != D, row["D"], row["N"]))
            if rows:
                write(record, path)
    return path


# ------------------------------------------------------------------------------ showing


def whole(record) -> dict:
    """The rows of forward + backward with figures, at the main D: {implementation: {N: row}}.

    Ours comes first: others are compared with the first.
    """
    found = {}
    for row in record["rows"]:
        if row["pass"] == PASSES[True] and row["D"] == D and row["error"] is None:
            found.setdefault(row["impl"], {})[row["N"]] = row
    return dict(sorted(found.items(), key=lambda item: (*OURS, item[0]).index(item[0])))


def failures(record) -> str:
    """Which rows have no figures, and why: a line for each implementation and reason."""
    sizes = {}
    for row in record["rows"]:
        if row["error"]:
            sizes.setdefault((row["impl"], row["error"]), {})[f"{row['N']:,}"] = None
    lines = [f"{impl}, N = {'; '.join(found)}: {error}" for (impl, error), found in sizes.items()]
    return "\n".join("not measured: " + textwrap.shorten(line, 170) for line in lines)


def decorate(figure, axes, record, more):
    """Scales, titles, the first of which says `more`, and the two lines that mean something."""
    sizes, dtype = sorted({row["N"] for row in record["rows"]}), record["rows"][0]["dtype"]
    item = getattr(torch, dtype).itemsize  # bytes
    thin = {"ls": "--", "color": GRAY, "lw": 1, "zorder": 1}
    peak = record["peak_tflops"]
    axes[0].plot(sizes, [8e-9 * N * N * D / peak for N in sizes], **thin)
    axes[0].set(title="Loss and gradient, ms\n(dashed: 4 products at "
                f"{peak:.3g} TFLOP/s){more}", yscale="log")
    axes[1].set(title="Share of that rate\n(dotted: forward pass alone)", ylim=(0, None))
    axes[1].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[2].plot(sizes, [4e-6 * N * D * item for N in sizes], **thin)
    axes[2].set(title="Extra memory, MB\n(dashed: inputs and gradients)", yscale="log")
    ticks = sizes if len(sizes) < 6 else sizes[::-2]
    for axis in axes:
        axis.set(xlabel="N, pairs", xscale="log")
        axis.set_xticks(ticks, [f"{N / 1024:g}k" if N >= 1024 else N for N in ticks])
        axis.set_xticks([], minor=True)
    for axis in axes[::2]:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.yaxis.set_minor_formatter("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(f"{record['device']}, {dtype}, D = {D}, torch {record['torch']}")
    if failures(record):
        figure.supxlabel(failures(record), x=0.01, ha="left", fontsize=6, color=GRAY)


def draw(path):
    """A record → a picture beside it: time, share of peak and memory against N."""
    import matplotlib

    matplotlib.use("Agg")  # files only
    from matplotlib import pyplot as plt

    record = json.loads(path.read_text())
    found = whole(record)
    if not found:
        return
    alone = [(row["N"], row["share_of_peak"]) for row in record["rows"] if row["D"] == D
             and row["pass"] == PASSES[False] and row["impl"] == next(iter(found))
             and row["error"] is None]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.8))
        for axis, key in zip(axes, ("ms_p50", "share_of_peak", "extra_mb")):
            for impl, rows in found.items():
                some = {N: row[key] for N, row in rows.items() if row[key] > 0}  # no log of 0 MB
                axis.plot(list(some), list(some.values()), "o-", label=impl, ms=3,
                          color=COLORS[impl], lw=2 if impl in OURS else 1.2,
                          zorder=3 if impl in OURS else 2)
        ours, rows = next(iter(found.items()))
        host = [(N, row["host_ms"]) for N, row in rows.items() if "host_ms" in row]
        for axis, points in ((axes[0], host), (axes[1], alone)):
            axis.plot(*zip(*points), ":", color=COLORS[ours], lw=1.5)
        decorate(figure, axes, record, "\n(dotted: until Python has asked for it)" * bool(host))
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})  # no version, no date
        plt.close(figure)


def table(record, without=()) -> str:
    """The main figures in Markdown: milliseconds, forward and backward, and how they compare."""
    found = {impl: rows for impl, rows in whole(record).items() if impl not in without}
    if not found:
        return "no figures"
    (ours, own), *peers = found.items()
    lines = [["N", f"{ours}, ms", "of peak", "extra MB", *(f"{impl}, ms" for impl, _ in peers)]]
    lines += [["---:"] * len(lines[0])]
    for N, row in own.items():
        lines += [[f"{N:,}", f"{row['ms_p50']:.4g}", f"{row['share_of_peak']:.0%}",
                   f"{row['extra_mb']:,.0f}"]]
        for _, rows in peers:
            ms = rows[N]["ms_p50"] if N in rows else None
            lines[-1].append(f"{ms:.4g} ({ms / row['ms_p50']:.2f} ×)" if ms else "—")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(record) -> str:
    """What is asked of the tiled backend on a CPU, at the largest N that was measured."""
    found = whole(record)
    both = set(found.get("tiled", ())) & set(found.get("dense", ()))
    if not both:
        return "tiled and dense were not both measured: nothing to compare"
    tiled, dense = (found[impl][max(both)] for impl in ("tiled", "dense"))
    faster = dense["ms_p50"] / tiled["ms_p50"]
    return (f"N={max(both)}, forward + backward: tiled is {faster:.2f} × faster than dense, with "
            f"{tiled['extra_mb']:,.0f} MB against {dense['extra_mb']:,.0f} MB extra\n"
            "(asked at N=8192: at least 1.5 ×, with at most a fifth)")


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
        print(extra_memory(options.memory[0], int(options.memory[1])))
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
