"""The published annotations of benchmarks, downloaded and checked. Pictures are not: their owners give them out.

Some lie at an address of their own, with the digests of the files that our figures were made with. Others are files of
a data set on the hub, and are checked by the digests that it lists.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin

from gar.bench.task import CACHE, Benchmark
from gar.data.sample import write_whole

HUB = "https://huggingface.co"


def fetch(benchmark: Benchmark, to: Path | None = None, source: str | None = None) -> Path:
    """Download a benchmark's published files; those that are there and right are kept.

    Args:
        to: folder; by default one where `gar bench score` looks.
        source: another server: the address to put before the files' names, or that of the hub.

    Returns:
        The folder.

    Raises:
        ValueError: the benchmark has no published address, a download fails, or a file is not the published one.
    """
    folder = to or CACHE / benchmark.name
    for name, address, expected in _published(benchmark, source):
        path = folder / name
        if path.is_file() and _digest(path.read_bytes(), expected) == expected:
            continue
        content, _ = _download(address)
        if (found := _digest(content, expected)) != expected:
            kind = "SHA-256" if len(expected) == 64 else "git's SHA-1"
            raise ValueError(f"{address}: {kind} is {found}, expected {expected}: nothing of it was kept")
        write_whole(path, content)
    return folder


def _published(benchmark: Benchmark, source: str | None) -> Iterator[tuple[str, str, str]]:
    """Name, address and digest of each file."""
    if benchmark.dataset:
        server = (source or HUB).rstrip("/")
        listing = f"{server}/api/datasets/{benchmark.dataset}/tree/main?recursive=1"
        try:
            rows = (row for row in _listed(listing) if row["type"] == "file")
            row = next((row for row in rows if PurePosixPath(row["path"]).name == benchmark.annotations), None)
            if row is None:
                raise ValueError(f"{listing}: there is no {benchmark.annotations} in this data set")
            path, digest = row["path"], row["lfs"]["oid"] if row.get("lfs") else row["oid"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{listing}: no list of files") from error
        yield benchmark.annotations, f"{server}/datasets/{benchmark.dataset}/resolve/main/{path}", digest
    elif source or benchmark.source:
        for name, digest in benchmark.files.items():
            yield name, f"{(source or benchmark.source).rstrip('/')}/{name}", digest
    else:
        raise ValueError(f"{benchmark.name} has no address to fetch it from: see docs/benchmarks.md")


def _listed(address: str) -> Iterator[dict[str, Any]]:
    """The rows of a list that the hub gives page by page."""
    page: str | None = address
    while page:
        content, page = _download(page)
        yield from json.loads(content)


def _download(address: str) -> tuple[bytes, str | None]:
    """What lies at an address, and the address of the page after it, where there is one."""
    try:
        with urllib.request.urlopen(address, timeout=60) as response:
            following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link", ""))
            return response.read(), following and urljoin(address, following[1])
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"{address}: {reason}: try again, or another server with --from") from error


def _digest(content: bytes, like: str) -> str:
    """A file's digest of the same kind as another: SHA-256, or the SHA-1 that git names a file by."""
    if len(like) == 64:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
