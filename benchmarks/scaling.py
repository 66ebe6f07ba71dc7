"""What does a training step of GAR-1B and GAR-8B need on 8 to 64 H100s? Computed from the configuration, not measured.

Parameters are counted on the meta device; FLOPs and bytes follow from them, from the tokens of a picture, and from
what FSDP2 keeps and moves. No GPU took part: how much of its peak a GPU reaches (`UTILISATION`, `LINK_EFFICIENCY`)
is assumed below, and every second in the tables stands or falls with it.

    python benchmarks/scaling.py [--tiles 16] [--write docs/scaling.md]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gar.model.config import GARConfig
from gar.model.gar import GARForConditionalGeneration

# Taken from data sheets: an H100 SXM, dense bf16; NVLink and InfiniBand in one direction.
PEAK, MEMORY = 989e12, 80e9
NVLINK, ADAPTER, GPUS_PER_NODE = 450e9, 50e9, 8

# Assumed, not measured.
UTILISATION = 0.4  # of PEAK, over all FLOPs of a step, the repeated ones too
LINK_EFFICIENCY = 0.8  # of a link's rate in all-gather and reduce-scatter; transfers run beside the computing
RESERVED = 3e9  # CUDA context, NCCL's buffers, workspaces, gaps between blocks

# How the model is trained: FSDP2 with a group for each block, bf16 to compute, float32 to keep and to add up.
WEIGHT, GRADIENT, ADAMW, COMPUTE, REDUCE = 4, 4, 8, 2, 4  # bytes a parameter
LOGIT = 14  # bytes: bf16, float32 log-probabilities, and their two float32 gradients, all at once in backward
BATCH, REGIONS, TEXT = 64, 1, 128  # pictures of a step; regions of a picture, tokens of its text, all with logits
PICTURES = 2_370_000  # of the paper's three data sets
GPUS = (8, 16, 32, 64)


def released(name: str) -> GARConfig:
    """The sizes of a released checkpoint, "1B" or "8B"."""
    large = name == "8B"
    return GARConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_gigantic_patch14_448" if large else "vit_pe_core_large_patch14_336",
            "model_args": {
                "embed_dim": 1536 if large else 1024,
                "depth": 47 if large else 23,
                "img_size": [448, 448],
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [32, 32],
            },
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 4096 if large else 2048,
            "intermediate_size": 14336 if large else 8192,
            "num_hidden_layers": 32 if large else 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128262,
            "tie_word_embeddings": not large,
        },
        vision_use_cls_token=not large,
        tie_word_embeddings=not large,
        image_token_id=128002,
        prompt_token_ids=list(range(128256, 128261)),
        crop_token_ids=[128004, 128005, 128008, 128010, 128011],
        feature_width=1536 if large else 1024,
    )


@dataclass(frozen=True)
class Part:
    """Parameters of one part of the model, and its FLOPs for one picture.

    repeated: what gradient checkpointing computes a second time.
    """

    name: str
    parameters: int
    forward: int
    backward: int
    repeated: int = 0


@dataclass(frozen=True)
class Step:
    """One picture on one GPU.

    blocks: parameters that FSDP2 gathers block by block; largest_block: of the largest one. The rest are gathered once.
    kept: bytes of activations that live until backward with gradient checkpointing; kept_all: without.
    block_bytes: activations inside the largest block. logit_bytes: of the logits and their loss, at their peak.
    """

    parts: list[Part]
    length: int
    blocks: int
    largest_block: int
    kept: int
    kept_all: int
    block_bytes: int
    logit_bytes: int

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def flops(self, checkpointing: bool) -> int:
        """Forward and backward, and with checkpointing what is computed again."""
        return sum(part.forward + part.backward + checkpointing * part.repeated for part in self.parts)

    def state(self, gpus: int) -> tuple[float, float, float]:
        """Bytes a GPU of float32 weights, gradients and AdamW's two moments, sharded evenly."""
        weights, gradients, adamw = (self.parameters * size / gpus for size in (WEIGHT, GRADIENT, ADAMW))
        return weights, gradients, adamw

    def gathered(self) -> int:
        """Bytes a GPU that FSDP2 holds unsharded, however many GPUs there are.

        Two blocks (the next is fetched early) and one block's gradients, before and after they become float32; of
        everything outside the blocks, weights and gradients.
        """
        return self.largest_block * (3 * COMPUTE + REDUCE) + (self.parameters - self.blocks) * 2 * COMPUTE

    def activations(self, checkpointing: bool) -> int:
        """Bytes a GPU at the peak: the logits, or a block's inside while it is computed again."""
        if not checkpointing:
            return self.kept_all + self.logit_bytes
        return self.kept + max(self.block_bytes, self.logit_bytes)

    def memory(self, gpus: int, checkpointing: bool = True, whole_gradients: bool = False) -> float:
        """Bytes a GPU in all, one picture at a time.

        whole_gradients: reduced once a step instead of once a picture, so that every GPU sums those of all weights.
        """
        whole = self.parameters * GRADIENT if whole_gradients and gpus < BATCH else 0
        return sum(self.state(gpus)) + self.gathered() + self.activations(checkpointing) + RESERVED + whole

    def traffic(self) -> int:
        """Bytes all-gathered and reduce-scattered: blocks are gathered for forward and for backward."""
        return COMPUTE * (self.parameters + self.blocks) + REDUCE * self.parameters

    def compute_s(self, checkpointing: bool) -> float:
        """Seconds to compute one picture."""
        return self.flops(checkpointing) / (PEAK * UTILISATION)

    def transfer_s(self, gpus: int, adapters: int) -> float:
        """Seconds to move `traffic` around a ring of all GPUs, with so many adapters a node."""
        rate = NVLINK if gpus <= GPUS_PER_NODE else min(NVLINK, adapters * ADAPTER)
        return self.traffic() * (gpus - 1) / gpus / (rate * LINK_EFFICIENCY)


