"""Data of every format in, samples out; the walk over them; and the end of every kind of bad data."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
import re
import struct
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import gar
from gar.data.annotated import Annotation, annotated, describe, polygon_in
from gar.data.files import Folder
from gar.data.folder import write_jsonl
from gar.data.formats import open_data
from gar.data.published import segmentation_rle, write_coco
from gar.data.released import released_sample, write_released
from gar.data.sample import Sample, Turn, Unusable, write_shard
from gar.data.stream import Data, Place, Rejects, Shard
from gar.data.tools import write_cvat, write_label_studio
from gar.regions import Located, Region, encode_rle, fill, rle_area

WIDTH, HEIGHT = 48, 36


def encoded(seed: int = 0, kind: str = "PNG", width: int = WIDTH, height: int = HEIGHT) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def blob(seed: int, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    """An uneven mask as RLE."""
    return Located.from_mask(np.random.default_rng(seed).random((height, width)) < 0.3).rle()


def square(x: int = 4) -> dict[str, Any]:
    return Region.box(x, 5, x + 10, 15).locate(WIDTH, HEIGHT).rle()


def described(seed: int, file: str | None = None) -> Sample:
    regions = [
        Annotation(blob(seed), "old_dog", " A brown dog,\nasleep. <3 & more "),
        Annotation(blob(seed + 1), text="A “bench”."),
        Annotation(square()),
        Annotation(square(6), name="ball"),
    ]
    return annotated(encoded(seed, ["PNG", "JPEG"][seed % 2]), regions, meta={"file": file} if file else {})


def captions(seed: int, count: int = 2) -> Sample:
    """What the published format holds: a description for each mask."""
    texts = [f"Thing {seed}.{k}" for k in range(count)]
    return annotated(encoded(seed), [Annotation(blob(seed + k), text=text) for k, text in enumerate(texts)])


def asked(seed: int) -> Sample:
    return Sample(encoded(seed), [blob(seed), square()], [Turn("Is <Prompt0> on <Prompt1>?", "Yes.")])


def words(sample: Sample) -> list[str]:
    return [turn.answer for turn in sample.turns]


# Formats


@pytest.mark.parametrize("write", [write_coco, write_label_studio, write_cvat, write_jsonl])
def test_what_an_export_writes_reads_back_equal(write: Callable, tmp_path: Path):
    file = tmp_path / f"regions{ {write_cvat: '.xml', write_jsonl: '.jsonl'}.get(write, '.json') }"
    samples = [described(0, "a.png"), described(1, "deep/b.jpg"), described(2, "c.png")]
    assert write(samples, file) == 3
    assert list(open_data(file)) == samples
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "c.png", "deep", file.name]


@pytest.mark.parametrize("write", [write_coco, write_label_studio, write_cvat, write_jsonl])
def test_exports_into_one_folder_keep_each_its_own_pictures(write: Callable, tmp_path: Path):
    suffix = {write_cvat: ".xml", write_jsonl: ".jsonl"}.get(write, ".json")
    for name, seed in (("train", 0), ("val", 1)):
        write([described(seed)], tmp_path / f"{name}{suffix}")
    for name, seed in (("train", 0), ("val", 1)):
        (sample,) = open_data(tmp_path / f"{name}{suffix}")
        assert sample.image == described(seed).image
    assert sorted(path.suffix for path in (tmp_path / "pictures").iterdir()) == [".jpeg", ".png"]


def test_a_picture_that_is_there_stays_and_another_of_its_name_is_refused(tmp_path: Path):
    (tmp_path / "mine.png").write_bytes(described(0).image)
    write_jsonl([described(0, "mine.png")], tmp_path / "all.jsonl")
    with pytest.raises(ValueError, match="mine.png is another picture than that of the sample: write to another"):
        write_jsonl([described(2, "mine.png")], tmp_path / "more.jsonl")
    assert (tmp_path / "mine.png").read_bytes() == described(0).image and not (tmp_path / "more.jsonl").exists()


def test_no_picture_is_written_outside_of_its_folder(tmp_path: Path):
    with pytest.raises(ValueError, match=r"picture ../a.png is not there, and would have to be written outside of"):
        write_jsonl([described(0, "../a.png")], tmp_path / "here" / "all.jsonl")
    (tmp_path / "a.png").write_bytes(encoded())
    write_jsonl([described(0, "../a.png")], tmp_path / "here" / "all.jsonl")
    assert list(open_data(tmp_path / "here" / "all.jsonl")) == [described(0, "../a.png")]


@pytest.mark.parametrize("write", [write_coco, write_label_studio, write_cvat])
def test_a_format_refuses_questions_that_it_cannot_hold(write: Callable, tmp_path: Path):
    with pytest.raises(ValueError, match="holds only a name and a description of each; write JSONL"):
        write([asked(0)], tmp_path / "a.json")


@pytest.mark.parametrize("write", [write_coco, write_label_studio, write_cvat])
@pytest.mark.parametrize("name", ["region", "a\x0bb", "a\rb"])
def test_a_format_refuses_what_would_not_come_back(write: Callable, name: str, tmp_path: Path):
    sample = annotated(encoded(), [Annotation(square(), name)])
    with pytest.raises(ValueError, match=f"{name!r} of a region would not".replace("\\", r"\\")):
        write([sample], tmp_path / "a.json")
    write_jsonl([sample], tmp_path / "a.jsonl")
    (again,) = open_data(tmp_path / "a.jsonl")
    assert again.turns == sample.turns


def test_json_lines_keep_every_field(tmp_path: Path):
    turns = [
        Turn("Which?", "<Prompt1>", "ordering", ("<Prompt0>", "<Prompt1>"), "<Prompt1> <Prompt0>"),
        Turn(describe(0), "A.", "detailed"),
    ]
    meta = {"seed": 3, "file": "a.png", "dropped": 3}
    sample = Sample(encoded(), [blob(0), blob(1)], turns, source="rendered", licence="Apache-2.0", meta=meta)
    write_jsonl([sample], tmp_path / "a.jsonl")
    assert list(open_data(tmp_path)) == [sample]


def test_a_newcomer_needs_pictures_and_one_file(tmp_path: Path):
    (tmp_path / "dog.png").write_bytes(encoded())
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    regions = [
        {"box": [2, 3, 10, 12], "text": "A dog."},
        {"polygon": [[0, 0], [20, 0], [20, 20]], "name": "roof"},
        {"mask": "mask.png"},
    ]
    lines = {"image": "dog.png", "regions": regions, "turns": [{"question": "Is <Prompt0> a dog?", "answer": "Yes."}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(lines))
    (sample,) = open_data(tmp_path)
    assert [Region.rle(mask).locate(WIDTH, HEIGHT).area for mask in sample.masks] == [72, 210, 36]
    assert words(sample) == ["A dog.", "roof", "Yes."]


def test_the_published_format_reads_back_equal_and_datasets_reads_it(tmp_path: Path):
    import datasets

    no_region = Sample(encoded(7), [], [Turn("Describe.", "A picture."), Turn("And?", "Nothing.")])
    samples = [captions(0, 1), captions(1, 3), asked(2), no_region]
    assert write_released(iter(samples), tmp_path / "set") == 4
    assert list(open_data(tmp_path / "set")) == samples
    rows = datasets.load_from_disk(tmp_path / "set")
    assert rows.column_names == ["image", "mask_rle", "conversations"]
    picture: Any = rows[1]["image"]
    assert picture.size == (WIDTH, HEIGHT)
    assert rows[1]["mask_rle"] == samples[1].masks
    assert rows[2]["conversations"][0] == {"from": "human", "value": "<image>\nIs <Prompt0> on <Prompt1>?"}
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    with pytest.raises(ValueError, match="set is there and not empty: name another folder"):
        write_released(iter(samples), tmp_path / "set")


def test_what_datasets_keeps_beside_a_set_is_not_read_as_data(tmp_path: Path):
    write_released([captions(0), captions(1)], tmp_path)
    (own,) = tmp_path.glob("*.arrow")
    (tmp_path / "cache-0123456789abcdef.arrow").write_bytes(own.read_bytes())
    assert len(list(open_data(tmp_path))) == 2
    own.unlink()
    with pytest.raises(ValueError, match=f"{own.name} is not a whole file"):
        list(open_data(tmp_path))
    (tmp_path / "state.json").write_text('{"_data_files": [1]}')
    with pytest.raises(ValueError, match="state.json lists files without a filename"):
        open_data(tmp_path)


def test_the_published_json_list_takes_pictures_of_three_kinds(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A blob."}]
    inside = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    pictures: list[Any] = ["a.png", inside, str(tmp_path / "a.png"), None]
    rows = [{"image": image, "mask_rle": blob(0), "conversations": said} for image in pictures]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = open_data(tmp_path / "rows.json")
    packed = rows[0] | {"mask_rle": {"size": [HEIGHT, WIDTH], "counts": blob(0)["counts"].encode()}}
    assert released_sample(packed, Folder(str(tmp_path))).masks == [blob(0)]  # as columns of bytes give them
    wanted = Sample(encoded(), [blob(0)], [Turn("Describe <Prompt0> in detail.", "A blob.", "detailed")])
    assert list(data) == [wanted] * 3
    assert data.rejects.counts() == {"missing file": 1}


def test_coco_gives_names_captions_and_what_was_dropped(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    polygon, runs = [[2, 2, 12, 2, 12, 12, 2, 12]], {"size": [HEIGHT, WIDTH], "counts": [40, 60, WIDTH * HEIGHT - 100]}
    shapes: list[dict[str, Any]] = [
        {"segmentation": polygon},
        {"segmentation": runs, "iscrowd": 1},
        {"segmentation": runs, "caption": "A stripe."},
        {"bbox": [40, 30, 20, 20]},
        {"segmentation": [[1, 1]]},
        {"caption": "Much noise."},
        {"caption": " "},
    ]
    content = {
        "info": {"description": "Things"},
        "licenses": [{"id": 2, "name": "CC BY 2.0"}],
        "images": [{"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, "license": 2}],
        "categories": [{"id": 1, "name": "hot dog"}],
        "annotations": [{"id": i, "image_id": 5, "category_id": 1} | shape for i, shape in enumerate(shapes)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = open_data(tmp_path / "instances.json", rejects=tmp_path / "rejects.jsonl")
    (sample,) = data
    assert [Region.rle(mask).locate(WIDTH, HEIGHT).area for mask in sample.masks] == [100, 60, 8 * 6]
    assert words(sample) == ["hot dog", "hot dog", "A stripe.", "hot dog", "Much noise."]
    assert (sample.source, sample.licence) == ("Things", "CC BY 2.0")
    assert data.rejects.counts() == {"crowd": 1, "damaged mask": 1, "no text": 1}
    assert "row 0 annotation 4" in (tmp_path / "rejects.jsonl").read_text()


def test_annotations_and_references_of_pictures_that_are_not_listed_are_one_reject(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    images = [{"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    shapes = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": [1, 1, 9, 9]} for i, image in enumerate((5, 98, 99))
    ]
    content = {"images": images, "annotations": shapes, "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    said = [{"image_id": image, "ann_id": 0, "sentences": [{"sent": "it"}]} for image in (98, 5)]
    for count, answer in ((2, "dog"), (1, "it")):
        data = open_data(tmp_path)
        (sample,) = data
        assert words(sample) == [answer] and data.rejects.counts() == {"picture not listed": 1}
        assert f"{count} entries are of pictures that are not under images, such as 98" in data.rejects.last
        (tmp_path / "refs.json").write_text(json.dumps(said))


def test_lvis_names_its_pictures_by_their_address(tmp_path: Path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "01.png").write_bytes(encoded())
    image = {"id": 5, "coco_url": "http://images.example.org/train2017/01.png", "width": WIDTH, "height": HEIGHT}
    annotation = {"image_id": 5, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    content = {
        "images": [image],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "a_can", "synset": "can.n.01"}],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    (sample,) = open_data(tmp_path / "lvis.json")
    assert words(sample) == ["a can"]


def test_scene_graphs_give_segments_and_relations(tmp_path: Path):
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[:10], ids[20:30, 5:25] = 7, 256 * 3 + 1
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(channels).save(tmp_path / "seg.png")
    (tmp_path / "a.png").write_bytes(encoded())
    segments = [{"id": 7, "category_id": 1}, {"id": 9, "category_id": 0}, {"id": 769, "category_id": 0}]
    row = {"file_name": "a.png", "pan_seg_file_name": "seg.png", "segments_info": segments}
    content = {
        "data": [row | {"relations": [[2, 0, 1], [2, 1, 0]]}],
        "thing_classes": ["person"],
        "stuff_classes": ["sky-other-merged"],
        "predicate_classes": ["over", "in front of"],
    }
    (tmp_path / "psg.json").write_text(json.dumps(content))
    data = open_data(tmp_path / "psg.json")
    (sample,) = data
    assert [Region.rle(mask).locate(WIDTH, HEIGHT).area for mask in sample.masks] == [480, 200]
    assert words(sample) == ["sky", "person", "<Prompt1> is in front of <Prompt0>."]
    assert data.rejects.counts() == {"damaged mask": 1}  # the segment that is not in the picture


def test_visual_genome_gives_phrases_for_boxes(tmp_path: Path):
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "31.jpg").write_bytes(encoded(kind="JPEG"))
    box = {"x": -2, "y": 0, "width": 12, "height": 5}
    regions = [box | {"phrase": phrase} for phrase in (" ", "a red cap")]
    (tmp_path / "regions.json").write_text(json.dumps([{"id": 31, "regions": regions}]))
    data = open_data(tmp_path / "regions.json")
    (sample,) = data
    assert len(sample.masks) == 1 and data.rejects.counts() == {"no text": 1}
    assert Region.rle(sample.masks[0]).locate(WIDTH, HEIGHT).box == (0, 0, 10, 5)
    assert sample.turns == [Turn("Describe <Prompt0> in a few words.", "a red cap", "phrase")]


def test_refcoco_gives_what_people_said(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    images = [{"id": i, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} for i in (5, 6)]
    shape = {"category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    annotations = [{"id": i, "image_id": 5} | shape for i in (10, 11)]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    said = [{"raw": "left dog", "sent": "left dog"}, {"sent": ""}, {"sent": "the one that sleeps"}]
    reference = {"image_id": 5, "ann_id": 11, "sentences": said}
    others = [reference | {"split": split} for split in ("val", "testA", "train")] + [reference | {"sentences": []}]
    (tmp_path / "refs(unc).json").write_text(json.dumps([reference, *others]))
    data = open_data(tmp_path)
    (sample,) = data
    assert len(sample.masks) == 2 and words(sample) == ["left dog", "the one that sleeps"] * 2
    assert data.rejects.counts() == {"not for training": 2, "no text": 1}
    (tmp_path / "refs(unc).json").rename(tmp_path / "refs(unc).p")
    with pytest.raises(ValueError, match="as pickle, which can run code: save them as JSON"):
        open_data(tmp_path)


def test_label_studio_shapes_are_percent_and_may_be_turned(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    box = {"x": 50, "y": 50, "width": 25, "height": 50}
    results: list[dict[str, Any]] = [
        {"id": "r", "type": "rectanglelabels", "value": box | {"rotation": 0, "rectanglelabels": ["Cat"]}},
        {"id": "t", "type": "rectangle", "value": box | {"rotation": 90}},
        {"id": "t", "type": "labels", "value": {"labels": ["Dog"]}},
        {"id": "t", "type": "textarea", "value": box | {"rotation": 90, "text": ["A dog,", "turned."]}},
        {"id": "p", "type": "polygonlabels", "value": {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["x"]}},
        {"id": "c", "type": "choices", "value": {"choices": ["good"]}},
        {"id": "e", "type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90}},
        {"id": "k", "type": "keypointlabels", "value": {"x": 5, "y": 5, "width": 1, "keypointlabels": ["nose"]}},
    ]
    relation = {"type": "relation", "from_id": "r", "to_id": "t", "direction": "right"}
    task = {"data": {"image": "/data/local-files/?d=a.png"}}
    task |= {"annotations": [{"result": [*(result | size for result in results), relation]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    data = open_data(tmp_path / "export.json")
    (sample,) = data
    boxes = [Region.rle(mask).locate(WIDTH, HEIGHT).box for mask in sample.masks]
    assert boxes[:2] == [(24, 18, 36, 36), (6, 18, 24, 30)]
    assert boxes[3] == (20, 6, 28, 30) and data.rejects.counts() == {"not an area": 1}
    assert words(sample) == ["Cat", "Dog", "A dog,\nturned.", "x"]
    for name in ("my cat.png", "0123abcd-my cat.png"):  # as it was uploaded, or as Label Studio keeps it
        (tmp_path / "a.png").rename(tmp_path / name)
        uploaded = task | {"data": {"image": "/data/upload/1/0123abcd-my%20cat.png"}}
        (tmp_path / "export.json").write_text(json.dumps([uploaded]))
        (again,) = open_data(tmp_path / "export.json")
        assert again.turns == sample.turns
        (tmp_path / name).rename(tmp_path / "a.png")


def test_label_studio_brushes_may_hold_words_that_do_not_repeat(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded(width=12, height=10))
    total = 4 * 12 * 10
    literal = "".join(f"{255 * (k % 4 == 3):08b}" for k in range(8))  # two pixels whose alpha alone is set
    runs = f"000{7:03b}{literal}" + f"101{15:04b}{0:08b}" + f"110{255:08b}{0:08b}" + f"110{199:08b}{0:08b}"
    bits = f"{total:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16)) + runs
    packed = np.packbits([int(bit) for bit in bits]).tolist()
    value = {"format": "rle", "rle": packed, "brushlabels": ["Spot"]}
    result = {"id": "b", "type": "brushlabels", "original_width": 12, "original_height": 10, "value": value}
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    (sample,) = open_data(tmp_path / "export.json")
    assert Region.rle(sample.masks[0]).locate(12, 10).box == (0, 0, 2, 1)


def test_cvat_gives_boxes_polygons_and_drops_points(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "annotations.xml").write_text(f"""<?xml version="1.0"?><annotations><version>1.1</version>
        <image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">
        <box label="dog" xtl="2.0" ytl="3.0" xbr="12.0" ybr="13.0"><attribute name="text">A dog.</attribute></box>
        <polygon label="roof" points="0.0,0.0;20.0,0.0;20.0,20.0"/>
        <mask label="spot" rle="1, 2, 3" left="5" top="6" width="3" height="2"/>
        <ellipse label="egg" cx="20.0" cy="10.0" rx="8.0" ry="4.0" rotation="90.0"/>
        <box label="bar" xtl="10.0" ytl="16.0" xbr="40.0" ybr="20.0" rotation="90.0"/>
        <points label="eye" points="3,3"/></image></annotations>""")
    data = open_data(tmp_path)
    (sample,) = data
    located = [Region.rle(mask).locate(WIDTH, HEIGHT) for mask in sample.masks]
    assert [one.area for one in located[:3]] == [100, 210, 2]
    assert located[3].box == (16, 2, 24, 18) and located[3].area == pytest.approx(np.pi * 8 * 4, rel=0.05)
    assert located[4].box == (23, 3, 27, 33)
    assert words(sample) == ["dog", "A dog.", "roof", "spot", "egg", "bar"]
    assert data.rejects.counts() == {"not an area": 1}


def test_labelme_files_are_read_with_their_pictures_inside_or_beside(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    part = io.BytesIO()
    Image.fromarray(np.full((2, 3), 255, np.uint8)).save(part, "PNG")
    mask = {"mask": base64.b64encode(part.getvalue()).decode()}
    shapes = [
        {"label": "dog", "points": [[12, 13], [2, 3]], "shape_type": "rectangle", "description": "A dog."},
        {"label": "roof", "points": [[0, 0], [20, 0], [20, 20]], "shape_type": "polygon"},
        {"label": "moon", "points": [[20, 20], [23, 20]], "shape_type": "circle"},
        {"label": "spot", "points": [[4, 5], [6, 6]], "shape_type": "mask"} | mask,
        {"label": "nose", "points": [[3, 3]], "shape_type": "point"},
    ]
    content = {"imagePath": "a.png", "imageData": None, "shapes": shapes}
    (tmp_path / "a.json").write_text(json.dumps(content))
    inside = content | {"imagePath": "..\\gone.png", "imageData": base64.b64encode(encoded()).decode()}
    (tmp_path / "b.json").write_text(json.dumps(inside))
    (tmp_path / "c.json").write_text("{")
    data = open_data(tmp_path)
    one, two = data
    assert [Region.rle(mask).locate(WIDTH, HEIGHT).area for mask in one.masks] == [100, 210, 32, 6]
    assert words(one) == ["dog", "A dog.", "roof", "moon", "spot"]
    assert (one.masks, one.turns) == (two.masks, two.turns)
    assert data.rejects.counts() == {"not an area": 2, "malformed record": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such file, or an empty folder"),
        ({"a.txt": b"", "b.doc": b""}, "no data of a known format among a.txt, b.doc. Known are: folders of .parquet"),
        ({"a.json": b"{"}, "a.json is not JSON"),
        ({"a.json": b'{"x": 1, "y": 2}'}, "a.json is JSON with the keys x, y: of no known format"),
        ({"a.json": b"3"}, "a.json is JSON with a int: of no known format"),
        ({"a.json": b"{}", "b.json": b"{}"}, "2 JSON files that are not of LabelMe: name one of them"),
        ({"test-0.parquet": b"", "train-0.parquet": b""}, r"holds splits \(test, train\): name a file of one"),
        ({"a.jsonl": b"", "a.parquet": b""}, "holds .parquet and .jsonl files: name one, or move the others away"),
        ({"a.xml": b"<a"}, "a.xml is not XML"),
        ({"a.xml": b"<html/>"}, "a.xml holds <html>: expected <annotations>"),
        ({"a.xml": b"<annotations><track/></annotations>"}, 'tracks of a video: export its frames as "CVAT for images'),
        ({"a.xml": b"<annotations/>"}, "a.xml holds no <image>"),
        ({"a.xml": b'<!DOCTYPE a [<!ENTITY b "c">]><annotations/>'}, "declares XML entities"),
        (
            {"dataset_dict.json": b"{}", "train": b"", "val": b""},
            r"several splits: name the folder of one \(train, val\)",
        ),
        (
            {"a.json": b'{"images": [{}], "annotations": []}'},
            r"a.json is not as its format asks \(KeyError: 'id'\): see docs/data.md",
        ),
        ({"a.json": b'{"images": null, "annotations": []}'}, "a.json is not as its format asks .TypeError: 'NoneType'"),
        ({"a.json": b'{"images": [], "annotations": [], "info": "x"}'}, "a.json is not as its format asks .Attribute"),
        ({"a.json": b'{"data": [], "predicate_classes": []}'}, "a.json is not as its format asks .*'thing_classes'"),
        ({"refs.json": b"[]", "instances.json": b"[]"}, "refs.json is not as its format asks .TypeError: list"),
        ({"a.json": b"[" * 100000}, "a.json is not as its format asks .RecursionError"),
    ],
)
def test_what_is_no_data_is_named(files: dict[str, bytes], message: str, tmp_path: Path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path)


def test_an_arrow_file_may_be_a_stream_or_a_file(tmp_path: Path):
    import pyarrow as pa

    row = {"image": encoded(), "masks": "[]", "turns": '[{"question": "What?", "answer": "Noise."}]'}
    table = pa.Table.from_pylist([row])
    for kind in (pa.ipc.new_stream, pa.ipc.new_file):
        with kind(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
        (sample,) = open_data(tmp_path)
        assert words(sample) == ["Noise."]


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_table_that_is_cut_off_or_of_other_columns_is_named(suffix: str, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / f"a.{suffix}").write_bytes(b"no table at all")
    with pytest.raises(ValueError, match=f"a.{suffix} is not a whole file"):
        list(open_data(tmp_path))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet has the columns x: expected image, masks, turns"):
        list(open_data(tmp_path / "a.parquet"))


def test_every_reason_stands_in_the_documentation():
    table = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    source = "".join(path.read_text() for path in (Path(gar.__file__).parent / "data").glob("*.py"))
    reasons = {*re.findall(r'Unusable\(\s*"(.*?)"', source), *re.findall(r'"reason": "(.*?)"', source)}
    assert len(reasons) > 10 and not {reason for reason in reasons if f"`{reason}`" not in table}


# The walk


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of 1 to 12 samples, 78 in all; each is told by its answer."""
    folder = tmp_path_factory.mktemp("shards")
    number = 0
    for shard in range(12):
        samples = [Sample(encoded(), [], [Turn("Which?", str(number + i))]) for i in range(shard + 1)]
        write_shard(samples, folder / f"{shard:02d}.parquet")
        number += len(samples)
    return folder


