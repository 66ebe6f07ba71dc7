"""The model by itself: encode, scatter, replay, generate, and both checkpoint layouts."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import CROP0, IMAGE, batch_of, random_request, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForImageTextToText

from gar.model.gar import GARForConditionalGeneration
from gar.model.released import FIRST_PROMPT_TOKEN, config_from_released, config_to_released, save_released
from gar.model.replay import merge_tiles, replay
from gar.model.vision import cell_boxes

FLAVOURS = [{"class_token": True, "tied": True}, {"class_token": False, "tied": False}]
BOX = (0.1, 0.2, 0.7, 0.9)


def grid_map(height: int, width: int) -> torch.Tensor:
    """A map of two channels that stores at each cell its own (x, y)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).float()


def test_tiles_merge_into_the_map_they_were_cut_from():
    whole = torch.arange(2 * 6 * 9).float().view(2, 6, 9)  # D, 2 tiles high, 3 wide, of 3x3 cells
    tiles = whole.view(2, 2, 3, 3, 3).permute(1, 3, 2, 4, 0).reshape(6, 3, 3, 2)
    assert torch.equal(merge_tiles(tiles, (3, 2)), whole)


def test_replay_samples_the_regions_own_window():
    cells = replay([grid_map(32, 48)], [[(0.5, 0.0, 1.0, 1.0)]], size=16)[0]
    # Bins of 1.5 x 2 cells; a bin's value is the mean over its samples, i.e. its centre, in cell-centre coordinates.
    x = 24 - 0.5 + 1.5 * (torch.arange(16) + 0.5)
    y = -0.5 + 2.0 * (torch.arange(16) + 0.5)
    assert torch.allclose(cells[:, 0].view(16, 16)[0, :-1], x[:-1], atol=1e-4)
    assert torch.allclose(cells[:, 1].view(16, 16)[1:-1, 0], y[1:-1], atol=1e-4)


def test_the_released_frame_samples_the_maps_first_corner():
    cells = replay([grid_map(16, 16)], [[(0.5, 0.0, 1.0, 1.0)]], size=16, scale=1 / 28)[0]
    assert cells.max() < 0.07


def test_regions_of_pictures_of_different_sizes_are_cut_in_one_call_as_one_by_one():
    torch.manual_seed(0)
    maps = [torch.randn(5, 8, 12), torch.randn(5, 16, 4), torch.randn(5, 4, 4)]
    boxes = [[BOX, (0.5, 0.5, 1.0, 1.0)], [], [(0.0, 0.0, 1.0, 1.0)]]
    together = replay(maps, boxes, size=3)
    apart = torch.cat([replay([m], [b], size=3) for m, b in zip(maps, boxes, strict=True) if b])
    assert together.shape == (3, 9, 5)
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_both_layouts_give_back_the_weights_and_the_logits(flavour, tmp_path):
    model = tiny_model(**flavour, replay_frame="released", inclusive_boxes=True, describe_prompt_number=1)
    model.config.prompt_token_ids = [FIRST_PROMPT_TOKEN + k for k in range(model.config.max_prompts)]
    request = random_request(model.config, (2, 1), {0: BOX, 3: (0.5, 0.0, 1.0, 0.4)})
    with torch.no_grad():
        wanted = model(**request).logits
    model.save_pretrained(tmp_path / "ours")
    save_released(model, tmp_path / "released")
    names = json.loads((tmp_path / "released" / "config.json").read_text())
    assert names["mllm_config"]["vision_use_cls_token"] == flavour["class_token"]
    for folder in ("ours", "released"):
        again = GARForConditionalGeneration.from_pretrained(tmp_path / folder).eval()
        # The released layout derives the replayed size from the tile.
        again.config.replay_size = model.config.replay_size
        assert again.config.replay_frame == "released"
        with torch.no_grad():
            assert torch.equal(again(**request).logits, wanted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replay_frame", "feature"),
        ("replay_size", 3),
        ("choice_scoring", "texts"),
        ("describe_question", "What is it?"),
        ("describe_prompt_number", 0),
        ("prompt_token_ids", list(range(8))),
        ("mention_norm", True),
        ("visual_scale", 20.0),
        ("picture_place", True),
        ("middle_embedding", True),
    ],
)
def test_what_the_released_layout_cannot_say_is_refused(name, value):
    config = tiny_config(replay_frame="released", inclusive_boxes=True, describe_prompt_number=1)
    config.prompt_token_ids = [FIRST_PROMPT_TOKEN + k for k in range(config.max_prompts)]
    assert config_from_released(config_to_released(config))["replay_size"] == config.replay_size
    setattr(config, name, value)
    with pytest.raises(ValueError, match=name):
        config_to_released(config)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.mask_patch_embedding.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="mask_patch_embedding"):
        GARForConditionalGeneration.from_pretrained(tmp_path)


