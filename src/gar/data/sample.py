"""One record of training or evaluation data, and the Parquet shards that hold many.

Knows pictures, masks as RLE, and what was said about them. Knows no model, no token and no tile.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `<PromptN>` in either text names `Sample.masks[N]`.

    type: the kind of question ("color", "relation", "caption", ...), for tables by type.
    choices: the option texts of a multiple-choice question without letters, in the order shown; else empty.
    """

    question: str
    answer: str
    type: str = ""
    choices: tuple[str, ...] = ()


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
        """The decoded picture, RGB."""
        return Image.open(io.BytesIO(self.image)).convert("RGB")


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.rename(path)
    return len(rows)


def read_shards(folder: str | Path) -> Iterator[Sample]:
    """Every sample of the `*.parquet` files of a folder (or of one file), in name order."""
    import pyarrow.parquet as pq

    folder = Path(folder)
    paths = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
    if not paths:
        raise ValueError(f"no .parquet shard in {folder}: write some first, e.g. with `gar scenes render`")
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                yield Sample(
                    image=row["image"],
                    masks=json.loads(row["masks"]),
                    turns=[Turn(**{**t, "choices": tuple(t["choices"])}) for t in json.loads(row["turns"])],
                    source=row["source"],
                    licence=row["licence"],
                    meta=json.loads(row["meta"]),
                )
