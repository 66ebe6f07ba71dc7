"""The training loop: a stage over packed samples, resumable to the exact step.

What a step sees depends on the seed and on how far the run has come, so a run that was killed goes on as if it had not
been. Under `torchrun` every process takes its part of each step's pictures, and the gradients are the mean of theirs;
sharded (FSDP2), weights and the optimiser's state are spread over the processes too.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from gar.data.packing import Pack, Reading, collate
from gar.data.sample import Sample, write_shard
from gar.data.stream import Data, Rejects
from gar.inputs.processor import GARProcessor
from gar.model.gar import GARForConditionalGeneration
from gar.train.checkpoint import load, save
from gar.train.feed import Augment, Feed
from gar.train.heads import RegionHeads
from gar.train.log import Log
from gar.train.objective import Objective
from gar.train.processes import gathered, rank_and_world
from gar.train.recipes import Stage

CALM = 50  # steps before a loss can be called a spike
DEVIATIONS = 10  # of the losses of those steps, at least, that a spike is above their mean


@contextmanager
def _flushed() -> Iterator[None]:
    """What is all but zero counts as zero: a CPU computes many times as long with such numbers."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_flushed()
def train(
    model: GARForConditionalGeneration,
    processor: GARProcessor,
    samples: Sequence[Sample] | Data,
    stage: Stage,
    out: Path,
    *,
    heads: RegionHeads | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    save_every: int = 250,
    keep: int = 2,
    log_every: int = 25,
    validate: Callable[[Objective], dict[str, float]] | None = None,
    workers: int = 1,
    sharded: bool = False,
) -> Objective:
    """Run one stage, from its last checkpoint in `out` if there is one. Ends with the trained weights in the model.

    Args:
        samples: a list, or data in streaming.
        heads: auxiliary heads that train along. augment: a change of a picture's pixels that moves nothing.
        save_every: steps from one checkpoint and validation to the next. keep: so many checkpoints stay.
        validate: figures for the log. Of several processes the first one asks, all where the weights are sharded.
        workers: data workers a process; 0 makes the packs in the process itself.
        sharded: spread weights, gradients and the optimiser's state over the processes (FSDP2).

    Returns:
        The objective, with the model in it; sharded where it was asked for.

    Raises:
        ValueError: the loss is no number, or a spike; the batch is saved in `out`. A batch that processes cannot share.
    """
    rank, world = rank_and_world()
    objective = Objective(model, stage, heads, processor.tokenizer.pad_token_id)
    if sharded:
        objective.shard(init_device_mesh(objective.device.type, (world,)))
    optimizer, peaks = objective.optimizer()
    start, last = load(out, objective, optimizer)
    rejects = samples.rejects if isinstance(samples, Data) else Rejects(out / "rejects.jsonl")
    feed = Feed(samples, processor, stage, seed, augment, rank, world, start, last.get("places", []), workers, rejects)
    count = len(samples) if isinstance(samples, Sequence) else None
    log = Log(out, stage.name, start, quiet=rank > 0)
    log.begin(asdict(stage) | {"seed": seed, "samples": count, "processes": world, "sharded": sharded})
    objective.training_mode()
    # Of the steps since the last line of the log; what stands in a checkpoint is of all processes together.
    sums: Counter[str] = Counter(last.get("sums") if rank == 0 else None)
    recent: deque[float] = deque(last.get("recent", ()), maxlen=CALM)
    began = time.monotonic()

    for step, packs in enumerate(feed, start=start):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _schedule(step, stage)
        loss, norm, figures = gradients(objective, optimizer, packs, world, sharded)
        sums.update(figures)
        _check(_mean(loss, objective.device), norm, recent, stage, out / f"stopped-{step}", packs, objective)
        optimizer.step()
        done = step + 1
        if done % log_every == 0 or done == stage.steps:
            log(_averages(_total(sums)) | {"step": done, "seconds": round(time.monotonic() - began, 1)})
            sums.clear()
        if done % save_every == 0 or done == stage.steps:
            if validate and (rank == 0 or sharded):
                objective.eval()
                log({"step": done, "validation": validate(objective)})
                objective.training_mode()
            mine = feed.places[rank * max(workers, 1) : (rank + 1) * max(workers, 1)]
            places = [place for part in gathered(mine) for place in part]
            progress = {"places": places, "sums": _total(sums), "recent": [*recent]}
            save(out, done, objective, optimizer, progress, keep)
            log.plot()
    objective.eval()
    log.close()
    if rank == 0 and (rejected := rejects.summary()):
        print(f"gar: rejected: {rejected}" + (f"; see {rejects.path}" if rejects.path else ""), file=sys.stderr)
    return objective


