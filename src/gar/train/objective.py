"""What a run minimises, by which weights: the loss of some packs, the parts of a model, and their optimiser.

One module with one `forward`, so that its weights can be sharded over processes as they are used.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gar.data.packing import Pack, Reading, Spoken, collate, needs_picture
from gar.model.gar import GARForConditionalGeneration
from gar.model.vision import around
from gar.train.heads import RegionHeads
from gar.train.muon import Muon
from gar.train.recipes import Stage

VISION = ("tower", "mask", "projector")
ADAPTER = ".lora_"  # in the name of a weight of peft
# Types of turns that are learned where others are kept: the hardest, and what better vision can answer better.
LEARNED = ("counting", "ordering", "same", "contact", "material")
STEM = re.compile(r"vision_tower\.timm_model\.(conv_stem|bn1|blocks\.[01]\.\d)\.")


def part_of(name: str) -> str:
    """The part that a weight belongs to: one of `PARTS`, where the stem counts as "tower", or "mention"."""
    if "mask_patch_embedding" in name:
        return "mask"
    if "vision_tower." in name:
        return "tower"
    if re.search(r"projector|pyramid\.|finder\.(conv|middle)", name):
        return "projector"
    return "mention" if re.search(r"(^|\.)(mention(_norm|_place)?|picture_place|finder)\.", name) else "language"


class Objective(nn.Module):
    """A model with the loss of one stage; on a GPU in bfloat16 where that is safe, and with activations recomputed.

    But not nano, or any model with a convolutional tower: it is so small that both would only take time.

    Args:
        heads: auxiliary heads, or None.
        pad_id: of the tokenizer.
    """

    def __init__(
        self, model: GARForConditionalGeneration, stage: Stage, heads: RegionHeads | None = None, pad_id: int = 0
    ):
        super().__init__()
        self.model, self.heads = model, heads if stage.heads else None
        self.stage, self.pad_id = stage, pad_id
        freeze(model, stage)
        self.vision_trains = any(p.requires_grad and part_of(name) in VISION for name, p in model.named_parameters())
        self.device = next(model.parameters()).device
        if self.heads is not None:
            self.heads.to(self.device)
        self.thrifty = self.device.type == "cuda" and not model.config.tower_levels
        # In a tuple, so that it is no part of what is trained and saved.
        self.before = (copy.deepcopy(model).eval().requires_grad_(False),) if stage.kept else ()
        if self.thrifty:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def training_mode(self) -> None:
        """As `train`, but the tower's batch norms keep their statistics: batches here are small."""
        self.train()
        self.model.model.vision_tower.eval()

    def forward(self, packs: Sequence[Pack]) -> tuple[Tensor, dict[str, float], Spoken | None]:
        """The loss of some packs, figures to be summed, and what is said: first of packs with a prefix, then of others.

        Packs without a prefix need a model that adds summaries to the names of regions.
        """
        with torch.autocast("cuda", torch.bfloat16, enabled=self.thrifty):
            return self._forward(packs)

    def _forward(self, packs: Sequence[Pack]) -> tuple[Tensor, dict[str, float], Spoken | None]:
        packs = sorted(packs, key=lambda p: p.hidden)
        batch = on(self.device, collate(packs))
        inner, stage, boxes = self.model.model, self.stage, batch["region_boxes"]
        with torch.set_grad_enabled(self.vision_trains and torch.is_grad_enabled()):
            features = inner.encode(batch["pixel_values"], batch["mask_values"])
        regions = inner.cut(features, batch["tile_grids"], boxes)
        loss, figures, spoken = features.new_zeros(()), {"steps": 1.0}, None
        if stage.language:
            seen = features.split([len(p.cut.tiles) for p in packs]), regions.split([len(of_one) for of_one in boxes])
            spoken = learned = self.spoken(self.model, packs, *seen)
            if self.training and self.before:
                with torch.no_grad():
                    before = self.spoken(*self.before, packs, *seen)
                learns = [needs_picture(turn) or turn.type in LEARNED for p in packs for turn in p.turns]
                drift = spoken.only([not one for one in learns]).drift(before)
                loss, learned, figures["drift"] = stage.kept * drift, spoken.only(learns), drift.item()
            of_answers, about_them = self.loss_of(learned)
            loss, figures = loss + of_answers, figures | about_them
        if self.heads is not None and any(boxes):
            summaries = inner.mention(regions.flatten(1))
            words = self.model.get_input_embeddings().weight
            where = around(features), inner.finder(features)
            head_loss, right = self.heads(summaries, *where, packs, words)
            loss = loss + stage.heads * head_loss
            figures["heads"] = head_loss.item()
            for name, (hits, asked) in right.items():
                figures[f"right/{name}"], figures[f"asked/{name}"] = hits, asked
        return loss, figures, spoken

    def spoken(
        self,
        model: GARForConditionalGeneration,
        packs: Sequence[Pack],
        tiles: Sequence[Tensor],
        regions: Sequence[Tensor],
    ) -> Spoken:
        """What a model says where the answers of some packs stand, first those with a prefix.

        Args:
            tiles, regions: of each pack, the features of its tiles and those cut out for its regions.
        """
        inner, said = model.model, []
        for hidden in (False, True):
            own = [i for i, p in enumerate(packs) if p.hidden is hidden]
            if not own:
                continue
            reading = Reading.of([packs[i] for i in own], self.pad_id, self.device)
            of_rows = [own[pack] for pack, _, _ in reading.rows]
            ids, boxes = reading.input_ids, [packs[i].boxes for i in of_rows]
            its_regions = torch.cat([regions[i] for i in of_rows])
            if hidden:
                embeds_RSD = inner.embed_text(ids, its_regions, boxes)
            else:
                embeds_RSD = inner.embed(ids, torch.cat([tiles[i] for i in of_rows]), its_regions, boxes)
            hidden_RSD = inner.language_model(
                inputs_embeds=embeds_RSD,
                attention_mask=reading.attention_mask,
                position_ids=reading.position_ids,
                use_cache=False,
            ).last_hidden_state

            def speak(rows: list[int], places: list[int], hidden_RSD: Tensor = hidden_RSD) -> Tensor:
                return model.lm_head(hidden_RSD[rows, places])

            said.append(Spoken.of([packs[i] for i in own], reading, speak))
        return Spoken.joined(said)

    def loss_of(self, spoken: Spoken) -> tuple[Tensor, dict[str, float]]:
        """The loss of all that is said, and its figures."""
        answers = spoken.answer_loss(self.stage.balance)
        ranking, right, asked = spoken.ranking_loss()
        figures = {"language": answers.item(), "right/choices": float(right), "asked/choices": float(asked)}
        return answers + self.stage.ranking * ranking, figures

    def shard(self, mesh: Any) -> None:
        """Spread weights, gradients and the optimiser's state over the processes of a mesh (FSDP2).

        The blocks of tower and language model are gathered one after the other as they are used, for the way back
        anew; the rest together, once. On a GPU in bfloat16, with gradients added up over the processes in float32.

        Raises:
            ValueError: the stage trains by Muon, which needs whole matrices, or over weights of 4 bits.
        """
        if self.stage.four_bit:
            raise ValueError(f"stage {self.stage.name}: weights of 4 bits cannot be spread; take lora, or no --shard")
        if self.stage.muon_rate:
            raise ValueError(f"stage {self.stage.name}: Muon needs whole matrices; shard with muon_rate=0, by AdamW")
        kinds: dict[str, Any] = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
        kinds = kinds if self.thrifty else {}
        tower: Any = self.model.model.vision_tower.timm_model
        for block in (*self.model.model.language_model.layers, *tower.blocks):
            fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(**kinds), reshard_after_forward=True)
        whole = MixedPrecisionPolicy(**kinds, cast_forward_inputs=False)  # they are packs, which the cast would copy
        fully_shard(self, mesh=mesh, mp_policy=whole, reshard_after_forward=False)

    def optimizer(self) -> tuple[torch.optim.AdamW, list[float]]:
        """AdamW (with Muon, where the stage has a rate for it) over all that trains, and each group's peak rate."""
        stage = self.stage
        tower, between, matrices, rest = [], [], [], []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                part = part_of(name)
                if stage.muon_rate and part == "language" and ".layers." in name and parameter.ndim == 2:
                    matrices.append(parameter)
                else:
                    (tower if part == "tower" else rest if part == "language" else between).append(parameter)
        if self.heads is not None:
            rest += list(self.heads.parameters())
        groups, rates = [], []
        for parameters, factor in ((tower, stage.tower_rate), (between, stage.vision_rate), (rest, 1.0)):
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) == decays]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": stage.weight_decay * decays})
                    rates.append(stage.rate * factor)
        if matrices:
            groups.append({"params": matrices, "weight_decay": stage.weight_decay, "muon": True})
            rates.append(stage.muon_rate)
        return Muon(groups, lr=stage.rate, betas=stage.betas), rates


def freeze(model: GARForConditionalGeneration, stage: Stage) -> None:
    """Let only those weights train that a stage trains: of a model with adapters, only these."""
    adapted = any(ADAPTER in name for name, _ in model.named_parameters())
    frozen = {*stage.frozen, *([] if stage.language else ["language"])}
    for name, parameter in model.named_parameters():
        kept = part_of(name) in frozen or ("stem" in frozen and STEM.search(name))
        parameter.requires_grad_(ADAPTER in name if adapted else not kept)


def on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
