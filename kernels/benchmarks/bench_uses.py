"""The loss as people use it, beside open_clip's formula used in the same way, on any device.

    python kernels/benchmarks/bench_uses.py          part of make bench
    … --gpu                                          part of make bench-gpu

For each use, milliseconds of loss and gradients in the median turn, ours and theirs in turns, and
how many times as long theirs takes:

    both towers          as in training
    images, texts frozen one side wants no gradient (LiT, features computed beforehand)
    under autocast       float32 features, as F.normalize gives them, under autocast in bfloat16
    sigmoid              SigLIP's loss, with each backend that may be the best
    float32, tf32        without autocast; PyTorch's switch at "highest" and at "high"
    rows beside …        images among texts only, beside Liger's and Quack's fused cross-entropies;
    sigmoid beside …     beside siglip-kernel, 65,536 pairs of 768 features: on a GPU, each where
                         its package is installed
    one rank of 8, of 64 what one process of several computes, its M pairs against all N: ours makes
                         one slab, theirs (local_loss, gather_with_grad) two; nothing travels here

It prints, and keeps kernels/results/uses/DEVICE.json.
"""

import argparse
import importlib.util
import statistics
from functools import partial

import records
import torch
import torch.nn.functional as F
from measuring import GPU_SECONDS, asking, inputs, times
from miniclip_kernels import backends, clip_loss, sigmoid_loss
from miniclip_kernels.backends import EVERY_GRADIENT, Labels
from peers import eager, liger, quack, siglip_kernel

D = 512
SIZES = {False: 2048, True: 32768}  # pairs, on a CPU and on a GPU
RANKS = ((8, 4), (64, 16))  # processes, and the part of SIZES that each has as its M: 1/4, 1/16
TURNS = {False: 9, True: 3}


def gradients(loss, leaves, options=None):
    """Loss and gradients of the leaves that want one. options: of torch.autocast, if any."""
    with torch.autocast(**options) if options else torch.enable_grad():
        value = loss(*leaves)
    torch.autograd.grad(value, [x for x in leaves if x.requires_grad])


def slab(I, every_T, scale, rank):  # noqa: E741
    """What distributed.py computes in one process: → the gradients of I, every text, the scale.

    c would be merged over the processes in between; here it stays that of this slab.
    """
    scale, run = scale.detach(), backends.module(backends.choose("auto", I, len(every_T)))
    labels = Labels(rank * len(I), True)
    r, c = run.logsumexps(I, every_T, scale, labels)
    return run.backward(scale.new_ones(()), I, every_T, scale, r, c, labels, EVERY_GRADIENT)


def two_slabs(I, every_I, every_T, scale, rank):  # noqa: E741
    """open_clip 3.3.0's local_loss with what was gathered, own images among all texts and back:
    → the gradients of every image, every text and the scale."""
    own = slice(rank * len(I), (rank + 1) * len(I))
    truth = torch.arange(own.start, own.stop, device=I.device)
    own_I, own_T = (x.detach()[own].requires_grad_() for x in (every_I, every_T))
    loss = (F.cross_entropy(scale * own_I @ every_T.T, truth)
            + F.cross_entropy(scale * own_T @ every_I.T, truth)) / 2
    dI, dT, every_dI, every_dT, ds = torch.autograd.grad(
        loss, [own_I, own_T, every_I, every_T, scale])
    every_dI[own] += dI
    every_dT[own] += dT
    return every_dI, every_dT, ds


def eager_sigmoid(I, T, scale, bias):  # noqa: E741
    """The formula of open_clip 3.3.0's SigLipLoss."""
    labels = 2 * torch.eye(len(I), device=I.device, dtype=I.dtype) - 1
    return -F.logsigmoid(labels * (scale * I @ T.T + bias)).sum() / len(I)