def gradients(
    objective: Objective, optimizer: torch.optim.Optimizer, packs: list[Pack], world: int = 1, sharded: bool = False
) -> tuple[float, float, Counter[str]]:
    """The gradients of one step, clipped: this process's loss, their length, and this process's figures."""
    stage = objective.stage
    optimizer.zero_grad(set_to_none=True)
    loss, sums = 0.0, Counter()
    for weight, together in _groups(packs, stage, world):
        one, figures, _ = objective(together)
        (one * weight).backward()
        loss += one.item() * weight
        if weight:
            sums.update(figures)
    if not sharded:
        _share_gradients(optimizer, world)
    norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], stage.clip)
    return loss, float(norm.full_tensor() if isinstance(norm, DTensor) else norm), sums


def _groups(packs: list[Pack], stage: Stage, world: int) -> Iterator[tuple[float, list[Pack]]]:
    """A process's packs in groups that are encoded together, each with its weight in the mean over all processes.

    Groups are made as the packs were drawn, so they are the same for any number of processes, and gone through from the
    short to the long: sharded processes wait for each other at every group, and so have about as much to do. All go
    through equally many: one that has fewer repeats its last, which then weighs nothing.
    """
    size = stage.at_once or len(packs)
    total = stage.batch // stage.at_once if stage.at_once else world
    groups = [packs[i : i + size] for i in range(0, len(packs), size)]
    groups.sort(key=lambda group: max(len(p.input_ids) for p in group))
    for i in range(-(-total // world)):
        weight = world / total if i < len(groups) else 0.0
        yield weight, groups[min(i, len(groups) - 1)]


def _share_gradients(optimizer: torch.optim.Optimizer, world: int) -> None:
    """Every process's gradients become the mean of all: what one process gets from the mean of their losses."""
    if world == 1:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def _mean(loss: float, device: torch.device) -> float:
    """A number as the mean over all processes."""
    _, world = rank_and_world()
    if world == 1:
        return loss
    shared = torch.tensor(loss, dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    return float(shared) / world


def _check(
    loss: float,
    norm: float,
    recent: deque[float],
    stage: Stage,
    folder: Path,
    packs: list[Pack],
    objective: Objective,
) -> None:
    """Stop, before the weights are touched, where the loss is no number or a spike; keep what was seen."""
    # Of the steps before, losses scatter by a fifth of their mean where batches are large, by as much as itself where
    # they are small; both bounds keep chance from ending a run, the first alone where losses hardly scatter.
    usual, scatter = (float(np.mean(recent)), float(np.std(recent))) if recent else (0.0, 0.0)
    usual += 0.1  # a loss near nothing has no spikes
    spike = stage.spike and len(recent) == CALM and loss > max(stage.spike * usual, usual + DEVIATIONS * scatter)
    recent.append(loss)
    if math.isfinite(loss) and math.isfinite(norm) and not spike:
        return
    rank, _ = rank_and_world()
    write_shard([p.sample for p in packs], folder / f"samples-{rank}.parquet")
    batch = collate(packs)
    boxes = batch.pop("region_boxes")
    batch |= {k: v for k, v in vars(Reading.of(packs, objective.pad_id)).items() if k != "rows"}
    save_file(batch, folder / f"batch-{rank}.safetensors", {"region_boxes": json.dumps(boxes)})
    what = f"{loss / usual:.0f} times that of the steps before" if spike else f"{loss}, its gradient's length {norm}"
    raise ValueError(
        f"{stage.name} stopped: the loss is {what}. {folder} has the samples and the batch; the last checkpoint is "
        "from before. Look at the samples, or take a smaller rate"
    )


def _total(sums: Counter[str]) -> Counter[str]:
    """Figures of all processes together."""
    total: Counter[str] = Counter()
    for part in gathered(sums):
        total.update(part)
    return total


def _averages(sums: Counter[str]) -> dict[str, float]:
    """Figures per step, and shares."""
    steps = sums["steps"]
    line = {name: round(sums[name] / steps, 6) for name in ("language", "drift", "heads") if name in sums}
    for name in sums:
        if name.startswith("right/"):
            line[name[6:]] = round(sums[name] / max(sums[f"asked/{name[6:]}"], 1), 4)
    return line


def _schedule(step: int, stage: Stage) -> float:
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * done))