def numbers(walk: Any, count: int) -> list[int]:
    return [int(sample.turns[0].answer) for _, sample in islice(walk, count)]


def test_an_epoch_gives_every_sample_once_in_an_order_of_its_own(shards: Path):
    seen = numbers(open_data(shards).walk(1), 3 * 78)
    epochs = [seen[:78], seen[78:156], seen[156:]]
    assert all(sorted(epoch) == list(range(78)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == numbers(open_data(shards).walk(1), 78) != numbers(open_data(shards).walk(2), 78)
    assert list(map(int, (words(s)[0] for s in open_data(shards)))) == list(range(78))
    assert open_data(shards).num_records() == 78


@pytest.mark.parametrize("killed_after", [1, 5, 60, 77, 78, 79, 140])
def test_a_walk_that_was_killed_goes_on_with_the_same_sequence(shards: Path, killed_after: int):
    whole = numbers(open_data(shards).walk(3, taker=1, takers=2), 160)
    walk = open_data(shards).walk(3, taker=1, takers=2)
    *_, (place, _) = islice(walk, killed_after)
    saved = json.loads(json.dumps(place))
    again = numbers(open_data(shards).walk(3, start=Place(*saved), taker=1, takers=2), 160 - killed_after)
    assert again == whole[killed_after:]


def test_takers_share_an_epoch_without_overlap(shards: Path):
    shares = []
    for taker in range(5):
        walk = open_data(shards).walk(0, taker=taker, takers=5)
        shares.append([int(words(s)[0]) for place, s in islice(walk, 20) if place.epoch == 0])
    assert sorted(sum(shares, [])) == list(range(78))
    with pytest.raises(ValueError, match="taker 5 of 5: expected 0 <= taker < takers"):
        next(open_data(shards).walk(0, taker=5, takers=5))


def test_a_taker_for_whom_no_record_is_left_says_so():
    data = Data([Shard("three", lambda: [captions(seed) for seed in range(3)])], Rejects())
    assert len({words(next(data.walk(0, taker=taker, takers=4))[1])[0] for taker in range(3)}) == 3
    for start in (Place(), Place(5, 0, 1)):
        with pytest.raises(ValueError, match="three: none of 3 records falls to taker 3 of 4: take fewer data workers"):
            next(data.walk(0, start=start, taker=3, takers=4))


def test_what_is_made_of_a_sample_is_random_but_the_same_after_a_kill_and_for_any_takers(shards: Path):
    def make(sample: Sample, rng: random.Random) -> tuple[str, float]:
        return words(sample)[0], rng.random()

    whole = list(islice(open_data(shards).walk(0, make=make), 156))
    resumed = open_data(shards).walk(0, start=whole[29][0], make=make)
    assert list(islice(resumed, 126)) == whole[30:]
    first, second = dict(made for _, made in whole[:78]), dict(made for _, made in whole[78:])
    assert all(first[name] != second[name] for name in first)
    shared = [made for place, made in islice(open_data(shards).walk(0, taker=1, takers=3, make=make), 20)]
    assert all(first[name] == number for name, number in shared)


def test_data_in_a_bucket_is_read_like_data_on_disk_and_dealt_out_by_shards(shards: Path, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "memory://bucket/set", recursive=True)
    fetched = []
    monkeypatch.setattr(memory, "get_file", lambda *a, f=memory.get_file, **k: (fetched.append(a[0]), f(*a, **k))[1])
    assert [words(s) for s in open_data("memory://bucket/set")] == [words(s) for s in open_data(shards)]
    fetched.clear()
    shares = []
    for taker in range(3):
        walk = open_data("memory://bucket/set").walk(0, taker=taker, takers=3)
        shares.append([int(words(s)[0]) for place, s in islice(walk, 60) if place.epoch == 0])
        *_, (place, _) = islice(open_data("memory://bucket/set").walk(0, taker=taker, takers=3), 5)
        again = open_data("memory://bucket/set").walk(0, start=place, taker=taker, takers=3)
        assert numbers(again, 10) == numbers(open_data("memory://bucket/set").walk(0, taker=taker, takers=3), 15)[5:]
    assert sorted(sum(shares, [])) == list(range(78))


def test_an_address_that_nothing_can_read_is_an_error():
    with pytest.raises(ValueError, match="nonsense://a/b: Protocol not known"):
        open_data("nonsense://a/b")


def test_data_travels_to_worker_processes(shards: Path):
    data = open_data(shards)
    next(data.walk(0))
    assert numbers(pickle.loads(pickle.dumps(data)).walk(0), 10) == numbers(data.walk(0), 10)


# Bad data


def huge_png() -> bytes:
    """A picture of 20000x10000 pixels, in bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 10000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2501 * 10000), 1)) + chunk(b"IEND", b"")


def line(**changes: Any) -> str:
    fields = {"image": "good.png", "regions": [{"rle": square()}], "turns": [{"question": "What?", "answer": "This."}]}
    return json.dumps(fields | changes)


EMPTY = {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}
BAD = {
    "missing file": line(image="gone.png"),
    "damaged picture": line(image="text.png"),
    "picture too large": line(image="huge.png"),
    "picture too small": line(image="small.png", regions=[]),
    "mask of another size": line(regions=[{"rle": blob(0, 40, 30)}]),
    "empty mask": line(regions=[{"rle": EMPTY}]),
    "damaged mask": line(regions=[{"rle": {"size": [HEIGHT, WIDTH], "counts": "zz"}}]),
    "name without mask": line(turns=[{"question": "What is <Prompt1>?", "answer": "This."}]),
    "no text": line(turns=[{"question": "What?", "answer": " "}]),
    "malformed record": "{",
}
# More that are bad, each with its reason; a mask that is too large to be decoded is as damaged as another.
WORSE = [
    ("missing file", line(image="a" * 300)),
    ("damaged picture", line(image="data:image/png;base64,AAAA")),
    ("damaged mask", line(regions=[{"mask": "huge.png"}])),
    ("damaged mask", line(regions=[{"polygon": [[0, 0], [1e9, 0], [0, 9]]}])),
    ("malformed record", line(regions=[{"polygon": [[0, 0], [10**400, 0], [0, 9]]}])),
    ("malformed record", line(turns=[{"question": "Which?", "answer": "blue", "choices": "blue"}])),
    ("malformed record", line(turns=[{"question": "Which?", "answer": "blue", "choices": ["red", "green"]}])),
]
NO_TEXTS = [
    ("question", line(turns=[{"question": 1, "answer": "This."}])),
    ("answer", line(turns=[{"question": "What?", "answer": 3}])),
    ("answer", line(regions=[{"rle": square(), "text": 5}])),
    ("choices", line(turns=[{"question": "What?", "answer": "This.", "choices": ["This.", 2]}])),
    ("question", line(turns=[{"question": "What? \ud83d", "answer": "This."}])),
    ("type", line(turns=[{"question": "What?", "answer": "This.", "type": ["a"]}])),
]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Good pictures and, after the third, one file of every kind that is not."""
    (tmp_path / "good.png").write_bytes(encoded())
    (tmp_path / "text.png").write_bytes(b"this is no picture")
    (tmp_path / "huge.png").write_bytes(huge_png())
    (tmp_path / "small.png").write_bytes(encoded(width=9, height=20))
    whole = encoded(kind="JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data.jsonl").write_text("\n".join([line()] * 3 + list(BAD.values()) + [line()] * 2))
    return tmp_path


def test_bad_records_are_counted_by_reason_and_the_walk_goes_on(bad: Path):
    data = open_data(bad, rejects=bad / "rejects.jsonl")
    taken = list(islice(data.walk(0), 15))
    assert [place.epoch for place, _ in taken] == [0] * 5 + [1] * 5 + [2] * 5
    assert data.rejects.counts() == dict.fromkeys(BAD, 1)
    rejects = [json.loads(row) for row in (bad / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == len(BAD)
    found = {reject["reason"]: reject for reject in rejects}
    for number, reason in enumerate(BAD, start=3):
        assert found[reason]["record"] == f"{bad}/data.jsonl row {number}"
    assert found["mask of another size"]["detail"] == "good.png: mask 0 is 40x30, the picture 48x36"


@pytest.mark.parametrize(("field", "text"), NO_TEXTS)
def test_a_number_or_half_a_character_in_the_place_of_a_text_is_a_reject_that_names_the_field(
    bad: Path, field: str, text: str
):
    (bad / "data.jsonl").write_text("\n".join([line(), text]))
    data = open_data(bad)
    assert len(list(data)) == 1 and data.rejects.counts() == {"malformed record": 1}
    assert f"in the {field} of a turn: expected a text" in data.rejects.last


@pytest.mark.parametrize(("reason", "text"), WORSE)
def test_no_record_ends_the_walk(bad: Path, reason: str, text: str):
    (bad / "data.jsonl").write_text("\n".join([line(), text]))
    data = open_data(bad)
    assert len(list(data)) == 1 and data.rejects.counts() == {reason: 1}


@pytest.mark.parametrize("changed", [{"image": None}, {"masks": "null"}, {"meta": "null"}, {"turns": "null"}])
def test_a_row_with_nothing_in_it_is_a_reject(changed: dict[str, Any], tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = {"image": encoded(), "masks": "[]", "turns": '[{"question": "What?", "answer": "Noise."}]'}
    pq.write_table(pa.Table.from_pylist([good | {"meta": "{}"}, good | changed]), tmp_path / "a.parquet")
    data = open_data(tmp_path)
    assert len(list(data)) == 1 and data.rejects.counts() == {"malformed record": 1}


@pytest.mark.parametrize("drawn", [[[0, 0, 1e9, 0, 0, 9]], [[0, 0, -1e9, 5, 9, 9]]])
def test_a_coco_polygon_that_would_take_forever_is_refused(drawn: Any):
    with pytest.raises(Unusable, match="a coordinate far outside of the picture of 48x36"):
        segmentation_rle(drawn, HEIGHT, WIDTH)
    assert rle_area(segmentation_rle([[-9, -9, 9, -9, 9, 9, -9, 9]], HEIGHT, WIDTH)) == 81


@given(points=st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=3, max_size=8))
def test_a_shape_that_reaches_out_of_the_picture_is_cut_and_not_bent(points: list[tuple[int, int]]):
    """What is left of it is what a larger picture holds there."""
    shape = np.array(points) + (0.3, 0.2777)  # no edge goes through a pixel's centre, where rounding would decide
    whole = fill(shape + 100, 200, 200)[100 : 100 + HEIGHT, 100 : 100 + WIDTH]
    assert (fill(shape, WIDTH, HEIGHT) == whole).all()
    if whole.any():
        assert polygon_in(shape, WIDTH, HEIGHT) == encode_rle(whole)


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_a_mask_file_means_the_same_wherever_it_stands(mode: str, tmp_path: Path):
    """Black that is cut out by alpha is in, and so is the faintest blue."""
    part = np.zeros((HEIGHT, WIDTH), bool)
    part[3:9, 4:20] = True
    pixels = np.where(part[..., None], (0, 0, 0, 255), (0, 0, 0, 0)) if mode == "RGBA" else part[..., None] * (0, 0, 4)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "mask.png")
    content = base64.b64encode((tmp_path / "mask.png").read_bytes()).decode()
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "regions": [{"mask": "mask.png", "name": "x"}]}))
    shape = {"label": "x", "points": [[0, 0]], "shape_type": "mask", "mask": content}
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    for file in ("a.jsonl", "a.json"):
        (sample,) = open_data(tmp_path / file)
        assert sample.masks == [encode_rle(part)] == [Region.mask(tmp_path / "mask.png").locate(WIDTH, HEIGHT).rle()]