def uses(cuda):
    """(name, ours, theirs), calls without arguments; and N of each."""
    N = SIZES[cuda]
    I, T, scale = inputs(N, D, cuda)  # noqa: E741
    both = ("both towers", I, T), ("images frozen", I.detach(), T), ("texts frozen", I, T.detach())
    for name, *towers in both:
        yield name, N, *(partial(gradients, loss, [*towers, scale]) for loss in (clip_loss, eager))
    wide = [x.detach().float().requires_grad_() for x in (I, T)] + [scale]
    autocast = {"device_type": I.device.type, "dtype": torch.bfloat16}
    yield "under autocast", N, *(partial(gradients, loss, wide, autocast)
                                 for loss in (clip_loss, eager))
    bias = torch.tensor(-10.0, device=I.device, requires_grad=True)
    has_hopper = cuda and backends.choose("auto", I, N) == "hopper"
    for backend in ("auto", "hopper")[:1 + has_hopper]:
        losses = partial(sigmoid_loss, backend=backend), eager_sigmoid
        yield f"sigmoid, {backend}", N, *(partial(gradients, loss, [I, T, scale, bias])
                                          for loss in losses)
    for name, switch in (("float32", "highest"), ("tf32", "high"))[:1 + cuda]:
        yield name, N, *(partial(switched, switch, loss, wide) for loss in (clip_loss, eager))
    if cuda:
        yield from beside_packages(I, T, scale, bias)
    for count, part in RANKS:
        M = N // part
        every_I, every_T, scale = inputs(count * M, D, cuda)
        own = every_I.detach()[M:2 * M]
        yield (f"one rank of {count}", count * M, partial(slab, own, every_T.detach(), scale, 1),
               partial(two_slabs, own, every_I, every_T, scale, 1))


def beside_packages(I, T, scale, bias):  # noqa: E741
    """Rows as of `uses`, for the peers that are installed."""
    def here(package):
        return importlib.util.find_spec(package) is not None

    rows = partial(clip_loss, direction="rows")
    for name, package, peer in (("liger", "liger_kernel", liger), ("quack", "quack", quack)):
        if here(package):
            yield f"rows beside {name}", len(I), *(partial(gradients, loss, [I, T, scale])
                                                   for loss in (rows, peer))
    if here("siglip_kernel"):
        features = [*inputs(65536, 768, True), bias]
        yield "sigmoid beside siglip-kernel", 65536, *(partial(gradients, loss, features)
                                                       for loss in (sigmoid_loss, siglip_kernel))


def switched(precision, loss, leaves):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        gradients(loss, leaves)
    finally:
        torch.set_float32_matmul_precision(before)


def milliseconds(calls, cuda) -> list[float]:
    """Of each call, in the median of turns; a turn on a GPU is some calls in a row."""
    found, counts, launches = [[] for _ in calls], [], []
    for call in calls:
        call()  # compiles
        once = statistics.median(times(call, 2, cuda))
        counts.append(min(20, max(1, int(GPU_SECONDS / 3 / once))) if cuda else 1)
        launches.append(max(asking(call)) if cuda else 0.0)
    for _ in range(TURNS[cuda]):
        for call, count, launch, own in zip(calls, counts, launches, found):
            call()  # untimed: memory and caches are as after a call of its own
            own += times(call, count, cuda, launch)
    return [1000 * statistics.median(own) for own in found]


def main():
    parser = argparse.ArgumentParser(description="the loss as people use it")
    parser.add_argument("--gpu", action="store_true", help="on CUDA")
    cuda = parser.parse_args().gpu
    record = records.machine(cuda)
    print(f"{record['device']}, torch {record['torch']}: loss and gradients, D = {D}\n"
          f"{'':29}{'N':>9}{'ours, ms':>12}{'theirs, ms':>12}")
    for name, N, *calls in uses(cuda):
        ours, theirs = milliseconds(calls, cuda)
        print(f"{name:29}{N:>9,}{ours:>12.4g}{theirs:>12.4g}{theirs / ours:>8.2f} ×", flush=True)
        record["rows"].append({"use": name, "N": N, "D": D, "ms": float(f"{ours:.4g}"),
                               "open_clip_ms": float(f"{theirs:.4g}")})
    folder = records.RESULTS / "uses"
    folder.mkdir(exist_ok=True)
    records.write(record, folder / records.file_name(record["device"]))


if __name__ == "__main__":
    main()
