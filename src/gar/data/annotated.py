"""Pictures whose regions have a name and a description: all that annotation tools and most public data sets hold."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from gar.data.files import INLINE
from gar.data.sample import MALFORMED, Sample, Turn, Unusable, write_whole
from gar.regions import Located, Region, fill, prompt_name

FILE = "file"  # in `Sample.meta`: the picture's name, beside the annotations
DROPPED = "dropped"  # in `Sample.meta`: annotations that could not be used, each with its number, reason and detail

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")  # XML holds none of them, or not as they are
UNNAMED = "region"  # the label of a region without a name, in formats that ask for one

REACH = 10  # times the picture's longer side: coordinates beyond are none

Raw = TypeVar("Raw")
Made = TypeVar("Made")


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


def _blank(text: Any) -> bool:
    return not text or isinstance(text, str) and not text.strip()


def annotated(image: bytes, annotations: Sequence[Annotation], turns: Iterable[Turn] = (), **fields: Any) -> Sample:
    """A sample with a turn for every name and every description, then further turns."""
    made = []
    for k, annotation in enumerate(annotations):
        if not _blank(annotation.name):
            made.append(Turn(name_it(k), annotation.name, "name"))
        if not _blank(annotation.text):
            made.append(Turn(describe(k), annotation.text, "detailed"))
    return Sample(image, [a.mask for a in annotations], [*made, *turns], **fields)


def annotations_of(sample: Sample) -> list[Annotation]:
    """The regions of a sample with their names and descriptions.

    Raises:
        ValueError: it holds a question of another kind, two names or descriptions of one region, a name that says that
            there is none, or a character that not every format can hold.
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
    for region in found:
        if region.name == UNNAMED or _CONTROL.search(region.name + region.text):
            shown = (region.name + region.text)[:40]
            raise ValueError(f"{shown!r} of a region would not come back from the format: write JSONL or Parquet")
    return found


def said(text: str) -> str:
    """A text without space around it. Raises Unusable where nothing is left."""
    if not text.strip():
        raise Unusable("no text", "an empty text")
    return text.strip()


def gather(raws: Iterable[Raw], make: Callable[[Raw], Made]) -> tuple[dict[int, Made], dict[str, Any]]:
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
    """A closed line, (x, y) pairs in pixels, as COCO RLE; cut like a box. Raises as `in_reach`, `Region.polygon`."""
    region = Region.polygon(in_reach(points, width, height).reshape(-1, 2).tolist())
    return Located.from_mask(fill(np.array(region.coordinates), width, height), region).rle()


def in_reach(coordinates: Any, width: int, height: int) -> np.ndarray:
    """Coordinates as numbers. Raises Unusable where one is no number, or lies ten pictures away and must be a mistake:
    filling so large a shape can take forever."""
    array = np.array(coordinates, float)
    if not (np.abs(array) <= REACH * max(width, height)).all():
        raise Unusable("damaged mask", f"a coordinate far outside of the picture of {width}x{height}, or no number")
    return array


def place_picture(sample: Sample, folder: Path) -> str:
    """The name of a sample's picture in a folder, where it is written if it is not there: its own, or one by content.

    Raises:
        ValueError: another picture has its name there, or it would be written outside of the folder.
    """
    name = sample.meta.get(FILE)
    if name is None or name.startswith(INLINE):
        with Image.open(io.BytesIO(sample.image)) as opened:
            kind = (opened.format or "png").lower()
        name = f"pictures/{hashlib.sha256(sample.image).hexdigest()[:16]}.{kind}"  # exports may share a folder
    path = folder / name
    if "://" in name:
        return name
    if not path.exists():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"picture {name} is not there, and would have to be written outside of {folder}")
        write_whole(path, sample.image)
    elif path.read_bytes() != sample.image:
        raise ValueError(f"{path} is another picture than that of the sample: write to another folder, or rename one")
    return name