def test_transformers_auto_classes_know_the_model(tmp_path):
    import gar  # noqa: F401

    tiny_model().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).max_prompts == 8
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path), GARForConditionalGeneration)


def test_where_a_box_is_is_added_to_its_name_and_is_nothing_at_birth():
    torch.manual_seed(0)
    config = tiny_config(mention_embedding=True, mention_norm=True, mention_place=True)
    model = GARForConditionalGeneration(config).model
    boxes = [{0: (0.1, 0.1, 0.3, 0.3)}, {1: (0.6, 0.1, 0.8, 0.3), 0: (0.1, 0.1, 0.3, 0.3)}]
    alike = torch.randn(1, config.replay_size**2, config.text_config.hidden_size).expand(3, -1, -1)
    with torch.no_grad():
        plain = model.mentions(alike, boxes)
        torch.testing.assert_close(plain[0, 0], plain[1, 1])
        model.get_parameter("mention_place.weight").normal_()
        placed = model.mentions(alike, boxes)
    assert not torch.allclose(placed[1, 0], placed[1, 1])
    torch.testing.assert_close(placed[0, 0], placed[1, 0])
    assert not placed[:, 2:].any() and not placed[0, 1].any()
    assert model.mentions(alike[:0], [{}, {}]).shape == plain.shape


def test_what_is_seen_is_read_at_the_length_that_the_config_gives():
    model = tiny_model()
    request = random_request(model.config, (2, 1), {0: BOX, 3: (0.5, 0.0, 1.0, 0.4)})
    with torch.no_grad():
        plain = model.embed(**request)
        model.config.visual_scale = 20.0
        scaled = model.embed(**request)
    seen = torch.isin(request["input_ids"], torch.tensor([model.config.image_token_id, *model.config.crop_token_ids]))
    assert torch.equal(scaled[~seen], plain[~seen])
    length = scaled[seen].square().mean(-1).sqrt()
    torch.testing.assert_close(length, torch.full_like(length, 20.0), rtol=0.01, atol=0)
    alike = torch.nn.functional.cosine_similarity(scaled[seen], plain[seen], dim=-1)
    torch.testing.assert_close(alike, torch.ones_like(alike))


