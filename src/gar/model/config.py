"""The configuration of a GAR model: sizes, token ids, and the few named behaviours in which checkpoints differ.

Reads both layouts: ours, and the `config.json` of a released checkpoint (an `mllm_config` inside a "GAR" config).
Knows no text and no picture.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import PerceptionLMConfig


class GARConfig(PerceptionLMConfig):
    """Everything that shapes a GAR model and what is fed to it. Inherits PerceptionLM's fields.

    prompt_token_ids: token id of the name `<Promptk>` at place k.
    crop_token_ids: token id of the placeholders of region k at place k; replayed features replace them.
    tile_size: side of one square tile, pixels. max_num_tiles: most tiles of a picture, the thumbnail not counted.
    thumbnail: whether the whole picture, shrunk to one tile, comes before the tiles.
    patch_size: stride of the tower's patch embedding in pixels (a convolutional tower's stem: 2).
    feature_stride: pixels of a tile per cell of the tower's output (a plain ViT: its patch size).
    feature_width: channels of the tower's output.
    tower_levels: of a convolutional tower, how many of its last levels are fused into one map; 0 for a ViT.
    context_pooling: how many replay cells, along each side, one image token of the language model averages.
    replay_size: side of the grid of vectors replayed for a region; `replay_size ** 2` placeholders each.
    replay_frame: "feature" samples the region's own window. "released" scales the box twice, as the published code
        did and as its weights were trained with (paper's repository, `modeling_gar.py`).
    visual_scale: bring the tokens of the picture and of its regions to this root mean square before the language model
        reads them. Where its blocks add far longer vectors, they drown in these. 0 leaves them as they are.
    picture_place: add to each token of the picture where its cell is in its tile.
    middle_embedding: each token of the picture in whose cells a small network finds the middle of a thing, marked or
        not, is the mean of what is around that middle, with a learned vector added.
    mention_embedding: add a summary of a region's features to each mention of its name `<Promptk>`.
    mention_norm: normalise that summary, so that it does not drown the name.
    mention_place: add to it where the region's box is in the picture.
    inclusive_boxes: normalised boxes end at the last pixel's index instead of one past it (released convention).
    prompt_style: "released" (the published chat text) or "nano" (a compact form for the built-in model).
    choice_scoring: how `choices` are ranked: by the option "letters" or by the likelihood of the "texts".
    describe_prompt_number: the prompt number that a single described region gets.
    describe_question: what a checkpoint is asked for the description of a region; `{name}` stands for `<Promptk>`.
    """

    model_type = "GAR"

    text_config: Any = None
    vision_config: Any = None
    prompt_token_ids: list[int] = field(default_factory=list)
    crop_token_ids: list[int] = field(default_factory=list)
    tile_size: int = 448
    max_num_tiles: int = 16
    thumbnail: bool = True
    patch_size: int = 14
    feature_stride: int = 14
    feature_width: int = 1024
    tower_levels: int = 0
    projector_pooling_ratio: int = 2
    context_pooling: int = 1
    replay_size: int = 16
    replay_frame: str = "feature"
    visual_scale: float = 0.0
    picture_place: bool = False
    middle_embedding: bool = False
    mention_embedding: bool = False
    mention_norm: bool = False
    mention_place: bool = False
    inclusive_boxes: bool = False
    prompt_style: str = "released"
    choice_scoring: str = "letters"
    describe_prompt_number: int = 0
    describe_question: str = "Describe this masked region in detail."

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        _one_of("replay_frame", self.replay_frame, ("feature", "released"))
        _one_of("prompt_style", self.prompt_style, ("released", "nano"))
        _one_of("choice_scoring", self.choice_scoring, ("letters", "texts"))
        if len(self.prompt_token_ids) != len(self.crop_token_ids):
            raise ValueError(
                f"{len(self.prompt_token_ids)} prompt tokens but {len(self.crop_token_ids)} crop tokens: "
                "each region needs one of both"
            )

    @property
    def map_size(self) -> int:
        """Side of the replay map of one tile, in cells."""
        return self.tile_size // self.feature_stride // self.projector_pooling_ratio

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile in the language model's sequence."""
        return (self.map_size // self.context_pooling) ** 2

    @property
    def max_prompts(self) -> int:
        """The most regions that one request can mark."""
        return len(self.crop_token_ids)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        if "mllm_config" in config_dict:
            from gar.model.released import config_from_released

            config_dict = config_from_released(config_dict)
        return super().from_dict(config_dict, **kwargs)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
