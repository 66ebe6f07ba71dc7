"""Checkpoints of a run: folders `step-N` of safetensors with their checksums, whole or in one piece per process.

A folder is written under another name and then renamed, so one that stands there is finished; one that was damaged
later is passed over for the one before. A run in one process reads the pieces of several, and the reverse.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from gar.train.objective import ADAPTER, Objective
from gar.train.processes import gathered, rank_and_world


def save(
    out: Path, step: int, objective: Objective, optimizer: torch.optim.Optimizer, progress: dict[str, Any], keep: int
) -> None:
    """Write a checkpoint, and remove all but the last `keep`, this one among them. Every process calls it.

    Args:
        progress: JSON that `load` gives back, of the first process.
    """
    rank, world = rank_and_world()
    temporary, final = out / "step.tmp", out / f"step-{step:08}"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    gathered(None)  # the folder is there for all
    states = {"model": _weights(objective.model), "optimizer": _moments(optimizer)}
    if objective.heads is not None:
        states["heads"] = objective.heads.state_dict()
    pieces = any(isinstance(value, DTensor) for value in states["model"].values())
    sums = {}
    for name, state in states.items():
        if pieces or rank == 0:
            file = temporary / (f"{name}-{rank + 1:05}-of-{world:05}.safetensors" if pieces else f"{name}.safetensors")
            save_file(_local(state, rank), file)
            sums[file.name] = _sum(file)
    sums = {file: digest for part in gathered(sums) for file, digest in part.items()}
    if rank == 0:
        about = {"step": step, "processes": world, **progress, "sha256": sums}
        (temporary / "step.json").write_text(json.dumps(about, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        folders = sorted(out.glob("step-*"))
        behind = folders.index(final) + 1
        for old in (*folders[:behind][:-keep], *folders[behind:]):  # later ones are damaged: the run began before them
            shutil.rmtree(old)
    gathered(None)


def load(out: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """Go on from the last checkpoint that is whole: its step, and what was saved about it; without one (0, {})."""
    rank, _ = rank_and_world()
    folder, about = gathered(_last_whole(out) if rank == 0 else None)[0] or (None, {})
    if folder is None:
        return 0, {}
    _read(folder, "model", _weights(objective.model))
    if objective.heads is not None:
        _read(folder, "heads", objective.heads.state_dict())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key in _names(folder, "optimizer"):  # one that no step has used has no moments
        index, _, moment = key.partition(".")
        p = parameters[int(index)]
        optimizer.state[p][moment] = torch.zeros(()) if moment == "step" else torch.zeros_like(p)
    _read(folder, "optimizer", _moments(optimizer))
    return about["step"], about


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What of a model is kept: the adapter alone where it has one."""
    state = model.state_dict()
    adapter = {name: value for name, value in state.items() if ADAPTER in name}
    return adapter or state


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = ((index, optimizer.state[p]) for index, p in enumerate(parameters) if p in optimizer.state)
    return {f"{index}.{name}": value for index, state in states for name, value in state.items()}


def _local(state: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """This process's part: its rows of what is spread over all, and in the first one also what all have alike."""
    mine = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in state.items()}
    mine = {name: value for name, value in mine.items() if rank == 0 or isinstance(state[name], DTensor)}
    # Cloned: tied weights share their storage, which safetensors refuses.
    return {name: value.detach().clone().contiguous() for name, value in mine.items()}


def _read(folder: Path, name: str, into: dict[str, Tensor]) -> None:
    """Fill tensors with what was saved, whole or in pieces, tensor by tensor."""
    with ExitStack() as stack, torch.no_grad():
        opened: list[Any] = [
            stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob(f"{name}*.safetensors"))
        ]
        keys = [set(file.keys()) for file in opened]
        if (saved := set().union(*keys)) != set(into):
            odd = sorted(saved ^ set(into))
            raise ValueError(f"{folder} is of another run: {len(odd)} weights differ in name, such as {odd[0]}")
        for key, target in into.items():
            pieces = [file.get_tensor(key) for file, there in zip(opened, keys, strict=True) if key in there]
            value = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            if value.shape != target.shape:
                raise ValueError(f"{folder} is of another run: {key} is {[*value.shape]}, here {[*target.shape]}")
            if isinstance(target, DTensor):  # of n processes each holds one of n equal runs of rows, the last ones less
                rank, size = target.device_mesh.get_local_rank(), target.device_mesh.size()
                parts = value.chunk(size)
                value = parts[rank] if rank < len(parts) else value[:0]
                target = target.to_local()
            target.copy_(value)


def _names(folder: Path, name: str) -> set[str]:
    found: set[str] = set()
    for path in folder.glob(f"{name}*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


def _last_whole(out: Path) -> tuple[Path, dict[str, Any]] | None:
    for folder in sorted(out.glob("step-*"), reverse=True):
        try:
            about = json.loads((folder / "step.json").read_text())
            damaged = [file for file, digest in about["sha256"].items() if _sum(folder / file) != digest]
        except (OSError, ValueError, KeyError) as error:
            damaged, about = [str(error)], {}
        if not damaged:
            return folder, about
        print(f"gar: {folder} is damaged ({damaged[0]}): trying the checkpoint before it", file=sys.stderr)
    return None


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