def test_a_token_of_the_picture_says_where_its_cell_is_and_nothing_of_it_at_birth():
    request = random_request(tiny_config(), (2, 1), {0: BOX})
    torch.manual_seed(0)
    model = GARForConditionalGeneration(tiny_config(picture_place=True)).eval()
    where = request["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        at_birth = model.embed(**request)
        model.get_parameter("model.picture_place.weight").normal_()
        placed = model.embed(**request)
        model.config.visual_scale = 20.0
        scaled = model.embed(**request)
    assert torch.equal(placed[~where], at_birth[~where])
    added_TND = (placed - at_birth)[where].unflatten(0, (3, -1))  # the thumbnail and two tiles
    torch.testing.assert_close(added_TND[1:], added_TND[:1].expand(2, -1, -1))
    cells = cell_boxes(int(added_TND.shape[1] ** 0.5))
    assert cells[1].tolist() == [cells[0, 2], 0.0, 2 * cells[0, 2], cells[0, 3]]  # the second of the first row
    torch.testing.assert_close(added_TND[0], model.model.get_submodule("picture_place")(cells))
    length = (scaled[where] / 20 - added_TND.flatten(0, 1)).square().mean(-1).sqrt()
    torch.testing.assert_close(length, torch.ones_like(length), rtol=0.01, atol=0)


def test_a_token_of_the_picture_speaks_for_the_things_that_have_their_middles_there_and_for_none_at_birth(monkeypatch):
    torch.manual_seed(0)
    model = GARForConditionalGeneration(tiny_config(tile=224, middle_embedding=True, context_pooling=4)).eval()
    plain = GARForConditionalGeneration(tiny_config(tile=224, context_pooling=4)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "finder" not in k})
    side = model.config.map_size
    features_TggD = torch.randn(3, side, side, model.config.text_config.hidden_size)
    with torch.no_grad():
        assert torch.equal(model.model._context_as_read(features_TggD), plain.model._context_as_read(features_TggD))
        finder = model.model.finder
        finder.found.normal_()
        logits_Tgg = torch.full((3, side, side), -9.0)
        logits_Tgg[0, 1, 2] = logits_Tgg[2, 4, 4] = logits_Tgg[2, 6, 7] = 5.0
        logits_Tgg[2, 4, 5] = 4.0  # beside a higher one
        monkeypatch.setattr(finder, "forward", lambda _: logits_Tgg)
        read, blank = (m.model._context_as_read(features_TggD).view(3, 4, -1) for m in (model, plain))
    expected = blank.clone()
    expected[0, 0] = features_TggD[0, 0:3, 1:4].mean((0, 1)) + finder.found
    both = features_TggD[2, 3:6, 3:6].mean((0, 1)), features_TggD[2, 5:8, 6:8].mean((0, 1))
    expected[2, 3] = sum(both) / 2 + finder.found
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)


def test_the_mask_embedding_is_nothing_at_birth():
    torch.manual_seed(0)
    model = GARForConditionalGeneration(tiny_config()).eval()
    request = random_request(model.config, (1, 1), {0: BOX})
    with torch.no_grad():
        marked = model(**request).logits
        unmarked = model(**request | {"mask_values": None}).logits
    assert torch.equal(marked, unmarked)


def test_a_tile_that_no_region_touches_keeps_its_features():
    model = tiny_model()
    request = random_request(model.config, (2, 2), {})
    mask = torch.zeros_like(request["mask_values"])
    mask[0], mask[3] = 1, 1
    with torch.no_grad():
        plain = model.model.encode(request["pixel_values"], torch.zeros_like(mask))
        marked = model.model.encode(request["pixel_values"], mask)
    same = [torch.equal(a, b) for a, b in zip(plain, marked, strict=True)]
    assert same == [False, True, True, False, True]


def test_a_region_keeps_its_own_box_when_others_follow():
    model = tiny_model()
    boxes = {0: BOX, 1: (0.0, 0.0, 0.5, 0.5), 4: (0.5, 0.2, 0.9, 0.4)}
    request = random_request(model.config, (2, 1), boxes)
    with torch.no_grad():
        several = model.embed(**request)
        for k, box in boxes.items():
            run = request["input_ids"] == CROP0 + k
            alone = model.model.cut(
                model.model.encode(request["pixel_values"], request["mask_values"]), request["tile_grids"], [{k: box}]
            )
            assert torch.allclose(several[run], alone[0], atol=1e-6)


