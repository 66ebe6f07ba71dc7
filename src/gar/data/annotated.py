"""Pictures whose regions have a name and a description: all that annotation tools and most public data sets hold."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from gar.data.sample import MALFORMED, Sample, Turn, Unusable
from gar.regions import DAMAGED, Region, prompt_name

FILE = "file"  # in `Sample.meta`: the picture's name, beside the annotations
DROPPED = "dropped"  # in `Sample.meta`: annotations that could not be used, each with its number, reason and detail

UNNAMED = "region"  # the label of a region without a name, in formats that ask for one

Raw = TypeVar("Raw")


@dataclass(frozen=True)
class Annotation:
    """A region as COCO RLE, with what is known of it. name: a noun. text: a description."""

    mask: dict[str, Any]
    name: str = ""
    text: str = ""


def labelled(label: str) -> str:
    """The name that a label gives a region; none, where it only fills its place."""
    return "" if label == UNNAMED else label


def describe(k: int) -> str:
    """The question that a description of region k answers, where a format has none."""
    return f"Describe {prompt_name(k)} in detail."


def name_it(k: int) -> str:
    """The same for a name."""
    return f"What is {prompt_name(k)}?"


def annotated(image: bytes, annotations: Sequence[Annotation], turns: Iterable[Turn] = (), **fields: Any) -> Sample:
    """A sample with a turn for every name and every description, then further turns."""
    made = []
    for k, annotation in enumerate(annotations):
        if annotation.name:
            made.append(Turn(name_it(k), annotation.name, "name"))
        if annotation.text:
            made.append(Turn(describe(k), annotation.text, "detailed"))
    return Sample(image, [a.mask for a in annotations], [*made, *turns], **fields)


def annotations_of(sample: Sample) -> list[Annotation]:
    """The regions of a sample with their names and descriptions.

    Raises:
        ValueError: it holds a question of another kind, or two names or descriptions of one region.
    """
    answers = {turn.question: turn.answer for turn in sample.turns}
    found = [
        Annotation(mask, answers.get(name_it(k), ""), answers.get(describe(k), ""))
        for k, mask in enumerate(sample.masks)
    ]
    if annotated(sample.image, found).turns != sample.turns:
        raise ValueError(
            f"a sample with {len(sample.turns)} turns about {len(found)} regions: the format holds only a name and a "
            "description of each; write JSONL or Parquet"
        )
    return found


def gather(raws: Iterable[Raw], make: Callable[[Raw], Annotation]) -> tuple[dict[int, Annotation], dict[str, Any]]:
    """Annotations by their number in the file, and as `Sample.meta` those that could not be used, with the reason."""
    kept, dropped = {}, []
    for number, raw in enumerate(raws):
        try:
            kept[number] = make(raw)
        except Unusable as error:
            dropped.append({"annotation": number, "reason": error.reason, "detail": error.detail})
        except ValueError as error:
            dropped.append({"annotation": number, "reason": "damaged mask", "detail": str(error)})
        except MALFORMED as error:
            detail = f"{type(error).__name__}: {error}"
            dropped.append({"annotation": number, "reason": "malformed record", "detail": detail})
    return kept, {DROPPED: dropped} if dropped else {}


def rle_of(region: Region, width: int, height: int) -> dict[str, Any]:
    """A region as COCO RLE in a picture of this size (pixels). Raises ValueError as `Region.locate`."""
    return region.locate(width, height).rle()


def box_in(x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> dict[str, Any]:
    """A half-open box (pixels) as COCO RLE. What reaches out of the picture is cut: annotators draw beyond its edge."""
    x, y = np.clip((x0, x1), 0, width), np.clip((y0, y1), 0, height)
    return rle_of(Region.box(x[0], y[0], x[1], y[1]), width, height)


def polygon_in(points: Any, width: int, height: int) -> dict[str, Any]:
    """A closed line, (x, y) pairs in pixels, as COCO RLE; cut like a box."""
    inside = np.clip(np.array(points, float).reshape(-1, 2), 0, (width, height))
    return rle_of(Region.polygon(inside.tolist()), width, height)


def mask_pixels(content: bytes, mode: str) -> np.ndarray:
    """The decoded pixels of a mask file, uint8: "L" (H, W) or "RGB" (H, W, 3). Raises Unusable where it is damaged."""
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert(mode))
    except DAMAGED as error:
        raise Unusable("damaged mask", str(error) or type(error).__name__) from error


def place_picture(sample: Sample, folder: Path) -> str:
    """The name of a sample's picture in a folder, where it is written if it is not there: its own, or one by content.

    Raises:
        ValueError: another picture has its name there, or it would be written outside of the folder.
    """
    name = sample.meta.get(FILE)
    if name is None:
        with Image.open(io.BytesIO(sample.image)) as opened:
            kind = (opened.format or "png").lower()
        name = f"pictures/{hashlib.sha256(sample.image).hexdigest()[:16]}.{kind}"  # exports may share a folder
    path = folder / name
    if "://" in name:
        return name
    if not path.exists():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"picture {name} is not there, and would have to be written outside of {folder}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
    elif path.read_bytes() != sample.image:
        raise ValueError(f"{path} is another picture than that of the sample: write to another folder, or rename one")
    return name
