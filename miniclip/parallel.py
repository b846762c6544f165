"""Several processes that train one model together, and batches larger than memory.

    torchrun --nproc-per-node 8 -m miniclip train …     PyTorch's launcher, on one machine or many
    miniclip train --processes 8 …                      the same launcher, on this machine
    srun --ntasks 16 miniclip train …                   Slurm's

Each process holds the whole model and a part of every batch. PyTorch does the rest:
DistributedDataParallel averages the gradients, and the loss is that of all pairs
(`clip_loss(group=…)`): each image is compared with the texts of all processes. So the number of
processes changes how long a step takes, and not what is learnt. The first process, rank 0, alone
writes to the run's folder and speaks to the user.

Every process computes all of Muon's updates. For ViT-B/32 these are 2 · 10¹² operations, some 5 ms
of an H100. Shared out, they would be 340 MB to exchange at every step, which between machines takes
as long (7 ms at 50 GB/s). It takes equal hardware: weights are sent once, at the start.

Gradient caching (Gao et al. 2021, arXiv 2101.06983) is for batches whose activations don't fit. A
contrastive loss needs the features of all pairs at once, but not their activations:

    features of each micro-batch, activations forgotten      forward
    loss of all features, and its gradient by them           small: (B, D)
    each micro-batch again, its backward pass from there     forward, backward
"""

import gc
import hashlib
import logging
import os
import re
import signal
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from miniclip import notices

ASSEMBLY = timedelta(minutes=10)  # for all processes to come
PATIENCE = timedelta(hours=24)  # for one that is slower: it indexes shards, and the others wait
LINGER = 1.0  # seconds: whoever lost another process ends later, so that the first to end is named
LOST = 3  # exit code of a process that lost another one
SLURM = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"


class LostProcess(RuntimeError):
    """The connection to another process broke: it has ended, or the network failed."""


class SaidByAnother(RuntimeError):
    """Another process has told the user already: its cause, and nobody says it twice."""


class Workers(NamedTuple):
    """The processes that train together, and this one's place among them."""

    rank: int = 0
    count: int = 1
    local: int = 0  # its place among those of its machine
    group: Any = None  # torch.distributed.ProcessGroup, None for one process
    store: Any = None  # where they leave each other notes

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """This process's part of a batch. ValueError if it can't be divided."""
        if batch_size % self.count:
            raise ValueError(f"batch_size is {batch_size}, of all processes together; it must be a "
                             f"multiple of their number, {self.count}")
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model, with gradients that are averaged over all processes."""
        if self.group is None or not any(p.requires_grad for p in model.parameters()):
            return model
        # Of a convolution of 1 × 1 pixels, whose strides may be counted in two ways.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        return nn.parallel.DistributedDataParallel(model, process_group=self.group)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes; all must ask."""
        if self.group is None:
            return flag
        return bool(self.mean(torch.tensor(float(flag))) > 0)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes; all must ask."""
        if self.group is None:
            return x
        x = x.to(meeting_device(self.group), copy=True)
        dist.all_reduce(x, group=self.group)
        return x / self.count

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """(M, …) of each process → (K · M, …), in the order of ranks; all must ask."""
        if self.group is None:
            return x
        parts = [torch.empty_like(x) for _ in range(self.count)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts)

    def check_alike(self, what: str, value: str):
        """ValueError on all processes unless all have the same value; all must ask."""
        if self.group is None:
            return
        number = int.from_bytes(hashlib.sha256(value.encode("utf-8", "replace")).digest()[:7])
        everyone = self.gathered(torch.tensor([number], device=meeting_device(self.group)))
        if other := [rank for rank, x in enumerate(everyone.tolist()) if x != everyone[0]]:
            raise ValueError(f"the processes don't have the same {what}: rank {other[0]} has "
                             "another than rank 0")

    def wait(self):
        """Until all processes are here."""
        self.any(False)

    @contextmanager
    def first_then_others(self):
        """One process of each machine first: it fills the caches that the others read."""
        if self.local:
            self.wait()
        try:
            yield
        finally:  # also after an error, which the others are about to meet as well
            if not self.local:
                self.wait()


ALONE = Workers()


def meeting_device(group) -> torch.device:
    """Where tensors must lie that the group exchanges."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


