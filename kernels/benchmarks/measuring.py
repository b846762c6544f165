"""Time and memory of one call, on a CPU or a GPU, in turns with others."""

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers import CPU_IMPLS, OURS, TEMPERATURE, TRUSTED

D = 512  # features, where nothing else is said
ONCE = 2**20  # N from which on there is one call, forward and backward
CPU_SECONDS, GPU_SECONDS = 2.0, 0.5  # about as long is spent on each cell, if it is not slow
LAUNCHES = 0.02  # seconds of a call: a longer one does not wait for Python
QUEUE = 20  # calls at a time: CUDA queues about a thousand launches, then the next one waits
CLOCK = 2e9  # of a GPU, at most
PASSES = ("forward", "forward+backward")
FIGURES = ("ms_p20", "ms_p50", "ms_p80", "extra_mb", "share_of_peak")


def inputs(N, D, cuda):
    """Images, texts (N, D): unit vectors in bfloat16 (float32 on a CPU); the scale (), float32."""
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    generator = torch.Generator(device).manual_seed(N)
    made = [F.normalize(torch.randn(N, D, device=device, generator=generator)).to(dtype)
            for _ in range(2)]
    made.append(torch.tensor(1 / TEMPERATURE, device=device))
    return [x.requires_grad_() for x in made]


class BrokenDevice(RuntimeError):
    """An error, such as an illegal address, after which every call of this process fails."""


def check_device(error: str):
    """BrokenDevice if after this error the GPU takes no work any more."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as sticky:
        raise BrokenDevice(f"the GPU takes no more work from this process: {error}") from sticky


def in_a_line(error) -> str:
    """The error in one line, to be kept in place of figures."""
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
    host: list[float] = field(default_factory=list)  # the same, until all is launched
    extra: int = 0  # bytes
    found: list[float | None] = field(default_factory=list)  # the loss, the gradients' norms
    error: str | None = None
    finished: bool = False

    def run(self):
        loss = self.loss(*self.features)
        gradients = torch.autograd.grad(loss, self.features, allow_unused=True) if self.both else ()
        return [loss, *gradients]

    def attempt(self, work, cuda):
        """Do some work on this cell. If it fails in any way, its figures become a one-line error.

        Raises BrokenDevice if nothing that follows could be measured.
        """
        if self.error is None:
            try:
                work(self, cuda)
            except Exception as error:
                self.error = in_a_line(error)
                if cuda:
                    check_device(self.error)

    def row(self, peak):
        """The row that results/DEVICE.json keeps; peak in TFLOP/s."""
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

    launch: the most seconds that Python takes to launch one call. A GPU is first kept busy for 1.5
    times as long, for each call. This is like training, where the towers' work comes before the
    loss: by the time it is done, all of the loss has been launched. So the loss is timed, not the
    wait for Python.
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
    """Seconds that Python takes to launch a call on an idle GPU, five times."""
    torch.cuda.synchronize()
    found = times(call, 5, cuda=False)
    torch.cuda.synchronize()
    return found


def prepare(cell, cuda):
    """A first call, which compiles, and a second for its memory and rough time."""
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
    """One call; on a GPU a third of all calls, after an untimed one that allocates memory."""
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
    """Compare results with the most trusted implementation's; a wrong peer is only reported."""
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
    """Measure the cells in turns: 3 turns on a GPU, 3 to 50 on a CPU."""
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
    while peak_memory() == start:  # fill memory that was held and freed: it would hide the rest
        held.append(torch.ones(2**18))  # 1 MiB
    before = peak_memory()
    found = loss(*features)
    forward = peak_memory() - before
    gradients = torch.autograd.grad(found, features)
    return [forward, peak_memory() - before - size(gradients)]


@cache
def memory_elsewhere(impl, N) -> list[int]:
    """extra_memory in a process of its own, once for both passes."""
    script = Path(__file__).with_name("bench_clip_loss.py")
    command = [sys.executable, str(script), "--memory", impl, str(N)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ceilings(cuda):
    """What the device can do: TFLOP/s of a matrix product, GB/s read and written by a copy.

    On a GPU these are sustained rates: only the second half of half a second counts.
    """
    n, numbers, count = (8192, 2**29, 300) if cuda else (2048, 2**25, 5)
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    A, B = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    x, y = torch.randn(2, numbers, device=device)
    later = slice(count // 2 if cuda else 0, None)
    product, copy = (min(np.median(times(call, count, cuda)[later]) for _ in range(4))
                     for call in (lambda: A @ B, lambda: y.copy_(x)))
    return round(2 * n**3 / product / 1e12, 3), round(8 * numbers / copy / 1e9, 1)
