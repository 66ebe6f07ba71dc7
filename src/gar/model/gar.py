"""The GAR model: a PerceptionLM whose picture is encoded with its regions marked, and whose text replays them.

Tensors in, tensors out. Knows no picture file, no `Region` and no text; `inputs/processor.py` makes its batches.

Shapes: B requests, T tiles of all requests (request after request, thumbnail first, then row-major), R regions,
S sequence, D language width, g cells along a tile's side, P cells along a replayed region's side.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PerceptionLMForConditionalGeneration, PerceptionLMModel
from transformers.models.perception_lm.modeling_perception_lm import PerceptionLMPreTrainedModel

from gar.model.config import GARConfig
from gar.model.released import TO_OURS
from gar.model.replay import merge_tiles, replay
from gar.model.vision import Finder, MaskEmbedding, Place, Projector, Pyramid, cell_boxes, patch_embedding

# What transformers calls the keys and values of tokens that were read already; it was renamed within version 5.
KEPT = "cache" if "cache" in signature(PerceptionLMForConditionalGeneration.forward).parameters else "past_key_values"
Boxes = list[dict[int, tuple[float, float, float, float]]]


class GARPreTrainedModel(PerceptionLMPreTrainedModel):
    config: GARConfig

    def _init_weights(self, module: nn.Module):
        if isinstance(module, (MaskEmbedding, Place)):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Finder):
            nn.init.zeros_(module.found)
            nn.init.constant_(module.get_parameter("middle.bias"), -4.0)  # most cells have none
        elif isinstance(module, nn.RMSNorm):  # of mentions, as long as a word's embedding: a longer one drowns the name
            nn.init.constant_(module.weight, self.config.text_config.initializer_range)
        else:
            super()._init_weights(module)


class GARModel(GARPreTrainedModel, PerceptionLMModel):
    """Vision tower with mask embedding, projector, and language model, under PerceptionLM's names."""

    config: GARConfig

    def __init__(self, config: GARConfig):
        GARPreTrainedModel.__init__(self, config)
        width = config.text_config.hidden_size
        self.vision_tower = AutoModel.from_config(config.vision_config)
        if config.tower_levels:
            levels = self.vision_tower.timm_model.feature_info
            self.pyramid = Pyramid(config, levels.channels(), levels.reduction())
            mask_width = patch_embedding(self.vision_tower).out_channels
        else:
            mask_width = config.feature_width
        self.mask_patch_embedding = MaskEmbedding(config, mask_width)
        self.multi_modal_projector = Projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.picture_place = Place(width) if config.picture_place else None
        if config.middle_embedding:
            self.finder = Finder(width)
        if config.mention_embedding:
            self.mention = nn.Linear(config.replay_size**2 * width, width)
            self.mention_norm = nn.RMSNorm(width) if config.mention_norm else nn.Identity()
            self.mention_place = Place(width) if config.mention_place else None
        self._mask_THW: Tensor | None = None
        patch_embedding(self.vision_tower).register_forward_hook(self._add_mask)
        self.post_init()

    def _add_mask(self, module: nn.Module, args: tuple, patches: Tensor) -> Tensor:
        if self._mask_THW is None:
            return patches
        mask_TEhw = self.mask_patch_embedding(self._mask_THW)
        if patches.ndim == mask_TEhw.ndim:
            return patches + mask_TEhw
        return patches + mask_TEhw.flatten(2).transpose(1, 2)

    def encode(self, pixel_values: Tensor, mask_values: Tensor | None = None) -> Tensor:
        """Encode tiles with their regions marked.

        Args:
            pixel_values: (T, 3, H, W), normalised to -1..1.
            mask_values: (T, H, W), 1 inside any region; None marks nothing.

        Returns:
            (T, g, g, D).
        """
        if self.config.tower_levels:  # convolutions on a CPU are 1.4 times as fast this way
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        self._mask_THW = mask_values
        try:
            features = self.vision_tower(pixel_values, do_pooling=False).last_hidden_state
        finally:
            self._mask_THW = None
        if self.config.tower_levels:
            features = self.pyramid(features)
        elif self.config.vision_use_cls_token:
            features = features[:, 1:]
        return self.multi_modal_projector(features)

    def embed(
        self,
        input_ids: Tensor,
        features_TggD: Tensor,
        regions_RPD: Tensor,
        region_boxes: Boxes,
    ) -> Tensor:
        """Token embeddings (B, S, D), with image tokens and region placeholders replaced by features; see `cut`.

        Raises:
            ValueError: when placeholders and features differ in number; both counts are named.
        """
        embeds_BSD = self.embed_text(input_ids, regions_RPD, region_boxes)
        where_BS, context_ND = input_ids == self.config.image_token_id, self._context_as_read(features_TggD)
        if int(where_BS.sum()) != len(context_ND):
            raise ValueError(
                f"{int(where_BS.sum())} image tokens in input_ids, but {len(context_ND)} features of the tiles"
            )
        return embeds_BSD.masked_scatter(where_BS[..., None], context_ND.to(embeds_BSD.dtype))

    def embed_text(self, input_ids: Tensor, regions_RPD: Tensor, region_boxes: Boxes) -> Tensor:
        """Token embeddings (B, S, D) of a text after the picture, its regions cut already; see `cut`."""
        words_BSD = self.get_input_embeddings()(input_ids)
        embeds_BSD = self._fill(words_BSD, input_ids, self._scaled(regions_RPD), region_boxes)
        if not self.config.mention_embedding:
            return embeds_BSD
        return embeds_BSD + self.mentioned(input_ids, self.mentions(regions_RPD, region_boxes))

    def cut(self, features_TggD: Tensor, tile_grids: Tensor, region_boxes: Boxes) -> Tensor:
        """The replayed features (R, P * P, D) of all regions, request after request, in the order of their dicts."""
        for b, boxes in enumerate(region_boxes):
            for k in boxes:
                if not 0 <= k < self.config.max_prompts:
                    raise ValueError(
                        f"request {b} has a region <Prompt{k}>, but the model has {self.config.max_prompts} prompts"
                    )
        if not any(region_boxes):
            return features_TggD.new_zeros(0, self.config.replay_size**2, features_TggD.shape[-1])
        stride = self.config.projector_pooling_ratio * self.config.feature_stride
        return replay(
            self._maps(features_TggD, tile_grids),
            [list(boxes.values()) for boxes in region_boxes],
            self.config.replay_size,
            scale=1 / stride if self.config.replay_frame == "released" else 1.0,
        )

    def context(self, features_TggD: Tensor) -> Tensor:
        """The tiles' features as image tokens, tile after tile, row-major: (N, D)."""
        pooling = self.config.context_pooling
        if pooling > 1:
            features_TggD = F.avg_pool2d(features_TggD.permute(0, 3, 1, 2), pooling).permute(0, 2, 3, 1)
        return features_TggD.flatten(0, 2)

    def _context_as_read(self, features_TggD: Tensor) -> Tensor:
        """`context` as the language model reads it: at its length, with each cell's place and what it has: (N, D)."""
        added, pooling, context_ND = 0.0, self.config.context_pooling, self.context(features_TggD)
        if self.picture_place is not None:
            boxes = cell_boxes(features_TggD.shape[1] // pooling, features_TggD.device)
            added = self.picture_place(boxes).repeat(len(features_TggD), 1)
        if self.config.middle_embedding:
            found_N1, things_ND = self.finder.things(features_TggD, pooling)
            context_ND = torch.where(found_N1, things_ND, context_ND)
            added = added + found_N1 * self.finder.found
        return self._scaled(context_ND, added)

    def _scaled(self, tokens: Tensor, added: Tensor | float = 0.0) -> Tensor:
        """Features (..., D) at the length at which the language model reads them, with what is added to them."""
        scale = self.config.visual_scale
        return (F.rms_norm(tokens, tokens.shape[-1:]) + added) * scale if scale else tokens + added

    def _maps(self, features_TggD: Tensor, tile_grids: Tensor) -> list[Tensor]:
        """The replay map of each request: its tiles put together, the thumbnail left out."""
        grids = [(int(w), int(h)) for w, h in tile_grids.tolist()]
        first = int(self.config.thumbnail)
        counts = [w * h + first for w, h in grids]
        if sum(counts) != len(features_TggD):
            raise ValueError(f"tile_grids {grids} stand for {sum(counts)} tiles, but {len(features_TggD)} were given")
        tiles = features_TggD.split(counts)
        return [merge_tiles(t[first:], grid) for t, grid in zip(tiles, grids, strict=True)]

    def mentions(self, regions_RPD: Tensor, region_boxes: Boxes) -> Tensor:
        """What each name `<Promptk>` gains where it stands: (B, K, D), zero for names without a region."""
        summaries_RD = self.mention_norm(self.mention(regions_RPD.flatten(1)))
        if self.mention_place is not None:
            each = [box for boxes in region_boxes for box in boxes.values()]
            boxes_R4 = torch.tensor(each, dtype=torch.float32, device=summaries_RD.device).view(-1, 4)
            summaries_RD = summaries_RD + self.mention_place(boxes_R4)
        table_BKD = summaries_RD.new_zeros(len(region_boxes), self.config.max_prompts, summaries_RD.shape[1])
        rows = [b for b, boxes in enumerate(region_boxes) for _ in boxes]
        columns = [k for boxes in region_boxes for k in boxes]
        table_BKD[rows, columns] = summaries_RD
        return table_BKD

    def mentioned(self, input_ids: Tensor, mentions_BKD: Tensor) -> Tensor:
        """The gains, where the names stand in a text: (B, S) -> (B, S, D)."""
        names = torch.tensor(self.config.prompt_token_ids, device=input_ids.device)
        return (input_ids[..., None] == names).to(mentions_BKD.dtype) @ mentions_BKD

    def _fill(self, embeds_BSD: Tensor, input_ids: Tensor, regions_RPD: Tensor, region_boxes: Boxes) -> Tensor:
        """Put each region's replayed features into its runs of placeholders."""
        embeds_BSD, regions_RPD = embeds_BSD.clone(), regions_RPD.to(embeds_BSD.dtype)  # autocast leaves them apart
        owner = {(b, k): r for r, (b, k) in enumerate((b, k) for b, boxes in enumerate(region_boxes) for k in boxes)}
        cells = regions_RPD.shape[1]
        where_BSK = input_ids[..., None] == torch.tensor(self.config.crop_token_ids, device=input_ids.device)
        counts = where_BSK.sum(1).tolist()
        for b, k in ((b, k) for b, row in enumerate(counts) for k, count in enumerate(row) if count):
            if (b, k) not in owner:
                raise ValueError(f"request {b} has placeholders of <Prompt{k}> but no box for it in region_boxes")
            if counts[b][k] % cells:
                raise ValueError(
                    f"request {b} has {counts[b][k]} placeholders of <Prompt{k}>, but its region has {cells} cells"
                )
        if owner:
            table = [[owner.get((b, k), 0) for k in range(len(row))] for b, row in enumerate(counts)]
            b, s, k = where_BSK.nonzero(as_tuple=True)
            cell = (where_BSK.cumsum(1)[b, s, k] - 1) % cells
            embeds_BSD[b, s] = regions_RPD[torch.tensor(table, device=b.device)[b, k], cell]
        return embeds_BSD


class GARForConditionalGeneration(GARPreTrainedModel, PerceptionLMForConditionalGeneration):
    """Grasp Any Region (arXiv 2510.18876): describes and compares regions of a picture, and answers questions."""

    config: GARConfig
    config_class = GARConfig

    def __init__(self, config: GARConfig):
        GARPreTrainedModel.__init__(self, config)
        self.model = GARModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load our layout or a released one, from a folder or a hub id; see transformers for the arguments.

        Raises:
            ValueError: if the checkpoint lacks a weight or has one that the model does not know.
        """
        want_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", TO_OURS)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(map(str, info[problem])):
                listed = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
                raise ValueError(
                    f"{pretrained_model_name_or_path} is not a checkpoint of this configuration: "
                    f"{len(keys)} {problem.replace('_', ' ')} ({listed})"
                )
        return (model, info) if want_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any):
        """Save in our layout, whichever layout was loaded; `gar.model.released.save_released` writes the other."""
        kwargs.setdefault("save_original_format", False)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any):
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        if not self.config.tower_levels:
            self.model.vision_tower.timm_model.set_grad_checkpointing(enable)

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        mask_values: Tensor | None = None,
        tile_grids: Tensor | None = None,
        region_boxes: Boxes | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """What the language model reads.

        Args:
            input_ids: (B, S) with image tokens and region placeholders.
            attention_mask: (B, S), not needed here; accepted so that a whole batch can be passed.
            pixel_values: (T, 3, H, W) in -1..1; None for text alone.
            mask_values: (T, H, W), 1 where any region of the picture is; None leaves out the mask embedding.
            tile_grids: (B, 2) as (tiles_w, tiles_h).
            region_boxes: for each request {prompt number k: (x0, y0, x1, y1)}, normalised to the picture.
            features: (T, g, g, D) from `model.encode`, in place of pixel_values and mask_values.

        Returns:
            (B, S, D): token embeddings after the scatter of the tiles' features and the replay of the regions'.

        Raises:
            ValueError: when placeholders and features differ in number.
        """
        return self._read(input_ids, pixel_values, mask_values, tile_grids, region_boxes, features)[0]

    def _read(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        mask_values: Tensor | None,
        tile_grids: Tensor | None,
        region_boxes: Boxes | None,
        features: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`embed`, and the regions' cut features (R, P * P, D); None for text alone."""
        if features is None:
            if pixel_values is None:
                return self.get_input_embeddings()(input_ids), None
            features = self.model.encode(pixel_values, mask_values)
        if tile_grids is None:
            raise ValueError("tile_grids is missing: one (tiles_w, tiles_h) per request, to put its tiles together")
        boxes = region_boxes or [{} for _ in input_ids]
        features = features.to(input_ids.device, self.model.language_model.dtype)
        regions_RPD = self.model.cut(features, tile_grids, boxes)
        return self.model.embed(input_ids, features, regions_RPD, boxes), regions_RPD

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        mask_values: Tensor | None = None,
        tile_grids: Tensor | None = None,
        region_boxes: Boxes | None = None,
        labels: Tensor | None = None,
        features: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        mentions: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ):
        """Logits (B, S, V), and the mean next-token loss over labels that are not -100. Arguments as for `embed`.

        A (B, S) attention_mask also sets the positions, so that padding on either side changes nothing. `mentions`
        (B, K, D), see `GARModel.mentions`, belong to a continued answer, where the picture is no longer given. What was
        read already is given by the name of `KEPT`.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("the model needs input_ids or inputs_embeds")
            inputs_embeds = self.embed(
                input_ids, attention_mask, pixel_values, mask_values, tile_grids, region_boxes, features
            )
            if mentions is not None:
                inputs_embeds = inputs_embeds + self.model.mentioned(input_ids, mentions)
        if (
            position_ids is None
            and kwargs.get(KEPT) is None
            and attention_mask is not None
            and attention_mask.ndim == 2
        ):
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        return super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,  # pyright: ignore[reportArgumentType]
            labels=None if labels is None else labels.long(),  # pyright: ignore[reportArgumentType]
            logits_to_keep=logits_to_keep,  # named, because `generate` asks for the last place's only where it is
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **kwargs: Any):
        """Generate with every option of transformers; arguments of `embed` first turn into `inputs_embeds`.

        Returns:
            The new token ids (B, n), without the prompt; or transformers' output object with them as `sequences`.
        """
        names = ("pixel_values", "mask_values", "tile_grids", "region_boxes", "features")
        picture = {name: kwargs.pop(name, None) for name in names}
        if kwargs.get("inputs_embeds") is None:
            if input_ids is None:
                raise ValueError("generate needs input_ids or inputs_embeds")
            kwargs["inputs_embeds"], regions_RPD = self._read(input_ids, **picture)
            if self.config.mention_embedding and regions_RPD is not None:
                kwargs["mentions"] = self.model.mentions(
                    regions_RPD, picture["region_boxes"] or [{} for _ in input_ids]
                )
        return super().generate(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
