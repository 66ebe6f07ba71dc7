"""Pictures, regions and questions -> one padded batch of tensors for the model; token ids -> text.

The one door between what a user has and what the model reads: placeholders are counted against features here. Knows
tiling, prompts and the configuration. Knows no model, no weights and no segmenter.

Legend: B requests, S sequence, s tile side, T tiles (thumbnail first, then row-major; in a batch request by request).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.hub import cached_file

from gar.inputs.prompt import IGNORED, NO_FAULTS, ChatTurn, PromptWriter, ReleasedFaults
from gar.inputs.tiling import choose_grid, cut_image, cut_mask, normalise
from gar.model.config import GARConfig
from gar.regions import Located, load_image

RelBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class CutImage:
    """A picture in tiles.

    tiles: (T, 3, s, s) uint8. grid: (tiles_w, tiles_h). width, height: of the picture, pixels.
    """

    tiles: Tensor
    grid: tuple[int, int]
    width: int
    height: int


@dataclass(frozen=True)
class Request:
    """One picture with its marked regions and the text about them, before it joins a batch.

    input_ids, and in training labels of the same length, -100 where nothing is trained.
    mask_tiles: (T, s, s) bool, where any region is. region_boxes: prompt number -> (x0, y0, x1, y1) in 0..1.
    """

    picture: CutImage
    mask_tiles: Tensor
    region_boxes: dict[int, RelBox]
    input_ids: list[int]
    labels: list[int] | None = None


class GARProcessor(ProcessorMixin):
    """Makes a checkpoint's batches, and texts from its answers.

    Attributes:
        config, tokenizer: of the checkpoint.
        prompts: writes its token ids.
    """

    def __init__(self, config: GARConfig, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer=tokenizer)
        self.config = config
        self.prompts = PromptWriter(tokenizer, config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> GARProcessor:
        """Read the configuration and tokenizer of a checkpoint, ours or released. Code that it brings is never run.

        A tile limit in `processor_config.json` or `preprocessor_config.json` wins over the one in `config.json`:
        released checkpoints keep theirs there.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            kwargs: `config`, to use one that is read already; where to look: `revision`, `cache_dir`, `token`,
                `local_files_only`, `force_download`, `subfolder`. Others are ignored.

        Raises:
            ValueError: configuration and tokenizer do not belong together.
            OSError: one of them is missing.
        """
        name = str(pretrained_model_name_or_path)
        places = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")
        where = {place: kwargs[place] for place in places if kwargs.get(place) is not None}
        config = kwargs.get("config") or GARConfig.from_pretrained(name, **where)
        for file in ("preprocessor_config.json", "processor_config.json"):
            if path := cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where):
                fields = json.loads(Path(path).read_text(encoding="utf-8"))
                fields |= fields.get("image_processor") or {}
                config.max_num_tiles = fields.get("max_num_tiles", config.max_num_tiles)
        tokenizer = AutoTokenizer.from_pretrained(name, config=config, trust_remote_code=False, **where)
        return cls(config, tokenizer)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the tokenizer and what else `from_pretrained` reads. A model's `config.json` there is left as it is."""
        files = super().save_pretrained(str(save_directory), push_to_hub, **kwargs)
        if not (Path(save_directory) / "config.json").exists():
            self.config.save_pretrained(save_directory)
        return files

    def to_dict(self) -> dict[str, Any]:
        """The content of `processor_config.json`."""
        return {"processor_class": type(self).__name__, "max_num_tiles": self.config.max_num_tiles}

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Sequence[Any],
        regions: Sequence[Sequence[Located]],
        questions: Sequence[str] | None = None,
        faults: ReleasedFaults = NO_FAULTS,
    ) -> dict[str, Any]:
        """One batch, ready for `model.generate`.

        Args:
            images: B pictures: paths, PIL images, or (H, W, 3) uint8 arrays.
            regions: for each picture its regions; region i is `<Prompti>` in the question.
            questions: one per picture. Without, each picture's one region is described.
            faults: named faults of the published code to repeat.

        Returns:
            As `collate`.

        Raises:
            ValueError: lists of different lengths; a region of another picture's size; see `PromptWriter`.
        """
        if not len(images) == len(regions) == len(questions or images):
            given = f"{len(images)} images, {len(regions)} lists of regions, {len(questions or images)} questions"
            raise ValueError(f"{given}: expected one of each per request")
        pictures = [self.cut(image) for image in images]
        if questions is not None:
            rows = zip(pictures, regions, questions, strict=True)
            return self.collate([self.ask(picture, located, question, faults) for picture, located, question in rows])
        for located in regions:
            if len(located) != 1:
                raise ValueError(f"{len(located)} regions to describe in one request: give each its own, or a question")
        rows = zip(pictures, regions, strict=True)
        return self.collate([self.describe(picture, located[0], faults) for picture, located in rows])

    def cut(self, image: Any, exact: bool = True) -> CutImage:
        """Cut a picture (a path, a PIL image, or an (H, W, 3) uint8 array) into tiles; `exact` as in `cut_image`."""
        config, upright = self.config, load_image(image)
        grid = choose_grid(upright.width, upright.height, config.tile_size, config.max_num_tiles)
        tiles = cut_image(np.asarray(upright), grid, config.tile_size, config.thumbnail, exact)
        return CutImage(tiles, grid, upright.width, upright.height)

    def mark(self, picture: CutImage, regions: Sequence[Located]) -> Tensor:
        """Where any of the regions is: (T, s, s) bool. Without regions the whole picture is meant, as released.

        Raises:
            ValueError: a region's mask is not of the picture's size.
        """
        mask = np.full((picture.height, picture.width), not regions)
        for region in regions:
            if region.mask.shape != mask.shape:
                raise ValueError(
                    f"a region of a picture of {region.mask.shape[1]}x{region.mask.shape[0]} in one of "
                    f"{picture.width}x{picture.height}: locate it with the size of its own picture"
                )
            mask |= region.mask
        return cut_mask(mask, picture.grid, self.config.tile_size, self.config.thumbnail)

    def rel_box(self, picture: CutImage, region: Located) -> RelBox:
        """A region's half-open pixel box as the model takes it, in 0..1 of the picture.

        With `config.inclusive_boxes` (released checkpoints) it ends at the index of the last pixel, not one past it:
        the whole of a picture 640 wide ends at 639/640. This is the only place where the two conventions meet.
        """
        x0, y0, x1, y1 = region.box
        last = int(self.config.inclusive_boxes)
        return x0 / picture.width, y0 / picture.height, (x1 - last) / picture.width, (y1 - last) / picture.height

    def describe(self, picture: CutImage, region: Located, faults: ReleasedFaults = NO_FAULTS) -> Request:
        """Ask for the description of one region, alone in its picture."""
        number = self.config.describe_prompt_number
        numbers = [number]
        ids = self.prompts.encode_prefix(len(picture.tiles), numbers, "describe", faults)
        ids += self.prompts.encode_question(self.prompts.describing(number), numbers, "describe")
        return self._request(picture, [region], numbers, ids, faults=faults)

    def ask(
        self, picture: CutImage, regions: Sequence[Located], question: str, faults: ReleasedFaults = NO_FAULTS
    ) -> Request:
        """Ask about regions, named `<Prompt0>`, `<Prompt1>`, ... in the question, or about all of them."""
        numbers = range(len(regions))
        ids = self.prompts.encode_prefix(len(picture.tiles), numbers, "ask", faults)
        ids += self.prompts.encode_question(question, numbers, "ask")
        return self._request(picture, regions, numbers, ids, faults=faults)

    def train(
        self,
        picture: CutImage,
        regions: Sequence[Located],
        turns: Sequence[ChatTurn],
        numbers: Sequence[int] | None = None,
    ) -> Request:
        """A training example, with labels.

        Args:
            picture, regions: as for `ask`.
            turns: see `PromptWriter.encode_conversation`.
            numbers: the prompt number of each region, in the order in which they are listed; 0, 1, ... without.
        """
        numbers = range(len(regions)) if numbers is None else numbers
        ids, labels = self.prompts.encode_conversation(len(picture.tiles), turns, numbers)
        return self._request(picture, regions, numbers, ids, labels)

    def collate(
        self,
        requests: Sequence[Request],
        padding_side: Literal["left", "right"] = "left",
        features: Tensor | None = None,
    ) -> dict[str, Any]:
        """Join requests of any pictures, regions and lengths into one batch.

        Args:
            requests: from `describe`, `ask` or `train`.
            padding_side: "left" to generate; either to train.
            features: (T, g, g, D) of all tiles, where these are encoded already; pass through in place of
                pixel_values and mask_values.

        Returns:
            input_ids, attention_mask (B, S) int64; pixel_values (T, 3, s, s) float32 in -1..1; mask_values (T, s, s)
            float32, 1 in any region; tile_grids (B, 2) int64 as (tiles_w, tiles_h); region_boxes: B dicts
            {prompt number: (x0, y0, x1, y1) in 0..1}; labels (B, S) int64 if the requests have them.
        """
        longest = max(len(request.input_ids) for request in requests)

        def pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
            fill = [[filler] * (longest - len(row)) for row in rows]
            left = padding_side == "left"
            return torch.tensor([[*f, *row] if left else [*row, *f] for f, row in zip(fill, rows, strict=True)])

        ids = [request.input_ids for request in requests]
        padding_id = self.tokenizer.pad_token_id
        batch = {
            "input_ids": pad(ids, self.prompts.end_id if padding_id is None else padding_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
            "tile_grids": torch.tensor([request.picture.grid for request in requests]),
            "region_boxes": [request.region_boxes for request in requests],
        }
        if features is not None:
            batch["features"] = features
        else:
            batch["pixel_values"] = normalise(torch.cat([request.picture.tiles for request in requests]))
            batch["mask_values"] = torch.cat([request.mask_tiles for request in requests]).float()
        labels = [request.labels for request in requests if request.labels is not None]
        return batch | ({"labels": pad(labels, IGNORED)} if labels else {})

    def decode(self, token_ids: Sequence[int] | Tensor, **kwargs: Any) -> str:
        """The text of an answer: notes before it and layout tokens left out, names `<Promptk>` kept, trimmed.

        Where the tokenizer says so (released ones do), spaces before punctuation are removed.
        """
        ids = self.prompts.after_notes(torch.as_tensor(token_ids).tolist())
        ids = [i for i in ids if i not in self.prompts.reserved_ids]
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False, **kwargs)
        if self.tokenizer.clean_up_tokenization_spaces:
            text = self.tokenizer.clean_up_tokenization(text)
        return text.strip()

    def _request(
        self,
        picture: CutImage,
        regions: Sequence[Located],
        numbers: Sequence[int],
        ids: list[int],
        labels: list[int] | None = None,
        faults: ReleasedFaults = NO_FAULTS,
    ) -> Request:
        boxes = [self.rel_box(picture, region) for region in regions]
        if faults.last_box:
            boxes = boxes[-1:] * len(boxes)
        request = Request(picture, self.mark(picture, regions), dict(zip(numbers, boxes, strict=True)), ids, labels)
        self._check_counts(request)
        return request

    def _check_counts(self, request: Request) -> None:
        """Placeholders in the ids == features that will take their places."""
        config, ids = self.config, request.input_ids
        features = {config.image_token_id: len(request.picture.tiles) * config.tokens_per_tile}
        for k, crop_id in enumerate(config.crop_token_ids):
            features[crop_id] = config.replay_size**2 if k in request.region_boxes else 0
        for token_id, expected in features.items():
            if ids.count(token_id) != expected:
                token = self.tokenizer.convert_ids_to_tokens(token_id)
                raise ValueError(
                    f"{ids.count(token_id)} placeholders {token} in the text, but {expected} features for them"
                )
