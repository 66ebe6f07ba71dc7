"""Exports of annotation tools: Label Studio and CVAT, read and written so that masks come back to the pixel; LabelMe.

A region's label is its name, and its text field ("textarea" in Label Studio, the attribute "text" in CVAT, the field
"description" in LabelMe) its description. Boxes, polygons, ellipses and masks are read; points and lines mark none.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from gar.data.annotated import (
    FILE,
    UNNAMED,
    Annotation,
    annotated,
    annotations_of,
    box_in,
    gather,
    labelled,
    place_picture,
    polygon_in,
    rle_of,
)
from gar.data.files import Folder
from gar.data.sample import Sample, Unusable, write_whole
from gar.data.stream import Lazy
from gar.regions import Located, Region, read_mask

_SIZES = (3, 4, 8, 16)  # bits of a run's length in Label Studio's masks, from short runs to long ones


def label_studio_samples(content: list[dict[str, Any]], pictures: Folder) -> Sequence[Sample]:
    """Label Studio's JSON: rectangles, polygons and brush masks, with the labels and texts that belong to them."""
    return Lazy(content, partial(_label_studio_sample, pictures=pictures))


def write_label_studio(samples: Iterable[Sample], path: str | Path) -> int:
    """Write tasks for Label Studio's import: brush masks "label" with a text "text", of a picture "image".

    Returns:
        The number of samples.

    Raises:
        ValueError: a sample has other questions than the format holds.
    """
    path = Path(path)
    tasks = []
    for number, sample in enumerate(samples):
        width, height = sample.size()
        results = []
        for k, region in enumerate(annotations_of(sample)):
            common = {
                "id": f"{number}-{k}",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
            }
            mask = Region.rle(region.mask).locate(width, height).mask
            brush = {"format": "rle", "rle": list(_pack_brush(mask)), "brushlabels": [region.name or UNNAMED]}
            results.append(common | {"from_name": "label", "type": "brushlabels", "value": brush})
            if region.text:
                value = {"text": [region.text]}
                results.append(common | {"from_name": "text", "type": "textarea", "value": value})
        name = place_picture(sample, path.parent)
        tasks.append({"id": number, "data": {"image": name}, "annotations": [{"result": results}]})
    write_whole(path, json.dumps(tasks).encode())
    return len(tasks)


def open_cvat(folder: Folder, name: str, pictures: Folder) -> Sequence[Sample]:
    """CVAT's XML ("CVAT for images 1.1"): boxes, polygons and masks.

    Raises:
        ValueError: it is no XML of this kind.
    """
    content = folder.read(name)
    if b"<!ENTITY" in content:  # nothing that CVAT writes; entities can be made to swell without end
        raise ValueError(f"{folder.url}/{name} declares XML entities: remove them")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"{folder.url}/{name} is not XML: {error}") from error
    if root.tag != "annotations":
        raise ValueError(f'{folder.url}/{name} holds <{root.tag}>: expected <annotations>, as "CVAT for images 1.1"')
    images = root.findall("image")
    if not images:
        held = "tracks of a video" if root.find("track") is not None else "no <image>"
        raise ValueError(f'{folder.url}/{name} holds {held}: export its frames as "CVAT for images 1.1"')
    return Lazy(images, partial(_cvat_sample, pictures=pictures))


