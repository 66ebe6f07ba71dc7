"""The training loop: stages over packed samples, resumable to the exact step.

What a step sees depends on the seed and the step's number alone, so a run that was killed goes on as if it had not
been. Checkpoints are safetensors, written to a temporary folder that is then renamed. Under `torchrun` every process
takes its part of each step's pictures, and the gradients are the mean of theirs.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gar.data.packing import Pack, answer_loss, collate, pack, ranking_loss
from gar.data.sample import Sample
from gar.inputs.processor import GARProcessor
from gar.model.gar import GARForConditionalGeneration
from gar.train.heads import RegionHeads
from gar.train.recipes import Stage

Augment = Callable[[Image.Image, random.Random], Image.Image]


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Steps(Dataset):
    """Step number -> this process's packs of that step."""

    def __init__(
        self, samples: list[Sample], processor: GARProcessor, stage: Stage, seed: int, augment: Augment | None
    ):
        self.samples, self.processor, self.stage, self.seed, self.augment = samples, processor, stage, seed, augment
        self.rank, self.world = rank_and_world()
        if stage.batch % self.world:
            raise ValueError(f"{stage.batch} pictures a step cannot be shared evenly by {self.world} processes")

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Pack]:
        """Samples in a fresh order each epoch; one that yields no pack is passed over for the next."""
        packs: list[Pack] = []
        share = self.stage.batch // self.world
        place = step * self.stage.batch + self.rank * share
        while len(packs) < share:
            epoch, index = divmod(place, len(self.samples))
            rng = random.Random(f"{self.seed}/{self.stage.name}/{place}")
            sample = self.samples[self._order(epoch)[index]]
            made = pack(
                sample,
                self.processor,
                rng,
                num_turns=self.stage.turns,
                max_regions=self.stage.regions,
                augment=self.augment,
            )
            if made:
                packs.append(made)
            place += 1 if made else len(self.samples) // 2 + 1
        return packs

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._shuffled = epoch, list(range(len(self.samples)))
            random.Random(f"{self.seed}/{self.stage.name}/epoch {epoch}").shuffle(self._shuffled)
        return self._shuffled


def train(
    model: GARForConditionalGeneration,
    processor: GARProcessor,
    samples: list[Sample],
    stage: Stage,
    out: Path,
    *,
    heads: RegionHeads | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    save_every: int = 250,
    log_every: int = 25,
    validate: Callable[[], dict[str, float]] | None = None,
    workers: int = 1,
) -> None:
    """Run one stage, from its last checkpoint in `out` if there is one. Ends with the trained weights in the model."""
    rank, world = rank_and_world()
    optimizer, scale_at = _optimizer(model, heads, stage)
    start = _resume(out, model, heads, optimizer)
    steps = Steps(samples, processor, stage, seed, augment)
    loader = DataLoader(
        steps,
        sampler=range(start, stage.steps),
        batch_size=None,
        collate_fn=list,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    out.mkdir(parents=True, exist_ok=True)
    about = asdict(stage) | {"seed": seed, "samples": len(samples), "processes": world}
    if rank == 0:
        (out / "stage.json").write_text(json.dumps(about, indent=2))
    model.train()
    model.model.vision_tower.eval()  # its batch norms keep their statistics: batches here are small
    sums: Counter[str] = Counter()
    began = time.monotonic()

    def tell(line: dict) -> None:
        if rank == 0:
            print(f"{stage.name} {json.dumps(line)}", file=sys.stderr, flush=True)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")

    for step, packs in enumerate(loader, start=start):
        for group, rate in zip(optimizer.param_groups, scale_at, strict=True):
            group["lr"] = rate * _schedule(step, stage)
        loss, figures = _loss(model, processor, packs, stage, heads)
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()} at step {step} of {stage.name}: {out} has the last good one")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _share_gradients(optimizer, world)
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        sums.update(figures)
        if (step + 1) % log_every == 0 or step + 1 == stage.steps:
            tell(_averages(_total(sums)) | {"step": step + 1, "seconds": round(time.monotonic() - began, 1)})
            sums.clear()
        if (step + 1) % save_every == 0 or step + 1 == stage.steps:
            if rank == 0:
                _save(out, step + 1, model, heads, optimizer)
            if rank == 0 and validate:
                model.eval()
                tell({"step": step + 1, "validation": validate()})
                model.train()
                model.model.vision_tower.eval()
    model.eval()


