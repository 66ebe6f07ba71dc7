"""Fine-tuning on data of one's own, from a folder or a COCO file to a model that `gar.load` opens.

A part of the data is held out: the model is measured on it before and after. Knows no rendered scene.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from gar.data.formats import open_together
from gar.data.packing import Pack
from gar.data.sample import write_whole
from gar.data.stream import Data
from gar.inputs.processor import GARProcessor
from gar.model.gar import GARForConditionalGeneration
from gar.model.released import save_released
from gar.predictor import load
from gar.train import recipes
from gar.train.feed import Packer
from gar.train.objective import ADAPTER, Objective
from gar.train.processes import gathered, join, rank_and_world
from gar.train.recipes import ADAPTED, Stage
from gar.train.trainer import train

RECIPES = {name: getattr(recipes, name) for name in ("finetune", "lora", "qlora", "gar_1b", "gar_8b")}
HELD_OUT = 256  # records at most


def run(
    data: Sequence[str | Path],
    out: Path,
    *,
    pictures: str | Path | None = None,
    model: str = "nano",
    recipe: str = "finetune",
    epochs: float | None = None,
    rate: float | None = None,
    adapt: Sequence[str] = (),
    held_out: float = 0.1,
    seed: int = 0,
    save_every: int = 250,
    workers: int = 1,
    sharded: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Train a checkpoint further. A stopped run goes on where it was.

    Args:
        data, pictures: as for `open_together`.
        out: checkpoints, logs and report, and the result, for `gar.load`: an adapter, or the whole model.
        model: as for `gar.load`.
        recipe: of `RECIPES`. epochs, rate: in place of the recipe's. adapt: parts (of `ADAPTED`) that get adapters, in
            place of the recipe's.
        held_out: share of the records that is measured on and not trained on, at most `HELD_OUT` of them.
        sharded: spread the model over the processes of `torchrun` (FSDP2).

    Returns:
        The report: {"before", "after": figures on the held-out part, see `measure`}.

    Raises:
        ValueError: too few records, or what the data, the checkpoint or the recipe refuses.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _refuse_itself(model, out)
    if model != "nano" and Path(model).exists():
        model = str(Path(model).resolve())  # an adapter's base is found from everywhere
    rank, world = join("nccl" if device.startswith("cuda") else "gloo")
    if sharded and not dist.is_initialized():
        raise ValueError("--shard spreads a model over several processes: give --launch N too, or start with torchrun")
    begun, rejects = out / "begun.json", out / "rejects.jsonl"
    opened = open_together(data, pictures=pictures, rejects=rejects)
    training, validation = split(opened, held_out, seed)
    names = [str(path) for path in data]
    settings = {"data": names, "pictures": str(pictures), "model": model, "recipe": recipe}
    # Of another number of records others are held out.
    settings |= {"records": training.num_records() + validation.num_records(), "held_out": held_out, "seed": seed}
    settings |= {"epochs": epochs, "rate": rate, "adapt": [*adapt] or None}
    before = _go_on(begun, settings)
    if before is None and rank == 0:
        rejects.unlink(missing_ok=True)  # of a start that failed
    gathered(None)
    options = {} if epochs is None else {"epochs": epochs}
    (stage,) = RECIPES[recipe](training.num_records(), **options)
    if rate is not None:
        stage = replace(stage, rate=rate)
    if adapt:
        stage = adapting(stage, adapt)
    network, processor = opened_model(model, stage, device)
    if stage.lora_rank:
        add_adapter(network, stage, model, seed)
    ready = packs_of(validation, processor, stage, seed)
    if not ready:
        reason = opened.rejects.last or "none of their questions fits"
        raise ValueError(
            f"{', '.join(names)}: no held-out record can be used ({reason}); all reasons are in {rejects}. If "
            "the pictures lie elsewhere, give --pictures DIR"
        )

    objective = Objective(network, stage, pad_id=processor.tokenizer.pad_token_id)
    if rank == 0:
        tell_memory(objective, max(ready, key=lambda p: len(p.input_ids)), world, sharded)
        if before is None:
            before = measure(objective, ready)
            write_whole(begun, json.dumps({"settings": settings, "before": before}).encode())
    before = gathered(before)[0]
    objective = train(
        network, processor, training, stage, out,
        seed=seed, save_every=save_every, log_every=10, workers=workers, sharded=sharded,
        validate=lambda now: measure(now, ready),
    )  # fmt: skip
    after = measure(objective, ready) if rank == 0 or sharded else {}
    weights = whole_weights(network, adapter=bool(stage.lora_rank))
    report = {"data": names, "model": model, "recipe": recipe, "before": before, "after": after}
    if rank == 0:
        write_result(network, processor, weights, out, adapter=bool(stage.lora_rank))
        write_whole(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    gathered(None)
    return report


def _refuse_itself(model: str, out: Path) -> None:
    """Raises ValueError where a model would be written over the one that it is made of."""
    if out.exists() and Path(model).exists() and out.samefile(model):
        raise ValueError(f"{out} is the model itself: name another --out")


def _go_on(begun: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured before, where a run has begun here; None where none has.

    Raises:
        ValueError: it was another one, or what is written of it is damaged.
    """
    if not begun.exists():
        return None
    try:
        known = json.loads(begun.read_text())
        there, before = known["settings"], known["before"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{begun} does not say what run this is ({error!r}): name another --out") from error
    for name, value in settings.items():
        if there.get(name) != value:
            raise ValueError(
                f"{begun.parent} holds a run with {name} {there.get(name)}, not {value}: name another --out"
            )
    return before


def adapting(stage: Stage, parts: Sequence[str]) -> Stage:
    """A stage with adapters on other parts.

    Raises:
        ValueError: it has no adapters, or there is no such part.
    """
    if not stage.lora_rank:
        raise ValueError(f"--adapt {','.join(parts)}: of no use without adapters: give --lora, or leave this away")
    return replace(stage, lora_parts=tuple(parts))


def split(data: Data, share: float, seed: int) -> tuple[Data, Data]:
    """Training data without the held-out records, and these; which they are depends on the seed alone.

    Records are held out, not pictures: where several records have one picture, give it to one record.

    Raises:
        ValueError: not one record on either side.
    """
    every = [data.rows(shard) for shard in range(len(data.shards))]
    count = sum(map(len, every))
    number = min(round(count * share), HELD_OUT)
    if not 0 < number < count:
        raise ValueError(f"{number} of {count} records held out: give more data, or another --held-out")
    chosen = set(random.Random(f"{seed}/held out").sample(range(count), number))
    places = iter(range(count))
    training, validation = [], []
    for shard, rows in zip(data.shards, every, strict=True):
        held = [row for row in rows if next(places) in chosen]
        for shards, mine in ((training, sorted({*rows} - {*held})), (validation, held)):
            if mine:
                shards.append(replace(shard, rows=mine))
    return Data(training, data.rejects, data.remote), Data(validation, data.rejects, data.remote)


def opened_model(name: str, stage: Stage, device: str) -> tuple[GARForConditionalGeneration, GARProcessor]:
    """A checkpoint to train: in float32, of frozen weights under adapters on a GPU in bfloat16 or 4 bits."""
    if stage.four_bit:
        if name == "nano" or Path(name, "adapter_config.json").exists():
            raise ValueError(
                f"{name}: weights become 4 bits as they are read from a whole checkpoint: take --lora, or make one of "
                "an adapter first, by gar train export"
            )
        if not device.startswith("cuda") or find_spec("bitsandbytes") is None:
            raise ValueError(
                "4-bit weights need a CUDA GPU and bitsandbytes: pip install bitsandbytes there, or take --lora"
            )
        from transformers import BitsAndBytesConfig

        kept = [
            "model.vision_tower",
            "model.multi_modal_projector",
            "model.mention",
            "model.mention_place",
            "model.picture_place",
            "lm_head",
        ]  # from the root on
        network = GARForConditionalGeneration.from_pretrained(
            name,
            dtype=torch.bfloat16,
            device_map={"": device},
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                llm_int8_skip_modules=kept,
            ),
        )
        return network, GARProcessor.from_pretrained(name, config=network.config)
    frozen = stage.lora_rank and device.startswith("cuda")
    predictor = load(name, device=device, dtype="bfloat16" if frozen else "float32")
    network, processor = predictor.model, predictor.processor
    if stage.max_tiles:
        processor.config.max_num_tiles = stage.max_tiles
    return network, processor


