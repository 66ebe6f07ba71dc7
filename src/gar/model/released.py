"""The released checkpoint layout <-> ours: one table of weight names, one of configuration fields.

The released layout (`HaochenWang/GAR-1B`, `GAR-8B`) wraps a PerceptionLM as `mllm` beside the mask embedding. Ours is
PerceptionLM's own, with the mask embedding inside its `model`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gar.model.config import GARConfig
    from gar.model.gar import GARForConditionalGeneration

# (released prefix, our prefix); a key starts with exactly one of each.
PREFIXES = (
    ("mask_patch_embedding.", "model.mask_patch_embedding."),
    ("mllm.model.", "model."),
    ("mllm.lm_head.", "lm_head."),
)
TO_OURS = {rf"^{re.escape(theirs)}": ours for theirs, ours in PREFIXES}

FIRST_PROMPT_TOKEN = 128256  # <Prompt0>; the base vocabulary ends just before it


def released_key(key: str) -> str:
    """Our name of a weight -> its name in a released checkpoint."""
    for theirs, ours in PREFIXES:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    raise ValueError(f"weight {key!r} has no name in the released layout")


def config_from_released(released: dict[str, Any]) -> dict[str, Any]:
    """Fields of a released `config.json` -> fields of `GARConfig`, with the released behaviours switched on."""
    mllm = released["mllm_config"]
    vision = mllm["vision_config"]
    args = vision.get("model_args") or {}
    prompts = released.get("prompt_numbers", len(released["crop_tokens_ids"]))
    patch = released.get("patch_size_h") or released["kernel_size"][0]
    pooling = mllm.get("projector_pooling_ratio", 2)
    tile = (args.get("img_size") or [448])[0]
    width = args.get("embed_dim") or vision.get("num_features") or released.get("mask_path_embedding_out_channels")
    fields = {k: v for k, v in mllm.items() if k not in ("model_type", "architectures", "use_flash_attn")}
    fields |= {
        "model_type": "GAR",
        "vision_config": {**vision, "model_args": {**args, "embed_dim": width}},
        "tie_word_embeddings": mllm["text_config"].get("tie_word_embeddings", mllm.get("tie_word_embeddings", False)),
        "prompt_token_ids": [FIRST_PROMPT_TOKEN + k for k in range(prompts)],
        "crop_token_ids": released["crop_tokens_ids"][:prompts],
        "tile_size": tile,
        "patch_size": patch,
        "feature_stride": patch,
        "feature_width": width,
        "replay_size": tile // patch // pooling,
        "replay_frame": "released",
        "inclusive_boxes": True,
        "describe_prompt_number": 1,
    }
    for name in ("dtype", "torch_dtype"):
        if released.get(name):
            fields[name] = released[name]
    return fields


def config_to_released(config: GARConfig) -> dict[str, Any]:
    """`GARConfig` -> the fields of a released `config.json`.

    Raises:
        ValueError: if the model has a part or a behaviour that the released layout cannot name.
    """
    ours = config.to_dict()
    mllm_fields = ("text_config", "vision_config", "projector_pooling_ratio", "vision_use_cls_token")
    released = {
        "architectures": ["GARModel"],
        "model_type": "GAR",
        "dtype": ours.get("dtype"),
        "crop_tokens_ids": ours["crop_token_ids"],
        "prompt_numbers": len(ours["crop_token_ids"]),
        "kernel_size": [config.patch_size, config.patch_size],
        "patch_size_h": config.patch_size,
        "patch_size_w": config.patch_size,
        "mask_path_embedding_out_channels": config.feature_width,
        "mllm_config": {
            "model_type": "perception_lm",
            **{name: ours[name] for name in mllm_fields},
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "use_flash_attn": False,
        },
    }
    back = type(config).from_dict(released).to_dict()
    # Sub-configurations are written as they are; the processor's own file has the most tiles.
    fields = type(config).__annotations__.keys() - {"text_config", "vision_config", "max_num_tiles"}
    unnamed = {name: ours[name] for name in sorted(fields) if back[name] != ours[name]}
    if unnamed:
        raise ValueError(f"the released layout cannot express {unnamed}: save this model in our own layout instead")
    return released


def save_released(model: GARForConditionalGeneration, folder: str | Path) -> None:
    """Save weights and configuration in the released layout, so that published tools can read them.

    Raises:
        ValueError: see `config_to_released`.
    """
    from safetensors.torch import save_file

    config = config_to_released(model.config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {released_key(key): value.contiguous() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["mllm.lm_head.weight"]
    for name, write in (
        ("model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"})),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n")),
    ):
        temporary = folder / f"{name}.tmp"
        write(temporary)
        temporary.rename(folder / name)
