"""Several processes of torch.distributed on this machine (gloo), each with one thread."""

import os

import torch


def together(count, folder, function, *arguments) -> list:
    """function(rank, count, *arguments) in `count` processes → what each of them gave.

    An exception in one of them is raised here. `function` must be importable.
    """
    meeting = folder / f"{function.__name__} of {count}"
    meeting.mkdir()
    torch.multiprocessing.spawn(one, (count, str(meeting), function, arguments), nprocs=count)
    return [torch.load(meeting / f"{rank}.pt") for rank in range(count)]


def one(rank, count, folder, function, arguments):
    """A process of the group."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.save(function(rank, count, *arguments), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    # The result is saved, and all processes know. Exit without destroying the group: there gloo's
    # threads abort now and then (about once in 300 runs, with both results on disk).
    os._exit(0)
