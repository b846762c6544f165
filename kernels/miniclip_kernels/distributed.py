"""The loss of all processes together. Each holds M pairs, which are M rows of S, and N = K · M.

    process k:   I_k, T_k (M, D)            its own pairs
                 S_k = s · I_k Tᵀ (M, N)    its slab: own images among all texts

What most people run makes two such slabs for each process, images among texts and texts among
images, and gathers both sides. But the rows of one slab are whole, and its columns are a part of
what the columns of all slabs are. So one slab is enough, and one side travels:

    gather T                                                       N · D numbers
    r_k whole, c of these rows alone, from one pass                1 product
    merge c over the processes, in the log domain                  N numbers, a MAX and a SUM
    L_k = ½ mean(r_k + c_k − 2 positives)
    G_k from r_k and c;  dI_k = G_k T is whole                     3 products
    dT = Σ_k G_kᵀ I_k goes home by reduce-scatter                  N · D numbers

The slab does that. The ring never gathers all of T, for batches where even N · D is too much: texts
go round from process to process, M at a time. Their column sums, and later their gradients, travel
with them. The next texts are on their way while those that are here are multiplied. The ring sends
T twice, and dT in float32.

The mean of L_k over the processes is the loss of all N pairs, and so is the mean of the gradients
that DistributedDataParallel takes. (It is what open_clip calls local_loss with gather_with_grad.)
"""

import math
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import backends
from .autograd import NAMESPACE, in_places, only, without_autocast
from .backends import DTYPES, Labels, Needs


class Together(NamedTuple):
    """A group of processes, and this one's place in it."""

    group: object  # torch.distributed.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of(cls, name: str) -> "Together":
        """The group of that name: operators take no groups."""
        group = dist.distributed_c10d._resolve_process_group(name)
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def own(self, x):
        """This process's part of what is there for all: (N, …) → (M, …)."""
        M = len(x) // self.size
        return x[self.rank * M:(self.rank + 1) * M]


# ------------------------------------------------------------------------------ what travels


def gathered(x: Tensor, together: Together) -> Tensor:
    """(M, …) of each process → (K · M, …), in the order of ranks."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    found = x.new_empty(together.size * len(x), *x.shape[1:])
    gather(found, x.contiguous(), group=together.group)
    return found


def sent_home(x: Tensor, together: Together) -> Tensor:
    """(K · M, …) of each process → the sum over processes of one's own part, (M, …)."""
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    found = x.new_empty(len(x) // together.size, *x.shape[1:])
    scatter(found, x, group=together.group)
    return found


def merged(c: Tensor, base: float, together: Together) -> Tensor:
    """log Σ exp of the columns, of each process's rows → of all rows: (N,)."""
    top = c.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, together.group)
    total = torch.exp((c - top) * math.log(base))
    dist.all_reduce(total, dist.ReduceOp.SUM, together.group)
    return top + total.log() / math.log(base)


def round_the_ring(tensors, together: Together):
    """Send tensors to the process before, and receive the next one's: → the latter, and `wait`.

    What is received is there once `wait` has been called.
    """
    tensors = [x.contiguous() for x in tensors]
    if together.size == 1:  # gloo can't send to itself
        return tensors, lambda: None
    before, after = (dist.get_global_rank(together.group, (together.rank + step) % together.size)
                     for step in (-1, 1))
    received = [torch.empty_like(x) for x in tensors]
    requests = dist.batch_isend_irecv([
        *(dist.P2POp(dist.isend, x, before, together.group) for x in tensors),
        *(dist.P2POp(dist.irecv, x, after, together.group) for x in received)])

    def wait(keep=tensors):  # what is being sent must live until it is sent
        for request in requests:
            request.wait()

    return received, wait


@cache
def aside(device):
    """A stream for questions. Each stream keeps memory of its own, so there is one a device."""
    return torch.cuda.Stream(device)