def test_records_of_json_lines_may_stand_in_one_list(bad: Path):
    (bad / "list.json").write_text(f"[{line()}, {line()}]")
    assert list(open_data(bad / "list.json")) == list(open_data(bad / "data.jsonl"))[:2]


def test_what_was_dropped_of_a_record_without_text_is_told_too(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encoded())
    images = [{"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}]
    shapes = [{"image_id": 5, "category_id": 1, "bbox": [1, 1, -9, 9]}, {"image_id": 5, "iscrowd": 1}]
    content = {"images": images, "annotations": shapes, "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = open_data(tmp_path / "a.json")
    assert not list(data) and data.rejects.counts() == {"no text": 1, "damaged mask": 1, "crowd": 1}


def test_pictures_may_stand_in_their_records(tmp_path: Path):
    inside = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    (tmp_path / "a.jsonl").write_text(line(image=inside))
    (sample,) = open_data(tmp_path)
    assert sample.image == encoded()
    write_jsonl([sample], tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text())["image"].startswith("pictures/")


def test_each_reject_is_written_once_by_whatever_process_and_run(bad: Path):
    for _ in range(2):
        for taker in range(3):
            walk = open_data(bad, rejects=bad / "rejects.jsonl").walk(0, taker=taker, takers=3)
            list(islice(walk, 10))
    assert len((bad / "rejects.jsonl").read_text().splitlines()) == len(BAD)
    assert Rejects(bad / "rejects.jsonl").counts() == dict.fromkeys(BAD, 1)


def test_a_line_of_rejects_that_was_cut_off_does_not_count(bad: Path):
    """Whether it stands last, or other lines were written behind it."""
    file = bad / "rejects.jsonl"
    Rejects(file).add("a", Unusable("no text", "x"))
    whole = file.read_bytes()
    file.write_bytes(b'{"record": "cut", "rea\n[1]\n\n' + whole + b'{"record": "b", "re')
    rejects = Rejects(file)
    assert rejects.counts() == {"no text": 1}
    rejects.add("b", Unusable("crowd", "y"))
    rejects.add("c", Unusable("crowd", "z"))
    assert rejects.counts() == Rejects(file).counts() == {"no text": 1, "crowd": 2}


def test_a_truncated_picture_is_found_where_it_is_decoded(bad: Path):
    (bad / "data.jsonl").write_text(line() + "\n" + line(image="cut.jpg"))
    data = open_data(bad)
    assert len(list(data)) == 2  # its header is whole
    sizes = [size for _, size in islice(data.walk(0, make=lambda sample, rng: sample.picture().size), 4)]
    assert sizes == [(WIDTH, HEIGHT)] * 4
    assert data.rejects.counts() == {"damaged picture": 1}


def test_broken_exif_and_a_png_that_is_cut_off_are_damaged_pictures_too(bad: Path):
    """Where a JPEG states its resolution, Pillow reads its EXIF only when asked for it."""
    for name, kind, options in (("exif.jpg", "JPEG", {"dpi": (72, 72)}), ("exif.png", "PNG", {})):
        Image.new("RGB", (40, 20)).save(bad / name, kind, exif=b"Exif\x00\x00nonsense at all", **options)
    whole = encoded()
    (bad / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = ("exif.jpg", "exif.png", "cut.png")
    (bad / "data.jsonl").write_text("\n".join([line(), *(line(image=name, regions=[]) for name in names)]))
    data = open_data(bad)
    assert len(list(data)) == 1 and data.rejects.counts() == {"damaged picture": 3}


def test_what_training_refuses_is_a_reject_too(bad: Path):
    def make(sample: Sample, rng: random.Random) -> Sample | None:
        if words(sample) == ["<|eot_id|>"]:
            raise ValueError("the answer holds <|eot_id|>")
        return sample if words(sample) == ["This."] else None

    lines = [line(), line(turns=[{"question": "a", "answer": "<|eot_id|>"}])]
    (bad / "data.jsonl").write_text("\n".join([*lines, line(turns=[{"question": "a", "answer": "b"}])]))
    data = open_data(bad)
    assert len(list(islice(data.walk(0, make=make), 3))) == 3
    assert data.rejects.counts() == {"refused": 1, "nothing to train": 1}


def test_data_without_one_usable_sample_ends_with_the_reasons(bad: Path):
    (bad / "data.jsonl").write_text("\n".join([line(image="gone.png"), line(image="lost.png"), "{"]))
    with pytest.raises(ValueError, match=r"not one usable sample .*rejected: 2 missing file, 1 malformed record"):
        next(open_data(bad).walk(0))


def test_thirty_masks_and_none_are_both_usable(bad: Path):
    many = line(regions=[{"rle": square(k)} for k in range(30)])
    (bad / "data.jsonl").write_text(many + "\n" + line(regions=[]))
    assert [len(sample.masks) for sample in open_data(bad)] == [30, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_that_lies_on_its_side_has_the_size_that_it_is_shown_in(kind: str):
    file = io.BytesIO()
    picture = Image.new("RGB", (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(file, kind, exif=exif)
    sample = Sample(file.getvalue(), [], [])
    assert sample.size() == sample.picture().size == (20, 40)


def test_a_shard_may_come_from_anywhere():
    data = Data([Shard("made here", lambda: [captions(0), captions(1)])], Rejects())
    assert [words(sample)[0] for sample in data] == ["Thing 0.0", "Thing 1.0"]
