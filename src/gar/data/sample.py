"""One record of training or evaluation data, and the Parquet shards that hold many.

Knows pictures, masks as RLE, and what was said about them. Knows no model, no token and no tile.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from gar.regions import DAMAGED, MAX_PIXELS, load_image, prompts_named, rle_area

SMALLEST = 10  # pixels of a picture's side, as in the released data set
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Unusable(ValueError):
    """A record that cannot be trained on. `reason` is one of a few fixed phrases (docs/data.md), `detail` the case."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


# What comes of looking into input for what is not there, or is something else.
MALFORMED = (AttributeError, KeyError, IndexError, TypeError, RecursionError, ArithmeticError)


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `<PromptN>` in either text names `Sample.masks[N]`.

    type: the kind of question ("color", "relation", "caption", ...), for tables by type.
    choices: the option texts of a multiple-choice question without letters, in the order shown; else empty.
    notes: what is worked out before the answer, if anything; a model that takes notes learns to write it, unshown.
    """

    question: str
    answer: str
    type: str = ""
    choices: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class Sample:
    """A picture, its regions, and what is said about them.

    image: the encoded picture (PNG or JPEG bytes).
    masks: one COCO RLE per region, {"size": [H, W], "counts": str}, in image pixels.
    turns: independent questions about the picture and its regions.
    meta: whatever the writer knows beyond that (JSON), e.g. the facts of a rendered scene.
    """

    image: bytes
    masks: list[dict[str, Any]]
    turns: list[Turn]
    source: str = ""
    licence: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def picture(self) -> Image.Image:
        """The decoded picture, upright, RGB. Raises Unusable where it is damaged, cut off, or too large."""
        try:
            return load_image(self._open())
        except Unusable:
            raise
        except ValueError as error:
            raise Unusable("damaged picture", str(error)) from error

    def size(self) -> tuple[int, int]:
        """(width, height) of the upright picture, by its header. Raises Unusable as `picture`."""
        opened = self._open()
        width, height = opened.size
        turned = opened.format != "TIFF" and opened.getexif().get(0x0112) in _SIDEWAYS  # Pillow has turned a TIFF
        return (height, width) if turned else (width, height)

    def check(self) -> None:
        """Find, without decoding the picture, what would make this sample useless in training.

        Raises:
            Unusable: with the reason.
        """
        width, height = self.size()
        if min(width, height) < SMALLEST:
            raise Unusable("picture too small", f"{width}x{height}, at least {SMALLEST} pixels a side are needed")
        for k, mask in enumerate(self.masks):
            try:
                area = rle_area(mask)
            except ValueError as error:
                raise Unusable("damaged mask", f"mask {k}: {error}") from error
            if list(mask["size"]) != [height, width]:
                seen = f"{mask['size'][1]}x{mask['size'][0]}"
                raise Unusable("mask of another size", f"mask {k} is {seen}, the picture {width}x{height}")
            if not area:
                raise Unusable("empty mask", f"mask {k} of {len(self.masks)} sets no pixel")
        if not self.turns:
            raise Unusable("no text", "no question with an answer")
        for turn in self.turns:
            texts = (turn.question, turn.answer, *turn.choices)
            names = ("question", "answer", *["choices"] * len(turn.choices), "type", "notes")
            for name, text in zip(names, (*texts, turn.type, turn.notes), strict=True):
                # JSON can hold half of a surrogate pair, which is in no encoding.
                if not isinstance(text, str) or text != text.encode(errors="replace").decode():
                    raise Unusable("malformed record", f"{text!r} in the {name} of a turn: expected a text")
            if not all(text.strip() for text in texts):
                raise Unusable("no text", f"an empty question, answer or choice: {str(texts)[:80]}")
            if turn.choices and turn.answer not in turn.choices:
                raise Unusable("malformed record", f"the answer {turn.answer[:80]!r} is not among the choices")
            missing = [k for text in (*texts, turn.notes) for k in prompts_named(text) if k >= len(self.masks)]
            if missing:
                raise Unusable("name without mask", f"<Prompt{missing[0]}> with {len(self.masks)} mask(s)")

    def _open(self) -> Image.Image:
        try:
            opened = Image.open(io.BytesIO(self.image))
            opened.getexif()  # kept; may be damaged itself, and of a PNG it may stand last, so that all of it is read
            return opened
        except Image.DecompressionBombError as error:
            raise Unusable("picture too large", f"more than {MAX_PIXELS} pixels are not decoded") from error
        except UnidentifiedImageError as error:
            raise Unusable("damaged picture", f"{len(self.image)} bytes that no decoder knows") from error
        except DAMAGED as error:
            raise Unusable("damaged picture", str(error) or type(error).__name__) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, for its new content; it becomes the file if nothing goes wrong. Makes folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}.tmp")  # ends so that no reader takes it for a shard
    try:
        yield temporary
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in the place of an older one, by way of a temporary name."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_shard(samples: Iterable[Sample], path: str | Path) -> int:
    """Write one Parquet shard to a temporary name, then rename it. Returns the number of samples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "image": s.image,
            "masks": json.dumps(s.masks),
            "turns": json.dumps([asdict(t) for t in s.turns]),
            "source": s.source,
            "licence": s.licence,
            "meta": json.dumps(s.meta),
        }
        for s in samples
    ]
    with replacing(Path(path)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return len(rows)


def read_shards(folder: str | Path) -> Iterator[Sample]:
    """Every sample of the `*.parquet` files of a folder (or of one file), in name order.

    Raises:
        ValueError: there is none, or it has other columns.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.parquet"))
    if not paths:
        raise ValueError(f"no .parquet shard in {folder}: write some first, e.g. with `gar scenes render`")
    for path in paths:
        file = pq.ParquetFile(path)
        if missing := {column.name for column in fields(Sample)} - {*file.schema_arrow.names}:
            raise ValueError(f"{path} has no column {min(missing)}: shards are written by `gar scenes render`")
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                yield sample_of(row)


def sample_of(row: dict[str, Any]) -> Sample:
    """A row of a shard -> the sample; `source`, `licence`, `meta` may be absent. Raises Unusable where it is none."""
    sample = Sample(
        image=row["image"],
        masks=json.loads(row["masks"]),
        turns=[turn_of(turn) for turn in json.loads(row["turns"])],
        source=row.get("source") or "",
        licence=row.get("licence") or "",
        meta=json.loads(row.get("meta") or "{}"),
    )
    for name, kind in (("image", bytes), ("masks", list), ("meta", dict)):
        if not isinstance(value := getattr(sample, name), kind):
            raise Unusable("malformed record", f"{name} is {str(value)[:40]}: expected {kind.__name__}")
    return sample


def turn_of(said: dict[str, Any]) -> Turn:
    """The fields of a turn, as `asdict` gives them to JSON -> the turn. Raises Unusable: choices are no list."""
    choices = said.get("choices", [])
    if not isinstance(choices, (list, tuple)):
        raise Unusable("malformed record", f"choices {str(choices)[:40]!r}: expected a list of texts")
    return Turn(**{**said, "choices": tuple(choices)})
