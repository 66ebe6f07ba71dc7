"""The published training data: rows of `image`, `mask_rle` and `conversations`, in Arrow files or a JSON list.

A row's text comes in two kinds. Where it names `<PromptN>`, N is the index of a mask and the questions are kept. Where
it does not, answer k describes mask k, and the published code throws the questions away; so do we.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from gar.data.annotated import describe
from gar.data.files import Folder
from gar.data.sample import Sample, Turn, Unusable, sample_of
from gar.data.stream import Lazy
from gar.regions import prompts_named

_PICTURE = "<image>"  # stands in the first question for the picture


class TableRows(Sequence[dict[str, Any]]):
    """The rows of an Arrow table as dictionaries, each made when it is asked for."""

    def __init__(self, table: Any):
        self._batches = table.to_batches()
        self._ends = list(accumulate(len(batch) for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        batch = bisect_right(self._ends, index)
        start = self._ends[batch - 1] if batch else 0
        return self._batches[batch].slice(index - start, 1).to_pylist()[0]


def open_table(folder: Folder, name: str, pictures: Folder) -> Sequence[Sample]:
    """The samples of an Arrow file (mapped into memory) or of a Parquet file, with our columns or the published ones.

    Raises:
        ValueError: the file is damaged, or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with folder.local(name) as path:
        try:
            table = pq.read_table(path) if name.endswith(".parquet") else _mapped(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{folder.url}/{name} is not a whole file: {str(error).splitlines()[0]}") from error
    columns = set(table.column_names)
    if columns >= {"image", "masks", "turns"}:
        return Lazy(TableRows(table), sample_of)
    if columns >= {"image", "mask_rle", "conversations"}:
        return Lazy(TableRows(table), partial(released_sample, pictures=pictures))
    raise ValueError(
        f"{folder.url}/{name} has the columns {', '.join(sorted(columns))}: expected image, masks, turns (ours) or "
        "image, mask_rle, conversations (published)"
    )


def released_sample(row: dict[str, Any], pictures: Folder) -> Sample:
    """One row -> the sample.

    Args:
        row: `image`: {"bytes", "path"}, bytes, a path in `pictures`, or "data:...;base64,..."; `mask_rle`: a COCO RLE,
            a list of them, or None; `conversations`: [{"from": "human" | "gpt", "value"}, ...] in turn.

    Raises:
        Unusable: no picture, or text that does not go to and fro.
    """
    masks = row["mask_rle"] or []
    masks = [masks] if isinstance(masks, dict) else masks
    masks = [{"size": list(mask["size"]), "counts": _text(mask["counts"])} for mask in masks]
    said = [(line["from"], line["value"].replace(_PICTURE, "").strip()) for line in row["conversations"]]
    if [who for who, _ in said] != ["human", "gpt"] * (len(said) // 2):
        raise Unusable("no text", f"speakers {[who for who, _ in said][:6]}: expected human and gpt in turn")
    texts = [text for _, text in said]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    if not masks or any(map(prompts_named, texts)):
        turns = [Turn(question, answer) for question, answer in pairs]
    elif len(pairs) > len(masks):
        raise Unusable("description without mask", f"{len(pairs)} descriptions of {len(masks)} mask(s)")
    else:
        turns = [Turn(describe(k), answer, "detailed") for k, (_, answer) in enumerate(pairs)]
    return Sample(_picture(row["image"], pictures), masks, turns)


def write_released(samples: Iterable[Sample], folder: str | Path, max_shard_size: str = "500MB") -> int:
    """Write samples as the published data is written, for `datasets.load_from_disk`. Returns their number.

    The format holds pictures, masks and texts, no types, choices, sources or licences. Samples come back as they are if
    they have no more than that, and either one description per mask, or questions that name a region.

    Raises:
        ValueError: something is in the folder.
    """
    import datasets

    folder = Path(folder)
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there and not empty: name another folder")
    temporary, cache = folder.with_name(f"{folder.name}.tmp"), folder.with_name(f"{folder.name}.cache")
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask_rle": datasets.List({"size": datasets.List(datasets.Value("int64")), "counts": text}),
            "conversations": datasets.List({"from": text, "value": text}),
        }
    )
    shutil.rmtree(cache, ignore_errors=True)  # of a run that was killed
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_generator(
            partial(_rows, samples), features=features, cache_dir=str(cache), fingerprint="gar"
        )
        assert isinstance(table, datasets.Dataset)
        table.save_to_disk(str(temporary), max_shard_size=max_shard_size)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        if shown:
            datasets.enable_progress_bars()
    return len(table)


def _rows(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        questions = [turn.question for turn in sample.turns]
        if questions == [describe(k) for k in range(len(questions))]:
            questions = ["Describe the masked region in detail."] * len(questions)
        said = []
        for question, turn in zip(questions, sample.turns, strict=True):
            start = "" if said else f"{_PICTURE}\n"
            said += [{"from": "human", "value": start + question}, {"from": "gpt", "value": turn.answer}]
        yield {
            "image": {"bytes": sample.image, "path": None},
            "mask_rle": sample.masks or None,
            "conversations": said,
        }


def _picture(image: Any, pictures: Folder) -> bytes:
    if isinstance(image, dict):
        image = image["bytes"] or image["path"]
    if isinstance(image, bytes):
        return image
    if not image:
        raise Unusable("missing file", "the row has no picture")
    return pictures.read(image)


def _text(counts: Any) -> Any:
    return counts.decode() if isinstance(counts, bytes) else counts


def _mapped(path: str) -> Any:
    import pyarrow as pa

    mapped = pa.memory_map(path)
    kind = pa.ipc.open_file if mapped.read(6) == b"ARROW1" else pa.ipc.open_stream
    mapped.seek(0)
    return kind(mapped).read_all()