def _share_gradients(optimizer: torch.optim.Optimizer, world: int) -> None:
    """Every process's gradients become the mean of all: what one process gets from the mean of their losses."""
    if world == 1:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, (flat / world).split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def _total(sums: Counter[str]) -> Counter[str]:
    """The figures of all processes together."""
    _, world = rank_and_world()
    if world == 1:
        return sums
    every: list[Any] = [None] * world
    dist.all_gather_object(every, sums)
    total: Counter[str] = Counter()
    for one in every:
        total.update(one)
    return total


def _loss(
    model: GARForConditionalGeneration,
    processor: GARProcessor,
    packs: list[Pack],
    stage: Stage,
    heads: RegionHeads | None,
) -> tuple[Tensor, dict[str, float]]:
    batch = collate(packs, processor.tokenizer.pad_token_id)
    inner = model.model
    with torch.set_grad_enabled(stage.train_tower):
        features = inner.encode(batch["pixel_values"], batch["mask_values"])
    regions = inner.cut(features, batch["tile_grids"], batch["region_boxes"])
    loss, figures = features.new_zeros(()), {"steps": 1.0}
    if stage.language:
        embeds = inner.embed(batch["input_ids"], features, regions, batch["region_boxes"])
        output = model(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        )
        answers = answer_loss(output.logits, packs, batch["input_ids"], stage.balance)
        ranking, right, asked = ranking_loss(output.logits, packs, batch["input_ids"])
        loss = answers + stage.ranking * ranking
        figures |= {"language": answers.item(), "right/choices": right, "asked/choices": asked}
    if heads is not None and stage.heads and any(batch["region_boxes"]):
        summaries = inner.mention(regions.flatten(1))
        head_loss, right = heads(summaries, packs)
        loss = loss + stage.heads * head_loss
        figures["heads"] = head_loss.item()
        for name, (hits, asked) in right.items():
            figures[f"right/{name}"], figures[f"asked/{name}"] = hits, asked
    return loss, figures


def _averages(sums: Counter[str]) -> dict[str, float]:
    steps = sums["steps"]
    line = {name: round(sums[name] / steps, 4) for name in ("language", "heads") if name in sums}
    for name in sums:
        if name.startswith("right/"):
            line[name[6:]] = round(sums[name] / max(sums[f"asked/{name[6:]}"], 1), 4)
    return line


def _optimizer(
    model: GARForConditionalGeneration, heads: RegionHeads | None, stage: Stage
) -> tuple[torch.optim.AdamW, list[float]]:
    early = rf"mask_patch|\.(conv_stem|bn1|blocks\.[0-{stage.frozen_blocks - 1}])\."
    tower, between, rest = [], [], []
    for name, parameter in model.named_parameters():
        in_tower = ".vision_tower." in name
        vision = in_tower or any(part in name for part in ("mask_patch", "pyramid", "projector"))
        used = (stage.train_tower or not vision) and (stage.language or ".language_model." not in name)
        used = used and not (stage.frozen_blocks and re.search(early, name))
        parameter.requires_grad_(used)
        if used:
            (tower if in_tower else between if vision else rest).append(parameter)
    if heads is not None and stage.heads:
        rest += list(heads.parameters())
    groups, rates = [], []
    for parameters, factor in ((tower, stage.tower_rate), (between, stage.vision_rate), (rest, 1.0)):
        for decay in (stage.weight_decay, 0.0):
            chosen = [p for p in parameters if (p.ndim > 1) == (decay > 0)]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay})
                rates.append(stage.rate * factor)
    return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98)), rates


def _schedule(step: int, stage: Stage) -> float:
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.floor + (1 - stage.floor) * 0.5 * (1 + math.cos(math.pi * done))


def _save(
    out: Path,
    step: int,
    model: GARForConditionalGeneration,
    heads: RegionHeads | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    temporary, final = out / "last.tmp", out / "last"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Cloned: tied weights share their storage, which safetensors refuses.
    save_file({k: v.clone() for k, v in model.state_dict().items()}, temporary / "model.safetensors")
    if heads is not None:
        save_file(heads.state_dict(), temporary / "heads.safetensors")
    state = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    save_file(state, temporary / "optimizer.safetensors")
    (temporary / "step.json").write_text(json.dumps({"step": step}))
    old = out / "previous"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)


def _resume(
    out: Path, model: GARForConditionalGeneration, heads: RegionHeads | None, optimizer: torch.optim.Optimizer
) -> int:
    last = out / "last" if (out / "last").exists() else out / "previous"
    if not last.exists():
        return 0
    model.load_state_dict(load_file(last / "model.safetensors"))
    if heads is not None and (last / "heads.safetensors").exists():
        heads.load_state_dict(load_file(last / "heads.safetensors"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(last / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((last / "step.json").read_text())["step"]