def write_cvat(samples: Iterable[Sample], path: str | Path) -> int:
    """Write "CVAT for images 1.1": masks with an attribute "text". Returns and raises as `write_label_studio`."""
    path = Path(path)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    number = 0
    for number, sample in enumerate(samples, start=1):
        width, height = sample.size()
        name = place_picture(sample, path.parent)
        fields = {"id": str(number - 1), "name": name, "width": str(width), "height": str(height)}
        image = ElementTree.SubElement(root, "image", fields)
        for region in annotations_of(sample):
            located = Region.rle(region.mask).locate(width, height)
            x0, y0, x1, y1 = located.box
            runs = [(bool(value), len([*run])) for value, run in groupby(located.mask[y0:y1, x0:x1].ravel().tolist())]
            lengths = [0] * runs[0][0] + [length for _, length in runs]  # the first run is of what is not in the mask
            where = {"left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0}
            fields = {"label": region.name or UNNAMED, "occluded": "0", "rle": ", ".join(map(str, lengths))}
            fields |= {key: str(value) for key, value in where.items()}
            mask = ElementTree.SubElement(image, "mask", fields)
            if region.text:
                ElementTree.SubElement(mask, "attribute", {"name": "text"}).text = region.text
    write_whole(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    return number


def labelme_samples(names: Sequence[str], folder: Folder, pictures: Folder) -> Sequence[Sample]:
    """LabelMe: one JSON file for each picture, with rectangles, polygons and masks."""
    return Lazy(names, partial(_labelme_sample, folder=folder, pictures=pictures))


def _label_studio_sample(task: dict[str, Any], pictures: Folder) -> Sample:
    fields = task["data"]
    name = _picture_name(fields["image"] if "image" in fields else next(iter(fields.values())), pictures)
    image = pictures.read(name)
    done = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    # A relation joins two regions, and has no value.
    results = [result for result in (done[-1]["result"] if done else ()) if result["type"] != "relation"]
    texts = {}
    for result in results:
        if result["type"] == "textarea":
            text = result["value"]["text"]
            texts[result["id"]] = text if isinstance(text, str) else "\n".join(text)
    labels: dict[str, str] = {}
    for result in results:
        for kind in ("labels", "rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels"):
            if found := result["value"].get(kind):
                labels[result["id"]] = found[0]
    # A region with labels of a tool of its own comes once as a shape and once more with its labels.
    shapes = {result["id"]: result for result in results if {"points", "x", "rle"} & set(result["value"])}

    def make(result: dict[str, Any]) -> Annotation:
        key = result["id"]
        return Annotation(_label_studio_mask(result), labelled(labels.get(key, "")), texts.get(key, ""))

    kept, dropped = gather(shapes.values(), make)
    return annotated(image, [*kept.values()], meta={FILE: name} | dropped)


def _label_studio_mask(result: dict[str, Any]) -> dict[str, Any]:
    """Its shapes are in percent of the picture's sides."""
    value, width, height = result["value"], result["original_width"], result["original_height"]
    if "rle" in value:
        return Located.from_mask(_unpack_brush(bytes(value["rle"]), width, height)).rle()
    if "points" in value:
        return polygon_in(np.array(value["points"], float) * (width / 100, height / 100), width, height)
    x, y = value["x"] * width / 100, value["y"] * height / 100
    if "radiusX" in value:
        radii = value["radiusX"] * width / 100, value["radiusY"] * height / 100
        return _ellipse((x, y), radii, value.get("rotation", 0), width, height)
    if "height" not in value:
        raise Unusable("not an area", f"a {result['type']} marks no pixels")
    w, h = value["width"] * width / 100, value["height"] * height / 100
    return _turned_box((x, y), (0, 0, w, h), value.get("rotation", 0), width, height)  # about its top left corner


def _picture_name(given: str, pictures: Folder) -> str:
    """A picture's name from Label Studio's own addresses, which mean nothing outside of it; others are kept."""
    parts = urlsplit(given)
    if parts.path.endswith("/data/local-files/"):
        return parse_qs(parts.query)["d"][0]
    if "/data/upload/" in parts.path:  # it puts eight letters before the name that was uploaded
        name = unquote(parts.path.rpartition("/")[2])
        return next(filter(pictures.has, (name, re.sub("^[0-9a-f]{8}-", "", name))), name)
    return given


def _pack_brush(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as Label Studio packs it: runs over the bytes of an RGBA picture, each 0 or 255.

    32 bits: the number of bytes; 5 and 4 x 4 bits: the word's size and the four sizes of lengths, each less one; then
    for each run a set bit, two bits that choose a size, the length less one, and the byte.
    """
    bits = [f"{4 * mask.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    edges = np.flatnonzero(np.diff(mask.ravel().astype(np.int8), prepend=-1, append=-1))
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        left = 4 * int(end - start)
        while left:
            choice = next((i for i, size in enumerate(_SIZES) if left <= 1 << size), len(_SIZES) - 1)
            length = min(left, 1 << _SIZES[choice])
            byte = 255 * int(mask.flat[start])
            bits.append(f"1{choice:02b}{length - 1:0{_SIZES[choice]}b}{byte:08b}")
            left -= length
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tobytes()


def _unpack_brush(packed: bytes, width: int, height: int) -> np.ndarray:
    """The other way: (H, W) bool, where alpha is not 0. Raises ValueError where it is cut off or of another size."""
    text = "".join(map(str, np.unpackbits(np.frombuffer(packed, np.uint8)).tolist()))
    at = 0

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(text):
            raise ValueError(f"a brush mask ends after {len(packed)} bytes, in the middle of a run")
        at += size
        return int(text[at - size : at], 2)

    total = number(32)
    if total != 4 * width * height:
        raise Unusable("mask of another size", f"a brush mask of {total // 4} pixels in a picture of {width}x{height}")
    word = number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values, filled = np.zeros(total, np.uint8), 0
    while filled < total:
        repeated = number(1)
        length = number(sizes[number(2)]) + 1
        if repeated:
            values[filled : filled + length] = number(word)
        else:
            words = [number(word) for _ in range(length)]
            values[filled : filled + length] = words[: total - filled]
        filled += length
    return values.reshape(height, width, 4)[..., 3] > 0


def _cvat_sample(element: ElementTree.Element, pictures: Folder) -> Sample:
    fields = element.attrib
    width, height = int(fields["width"]), int(fields["height"])

    def make(shape: ElementTree.Element) -> Annotation:
        texts = {attribute.attrib["name"]: attribute.text or "" for attribute in shape.findall("attribute")}
        mask = _cvat_mask(shape.tag, shape.attrib, width, height)
        return Annotation(mask, labelled(shape.attrib["label"]), texts.get("text", ""))

    kept, dropped = gather(element, make)
    name = fields["name"]
    return annotated(pictures.read(name), [*kept.values()], meta={FILE: name} | dropped)


def _cvat_mask(tag: str, fields: dict[str, str], width: int, height: int) -> dict[str, Any]:
    if tag == "box":
        x0, y0, x1, y1 = (float(fields[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        if degrees := float(fields.get("rotation", 0)):
            x, y = (x1 - x0) / 2, (y1 - y0) / 2
            return _turned_box((x0 + x, y0 + y), (-x, -y, x, y), degrees, width, height)
        return box_in(x0, y0, x1, y1, width, height)
    if tag == "polygon":
        points = [[float(number) for number in point.split(",")] for point in fields["points"].split(";")]
        return polygon_in(points, width, height)
    if tag == "ellipse":
        x, y, rx, ry = (float(fields[key]) for key in ("cx", "cy", "rx", "ry"))
        return _ellipse((x, y), (rx, ry), float(fields.get("rotation", 0)), width, height)
    if tag == "mask":
        x, y, w, h = (int(fields[key]) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in fields["rle"].split(",")]
        if sum(runs) != w * h or min(runs) < 0 or x < 0 or y < 0 or x + w > width or y + h > height:
            raise ValueError(f"a mask of {w}x{h} at {x},{y} with runs of {sum(runs)} in a picture of {width}x{height}")
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
        return Located.from_mask(mask).rle()
    raise Unusable("not an area", f"<{tag}> marks no pixels")


def _labelme_sample(name: str, folder: Folder, pictures: Folder) -> Sample:
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise Unusable("malformed record", f"{name}: {error}") from error
    file = content["imagePath"].replace("\\", "/")
    image = base64.b64decode(content["imageData"]) if content.get("imageData") else pictures.read(file)
    width, height = Sample(image, [], []).size()

    def make(shape: dict[str, Any]) -> Annotation:
        return Annotation(_labelme_mask(shape, width, height), shape["label"], shape.get("description") or "")

    kept, dropped = gather(content["shapes"], make)
    return annotated(image, [*kept.values()], meta={FILE: file} | dropped)


def _labelme_mask(shape: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return box_in(x0, y0, x1, y1, width, height)
    if kind == "polygon":
        return polygon_in(points, width, height)
    if kind == "circle":
        radius = np.hypot(*(points[1] - points[0]))
        return _ellipse(points[0], (radius, radius), 0, width, height)
    if kind == "mask":
        part = read_mask(io.BytesIO(base64.b64decode(shape["mask"])), "mask")
        x, y = points.min(0).astype(int)
        mask = np.zeros((height, width), bool)
        mask[y : y + part.shape[0], x : x + part.shape[1]] = part
        return rle_of(Region.mask(mask), width, height)
    raise Unusable("not an area", f"a {kind} marks no pixels")


def _turned_box(
    about: tuple[float, float], sides: tuple[float, float, float, float], degrees: float, width: int, height: int
) -> dict[str, Any]:
    """A box turned clockwise on the screen about a point (pixels), from which its sides are counted, as COCO RLE."""
    turn, (x0, y0, x1, y1) = np.deg2rad(degrees), sides
    corners = np.array(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
    axes = np.array(((np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))))
    return polygon_in(corners @ axes + about, width, height)


def _ellipse(middle: Any, radii: tuple[float, float], degrees: float, width: int, height: int) -> dict[str, Any]:
    """An ellipse about its middle (pixels), turned clockwise on the screen, as COCO RLE of the pixels centred in it."""
    if min(radii) <= 0:
        raise ValueError(f"an ellipse with radii {radii}: both must be above 0")
    turn = np.deg2rad(degrees)
    y, x = np.mgrid[:height, :width] + 0.5 - np.array(middle, float)[::-1, None, None]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return Located.from_mask((along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1).rle()
