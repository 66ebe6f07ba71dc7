"""A folder of pictures with one JSON line for each: the plainest way to bring data, and the one that keeps everything.

    {"image": "dog.jpg", "regions": [{"box": [20, 30, 200, 180], "text": "A brown dog on a bench."}]}

A region is a "box", a "polygon", an "rle" or the file of a "mask", with a "name" or a "text" or neither; other
questions stand in "turns", where `<PromptN>` names region N.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gar.data.annotated import FILE, Annotation, annotated, annotations_of, box_in, place_picture, polygon_in, rle_of
from gar.data.files import Folder
from gar.data.sample import Sample, Unusable, replacing, turn_of
from gar.data.stream import Lazy
from gar.regions import Region, read_mask


def open_jsonl(folder: Folder, name: str, pictures: Folder) -> Sequence[Sample]:
    """The samples of a JSON-lines file, each line read when it is asked for."""
    lines = [line for line in folder.read(name).split(b"\n") if line.strip()]
    return Lazy(lines, partial(line_sample, pictures=pictures))


def line_sample(line: bytes, pictures: Folder) -> Sample:
    """One line -> the sample. Raises Unusable: no JSON, or as `record_sample`."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise Unusable("malformed record", f"{line[:60]!r} is not JSON: {error}") from error
    return record_sample(fields, pictures)


def record_sample(fields: dict[str, Any], pictures: Folder) -> Sample:
    """What stands in a line -> the sample. Raises Unusable: no picture, or a region that is none."""
    image = pictures.read(fields["image"])
    size = Sample(image, [], []).size()
    annotations = [_annotation(region, size, pictures) for region in fields.get("regions", ())]
    turns = [turn_of(turn) for turn in fields.get("turns", ())]
    meta = fields.get("meta", {}) | {FILE: fields["image"]}
    origin = {key: fields[key] for key in ("source", "licence") if key in fields}
    return annotated(image, annotations, turns, meta=meta, **origin)


def write_jsonl(samples: Iterable[Sample], path: str | Path) -> int:
    """Write samples as JSON lines, and their pictures beside where they are not yet there. Returns their number."""
    path = Path(path)
    number = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(_line(sample, place_picture(sample, path.parent))) + "\n")
            number += 1
    return number


def _line(sample: Sample, name: str) -> dict[str, Any]:
    line: dict[str, Any] = {"image": name}
    try:
        annotations, turns = annotations_of(sample), []
    except ValueError:
        annotations, turns = [Annotation(mask) for mask in sample.masks], sample.turns
    line["regions"] = [
        {"rle": a.mask} | {key: text for key, text in (("name", a.name), ("text", a.text)) if text} for a in annotations
    ]
    rest = {
        "turns": [asdict(turn) for turn in turns],
        "source": sample.source,
        "licence": sample.licence,
        "meta": {key: value for key, value in sample.meta.items() if key != FILE},
    }
    return line | {key: value for key, value in rest.items() if value}


def _annotation(region: dict[str, Any], size: tuple[int, int], pictures: Folder) -> Annotation:
    name, text = region.get("name", ""), region.get("text", "")
    if "rle" in region:
        return Annotation(region["rle"], name, text)
    try:
        if "box" in region:
            x0, y0, x1, y1 = region["box"]
            mask = box_in(x0, y0, x1, y1, *size)
        elif "polygon" in region:
            mask = polygon_in(region["polygon"], *size)
        elif "mask" in region:
            array = read_mask(io.BytesIO(pictures.read(region["mask"])), f"mask {region['mask'][:80]}")
            mask = rle_of(Region.mask(array), *size)
        else:
            raise Unusable("malformed record", f"a region of {list(region)}: it needs a box, polygon, rle or mask")
        return Annotation(mask, name, text)
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable("damaged mask", str(error)) from error