def step(config: GARConfig, tiles: int, regions: int = REGIONS, text: int = TEXT) -> Step:
    """Count one picture of so many tiles besides the thumbnail, for a model with a ViT as its tower.

    A weight matrix costs 2 FLOPs a token, attention 4 a pair of tokens and channel; causal attention has half the
    pairs. Backward is twice that, but pixels need no gradient. Norms, activations and rotations are left out.
    """
    with torch.device("meta"):
        model = GARForConditionalGeneration(config)
    inner, sizes = model.model, config.text_config
    tower: Any = inner.vision_tower.timm_model
    layers: Any = inner.language_model.layers
    tiles += config.thumbnail
    patches = (config.tile_size // config.patch_size) ** 2
    per_tile = patches + config.vision_use_cls_token
    length = tiles * config.tokens_per_tile + regions * config.replay_size**2 + text
    vision_width, width = config.feature_width, sizes.hidden_size
    key_width = width // sizes.num_attention_heads * sizes.num_key_value_heads
    vision_inner = tower.blocks[0].mlp.fc1.out_features

    stem = _products(tower.patch_embed, tiles * patches) + _products(inner.mask_patch_embedding, tiles * patches)
    seeing = _products(tower.blocks, tiles * per_tile) + 4 * len(tower.blocks) * tiles * per_tile**2 * vision_width
    projecting = _products(inner.multi_modal_projector, tiles * patches)
    replaying = 2 * regions * config.replay_size**2 * 4 * 4 * width  # 4 samples a cell, each of 4 neighbours
    reading = _products(layers, length) + 4 * len(layers) * length * (length + 1) // 2 * width
    unrepeated = _products([layer.mlp.down_proj for layer in layers], length)  # nothing in the block needs its output
    speaking = _products(model.lm_head, text)  # the trainer's logits are those of answers alone
    vision = _size(tower) + _size(inner.mask_patch_embedding)
    projector, reader = _size(inner.multi_modal_projector), _size(layers)
    rest = _size(model) - vision - projector - reader

    # In bf16. Inside a block of the tower 13 tensors of its width (queries, keys and values stay beside the rotated
    # ones) and two of its inner width; inside one of the language model, whose norms keep float32, ten of its width,
    # four of its inner width, keys and values.
    vision_block = COMPUTE * tiles * per_tile * (13 * vision_width + 2 * vision_inner)
    text_block = COMPUTE * length * (10 * width + 4 * sizes.intermediate_size + 2 * key_width)
    projected = COMPUTE * tiles * patches * (vision_width + 3 * width)
    inputs = len(tower.blocks) * tiles * per_tile * vision_width + len(layers) * length * width
    return Step(
        parts=[
            Part("tower", vision, stem + seeing, stem + 2 * seeing, seeing),
            Part("projector", projector, projecting, 2 * projecting),
            Part("replay", 0, replaying, replaying),
            Part("language model", reader, reading, 2 * reading, reading - unrepeated),
            Part("token embedding and head", rest, speaking, 2 * speaking),
        ],
        length=length,
        blocks=_size(tower.blocks) + reader,
        largest_block=max(_size(tower.blocks[0]), _size(layers[0])),
        kept=COMPUTE * inputs + projected,
        kept_all=len(tower.blocks) * vision_block + len(layers) * text_block + projected,
        block_bytes=max(vision_block, text_block),
        logit_bytes=LOGIT * text * sizes.vocab_size,
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _products(modules: nn.Module | Sequence[nn.Module], tokens: int) -> int:
    """FLOPs of all matrices of these modules, each times so many tokens."""
    every = [modules] if isinstance(modules, nn.Module) else modules
    return 2 * tokens * sum(p.numel() for module in every for p in module.parameters() if p.ndim > 1)


def tables(steps: dict[str, Step]) -> str:
    """The tables of docs/scaling.md in Markdown, for models by name."""
    flops, memory, time = [], [], []
    for name, one in steps.items():
        for part in one.parts:
            done = (part.forward, part.backward, part.repeated)
            flops.append([name, part.name, f"{part.parameters / 1e6:,.1f}", *(f"{n / 1e12:,.2f}" for n in done)])
        done = (sum(getattr(part, what) for part in one.parts) for what in ("forward", "backward", "repeated"))
        flops.append([name, "in all", f"{one.parameters / 1e6:,.1f}", *(f"{n / 1e12:,.2f}" for n in done)])
        for gpus in GPUS:
            kinds = (*one.state(gpus), one.gathered(), one.activations(True))
            memory.append(
                [name, gpus, *(f"{n / 1e9:.1f}" for n in kinds)]
                + [_fits(one.memory(gpus)), _fits(one.memory(gpus, checkpointing=False))]
                + [_fits(one.memory(gpus, whole_gradients=True))]
            )
            compute = one.compute_s(True)
            row = [name, gpus, BATCH // gpus, f"{compute:.2f}"]
            for adapters in (GPUS_PER_NODE, 1):
                transfer = one.transfer_s(gpus, adapters)
                seconds = BATCH // gpus * max(compute, transfer)
                row += [f"{transfer:.2f}", f"{seconds:.2f}", f"{PICTURES / BATCH * seconds / 3600:.1f}"]
                row += ["network" if transfer > compute else "computing"]
            time.append(row)
    heads = (
        "model, part, parameters M, forward TFLOP, backward TFLOP, repeated TFLOP",
        "model, GPUs, weights, gradients, AdamW, gathered, activations, in all, without checkpointing, whole gradients",
        "model, GPUs, pictures a GPU, computing s" + 2 * ", transfer s, step s, epoch h, limit",
    )
    made = (_table(head, rows) for head, rows in zip(heads, (flops, memory, time), strict=True))
    return "\n\n".join(made)


def _fits(size: float) -> str:
    return f"{size / 1e9:.1f}" + ("" if size <= MEMORY else ": too much")


def _table(head: str, rows: list[list[Any]]) -> str:
    lines = [head.split(", "), ["---"] * len(rows[0]), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=16, help="of a picture, besides the thumbnail")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables in the place of those in FILE")
    arguments = parser.parse_args()
    made = tables({f"GAR-{name}": step(released(name), arguments.tiles) for name in ("1B", "8B")})
    print(made)
    if arguments.write:
        text = arguments.write.read_text()
        for table in made.split("\n\n"):  # a table is known by its first line
            head = re.escape(table.split("\n", 1)[0])
            text = re.sub(rf"{head}(\n\|.*)*", table, text)
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
