"""Points, scribbles and boxes to masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gar.regions import Region
from gar.segment import SAM, GrabCut, load_segmenter, resolve

DISC = (60, 40, 140, 120)  # a red disc on a green meadow


@pytest.fixture(scope="module")
def meadow() -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 8, (200, 300, 3))
    image = Image.new("RGB", (300, 200), (60, 140, 60))
    draw = ImageDraw.Draw(image)
    draw.ellipse(DISC, fill=(200, 40, 40))
    draw.rectangle((200, 20, 280, 180), fill=(40, 60, 180))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def disc() -> np.ndarray:
    y, x = np.mgrid[:200, :300] + 0.5
    return (x - 100.5) ** 2 + (y - 80.5) ** 2 < 40**2


def pixels(found: Region) -> np.ndarray:
    assert found.kind == "mask" and found.array is not None
    return found.array


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "prompt",
    [
        Region.box(50, 30, 150, 130),
        Region.point(100, 80),
        Region.points([(80, 80), (120, 85)]),
        Region.scribble([(75, 80), (100, 60), (125, 90)]),
        Region.point(1 / 3, 0.4, normalized=True),
    ],
    ids=lambda region: region.kind,
)
def test_grabcut_finds_the_object_under_any_prompt(meadow: Image.Image, disc: np.ndarray, prompt: Region):
    found = GrabCut().segment(meadow, prompt)
    assert found.origin is prompt
    assert overlap(pixels(found), disc) > 0.9


def test_grabcut_gives_the_same_mask_every_time(meadow: Image.Image):
    prompt = Region.point(100, 80)
    first, second = (pixels(GrabCut().segment(meadow, prompt)) for _ in range(2))
    assert np.array_equal(first, second)


def test_grabcut_takes_a_large_picture_as_it_takes_a_small_one(meadow: Image.Image, disc: np.ndarray):
    large = meadow.resize((3000, 2000))
    found = GrabCut().segment(large, Region.box(500, 300, 1500, 1300))
    assert overlap(pixels(found), np.asarray(Image.fromarray(disc).resize((3000, 2000)))) > 0.9


@pytest.mark.parametrize("region", [Region.box(10, 10, 11, 11), Region.box(0, 0, 300, 1), Region.point(0, 0)])
def test_grabcut_never_gives_an_empty_mask(meadow: Image.Image, region: Region):
    try:
        assert resolve(meadow, [region], GrabCut())[0].area > 0
    except ValueError as error:
        assert "give a polygon or a mask" in str(error) and "\n" not in str(error)


def test_a_box_of_the_whole_picture_has_no_background_and_says_what_to_do(meadow: Image.Image):
    with pytest.raises(ValueError, match="GrabCut finds no object at box 0,0 300,200: leave the segmenter away"):
        GrabCut().segment(meadow, Region.box(0, 0, 300, 200))


def test_masks_and_polygons_pass_a_segmenter_unchanged(meadow: Image.Image):
    region = Region.polygon([(0, 0), (9, 0), (0, 9)])
    assert GrabCut().segment(meadow, region) is region


def test_boxes_stay_rectangles_unless_a_segmenter_is_given(meadow: Image.Image):
    box, click = Region.box(50, 30, 150, 130), Region.point(240, 100)
    plain = resolve(meadow, [box, click])
    assert plain[0].area == 100 * 100 and plain[0].region is box
    assert plain[1].region is click and plain[1].box[0] >= 195
    assert resolve(meadow, [box], GrabCut())[0].area < 0.7 * 100 * 100


def test_a_wrong_region_is_named_by_its_number(meadow: Image.Image):
    with pytest.raises(ValueError, match=r"^region 1: box reaches 999,130, outside"):
        resolve(meadow, [Region.box(0, 0, 9, 9), Region.box(50, 30, 999, 130)])


# --- SAM, with random weights -----------------------------------------------------------------------------------------


def _tiny_sam(folder: Path) -> type:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 16,
            "window_size": 2,
            "global_attn_indexes": [0],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "image_embedding_size": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    sizes: dict[str, Any] = {
        "size": {"longest_edge": 64},
        "pad_size": {"height": 64, "width": 64},
        "mask_size": {"longest_edge": 16},
        "mask_pad_size": {"height": 16, "width": 16},
    }
    SamModel(config).save_pretrained(folder)
    SamProcessor(SamImageProcessor(**sizes)).save_pretrained(folder)
    return SamModel


def _decoder() -> dict[str, int]:
    return {"hidden_size": 32, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def _tiny_sam2(folder: Path) -> type:
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    parts: dict[str, Any] = {
        "vision_config": {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [64, 64],
                "blocks_per_stage": [1, 1, 1, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [2, 2, 2, 2],
                "global_attention_blocks": [],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16},
        "mask_decoder_config": _decoder(),
    }
    Sam2Model(Sam2Config(**parts)).save_pretrained(folder)
    Sam2Processor(Sam2ImageProcessor(size={"height": 64, "width": 64}), target_size=64).save_pretrained(folder)
    return Sam2Model


def _tiny_sam21(folder: Path) -> type:
    """As the hub's SAM 2.1 checkpoints: a model for videos, by its configuration."""
    model = _tiny_sam2(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
    return model


def _tiny_sam3(folder: Path) -> type:
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerProcessor

    config = Sam3TrackerConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 56,
                "pretrain_image_size": 28,
                "window_size": 2,
                "global_attn_indexes": [0],
            },
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 56},
        mask_decoder_config=_decoder(),
    )
    Sam3TrackerModel(config).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    Sam3TrackerProcessor(Sam3ImageProcessor(size=size, mask_size=size)).save_pretrained(folder)
    return Sam3TrackerModel


