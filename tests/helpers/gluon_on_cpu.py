"""A small interpreter for triton_hopper.py: it runs the programs on a CPU, with the worst timing.

Triton's own interpreter does not support Gluon. Here the parts of a program run as threads over
PyTorch tensors. Where the hardware leaves the timing open, the interpreter chooses the one that
exposes mistakes best:

    a copy into shared memory    overwrites the old data with NaN at once. It arrives at once (a
                                 share EARLY) or as late as possible: at the wait for its barrier
    a product                    reads its operands as late as possible: at the wait for it
    a copy out of it             likewise
    a part that waits in vain    raises after SECONDS, instead of hanging

So a slot that is given back too early, a barrier with one arrival too few or a parity that is off
by one gives NaN, wrong numbers, an assertion or Deadlock. Only one part of one program may write an
element of global memory; otherwise the result would depend on the order. Layouts, registers and
speed can't be tested here. That takes the compiler (kernels/benchmarks/machine_code.py) and a GPU.
"""

import random
import threading
import types
from contextlib import contextmanager
from itertools import product

import torch

SECONDS = 20.0
EARLY = 0.5
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # of a launch: not the kernel's


class Deadlock(RuntimeError):
    """A part of a program waited for something that never happens."""


class Barrier:
    """An mbarrier: phases that end when all have arrived and all bytes are there."""

    def __init__(self):
        self.changed, self.count, self.phase, self.bytes = threading.Condition(), None, 0, 0
        self.late = []  # copies that have not arrived

    def begin(self, count):
        self.count = self.missing = count

    def update(self, arrivals=0, more_bytes=0):
        with self.changed:
            self.missing -= arrivals
            self.bytes += more_bytes
            assert self.missing >= 0, "more arrivals than a phase of the barrier has"
            assert self.bytes >= 0, "more bytes than were announced"
            if self.missing == 0 and self.bytes == 0:
                self.phase, self.missing = self.phase + 1, self.count
                self.changed.notify_all()

    def wait(self, parity):
        with self.changed:
            while self.phase % 2 == parity:
                if self.late:
                    self.late.pop(0)()
                elif not self.changed.wait_for(
                        lambda: self.late or self.phase % 2 != parity, SECONDS):
                    raise Deadlock(f"waited for parity {parity} in phase {self.phase}")


class Shared:
    """Shared memory: full of NaN until it is written to."""

    def __init__(self, data):
        self.data, self.shape, self.dtype = data, list(data.shape), data.dtype

    def index(self, i):
        return Shared(self.data[int(i)])

    def permute(self, order):
        return Shared(self.data.permute(order))

    def store(self, values):
        self.data.copy_(values)
        own.unfenced.add(self.data.data_ptr())


class Barriers(list):
    @property
    def shape(self):
        return [len(self), 1]

    def index(self, i):
        return self[int(i)]


class Pointer:
    """Global memory from an element, or several, on."""

    def __init__(self, data, where=0):
        self.data, self.where = data, where

    def __add__(self, more):
        return Pointer(self.data, self.where + more)


class Descriptor:
    """The kernel's view of a host's TensorDescriptor."""

    def __init__(self, host):
        self.data, self.layout, self.dtype = host.base.detach(), host.layout, host.base.dtype
        self.block_type = types.SimpleNamespace(
            shape=list(host.block_shape),
            nbytes=host.block_shape[0] * host.block_shape[1] * host.base.itemsize)

    def window(self, corner):
        """→ the part of the matrix under the tile with this corner, and its place in the tile."""
        (rows, columns), (i, j) = self.block_type.shape, (int(x) for x in corner)
        inside = self.data[i:i + rows, j:j + columns]
        return inside, (slice(len(inside)), slice(inside.shape[1]))


own = threading.local()  # for each part: its pending products and copies, its program's place
owners = {}  # (tensor, element): the part of a program that wrote it in this launch
engine = random.Random(0)


def copy_in(descriptor, corner, barrier, destination):
    destination.data.fill_(torch.nan)

    def arrive():
        inside, where = descriptor.window(corner)
        tile = torch.zeros_like(destination.data)
        tile[where] = inside
        destination.data.copy_(tile)
        barrier.update(more_bytes=-descriptor.block_type.nbytes)

    with barrier.changed:
        barrier.late.append(arrive)
        if engine.random() < EARLY:
            barrier.late.pop()()
        barrier.changed.notify_all()


def copy_out(descriptor, corner, source):
    assert source.data.data_ptr() not in own.unfenced, "no fence between the store and the copy"

    def arrive():
        inside, where = descriptor.window(corner)
        inside.copy_(source.data[where])

    own.copies.append(arrive)


def wait_for(queue, left):
    while len(queue) > left:
        queue.pop(0)()


def multiply(a, b, total, use_acc=True, is_async=False):
    assert is_async
    if not use_acc:
        total.zero_()
    own.products.append(lambda: total.add_(a.data.float() @ b.data.float()))
    return total


def multiplied(left, deps):
    wait_for(own.products, left)
    return deps[0]