def add_adapter(model: GARForConditionalGeneration, stage: Stage, base: str, seed: int) -> None:
    """Put LoRA layers (peft) around the linear layers of some parts; at first they change nothing."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=stage.lora_rank,
        lora_alpha=2 * stage.lora_rank,
        target_modules="|".join(ADAPTED[part] for part in stage.lora_parts),
        base_model_name_or_path=base,
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if ADAPTER in name:
            parameter.data = parameter.data.float()  # it would take small steps in its base's half precision
    model.peft_config = {"default": config}  # pyright: ignore[reportAttributeAccessIssue]


def packs_of(data: Data, processor: GARProcessor, stage: Stage, seed: int) -> list[Pack]:
    """What held-out records are asked: the same at every measurement. Those that cannot be used are rejects."""
    return [made for _, made in data.records(Packer(processor, stage), f"{seed}/measure")]


def measure(objective: Objective, packs: Sequence[Pack]) -> dict[str, Any]:
    """The mean loss of a token, and the share of answers that greedy decoding gives word for word, also by type."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    loss, tokens = 0.0, 0
    objective.eval()
    for packed in packs:
        with torch.no_grad():
            _, figures, spoken = objective([packed])
        assert spoken is not None
        number = sum(end - start for start, end in (*packed.notes, *(right for right, *_ in packed.answers)))
        loss, tokens = loss + figures["language"] * number, tokens + number
        for turn, said in zip(packed.turns, spoken.word_for_word(), strict=True):
            for name in {"all", turn.type or "other"}:
                asked[name] += 1
                right[name] += said
    exact = {name: round(right[name] / asked[name], 4) for name in asked}
    return {"loss": round(loss / tokens, 4), "exact": exact.pop("all"), "answers": asked["all"], "types": exact}


