"""Recipes: a training run is a list of stages, and a function returns them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

PARTS = ("tower", "stem", "mask", "projector", "language")
# Layers that can get adapters, by part: patterns of whole names. Of a convolutional tower, those over channels.
ADAPTED = {
    "language": r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj",
    "projector": r".*(multi_modal_projector\.linear_\d|\.mention|\.lateral\.\d)",
    "tower": r".*vision_tower\..*(attn\.(qkv|proj)|mlp\.fc\d|conv_pwl?)",
}


@dataclass(frozen=True)
class Stage:
    """One stretch of training with one set of settings.

    steps: optimiser steps. batch: pictures a step, of all processes. turns, regions: at most so many a picture.
    chat: the turns about a picture are one chat, in which later answers see the earlier ones, as published; else each
        stands by itself. All of them, whatever `turns` says, and not with `drill`, `hidden`, `few` or `zoomed`.
    drill: how often nano reads short questions in one wording each (`gar.scenes.text.drill`) in place of a whole talk.
    hidden: how often the turns about a picture see only their regions' summaries, and no picture.
    few: where the picture is seen, how often at most two of its regions are marked.
    zoomed: how often the picture is cropped to a part with all marked regions; for stages without `language`.
    at_once: pictures that a process encodes together; a step's loss is the mean over groups of so many, whatever the
        number of processes. 0: each process takes its share of the batch as one group.
    language: whether the language model reads the turns; without, only the auxiliary heads train.
    frozen: parts that stay as they are: "tower", "stem" (of a convolutional tower, with its first two stages), "mask"
        (its embedding), "projector" (all between tower and language model), "language".
    lora_rank: train adapters of that rank on `lora_parts` (of `ADAPTED`), and nothing else; 0 for none.
    four_bit: hold the frozen language model in 4 bits; needs bitsandbytes and a CUDA GPU.
    rate: peak learning rate, after `warmup` steps, then a cosine down to `floor` times it. tower_rate, vision_rate: the
        tower's, and that of the mask embedding and of everything between tower and language model (nano's mentions
        included), as factors of it.
    muon_rate: peak rate of the matrices of the language model's blocks, which then move by Muon; 0: by AdamW.
    betas, weight_decay: of AdamW; biases and norms do not decay. clip: the longest gradient.
    heads: weight of the auxiliary heads' loss; 0 leaves them out.
    kept: weight of how far turns that regions answer by themselves have gone from what the model said of them at the
        start of the stage; but for some types they then have no other loss, and nothing known is forgotten while other
        turns are learned.
    ranking: weight of the loss that tells the right option of a multiple-choice question from the wrong ones.
    balance: how far a long answer is kept from outweighing a short one, see `answer_loss`.
    spike: a loss so many times that of the steps before, and far outside of how they scatter, stops the run; 0 never.
    max_tiles: most tiles of a picture; 0 leaves it to the checkpoint.
    """

    name: str
    steps: int
    batch: int
    turns: int
    regions: int
    chat: bool = False
    drill: float = 0.0
    hidden: float = 0.0
    few: float = 0.0
    zoomed: float = 0.0
    at_once: int = 0
    language: bool = True
    frozen: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_parts: tuple[str, ...] = ("language",)
    four_bit: bool = False
    rate: float = 1e-3
    tower_rate: float = 0.3
    vision_rate: float = 1.0
    muon_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 50
    floor: float = 0.0
    weight_decay: float = 0.01
    clip: float = 1.0
    heads: float = 1.0
    kept: float = 0.0
    ranking: float = 1.0
    balance: float = 0.0
    spike: float = 3.0
    max_tiles: int = 0

    def __post_init__(self):
        for what, parts, known in (("freeze", self.frozen, PARTS), ("adapt", self.lora_parts, ADAPTED)):
            if unknown := [part for part in parts if part not in known]:
                raise ValueError(f"no part {unknown[0]!r} to {what}: expected some of {', '.join(known)}")


def nano() -> list[Stage]:
    """The built-in model: vision with heads, then the language model on it.

    "compare" comes before "language": as long as attention is spread evenly, the few tokens of a question drown among
    those of picture and regions, and many ways to ask drown what all of them ask. So the first turns are short, in one
    wording, and see only the summaries of the regions that they name.
    """
    vision = Stage(
        "vision", steps=1000, batch=16, turns=1, regions=10, zoomed=0.4, language=False, tower_rate=0.5, warmup=40,
        floor=0.02,
    )  # fmt: skip
    compare = Stage(
        "compare", steps=600, batch=4, turns=48, regions=8, drill=1.0, hidden=1.0,
        frozen=("tower", "mask", "projector"), rate=3e-3, muon_rate=0.02, heads=0.5, balance=0.5, warmup=40, floor=0.3,
    )  # fmt: skip
    language = replace(
        compare, name="language", steps=3600, turns=36, drill=0.5, hidden=0.6, few=0.5, rate=1.5e-3, vision_rate=0.4,
        muon_rate=0.012, balance=0.4, warmup=20, floor=0.0,
    )  # fmt: skip
    return [vision, compare, language]


def nano_again() -> list[Stage]:
    """The built-in model goes on from an earlier one, which can compare already, on more scenes; sized for a GPU.

    It is kept to most of what it said of marked regions, and learns what is not marked. Few of these questions have
    options: one that is ranked wrong can be all that a batch has, so that a spike of the loss says nothing.
    """
    vision, _, language = nano()
    return [
        replace(vision, steps=750, batch=64, few=0.5, frozen=("mask", "stem")),
        replace(
            language, steps=1560, batch=64, turns=24, drill=0.6, hidden=0.2, rate=1e-3, muon_rate=0.008, warmup=40,
            heads=0.0, kept=2.0, spike=0.0,
        ),
    ]  # fmt: skip


def gar_1b(samples: int, epochs: float = 1) -> list[Stage]:
    """GAR-1B as published: everything trains, 64 pictures a step, a chat and at most 16 tiles each (arXiv 2510.18876).

    The published run warms up by fractions of a step from 1e-5 of the rate; this one from one step's share of it.
    """
    steps = _steps(samples, epochs, batch=64)
    return [
        Stage(
            "gar-1b", steps=steps, batch=64, at_once=1, turns=4, regions=4, chat=True, max_tiles=16, rate=1e-5,
            tower_rate=1.0, betas=(0.9, 0.999), warmup=math.ceil(0.03 * steps), weight_decay=0.0, heads=0.0,
            ranking=0.0,
        ),
    ]  # fmt: skip


def gar_8b(samples: int, epochs: float = 1) -> list[Stage]:
    """GAR-8B as published: as GAR-1B, with at most 8 tiles."""
    (stage,) = gar_1b(samples, epochs)
    return [replace(stage, name="gar-8b", max_tiles=8)]


def finetune(samples: int, epochs: float = 3) -> list[Stage]:
    """All weights, on data of one's own: small steps, and more pictures at once than are seen together."""
    steps = _steps(samples, epochs, batch=16)
    return [
        Stage(
            "finetune", steps=steps, batch=16, at_once=1, turns=16, regions=8, rate=1e-5, tower_rate=1.0,
            betas=(0.9, 0.999), warmup=math.ceil(0.03 * steps), weight_decay=0.0, heads=0.0, ranking=0.0,
        ),
    ]  # fmt: skip


def lora(samples: int, epochs: float = 3) -> list[Stage]:
    """Adapters on the language model, on data of one's own: the rest stays as it is, and needs no gradients."""
    (stage,) = finetune(samples, epochs)
    return [replace(stage, name="lora", lora_rank=16, rate=2e-4)]


def qlora(samples: int, epochs: float = 3) -> list[Stage]:
    """As `lora`, over a language model held in 4 bits."""
    (stage,) = lora(samples, epochs)
    return [replace(stage, name="qlora", four_bit=True)]


def _steps(samples: int, epochs: float, batch: int) -> int:
    if not math.isfinite(epochs):
        raise ValueError(f"{epochs} epochs: give a finite number")
    return max(1, round(samples * epochs / batch))
