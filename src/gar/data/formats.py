"""The one door to data: look at a folder or a file, say what it is, and open it."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gar.data.files import Folder
from gar.data.folder import open_jsonl, record_sample
from gar.data.published import coco_samples, psg_samples, refcoco_samples, visual_genome_samples
from gar.data.released import open_table, released_sample
from gar.data.sample import MALFORMED, Sample
from gar.data.stream import Data, Lazy, Rejects, Shard
from gar.data.tools import label_studio_samples, labelme_samples, open_cvat

KNOWN = (
    "Known are: folders of .parquet shards (`gar scenes render`), of .arrow files (datasets' save_to_disk), of "
    "pictures with a .jsonl, of LabelMe files; the .json of COCO, LVIS, PSG, Visual Genome, RefCOCO, Label Studio or "
    "of the published data; the .xml of CVAT (docs/data.md)"
)


Opener = Callable[[Folder, str, Folder], Sequence[Sample]]


_OPENERS: dict[str, Opener] = {
    ".parquet": open_table,
    ".arrow": open_table,
    ".jsonl": open_jsonl,
    ".xml": open_cvat,
}
_SPLIT = re.compile("(train|validation|val|test)(?![a-z])")  # how the names of a split's files begin


def open_data(path: str | Path, *, pictures: str | Path | None = None, rejects: str | Path | None = None) -> Data:
    """Open training data of any known format, on disk or at a URL that fsspec knows (`s3://`, `hf://datasets/`, ...).

    Args:
        path: a folder or a file.
        pictures: the folder that picture names are relative to, where that is not the one of the file.
        rejects: a JSON-lines file for the records that cannot be used; without, they are only counted.

    Raises:
        ValueError: nothing there, a format that is not known, or a file that is damaged as a whole.
    """
    url = str(path).rstrip("/")
    folder = Folder(url)
    names = folder.names()
    if not names:
        parent, name = posixpath.split(url)
        folder = Folder(parent or ".")
        if not name or not folder.has(name):
            raise ValueError(f"{url}: no such file, or an empty folder")
        names = [name]
    elif rejects is not None:
        names = [name for name in names if name != Path(rejects).name]
    beside = folder if pictures is None else Folder(str(pictures))
    opener, chosen = _recognise(names, folder, url)
    shards = [Shard(f"{folder.url}/{name}", partial(_opened, opener, folder, name, beside)) for name in chosen]
    data = Data(shards, Rejects(rejects), folder.remote)
    if opener is not open_table:
        data.num_records()  # what it is stands only in the file: say so now
    return data


def open_together(
    paths: Sequence[str | Path], *, pictures: str | Path | None = None, rejects: str | Path | None = None
) -> Data:
    """Several data sets as one, of any formats; see `open_data`."""
    each = [open_data(path, pictures=pictures, rejects=rejects) for path in paths]
    shards = [shard for data in each for shard in data.shards]
    return Data(shards, Rejects(rejects), any(data.remote for data in each))


def _recognise(names: list[str], folder: Folder, url: str) -> tuple[Opener, list[str]]:
    """How to open the files of a folder (or one file), and which of them."""
    if "state.json" in names and (listed := _data_files(folder)):
        return open_table, listed
    found = {suffix: chosen for suffix in _OPENERS if (chosen := [name for name in names if name.endswith(suffix)])}
    if len(found) > 1:
        raise ValueError(f"{url} holds {' and '.join(found)} files: name one, or move the others away")
    for suffix, chosen in found.items():
        splits = sorted({split[0] for split in map(_SPLIT.match, chosen) if split})
        if len(splits) > 1:
            raise ValueError(f"{url} holds splits ({', '.join(splits)}): name a file of one, or move the others away")
        return _OPENERS[suffix], chosen
    if "dataset_dict.json" in names:
        splits = ", ".join(name for name in names if name != "dataset_dict.json")
        raise ValueError(f"{url} holds several splits: name the folder of one ({splits})")
    chosen = [name for name in names if name.endswith(".json")]
    references = [name for name in chosen if name.startswith("refs")]
    if references and "instances.json" in chosen:
        return open_references, references
    if any(name.startswith("refs") and name.endswith(".p") for name in names):
        raise ValueError(f"{url} holds references as pickle, which can run code: save them as JSON (docs/data.md)")
    if len(chosen) > 1:
        return partial(open_labelme_folder, chosen), [""]
    if not chosen:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(f"{url}: no data of a known format among {shown}. {KNOWN}")
    return open_json, chosen


def _opened(opener: Opener, folder: Folder, name: str, pictures: Folder) -> Sequence[Sample]:
    """A file's samples. Raises ValueError as its opener, and where what its format asks for is not in it."""
    try:
        return opener(folder, name, pictures)
    except MALFORMED as error:
        missing = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder.url}/{name} is not as its format asks ({missing}): see docs/data.md") from error


def _data_files(folder: Folder) -> list[str]:
    """The files that `datasets` lists as a set's own: beside them it keeps others, such as `cache-*.arrow`."""
    state = _json(folder, "state.json")
    files = state.get("_data_files") if isinstance(state, dict) else None
    try:
        return [file["filename"] for file in files or ()]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.url}/state.json lists files without a filename: {str(files)[:80]}") from error


def open_json(folder: Folder, name: str, pictures: Folder) -> Sequence[Sample]:
    """A JSON file, told by its keys. Raises ValueError where they are of no known format."""
    content = _json(folder, name)
    keys = set(content) if isinstance(content, dict) else set()
    if keys >= {"images", "annotations"}:
        return coco_samples(content, pictures)
    if keys >= {"data", "predicate_classes"}:
        return psg_samples(content, pictures)
    if "shapes" in keys:
        return labelme_samples([name], folder, pictures)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        keys = set(content[0])
        if keys >= {"image", "conversations"}:
            return Lazy(content, partial(released_sample, pictures=pictures))
        if "image" in keys and keys & {"regions", "turns"}:
            return Lazy(content, partial(record_sample, pictures=pictures))
        if "regions" in keys:
            return visual_genome_samples(content, pictures)
        if keys >= {"data", "annotations"}:
            return label_studio_samples(content, pictures)
    shown = f"the keys {', '.join(sorted(keys)[:8])}" if keys else f"a {type(content).__name__}"
    raise ValueError(f"{folder.url}/{name} is JSON with {shown}: of no known format. {KNOWN}")


def open_references(folder: Folder, name: str, pictures: Folder) -> Sequence[Sample]:
    """References of RefCOCO, with the `instances.json` beside them."""
    return refcoco_samples(_json(folder, name), _json(folder, "instances.json"), pictures)


def open_labelme_folder(names: list[str], folder: Folder, _: str, pictures: Folder) -> Sequence[Sample]:
    """A folder of LabelMe files. Raises ValueError where the first is none."""
    first = _json(folder, names[0])
    if not isinstance(first, dict) or "shapes" not in first:
        raise ValueError(f"{folder.url} holds {len(names)} JSON files that are not of LabelMe: name one of them")
    return labelme_samples(names, folder, pictures)


def _json(folder: Folder, name: str) -> Any:
    try:
        return json.loads(folder.read(name))
    except ValueError as error:
        raise ValueError(f"{folder.url}/{name} is not JSON: {error}") from error
