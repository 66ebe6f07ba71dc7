"""Files of a data set, wherever they lie: on disk, in a bucket, on the hub. Knows bytes and names, no format."""

from __future__ import annotations

import base64
import errno
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gar.data.sample import Unusable

INLINE = "data:"  # so begins a name that is the file itself, in base64


class Folder:
    """A folder by its path or by any URL that fsspec knows: `s3://bucket/folder`, `hf://datasets/owner/name/folder`.

    Attributes:
        url: as given, without a slash at the end.
        remote: its files are fetched, not just read.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/") or "/"
        self.remote = "://" in url and not url.startswith("file://")

    @property
    def _place(self) -> tuple[Any, str]:
        """The file system and the path in it. Not kept: fsspec keeps its own, one for each process."""
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.url}: {error}") from error

    def names(self) -> list[str]:
        """The names in the folder, sorted; none where it is a file or not there."""
        system, root = self._place
        if not system.isdir(root):
            return []
        return sorted(posixpath.basename(path.rstrip("/")) for path in system.ls(root, detail=False))

    def has(self, name: str) -> bool:
        system, path = self._find(name)
        return system.isfile(path)

    def read(self, name: str) -> bytes:
        """A file's content. `name` may be a path in the folder, an absolute path, a URL, or "data:...;base64,...".

        Raises:
            Unusable: no such file.
        """
        if name.startswith(INLINE):
            return base64.b64decode(name.partition(",")[2])
        system, path = self._find(name)
        try:
            return system.cat_file(path)
        except OSError as error:
            absent = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
            if not absent and error.errno != errno.ENAMETOOLONG:
                raise
            raise Unusable("missing file", f"{name[:80]} in {self.url}") from error

    @contextmanager
    def local(self, name: str) -> Iterator[str]:
        """A file as one on disk: itself, or a copy that is removed afterwards (a memory map of it lives on)."""
        system, path = self._find(name)
        if not self.remote:
            yield path
            return
        with tempfile.NamedTemporaryFile(prefix="gar-") as copy:
            system.get_file(path, copy.name)
            yield copy.name

    def _find(self, name: str) -> tuple[Any, str]:
        if "://" in name:
            return Folder(name)._place
        system, root = self._place
        return system, posixpath.join(root, name)
