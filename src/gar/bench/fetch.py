"""The published annotations of benchmarks, downloaded and checked. Pictures are not: their owners give them out."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from pathlib import Path

from gar.bench.task import CACHE, Benchmark
from gar.data.sample import replacing


def fetch(benchmark: Benchmark, to: Path | None = None, source: str | None = None) -> Path:
    """Download `benchmark.files`; those that are there and right are kept.

    Args:
        to: folder; by default one where `gar bench score` looks.
        source: address to put before the files' names, instead of `benchmark.source`.

    Returns:
        The folder.

    Raises:
        ValueError: the benchmark has no published address, a download fails, or a file is not the published one.
    """
    source = (source or benchmark.source).rstrip("/")
    if not source:
        raise ValueError(f"{benchmark.name} has no address to fetch it from: see docs/benchmarks.md")
    folder = to or CACHE / benchmark.name
    for name, expected in benchmark.files.items():
        path = folder / name
        if path.is_file() and _sha256(path.read_bytes()) == expected:
            continue
        address = f"{source}/{name}"
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                content = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ValueError(
                f"{address}: {getattr(error, 'reason', error)}: try again, or another server with --from"
            ) from error
        if (found := _sha256(content)) != expected:
            raise ValueError(f"{address}: SHA-256 is {found}, expected {expected}: nothing of it was kept")
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return folder


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