def load(pointer, mask=True, other=0):
    where = torch.as_tensor(pointer.where)
    mask = torch.as_tensor(mask).expand(where.shape)
    found = torch.full(where.shape, other, dtype=pointer.data.dtype)
    found[mask] = pointer.data.view(-1)[where[mask]]
    return found


def store(pointer, values, mask, add=False):
    where = pointer.where[mask]
    for element in where.tolist():
        owner = owners.setdefault((pointer.data.data_ptr(), element), own.name)
        assert owner == own.name, f"{owner} and {own.name} write to one place"
    pointer.data.view(-1).index_put_((where,), values[mask], accumulate=add)


def specialize(parts, warps, registers):
    """Run every part in a thread of its own, and raise here what one of them raises."""
    errors, place = [], own.place

    def run(number, function, arguments):
        own.products, own.copies, own.unfenced, own.place = [], [], set(), place
        own.name = f"part {number} of program {place[0]}"
        try:
            function(*arguments)
            assert not own.products and not own.copies, "a program ended with work under way"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number, *part), daemon=True)
               for number, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((x for x in errors if not isinstance(x, Deadlock)), errors[0])


def allocate(dtype, shape, layout):
    if dtype == torch.int64:  # barriers, in these kernels
        return Barriers(Barrier() for _ in range(shape[0]))
    return Shared(torch.full(list(shape), torch.nan, dtype=dtype))


LANGUAGE = types.SimpleNamespace(
    float32=torch.float32, int64=torch.int64, static_range=range,
    allocate_shared_memory=allocate, warp_specialize=specialize, load=load, store=store,
    atomic_add=lambda pointer, values, mask, sem: store(pointer, values, mask, add=True),
    program_id=lambda axis: own.place[0][axis], num_programs=lambda axis: own.place[1][axis],
    SliceLayout=lambda *_: None, convert_layout=lambda x, layout: x,
    full=lambda shape, value, dtype, layout: torch.full(list(shape), value, dtype=dtype),
    arange=lambda start, end, layout: torch.arange(start, end), cdiv=lambda a, b: -(-a // b),
    cast=lambda x, dtype: x, min=lambda x, axis: x.amin(axis), max=lambda x, axis: x.amax(axis),
    sum=lambda x, axis: x.sum(axis), exp2=torch.exp2, where=torch.where,
    abs=torch.abs, log2=torch.log2, minimum=min,
    maximum=lambda a, b, propagate_nan=True: torch.clamp(a, min=b),
    PropagateNan=types.SimpleNamespace(ALL=True),
    split=lambda x: (x[..., 0].clone(), x[..., 1].clone()))
HOPPER = {
    "gl": LANGUAGE, "tl": LANGUAGE,
    "hopper": types.SimpleNamespace(
        warpgroup_mma=multiply, warpgroup_mma_wait=multiplied,
        fence_async_shared=lambda: own.unfenced.clear()),
    "mbarrier": types.SimpleNamespace(
        MBarrierLayout=lambda: None, init=lambda barrier, count: barrier.begin(count),
        wait=lambda barrier, parity: barrier.wait(int(parity)),
        expect=lambda barrier, count: barrier.update(1, count),
        arrive=lambda barrier, pred=True: pred and barrier.update(1)),
    "tma": types.SimpleNamespace(
        async_copy_global_to_shared=copy_in, async_copy_shared_to_global=copy_out,
        store_wait=lambda left: wait_for(own.copies, left))}


def plain(module) -> dict:
    """The module's names, with its Gluon functions as plain Python over the stand-ins above.

    Functions may come from another module, with names of that one.
    """
    found = {}
    for x in list(vars(module).values()):
        if type(x).__name__ == "GluonJITFunction":
            found |= x.fn.__globals__
    found |= vars(module)
    names = {name: getattr(x, "value", x) for name, x in found.items()} | HOPPER
    for name, x in list(names.items()):
        if type(x).__name__ == "GluonJITFunction":
            names[name] = types.FunctionType(x.fn.__code__, names, name, x.fn.__defaults__)
    return names


def given(argument):
    """An argument of a launch as a kernel sees it."""
    if isinstance(argument, torch.Tensor):
        return Pointer(argument.detach())
    if isinstance(argument, tuple):  # a NamedTuple
        return type(argument)(*map(given, argument))
    return Descriptor(argument) if hasattr(argument, "block_shape") else argument


class Launcher:
    """`kernel[grid](arguments)`, one program after the other."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            owners.clear()
            for place in product(*map(range, grid)):
                own.place = place, grid
                self.function(*map(given, arguments), **{
                    name: x for name, x in options.items() if name not in OPTIONS})
        return launch


@contextmanager
def on_cpu(module, monkeypatch, seed=0):
    """Within this context, the module's kernels run in this interpreter."""
    names = plain(module)
    engine.seed(seed)
    with monkeypatch.context() as patch:
        for name in names:
            if name.endswith("_kernel") and hasattr(module, name):
                patch.setattr(module, name, Launcher(names[name]))
        yield