@pytest.mark.parametrize("make", [_tiny_sam, _tiny_sam2, _tiny_sam21, _tiny_sam3])
def test_a_sam_checkpoint_is_loaded_and_used_as_transformers_would(make, meadow: Image.Image, tmp_path):
    torch.manual_seed(0)
    model_class = make(tmp_path)
    segmenter = load_segmenter(str(tmp_path))
    assert isinstance(segmenter, SAM) and type(segmenter.model) is model_class
    found_some = False
    for prompt, inputs, several in [
        (Region.point(100, 80), {"input_points": [[[[100.0, 80.0]]]], "input_labels": [[[1]]]}, True),
        (
            Region.points([(90, 80), (110, 80)]),
            {"input_points": [[[[90.0, 80.0], [110.0, 80.0]]]], "input_labels": [[[1, 1]]]},
            False,
        ),
        (Region.box(50, 30, 150, 130), {"input_boxes": [[[50.0, 30.0, 150.0, 130.0]]]}, False),
    ]:
        batch = segmenter.processor(images=meadow, return_tensors="pt", **inputs)
        sizes = [batch[name] for name in ("original_sizes", "reshaped_input_sizes") if name in batch]
        with torch.no_grad():
            output = segmenter.model(**batch, multimask_output=several)
        masks = segmenter.processor.post_process_masks(output.pred_masks, *sizes)[0][0]
        expected = masks[int(output.iou_scores[0, 0].argmax())].numpy()
        if expected.any():
            found_some = True
            found = segmenter.segment(meadow, prompt)
            assert found.origin is prompt and expected.shape == (200, 300)
            assert np.array_equal(pixels(found), expected)
        else:
            with pytest.raises(ValueError, match="SAM finds no object"):
                segmenter.segment(meadow, prompt)
    assert found_some


def test_sam_encodes_a_picture_once_for_all_its_regions(meadow: Image.Image, tmp_path, monkeypatch):
    torch.manual_seed(0)
    _tiny_sam2(tmp_path)
    segmenter = SAM(str(tmp_path))
    encode, calls = segmenter.model.get_image_embeddings, []
    monkeypatch.setattr(segmenter.model, "get_image_embeddings", lambda pixels: calls.append(1) or encode(pixels))
    for picture in (meadow, meadow, meadow.copy()):
        for x in (100, 50):
            try:
                segmenter.segment(picture, Region.scribble([(x, 80), (x + 20, 90)]))
            except ValueError as error:
                assert "SAM finds no object" in str(error)
    assert len(calls) == 2


def test_a_checkpoint_that_is_none_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError) as error:
        load_segmenter(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
