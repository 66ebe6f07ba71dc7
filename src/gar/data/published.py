"""Public data sets with regions: COCO (instances, captions), LVIS, PSG, Visual Genome, RefCOCO; COCO is written too.

Each reader takes what stands in the file and gives samples that are made when they are asked for. Masks are those of
pycocotools, as everywhere. A crowd is no region.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco

from gar.data.annotated import (
    FILE,
    UNNAMED,
    Annotation,
    annotated,
    annotations_of,
    box_in,
    gather,
    in_reach,
    labelled,
    place_picture,
    said,
)
from gar.data.files import Folder
from gar.data.sample import Sample, Turn, Unusable, write_whole
from gar.data.stream import Lazy
from gar.regions import Located, Region, prompt_name, rle_area

Raw = dict[str, Any]
Row = tuple[Raw | None, list[Raw]]

CAPTION = "Describe the picture."
TRAIN = "train"  # the split of RefCOCO that is for training
_REFER = "Which words tell {} from everything else in the picture?"


def coco_samples(content: Raw, pictures: Folder) -> Sequence[Sample]:
    """COCO and LVIS: a name for each instance. An annotation's "caption" describes its region, or the whole picture.

    The file's description of itself is the source of its samples, and each has the licence of its picture.
    """
    names = {category["id"]: _category(category) for category in content.get("categories", ())}
    rows = _rows(content["images"], content["annotations"])
    licences = {licence["id"]: licence.get("name", "") for licence in content.get("licenses", ())}
    source = (content.get("info") or {}).get("description") or ""
    return Lazy(rows, partial(_coco_sample, names=names, licences=licences, source=source, pictures=pictures))


def refcoco_samples(content: list[Raw], instances: Raw, pictures: Folder) -> Sequence[Sample]:
    """RefCOCO, RefCOCO+, RefCOCOg: what people said to point at an object. References of a test are dropped.

    Args:
        content: the references, {"image_id", "ann_id", "split", "sentences": [{"raw" or "sent"}]}.
        instances: the COCO file that they refer to.
    """
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    rows = [row for row in _rows(instances["images"], content) if row[1]]
    return Lazy(rows, partial(_refcoco_sample, annotations=annotations, pictures=pictures))


def psg_samples(content: Raw, pictures: Folder) -> Sequence[Sample]:
    """Panoptic scene graphs: segments of a panoptic PNG (id = R + 256 G + 65536 B), their names and relations."""
    names = [
        name.removesuffix("-merged").removesuffix("-other")
        for key in ("thing", "stuff")
        for name in content[f"{key}_classes"]
    ]
    predicates = content["predicate_classes"]
    return Lazy(content["data"], partial(_psg_sample, names=names, predicates=predicates, pictures=pictures))


def visual_genome_samples(content: list[Raw], pictures: Folder) -> Sequence[Sample]:
    """Region descriptions of Visual Genome: a phrase for each box. Pictures lie in VG_100K and VG_100K_2, or beside."""
    return Lazy(content, partial(_visual_genome_sample, pictures=pictures))


def write_coco(samples: Iterable[Sample], path: str | Path) -> int:
    """Write regions, their names (as categories) and descriptions (as "caption") in COCO's format.

    Pictures are written beside the file where they are not yet there.

    Returns:
        The number of samples.

    Raises:
        ValueError: a sample has other questions than the format holds.
    """
    path = Path(path)
    images, annotations, categories = [], [], {UNNAMED: 1}
    for number, sample in enumerate(samples):
        width, height = sample.size()
        name = place_picture(sample, path.parent)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for region in annotations_of(sample):
            x0, y0, x1, y1 = Region.rle(region.mask).locate(width, height).box
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": categories.setdefault(region.name or UNNAMED, len(categories) + 1),
                "segmentation": region.mask,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": rle_area(region.mask),
                "iscrowd": 0,
            }
            annotations.append(annotation | ({"caption": region.text} if region.text else {}))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_whole(path, json.dumps(content).encode())
    return len(images)


def _coco_sample(row: Row, names: dict[int, str], licences: dict[Any, str], source: str, pictures: Folder) -> Sample:
    image, raws = _listed(row)
    # LVIS gives no name of the file, but the address that ends in one.
    name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])

    def make(raw: Raw) -> Annotation | Turn:
        if _is_caption(raw):
            return Turn(CAPTION, said(raw["caption"]), "caption")
        return Annotation(_mask(raw, image), labelled(names[raw["category_id"]]), raw.get("caption", ""))

    kept, dropped = gather(raws, make)
    regions = [made for made in kept.values() if isinstance(made, Annotation)]
    captions = [made for made in kept.values() if isinstance(made, Turn)]
    origin = {"source": source, "licence": licences.get(image.get("license"), "")}
    return annotated(pictures.read(name), regions, captions, meta={FILE: name} | dropped, **origin)


def _refcoco_sample(row: Row, annotations: dict[int, Raw], pictures: Folder) -> Sample:
    image, references = _listed(row)

    def make(reference: Raw) -> tuple[Annotation, list[str]]:
        if (split := reference.get("split", TRAIN)) != TRAIN:
            raise Unusable("not for training", f"a reference of the split {split}")
        phrases = [sentence.get("raw") or sentence["sent"] for sentence in reference["sentences"]]
        phrases = [phrase for phrase in phrases if phrase.strip()]
        if not phrases:
            raise Unusable("no text", "nothing is said of it")
        return Annotation(_mask(annotations[reference["ann_id"]], image)), phrases

    kept, dropped = gather(references, make)
    turns = [
        Turn(_REFER.format(prompt_name(k)), phrase, "referring")
        for k, (_, phrases) in enumerate(kept.values())
        for phrase in phrases
    ]
    name = image["file_name"]
    return annotated(pictures.read(name), [region for region, _ in kept.values()], turns, meta={FILE: name} | dropped)


def _psg_sample(row: Raw, names: list[str], predicates: list[str], pictures: Folder) -> Sample:
    segmentation = Sample(pictures.read(row["pan_seg_file_name"]), [], [])
    ids = np.asarray(segmentation.picture(), np.int32) @ (1, 256, 65536)

    def make(segment: Raw) -> Annotation:
        return Annotation(Located.from_mask(ids == segment["id"]).rle(), names[segment["category_id"]])

    kept, dropped = gather(row["segments_info"], make)
    place = {number: prompt_name(k) for k, number in enumerate(kept)}
    turns = [
        Turn(
            f"What is the relation between {place[one]} and {place[other]}?",
            f"{place[one]} is {predicates[predicate]} {place[other]}.",
            "relation",
        )
        for one, other, predicate in row["relations"]
        if one in place and other in place
    ]
    name = row["file_name"]
    return annotated(pictures.read(name), [*kept.values()], turns, meta={FILE: name} | dropped)


def _visual_genome_sample(row: Raw, pictures: Folder) -> Sample:
    file = f"{row.get('id') or row['image_id']}.jpg"
    name = next((name for name in (f"VG_100K/{file}", f"VG_100K_2/{file}") if pictures.has(name)), file)
    image = pictures.read(name)
    size = Sample(image, [], []).size()

    def make(raw: Raw) -> tuple[Annotation, str]:
        x, y = raw["x"], raw["y"]
        return Annotation(box_in(x, y, x + raw["width"], y + raw["height"], *size)), said(raw["phrase"])

    kept, dropped = gather(row["regions"], make)
    turns = [
        Turn(f"Describe {prompt_name(k)} in a few words.", phrase, "phrase")
        for k, (_, phrase) in enumerate(kept.values())
    ]
    return annotated(image, [region for region, _ in kept.values()], turns, meta={FILE: name} | dropped)


def _category(category: Raw) -> str:
    """Its name; LVIS, which gives a synset for each, writes one of several words with "_" between."""
    return category["name"].replace("_", " ") if "synset" in category else category["name"]


def _rows(images: Sequence[Raw], raws: Iterable[Raw]) -> list[Row]:
    """Pictures, each with what is said of it; in the end all that is said of pictures that are not there."""
    by_image: defaultdict[Any, list[Raw]] = defaultdict(list)
    for raw in raws:
        by_image[raw["image_id"]].append(raw)
    rows: list[Row] = [(image, by_image[image["id"]]) for image in images]
    listed = {image["id"] for image in images}
    strays = [raw for number, group in by_image.items() if number not in listed for raw in group]
    return [*rows, (None, strays)] if strays else rows


def _listed(row: Row) -> tuple[Raw, list[Raw]]:
    image, raws = row
    if image is None:
        some = f"{len(raws)} entries are of pictures that are not under images, such as {raws[0]['image_id']!r}"
        raise Unusable("picture not listed", some)
    return image, raws


def _is_caption(raw: Raw) -> bool:
    """It speaks of the whole picture."""
    return "caption" in raw and "segmentation" not in raw and "bbox" not in raw


def segmentation_rle(drawn: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation as compressed RLE: its runs, or its polygons, filled as COCO fills them and joined.

    Raises:
        ValueError: a polygon has under three points, or as `in_reach`.
    """
    if isinstance(drawn, dict):
        runs = drawn if isinstance(drawn["counts"], str) else coco.frPyObjects(cast(Any, drawn), height, width)
    else:
        if any(len(in_reach(line, width, height)) < 6 or len(line) % 2 for line in drawn):
            raise ValueError("a polygon needs three points or more, as x and y in turn")
        runs = coco.merge(coco.frPyObjects(drawn, height, width))
    counts: Any = runs["counts"]
    return {
        "size": [int(side) for side in runs["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
    }


def _mask(raw: Raw, image: Raw) -> dict[str, Any]:
    """The compressed RLE of an annotation: of its polygons, its runs, or else its box."""
    if raw.get("iscrowd"):
        raise Unusable("crowd", "it marks a group, not a thing")
    height, width = image["height"], image["width"]
    drawn = raw.get("segmentation")
    if not drawn:
        x, y, w, h = raw["bbox"]
        return box_in(x, y, x + w, y + h, width, height)
    if isinstance(drawn, dict) and not rle_area(drawn):
        raise Unusable("empty mask", "it sets no pixel")
    made = segmentation_rle(drawn, height, width)
    if not rle_area(made):
        raise Unusable("empty mask", "its polygon holds no pixel")
    return made