# ------------------------------------------------------------------------------- joining


def surroundings() -> dict[str, str] | None:
    """PyTorch's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or None if this
    process is alone. torchrun sets them; Slurm's are translated.

    ValueError, in one line, if some are missing.
    """
    here = os.environ
    if "RANK" in here or "WORLD_SIZE" in here:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in names if name not in here]:
            raise ValueError(f"some of torchrun's variables are set, but not {', '.join(missing)}: "
                             "start with torchrun, or unset RANK and WORLD_SIZE")
        return {"LOCAL_RANK": "0"} | {name: here[name] for name in (*names, "LOCAL_RANK")
                                      if name in here}
    # Slurm's batch script itself is no step; only `srun` starts one task beside another.
    if "SLURM_STEP_ID" in here and int(here.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        rank, count, local = (here[name] for name in SLURM)
        nodes = here.get("SLURM_STEP_NODELIST") or here.get("SLURM_NODELIST", "localhost")
        return {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": local,
                "MASTER_ADDR": here.get("MASTER_ADDR", first_node(nodes)),
                "MASTER_PORT": here.get("MASTER_PORT", slurm_port(here.get("SLURM_JOB_ID", "0")))}
    return None


def first_node(nodes: str) -> str:
    """Slurm's list of nodes → the first: "gpu[003-005,9],login" → "gpu003"."""
    prefix, bracket, rest = re.match(r"([^,\[]+)(\[?)(.*)", nodes).groups()
    return prefix + (re.match(r"\w+", rest)[0] if bracket else "")


def slurm_port(job: str) -> str:
    """A port that two jobs on one node don't share, most likely."""
    return str(15000 + int(job) % 20000)


@contextmanager
def joined(device: torch.device):
    """The processes that this one was started with (`Workers`), for as long as they train.

    A program that has called torch.distributed.init_process_group itself keeps its group.

    Raises ValueError for variables that don't fit together, LostProcess if another process ends,
    SaidByAnother for an error that another process has told.
    """
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        yield Workers(rank, dist.get_world_size(), rank, dist.group.WORLD)
        return
    found = surroundings() if dist.is_available() else None
    if found is None or found["WORLD_SIZE"] == "1":
        yield ALONE
        return
    workers = meet(found, device)
    notices.silence(not workers.first)
    try:
        yield workers
    except (Exception, KeyboardInterrupt) as error:
        if is_lost(error):
            time.sleep(LINGER)
            error = LostProcess("lost another process; what was saved is kept: go on with "
                                f"--resume. PyTorch says: {notices.one_line(error)[:200]}")
        lost = isinstance(error, LostProcess)
        if not first_to_say(workers.store, "lost" if lost else str(error)):
            raise SaidByAnother from error
        raise error
    else:
        workers.wait()  # rank 0 has written everything
        gc.collect()  # of DistributedDataParallel: a group that ends before it aborts now and then
        dist.destroy_process_group()


def meet(found: dict[str, str], device: torch.device) -> Workers:
    """Wait until all are there. ValueError, in one line, if they don't come."""
    os.environ.update(found)
    rank, count, local = (int(found[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device.type == "cuda":
        there = torch.cuda.device_count()
        bound = there == 1 and "SLURM_PROCID" in os.environ  # it may show each task its own
        if local >= there and not bound:
            raise ValueError(f"process {local} of this machine has no GPU of its own: there are "
                             f"{there}; start as many processes")
        torch.cuda.set_device(0 if bound else local)
    elif device.type != "cpu":
        raise ValueError(f"several processes train on CUDA GPUs or with --device cpu, not on "
                         f"{device.type}")
    try:
        store, rank, count = next(dist.rendezvous("env://", rank, count, timeout=ASSEMBLY))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE,
                                store=dist.PrefixStore("training", store), rank=rank,
                                world_size=count)
        workers = Workers(rank, count, local, dist.group.WORLD, dist.PrefixStore("said", store))
        workers.wait()  # who ends at once, with an error, would break others' connecting
    except (RuntimeError, OSError) as error:
        raise ValueError(f"the processes can't meet at {found['MASTER_ADDR']}:"
                         f"{found['MASTER_PORT']}: {notices.one_line(error)[:200]}") from error
    return workers


def leave(code: int):
    """End this process after an error. Where processes train together gloo's threads would abort
    it, and the launcher would report that instead of the code."""
    if dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.2)  # others may still be reading what this one has sent
        os._exit(code)


def is_lost(error: Exception) -> bool:
    """Whether an error means that another process is gone: NCCL, gloo and their stores say so."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def first_to_say(store, line: str) -> bool:
    """Whether no other process has said this line. Without a store, or without an answer, say it.
    """
    try:
        return store.add(line[:200], 1) == 1
    except (RuntimeError, AttributeError):
        return True


# ------------------------------------------------------------------------------- starting


def launch(count: int, arguments: list[str]) -> int:
    """Start `count` processes of `miniclip ARGUMENTS` by PyTorch's launcher → exit code.

    It is what `torchrun --standalone` does. If a process ends with an error the others are ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0,
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.1,
                          run_id=str(os.getpid()))
    try:
        elastic_launch(config, sys.executable)("-m", "miniclip", *arguments)
    except ChildFailedError as error:
        return told(error.failures)
    except SignalException as stop:  # it has been passed on: the processes have saved
        return 128 + stop.sigval
    return 0


def told(failures: dict) -> int:
    """Name the process that failed first, unless it has said why → the exit code."""
    later = (LOST, -signal.SIGTERM)  # who lost another one, and whom the launcher ended
    code, rank = min(((failure.exitcode, rank) for rank, failure in failures.items()),
                     key=lambda end: (end[0] in later, end))
    if code < 0:  # a signal: it could not say anything itself
        print(f"miniclip train: rank {rank} was ended by {signal.Signals(-code).name}",
              file=sys.stderr)
    return code if code > 0 else 128 - code


# ------------------------------------------------------------------------------- gradient caching


def cached(towers: nn.Module, pixels: torch.Tensor, tokens: torch.Tensor, size: int, loss_of,
           used=()):
    """A batch's gradients, `size` pairs at a time → loss (), features (B, D) twice, scale ().

    Args:
        towers: a CLIP, or one that `Workers.wrapped` gave.
        pixels, tokens: the batch, as the model takes it.
        size: pairs of a micro-batch: only their activations are in memory at a time.
        loss_of: (image features, text features, scale) → the loss, of all pairs.
        used: parameters that loss_of uses, beside what the towers give.

    Random numbers of the second pass (dropout) are those of the first.
    """
    parts = [slice(i, i + size) for i in range(0, len(pixels), size)]
    states, found = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(pixels.device))
            found.append(towers(pixels[part], tokens[part]))
    torch.clear_autocast_cache()  # of weights that were cast where no gradients are recorded
    # The features are leaves now, and so is the scale: what the loss says of them is kept.
    leaves = [torch.cat([x[i] for x in found]).requires_grad_() for i in range(2)]
    leaves.append(found[0][2].requires_grad_())
    alone = getattr(towers, "no_sync", nullcontext)  # the gradients of all parts travel once
    with alone():
        loss = loss_of(*leaves)
        loss.backward()
    end = random_state(pixels.device)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        set_random_state(states[number], pixels.device)
        with nullcontext() if last else alone():
            *features, scale = towers(pixels[part], tokens[part])
            ends = [(x, leaf.grad[part]) for x, leaf in zip(features, leaves)]
            if last:  # the scale is one for all pairs; what loss_of used has its gradient already
                ends += [(scale, leaves[2].grad), *((p, torch.zeros_like(p)) for p in used)]
            torch.autograd.backward(*zip(*(end for end in ends if end[0].requires_grad)))
    set_random_state(end, pixels.device)
    return loss, *leaves


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The state of the generators that a forward pass may use."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[torch.Tensor], device: torch.device):
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
