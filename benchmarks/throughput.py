"""How much faster is a training step than a plain loop, on two CPU threads in float32?

The same pictures with the same questions and answers, one step of everything (forward, backward, AdamW), all weights:
  ours           the trainer's step: a picture is encoded and read once, its questions branch off behind it
  alone          plain loop, batch 1, no packing: each question is a sequence, with its own regions; the picture is
                 encoded for each
  conversation   the same loop, a picture's questions one after the other in one sequence: so the published data set
                 writes a record that has several. Later answers see earlier ones, so this trains something else
The plain loop is `plain` below: the published one but for its gradient checkpointing, which would make it slower. Its
attention is torch's (SDPA), causal without a mask. Ours has a mask, so it computes pairs that it then hides; beside
each ratio stands its bound, the ratio of the multiplications that both do.

Two models: nano with the pictures of a stage of its recipe (4 a step, up to 32 questions each, encoded together), and
the middle model of `speed.py` with the settings of the recipe `gar_8b` (up to 8 tiles, 4 regions and 4 questions a
picture, one picture after the other) but for its chats: questions branch off in "ours", and `gar_8b` itself trains what
"conversation" does.
Tiles and token ids are made beforehand: data workers do that. Label tokens are those of the answers; text tokens are
all but the placeholders of pictures and regions.

    python benchmarks/throughput.py [--json] [--model nano] [--repeat 3] [--pictures 4] [--threads 2]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from speed import SIZES, build, scenery, text_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gar
from gar.data.packing import Pack, pack, renumber
from gar.data.sample import Sample, Turn
from gar.inputs.processor import GARProcessor, Request
from gar.inputs.prompt import IGNORED, ChatTurn, prompts_named
from gar.model.config import GARConfig
from gar.regions import Region
from gar.train import recipes
from gar.train.objective import Objective
from gar.train.trainer import gradients

CAPTION = "A small red ball of shiny metal on the table, left of the green box."
SHORT = {"color": "Red.", "material": "Metal.", "pattern": "Plain.", "shape": "Ball-shaped.", "category": "Ball."}
MODELS = {"nano": 3, "tiny": 3, "middle": 1}  # with repetitions; "tiny" is for trying this script


@dataclass(frozen=True)
class Result:
    """One line of the table. faster, bound: seconds and FLOPs of a schedule by those of ours."""

    model: str
    schedule: str
    sequences: int
    seconds: float
    labels_per_s: float
    texts_per_s: float
    faster: float
    bound: float


def sample() -> Sample:
    """A picture of eight things with 48 questions, as many as nano's records have: one in six has a long answer."""
    picture, regions = scenery()
    file = io.BytesIO()
    picture.save(file, "PNG")
    masks = [region.locate(*picture.size).rle() for region in regions]
    turns = [Turn(f"Caption <Prompt{k}>.", CAPTION, "caption") for k in range(len(masks))]
    for kind, answer in SHORT.items():
        turns += [Turn(f"What is the {kind} of <Prompt{k}>?", answer, kind) for k in range(len(masks))]
    return Sample(file.getvalue(), masks, turns)


def prepared(name: str, pictures: int | None) -> tuple[Objective, GARProcessor]:
    """A model with what it is trained by."""
    if name == "nano":
        predictor = gar.load("nano", device="cpu")
        language = next(stage for stage in recipes.nano() if stage.name == "language")
        stage = replace(language, frozen=(), hidden=0.0, muon_rate=0.0, heads=0.0, ranking=0.0)
    else:
        predictor = build(SIZES[name])
        stage = replace(recipes.gar_8b(samples=1)[0], batch=2)
        predictor.processor.config.max_num_tiles = stage.max_tiles
    stage = replace(stage, batch=pictures or stage.batch)
    processor = predictor.processor
    return Objective(predictor.model, stage, pad_id=processor.tokenizer.pad_token_id), processor


def conversation(packed: Pack, turns: Sequence[Turn], processor: GARProcessor) -> Request:
    """Questions of a pack in one sequence, with the regions marked that they name, under the pack's numbers."""
    numbers = dict(zip(packed.things, packed.boxes, strict=True))
    regions = sorted({k for turn in turns for k in prompts_named(turn.question)})
    located = [Region.rle(packed.sample.masks[k]).locate(packed.cut.width, packed.cut.height) for k in regions]
    chat = [ChatTurn(renumber(turn.question, numbers), turn.answer) for turn in turns]
    return processor.train(packed.cut, located, chat, [numbers[k] for k in regions])


