"""The processes that train together, as `torchrun` starts them."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist


def join(backend: str = "gloo") -> tuple[int, int]:
    """Meet the other processes that `torchrun` started, if it did; this one's number and how many train together."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group(backend)
    return rank_and_world()


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
