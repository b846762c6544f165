"""What a call of the loss costs before a GPU has anything to do: Python, PyTorch and Triton.

    python kernels/benchmarks/bench_launch.py          part of make bench

The input is 128 pairs of 64 features, on one thread. The driver skips every launch
(machine_code.Absent), so only the work before it is timed: checks, autograd, descriptors, the
choice of a compiled kernel. PyTorch's own products, of 128 × 128, do run: "eager", open_clip's
formula, consists only of them. The last rows are both passes of "hopper", as the functions that
autograd calls and as the operators that torch.compile takes. Figures are milliseconds, the median
of nine rounds.
"""

import statistics
import time
from functools import partial

import torch
from machine_code import pretend
from miniclip_kernels import autograd, clip_loss
from peers import eager

ROUNDS, CALLS = 9, 100


def milliseconds(call) -> float:
    """Milliseconds of one call, in the median round."""
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append(1000 * (time.perf_counter() - begin) / CALLS)
    return statistics.median(found)


def main():
    torch.set_num_threads(1)
    pretend(90)
    features = [torch.ones(128, 64, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    features.append(torch.tensor(14.3, requires_grad=True))
    losses = {name: partial(clip_loss, backend=name) for name in ("triton", "blocks", "hopper")}
    print(f"{'':10} {'forward':>9} {'with gradients':>15}   ms a call, {CALLS} calls in a row")
    for name, loss in (losses | {"eager": eager}).items():
        both = partial(lambda loss: torch.autograd.grad(loss(*features), features), loss)
        both()  # compiles
        print(f"{name:10} {milliseconds(partial(loss, *features)):9.3f} {milliseconds(both):15.3f}")
    given, settings = [x.detach() for x in features], ([], 0, True, "hopper")
    for name, passes in (("functions", (autograd.forward, autograd.backward)),
                         ("operators", (autograd.forward_operator, autograd.backward_operator))):
        alone = partial(passes[0], *given, *settings)
        both = partial(in_turn, alone, passes[1], given, settings)
        print(f"{name:10} {milliseconds(alone):9.3f} {milliseconds(both):15.3f}")


def in_turn(forward, backward, given, settings):
    """Both passes without autograd around them."""
    _, r, c = forward()
    backward(given[2], [*given, r, c], *settings, [True] * 3)


if __name__ == "__main__":
    main()
