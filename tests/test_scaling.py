"""The counting behind docs/scaling.md is what torch counts, and the launch files are well formed."""

from __future__ import annotations

import os
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import yaml
from tiny import random_request, tiny_config, tiny_model
from torch import Tensor, nn
from torch.distributed.run import get_args_parser
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.main import get_command

from gar.cli import app
from gar.model.gar import GARForConditionalGeneration

ROOT = Path(__file__).parents[1]
scaling: Any = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "scaling.py")))
TILES, TEXT = 2, 8


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """Both released models at 16 tiles."""
    return {f"GAR-{name}": scaling.step(scaling.released(name), tiles=16) for name in ("1B", "8B")}


def parameters(step: Any, *names: str) -> int:
    return sum(part.parameters for part in step.parts if not names or part.name in names)


def test_the_models_are_llama_and_the_perception_encoder_and_within_a_per_cent_no_more(steps):
    for name, llama, size, width in (("1B", 1_235_814_400, "large", 2048), ("8B", 8_030_261_248, "gigantic", 4096)):
        step, config = steps[f"GAR-{name}"], scaling.released(name)
        with torch.device("meta"):
            tower = sum(p.numel() for p in timm.create_model(f"vit_pe_lang_{size}_patch14_448").parameters())
        names = 6 * width * (1 if config.tie_word_embeddings else 2)  # <Prompt0> to <Prompt4> and <NO_Prompt>
        assert parameters(step, "language model", "token embedding and head") == llama + names
        assert parameters(step, "tower") == tower + 3 * 14 * 14 * config.feature_width
        assert parameters(step) == step.parameters == pytest.approx(llama + tower, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("class_token", [False, True])
def test_flops_of_a_training_step_are_those_that_torch_counts(class_token, checkpointing):
    model = tiny_model(class_token=class_token, tied=class_token).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    request = random_request(model.config, (TILES, 1), {1: (0.1, 0.2, 0.6, 0.9)}, text=TEXT)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        spoken = TEXT + 2  # a begin token, and the region's name
        labels = request["input_ids"][:, -spoken:]
        model(**request, labels=labels, logits_to_keep=spoken, use_cache=False).loss.backward()

    step = scaling.step(model.config, TILES, text=spoken)
    length, text = step.length, model.config.text_config
    assert length == request["input_ids"].shape[1]
    replay = next(part for part in step.parts if part.name == "replay")  # no matrix product, so torch leaves it out
    skipped = 4 * text.num_hidden_layers * length * (length - 1) // 2 * text.hidden_size  # by a causal kernel
    expected = step.flops(checkpointing) - replay.forward - replay.backward + (3 + checkpointing) * skipped
    assert counter.get_total_flops() == expected


def test_the_inside_of_a_block_is_what_autograd_saves():
    config = tiny_config()
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads  # flash attention on a CPU
    model = GARForConditionalGeneration(config).bfloat16()
    step = scaling.step(config, TILES, text=TEXT)
    tower: Any = model.model.vision_tower.timm_model
    language: Any = model.model.language_model

    tile = (config.tile_size // config.patch_size) ** 2 + 1
    seen = torch.zeros(TILES + 1, tile, config.feature_width, dtype=torch.bfloat16, requires_grad=True)
    rotation = tower.rope.get_embed()
    read = torch.zeros(1, step.length, config.text_config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    positions = language.rotary_emb(read, torch.arange(step.length)[None])
    blocks = (
        lambda: tower.blocks[0](seen, rope=rotation),
        lambda: language.layers[0](read, position_embeddings=positions),
    )
    assert step.block_bytes == pytest.approx(max(saved(model, run) for run in blocks), rel=0.05)


def test_a_step_on_more_gpus_takes_less_memory_and_never_less_than_what_is_not_sharded(steps):
    for step in steps.values():
        sizes = [step.memory(gpus) for gpus in scaling.GPUS]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] > step.gathered() + step.activations(checkpointing=True)


def test_the_page_shows_what_the_script_counts(steps):
    page = (ROOT / "docs" / "scaling.md").read_text()
    for table in scaling.tables(steps).split("\n\n"):
        assert table in page


def test_the_slurm_script_starts_the_training_on_every_node(tmp_path):
    script = ROOT / "launch" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    for name, code in {"scontrol": "echo node-a; echo node-b", "srun": "printf '%s\\n' \"$@\""}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node-[a-b]", "NNODES": "2", "GPUS_ON_NODE": "8", "JOB_ID": "7", "CPUS_PER_TASK": "64"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | {f"SLURM_{k}": v for k, v in slurm.items()}
    line = ["bash", script, "--data", "a folder", "--model", "nano", "--recipe", "gar_1b", "--out", "run"]
    printed = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    option, *started = printed.splitlines()
    assert option == "--cpus-per-task=64"
    launch = understood(started)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_endpoint) == ("2", "8", "node-a:29500")
    assert "a folder" in launch.training_script_args


def test_the_kubernetes_job_starts_the_training_on_every_node():
    service, job = yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    launch = understood(container["command"] + container["args"])
    assert int(launch.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(launch.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert launch.master_addr == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def understood(line: list[str]) -> Any:
    """The options of a `torchrun` line, if it and `gar train finetune` know them all."""
    assert line[0] == "torchrun"
    launch = get_args_parser().parse_args([part.replace("$(JOB_COMPLETION_INDEX)", "0") for part in line[1:]])
    assert launch.module and [launch.training_script, *launch.training_script_args[:2]] == [
        "gar.cli",
        "train",
        "finetune",
    ]
    commands: Any = get_command(app)
    finetune = commands.commands["train"].commands["finetune"]
    finetune.make_context("finetune", list(launch.training_script_args[2:]))  # raises at what it does not know
    return launch


def saved(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for backward, the model's own weights left out."""
    kept: dict[int, Tensor] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
