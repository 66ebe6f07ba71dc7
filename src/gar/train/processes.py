"""What the processes that train together tell each other."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from gar.train.launch import meeting


def join(backend: str = "gloo") -> tuple[int, int]:
    """Meet the other processes that were started with this one; its number and how many train together.

    By "nccl" each takes the GPU of its number on this machine: it is what "cuda" then means.

    Raises:
        ValueError: there is no such GPU.
    """
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if backend == "nccl":
            local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= there:
                raise ValueError(f"{there} GPUs here, and a process for number {local}: start one for each GPU")
            torch.cuda.set_device(local)
        # They wait while one of them measures, for which NCCL's ten minutes can be too short.
        dist.init_process_group(backend, meeting(), timedelta(hours=2), rank=rank, world_size=world)
        atexit.register(_part)
    return rank_and_world()


def _part() -> None:
    """Leave the others: threads that still listen to them when Python ends can abort a process that is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Any) -> list[Any]:
    """Every process's value; none goes on before all have come."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    every: list[Any] = [None] * world
    dist.all_gather_object(every, value)
    return every