def check_alike(together: Together, device, mine: list[int]):
    """ValueError on every process, if what they want to compare is not alike.

    mine: M, D, the number of the dtype, whether there are ids, a number for all else that must be
    alike; M is −1 if this process has refused its input, so that the others don't wait for it.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return  # a graph is captured once it has run
    # On a GPU it waits for this group's earlier collectives, not for other work.
    with torch.cuda.stream(aside(device)) if device.type == "cuda" else nullcontext():
        everyone = gathered(torch.tensor([mine], device=device), together).tolist()
    if mine[0] < 0 or all(found == everyone[0] for found in everyone):
        return
    refused = [str(rank) for rank, found in enumerate(everyone) if found[0] < 0]
    if refused:
        raise ValueError(f"rank {', '.join(refused)} refused its input; its own error says why")
    if len({tuple(kind) for *kind, _ in everyone}) == 1:
        raise ValueError("all ranks must call the loss alike: the same backend, ring or no ring, "
                         "and with gradients for the texts on all or on none")
    told = "; ".join(
        f"rank {rank}: {M} pairs of {D} features, {DTYPES[dtype]}{', with ids' * ids}"
        for rank, (M, D, dtype, ids, _) in enumerate(everyone))
    raise ValueError(f"all ranks must bring as many pairs of the same kind; {told}")


def checked_by_all(group, features, check):
    """What check() gives. If it raises ValueError here, all others raise one: nobody waits.

    features: images and texts as given. Where they are, the others' are too.
    """
    try:
        return check()
    except ValueError:
        if not torch.compiler.is_compiling():
            near = [x.device for x in features if isinstance(x, Tensor) and not x.is_meta]
            if not near:  # a guess
                on_gpu = torch.cuda.is_available() and dist.get_backend(group) != "gloo"
                near = [torch.device("cuda", torch.cuda.current_device()) if on_gpu
                        else torch.device("cpu")]
            device = max(near, key=lambda x: x.type != "cpu")
            check_alike(Together.of(group.group_name), device, [-1, 0, 0, 0, 0])
        raise


# ------------------------------------------------------------------------------ the slab


def slab_forward(I, T, scale, ids, run, together):  # noqa: E741
    """→ r (M,), c (N,), and what the backward pass needs of the others: T (N, D), text ids (N,)."""
    every_T = gathered(T, together)
    every_id = [gathered(ids[1], together)] if ids else []
    labels = Labels(together.rank * len(I), True, *ids[:1], *every_id)
    r, c = run.logsumexps(I, every_T, scale, labels)
    return r, merged(c, run.BASE, together), [every_T, *every_id]


def slab_backward(upstream, saved, ids, others, run, together, needs):
    """→ dI (M, D), dT (M, D), ds (), or None."""
    (I, _, scale, r, c), (every_T, *every_id) = saved, others  # noqa: E741
    labels = Labels(together.rank * len(I), True, *ids[:1], *every_id)
    dI, dT, ds = run.backward(upstream, I, every_T, scale, r, c, labels, needs)
    return dI, sent_home(dT, together) if needs.texts else None, ds


# ------------------------------------------------------------------------------ the ring


def stations(travellers, M, ids, together: Together):
    """The stations of a ring, K of them: (the labels of the texts that are here, what is here).

    travellers: this process's T, and whatever else belongs to its texts. At every station all
    processes have another one's; the next are on their way while these are worked on.
    """
    here = [*travellers, *ids[1:]]
    for step in range(together.size):
        owner = (together.rank + step) % together.size
        last = step == together.size - 1
        if not last:
            following, wait = round_the_ring(here, together)
        yield (Labels((together.rank - owner) * M, True, *ids[:1], *here[len(travellers):]),
               here[:len(travellers)])
        if not last:
            wait()
            here = following


class Travelling:
    """Sums that belong to texts: each process adds its part and sends them after the texts."""

    def __init__(self, together: Together, add=torch.add):
        self.together, self.add, self.arriving = together, add, None

    def take(self, part: Tensor):
        """Add this process's part to what those before it have found for the same texts."""
        part = part if self.arriving is None else self.add(self.home(), part)
        self.arriving = round_the_ring([part], self.together)

    def home(self) -> Tensor:
        """What has arrived; after the last station, the sum of all for one's own texts."""
        (received,), wait = self.arriving
        wait()
        return received


def ring_forward(I, T, scale, ids, run, together):  # noqa: E741
    """→ r (M,), and c of one's own texts (M,)."""
    add = torch.logaddexp2 if run.BASE == 2 else torch.logaddexp
    r, c = None, Travelling(together, add)
    for labels, (T_here,) in stations([T], len(I), ids, together):
        r_part, c_part = run.logsumexps(I, T_here, scale, labels)
        r = r_part if r is None else add(r, r_part)
        c.take(c_part)
    return r, c.home()


def ring_backward(upstream, saved, ids, run, together, needs):
    """As `slab_backward`, without others."""
    I, T, scale, r, c = saved  # noqa: E741
    dI = torch.zeros_like(I, dtype=scale.dtype) if needs.images else None
    ds, dT = torch.zeros_like(scale), Travelling(together)
    for labels, (T_here, c_here) in stations([T, c], len(I), ids, together):
        parts = run.backward(upstream, I, T_here, scale, r, c_here, labels, needs)
        if needs.images:
            dI += parts[0]
        if needs.texts:
            dT.take(parts[1].to(scale.dtype))
        if needs.scale:
            ds += parts[2]
    return (dI.to(I.dtype) if needs.images else None,
            dT.home().to(T.dtype) if needs.texts else None, ds)


