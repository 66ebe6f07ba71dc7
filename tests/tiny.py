"""Tiny models with random weights, in the shapes of the released ones."""

from __future__ import annotations

from typing import Any

import torch

from gar.model.config import GARConfig
from gar.model.gar import GARForConditionalGeneration

IMAGE, PROMPT0, CROP0, PROMPTS = 500, 510, 520, 8
VOCAB = 600


def tiny_config(*, class_token: bool = True, tied: bool = True, tile: int = 56, **changes: Any) -> GARConfig:
    """A PE tower of two layers on 4x4 patches, a Llama of two layers; replay of 2x2 cells a region."""
    changes.setdefault("replay_size", 2)
    arch = "vit_pe_core_large_patch14_336" if class_token else "vit_pe_core_gigantic_patch14_448"
    side = tile // 14
    return GARConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": arch,
            "model_args": {
                "embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": [tile, tile], "global_pool": "",
                "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [side, side],
            },
        },
        text_config={
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": tied,
        },
        vision_use_cls_token=class_token,
        tie_word_embeddings=tied,
        image_token_id=IMAGE,
        prompt_token_ids=list(range(PROMPT0, PROMPT0 + PROMPTS)),
        crop_token_ids=list(range(CROP0, CROP0 + PROMPTS)),
        tile_size=tile,
        feature_width=64,
        **changes,
    )  # fmt: skip


def tiny_model(seed: int = 0, **kwargs: Any) -> GARForConditionalGeneration:
    """Random weights, the mask embedding's too (it is zero at birth, which would hide faults)."""
    torch.manual_seed(seed)
    model = GARForConditionalGeneration(tiny_config(**kwargs)).eval()
    torch.nn.init.normal_(model.model.mask_patch_embedding.weight, std=0.1)
    return model


def random_request(
    config: GARConfig, grid: tuple[int, int], regions: dict[int, tuple], seed: int = 0, text: int = 7
) -> dict:
    """The arguments of one request: a picture of noise, marked at random, and some text."""
    g = torch.Generator().manual_seed(seed)
    tiles = grid[0] * grid[1] + config.thumbnail
    ids = [1] + [IMAGE] * (tiles * config.tokens_per_tile)
    for k in sorted(regions):
        ids += [PROMPT0 + k] + [CROP0 + k] * config.replay_size**2
    ids += torch.randint(10, 400, (text,), generator=g).tolist()
    size = config.tile_size
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(tiles, 3, size, size, generator=g),
        "mask_values": (torch.rand(tiles, size, size, generator=g) > 0.7).float(),
        "tile_grids": torch.tensor([grid]),
        "region_boxes": [regions],
    }


def batch_of(requests: list[dict], pad: int = 0) -> dict:
    """Requests padded on the left into one batch."""
    length = max(r["input_ids"].shape[1] for r in requests)

    def left(row: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(row[0], (length - row.shape[1], 0), value=value)

    return {
        "input_ids": torch.stack([left(r["input_ids"], pad) for r in requests]),
        "attention_mask": torch.stack([left(r["attention_mask"], 0) for r in requests]),
        "pixel_values": torch.cat([r["pixel_values"] for r in requests]),
        "mask_values": torch.cat([r["mask_values"] for r in requests]),
        "tile_grids": torch.cat([r["tile_grids"] for r in requests]),
        "region_boxes": [r["region_boxes"][0] for r in requests],
    }