def plain(
    objective: Objective, optimizer: torch.optim.Optimizer, requests: Sequence[Request], processor: GARProcessor
) -> None:
    """The published step, with as many sequences as it takes for the same answers."""
    optimizer.zero_grad(set_to_none=True)
    for request in requests:
        loss = objective.model(**processor.collate([request]), use_cache=False).loss
        (loss / len(requests)).backward()
    torch.nn.utils.clip_grad_norm_(objective.model.parameters(), objective.stage.clip)
    optimizer.step()


def ours(objective: Objective, optimizer: torch.optim.Optimizer, packs: list[Pack]) -> None:
    """The trainer's step."""
    gradients(objective, optimizer, packs)
    optimizer.step()


def tile_flops(objective: Objective) -> int:
    """Of one tile, forward and backward: tower, mask embedding, projector."""
    side = objective.model.config.tile_size
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective.model.model.encode(torch.zeros(1, 3, side, side), torch.zeros(1, side, side)).sum().backward()
    return counter.get_total_flops()


def sequence_flops(config: GARConfig, sequence: Pack | Request) -> int:
    """Of one sequence in the language model, forward and backward.

    A pack's attention has a mask, and its head speaks the answers alone; else attention is causal and the head speaks
    at every token.
    """
    text: Any = config.text_config
    length = spoken = len(sequence.input_ids)
    if isinstance(sequence, Pack):
        spoken = sum(end - start for spans in sequence.answers for start, end in spans)
    blocks = text_flops(config, length, causal=not isinstance(sequence, Pack))  # with the head at one token
    return 3 * (blocks + 2 * (spoken - 1) * text.hidden_size * text.vocab_size)


def measure(name: str, repeat: int, pictures: int | None) -> list[Result]:
    """All schedules in turn, so that a machine that slows down slows all."""
    objective, processor = prepared(name, pictures)
    stage, config = objective.stage, objective.model.config
    optimizer, _ = objective.optimizer()
    objective.training_mode()
    shown, packs = sample(), []
    for seed in range(stage.batch):
        made = pack(shown, processor, random.Random(seed), num_turns=stage.turns, max_regions=stage.regions)
        assert made is not None
        packs.append(made)
    alone = [conversation(p, [turn], processor) for p in packs for turn in p.turns]
    together = [conversation(p, p.turns, processor) for p in packs]

    schedules: dict[str, tuple[Sequence[Pack] | Sequence[Request], Callable[[], None]]] = {
        "ours": (packs, lambda: ours(objective, optimizer, packs)),
        "alone": (alone, lambda: plain(objective, optimizer, alone, processor)),
        "conversation": (together, lambda: plain(objective, optimizer, together, processor)),
    }
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    with Console(stderr=True).status(f"{name}: first steps") as status:
        plain(objective, optimizer, alone[:1], processor)  # memory is fetched and kernels are chosen
        objective(packs[:1])[0].backward()
        for i in range(repeat):
            for schedule, (_, run) in schedules.items():
                status.update(f"{name}: {schedule}, time {i + 1}")
                start = time.perf_counter()
                run()
                seconds[schedule].append(time.perf_counter() - start)

    tile, placeholders = tile_flops(objective), {config.image_token_id, *config.crop_token_ids}
    flops: dict[str, int] = {}
    results, labels = [], []
    for schedule, (sequences, _) in schedules.items():
        labels.append(sum(label != IGNORED for s in sequences for label in s.labels or []))
        texts = sum(token not in placeholders for s in sequences for token in s.input_ids)
        flops[schedule] = sum(sequence_flops(config, s) for s in sequences)
        flops[schedule] += tile * sum(len(s.mask_tiles) for s in sequences)
        took, base = statistics.median(seconds[schedule]), statistics.median(seconds["ours"])
        results.append(
            Result(name, schedule, len(sequences), took, labels[-1] / took, texts / took, took / base,
                   flops[schedule] / flops["ours"])
        )  # fmt: skip
    assert len({*labels}) == 1, f"label tokens of {', '.join(schedules)} are {labels}, expected the same"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--model", choices=list(MODELS), help="only this one; without, nano and middle")
    parser.add_argument("--repeat", type=int, help="how often everything is measured; medians are shown")
    parser.add_argument("--pictures", type=int, help="of a step, in place of the recipe's (nano 4, middle 2)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [arguments.model] if arguments.model else ["nano", "middle"]
    results = [r for name in names for r in measure(name, arguments.repeat or MODELS[name], arguments.pictures)]
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    head = ("model", "schedule", "sequences", "s", "label tokens/s", "text tokens/s", "ours is faster", "FLOPs allow")
    table = Table(*head, box=box.SIMPLE)
    for r in results:
        rates = (f"{r.seconds:.2f}", f"{r.labels_per_s:.1f}", f"{r.texts_per_s:.1f}")
        table.add_row(r.model, r.schedule, str(r.sequences), *rates, f"{r.faster:.2f}", f"{r.bound:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