def test_the_order_in_which_boxes_are_listed_means_nothing():
    model = tiny_model()
    boxes = {0: BOX, 1: (0.0, 0.0, 0.5, 0.5), 4: (0.5, 0.2, 0.9, 0.4)}
    request = random_request(model.config, (2, 1), boxes)
    with torch.no_grad():
        forward = model(**request).logits
        backward = model(**request | {"region_boxes": [dict(reversed(boxes.items()))]}).logits
    assert torch.equal(forward, backward)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_batch_of_eight_different_requests_gives_the_logits_of_one_by_one(flavour):
    model = tiny_model(**flavour)
    grids = [(1, 1), (2, 1), (1, 3), (2, 2), (4, 1), (1, 1), (3, 1), (1, 2)]
    requests = [
        random_request(
            model.config, grid, {k: (0.1 * k, 0.0, 0.5 + 0.05 * k, 0.8) for k in range(i % 5)}, seed=i, text=3 + i
        )
        for i, grid in enumerate(grids)
    ]
    with torch.no_grad():
        together = model(**batch_of(requests)).logits
        for row, request in zip(together, requests, strict=True):
            alone = model(**request).logits[0]
            assert torch.allclose(row[-len(alone) :], alone, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}, {"use_cache": False}])
def test_generation_returns_new_ids_only_and_a_batch_gives_those_of_one_by_one(options):
    model = tiny_model()
    requests = [
        random_request(model.config, (1, 1), {0: BOX}, seed=1),
        random_request(model.config, (2, 1), {1: BOX, 2: BOX}, seed=2, text=12),
    ]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    together = model.generate(**batch_of(requests), **options)
    assert together.shape == (2, 6)
    for row, request in zip(together, requests, strict=True):
        assert model.generate(**request, **options)[0].tolist() == row.tolist()


def test_the_loss_is_the_mean_over_labels_whatever_pads_them():
    model = tiny_model()
    request = random_request(model.config, (1, 1), {0: BOX}, text=12)
    labels = request["input_ids"].clone()
    labels[:, :-6] = -100
    with torch.no_grad():
        logits = model(**request).logits
        wanted = torch.nn.functional.cross_entropy(logits[0, -7:-1], labels[0, -6:])
        assert torch.allclose(model(**request, labels=labels).loss, wanted)


def test_gradients_reach_every_part_with_and_without_checkpointing():
    grads = []
    for checkpointing in (False, True):
        model = tiny_model()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        request = random_request(model.config, (1, 1), {0: BOX})
        model(**request, labels=request["input_ids"]).loss.backward()
        lacking = [n for n, p in model.named_parameters() if p.grad is None]
        assert lacking == []
        grads.append(model.model.mask_patch_embedding.weight.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_features_of_another_precision_than_the_weights_take_their_places():
    """As under autocast: the projector gives bfloat16, the embedding of text float32."""
    model = tiny_model()
    request = random_request(model.config, (1, 1), {0: BOX})
    inner, boxes = model.model, request["region_boxes"]
    with torch.no_grad():
        features = inner.encode(request["pixel_values"], request["mask_values"]).bfloat16()
        regions = inner.cut(features, request["tile_grids"], boxes)
        halves = inner.embed(request["input_ids"], features, regions, boxes)
        whole = inner.embed(request["input_ids"], features.float(), regions.float(), boxes)
    assert regions.dtype == torch.bfloat16 and torch.equal(halves, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["input_ids"].__setitem__((0, 1), 5), "image tokens in input_ids, but"),
        (lambda r: r["input_ids"].__setitem__((0, -8), 5), "placeholders of <Prompt0>"),
        (lambda r: r.update(region_boxes=[{}]), "no box for it"),
        (lambda r: r.update(region_boxes=[{0: BOX, 99: BOX}]), "has 8 prompts"),
        (lambda r: r.update(tile_grids=torch.tensor([[3, 1]])), "stand for 4 tiles"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_both_counts(change, message):
    model = tiny_model()
    request = random_request(model.config, (1, 1), {0: BOX})
    assert request["input_ids"][0, 1] == IMAGE
    change(request)
    with pytest.raises(ValueError, match=message):
        model.embed(**request)