def sigmoid_ring(I, T, scale, bias, ids, backend, group, needs):  # noqa: E741
    """→ Σ loss, Σ G () of these rows; G T (M, D); Gᵀ I (M, D) of all rows, for one's own texts."""
    together = Together.of(group)
    check_alike(together, I.device, [*I.shape, DTYPES.index(I.dtype), len(ids) > 0,
                                     int(needs.texts)])
    run = backends.sigmoid(backend, I, len(T) * together.size)
    loss, total = torch.zeros_like(scale), torch.zeros_like(scale)
    sum_I = torch.zeros_like(I, dtype=scale.dtype) if needs.images else None
    sum_T = Travelling(together)
    for labels, (T_here,) in stations([T], len(I), ids, together):
        parts = run(I, T_here, scale, bias, labels, needs)
        loss += parts[0]
        total += parts[1]
        if needs.images:
            sum_I += parts[2]
        if needs.texts:
            sum_T.take(parts[3])
    return loss, total, sum_I, sum_T.home() if needs.texts else None


def alike_or_nan(upstream: Tensor, group: str) -> Tensor:
    """The upstream gradient, or NaN if the processes multiply their losses by different factors."""
    everyone = gathered(upstream.reshape(1), Together.of(group))
    return torch.where((everyone == upstream).all(), upstream, torch.nan)


# ------------------------------------------------------------------------------ autograd


def forward(I: Tensor, T: Tensor, scale: Tensor, ids: list[Tensor], backend: str,  # noqa: E741
            group: str, ring: bool, learns: bool) -> list[Tensor]:
    """→ loss (), r (M,), c (N,) or (M,), and what was gathered.

    learns: whether texts want a gradient, which is a collective of the backward pass.
    """
    with without_autocast(I.device.type):
        together = Together.of(group)
        run = backends.module(backends.choose(backend, I, len(T) * together.size))
        check_alike(together, I.device, [*I.shape, DTYPES.index(I.dtype), len(ids) > 0,
                                         4 * learns + 2 * ring + (run.BASE == 2)])
        if ring:
            r, c = ring_forward(I, T, scale, ids, run, together)
            own, others = c, []
        else:
            r, c, others = slab_forward(I, T, scale, ids, run, together)
            own = together.own(c)
        positives = scale * torch.cat([  # some rows at a time: vecdot stores all its products
            torch.linalg.vecdot(*(x[i:i + 8192].to(scale.dtype) for x in (I, T)))
            for i in range(0, len(I), 8192)])
        loss = ((r + own) * (math.log(run.BASE) / 2) - positives).mean()
        return [loss, r, c, *others]


def backward(upstream: Tensor, saved: list[Tensor], ids: list[Tensor], others: list[Tensor],
             backend: str, group: str, ring: bool, needs: list[bool]) -> list[Tensor]:
    """saved: I, T, the scale, r, c → the gradients that are wanted, of I, T and the scale."""
    I, T, *_ = saved  # noqa: E741
    with without_autocast(I.device.type):
        together, needs = Together.of(group), Needs(*needs)
        run = backends.module(backends.choose(backend, I, len(T) * together.size))
        upstream = alike_or_nan(upstream, group)
        if ring:
            found = ring_backward(upstream, saved, ids, run, together, needs)
        else:
            found = slab_backward(upstream, saved, ids, others, run, together, needs)
        return only(needs, found)


forward_operator = torch.library.custom_op(
    f"{NAMESPACE}::distributed_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op(
    f"{NAMESPACE}::distributed_backward", backward, mutates_args=())
alike_operator = torch.library.custom_op(
    f"{NAMESPACE}::alike_or_nan", alike_or_nan, mutates_args=())


@forward_operator.register_fake
def _(I, T, scale, ids, backend, group, ring, learns):  # noqa: E741
    M, D = I.shape
    N = M if ring else M * Together.of(group).size
    others = [] if ring else [T.new_empty(N, D), *(x.new_empty(N) for x in ids[1:])]
    return [scale.new_empty(()), scale.new_empty(M), scale.new_empty(N), *others]


@backward_operator.register_fake
def _(upstream, saved, ids, others, backend, group, ring, needs):
    return only(needs, [given.new_empty(given.shape) for given in saved])


@alike_operator.register_fake
def _(upstream, group):
    return torch.empty_like(upstream)


class DistributedLoss(torch.autograd.Function):
    """I, T (M, D), scale, settings (backend, group's name, ring, learns), ids of both → L_k."""

    @staticmethod
    def forward(ctx, I, T, scale, settings, image_ids, text_ids):  # noqa: E741
        ids = [] if image_ids is None else [image_ids, text_ids]
        run = forward_operator if torch.compiler.is_compiling() else forward
        loss, r, c, *others = run(I, T, scale, ids, *settings)
        ctx.save_for_backward(I, T, scale, r, c, *ids, *others)
        ctx.settings, ctx.ids = settings, len(ids)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        saved = list(ctx.saved_tensors)
        ids, others = saved[5:5 + ctx.ids], saved[5 + ctx.ids:]
        compiled = torch.compiler.is_compiling() or torch.is_grad_enabled()
        run, needs = backward_operator if compiled else backward, list(ctx.needs_input_grad[:3])
        found = run(upstream, saved[:5], ids, others, *ctx.settings[:3], needs)
        return *in_places(needs, found), None, None, None