def tell_memory(objective: Objective, packed: Pack, processes: int, sharded: bool = False) -> None:
    """Print what one process will need: first what it holds, so that this is told where even measuring takes too much;
    then what a pass keeps, and the sum, against what it can have of a GPU: what it has already, and what is free.

    Args:
        packed: the longest example to be expected.
        processes: that share the pictures of a step, and if sharded weights, gradients and the optimiser's state too.
    """

    def say(sizes: dict[str, int], where: str = "") -> None:
        for name, size in sizes.items():
            print(f"  {name:12}{size / 2**30:9.3f} GiB{where}", file=sys.stderr)

    print("memory of one process, measured on its longest held-out example", file=sys.stderr)
    held = memory(objective, processes, sharded)
    say(held)
    kept = activations(objective, packed, processes)
    say({"activations": kept, "sum": sum(held.values()) + kept})
    if (device := objective.device).type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        say({"there is": free}, f" on {device}")


def memory(objective: Objective, processes: int, sharded: bool = False) -> dict[str, int]:
    """Bytes that each process holds in training, from the tensors themselves."""
    weights = sum(t.numel() * t.element_size() for t in (*objective.parameters(), *objective.buffers()))
    gradients = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    copies = 1 + (processes > 1 and not sharded)  # their mean over the processes is taken in a copy
    sizes = {"weights": weights, "gradients": copies * gradients, "optimiser": 2 * gradients}
    return {name: size // (processes if sharded else 1) for name, size in sizes.items()}


def activations(objective: Objective, packed: Pack, processes: int) -> int:
    """Bytes that each process keeps of a pass, by going through it once.

    On a GPU it goes forward and all the way back, to the first weight that trains: the others' gradients, which would
    need as much room as all weights, are not made. Its highest mark counts; elsewhere, what autograd keeps to go back.
    """
    stage = objective.stage
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    objective.training_mode()
    if objective.device.type == "cuda":
        before = torch.cuda.memory_allocated(objective.device)
        torch.cuda.reset_peak_memory_stats(objective.device)
        first = next(p for p in objective.parameters() if p.requires_grad)
        torch.autograd.grad(objective([packed])[0], first)
        needed = torch.cuda.max_memory_allocated(objective.device) - before
    else:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            objective([packed])
        needed = sum(kept.values())
    return needed * (stage.at_once or math.ceil(stage.batch / processes))


def whole_weights(model: GARForConditionalGeneration, adapter: bool) -> dict[str, Tensor]:
    """The weights of a model or of its adapter, on the CPU, gathered from all processes, which all call it.

    The first one gets them: as many copies as GPUs can be more than a machine holds.
    """
    rank, _ = rank_and_world()
    weights = {}
    for name, value in model.state_dict().items():
        if not adapter or ADAPTER in name:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if rank == 0:
                weights[name] = whole.detach().cpu().contiguous()
    return weights


def write_result(
    model: GARForConditionalGeneration, processor: GARProcessor, weights: dict[str, Tensor], out: Path, adapter: bool
) -> None:
    """Write what `gar.load` opens: an adapter in peft's format, or the whole model in our layout; each file whole."""
    temporary = out / "result.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    if adapter:
        config: Any = model.peft_config["default"]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
        named = {f"base_model.model.{name.replace('.default.', '.')}": value for name, value in weights.items()}
        save_file(named, temporary / "adapter_model.safetensors", {"format": "pt"})
        config.save_pretrained(str(temporary))
    else:
        model.save_pretrained(temporary, state_dict=weights)
        processor.save_pretrained(temporary)
    for file in sorted(temporary.iterdir(), key=lambda file: file.suffix == ".json"):  # what tells its kind comes last
        file.replace(out / file.name)
    temporary.rmdir()


def export(run: str, out: Path, released: bool = False) -> None:
    """Write a model, or a base model with its adapter merged into it, as a checkpoint of its own, of the same dtype.

    Args:
        run: as for `gar.load`.
        released: in the released layout instead of ours.

    Raises:
        ValueError: the released layout has no words for this model, or `out` is the run itself.
    """
    _refuse_itself(run, out)
    predictor = load(run, device="cpu", dtype="stored")
    if released:
        save_released(predictor.model, out)
    else:
        predictor.model.save_pretrained(out)
    predictor.processor.save_pretrained(out)
