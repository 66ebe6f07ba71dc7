"""A data set as shards of samples, and the walk over it: shuffled, dealt out, resumable to the exact sample.

The order is a function of the seed and the epoch alone, so all there is to save is the place of the last sample. What
cannot be used is passed over, counted by reason and written down; nothing is drawn again in its place. Knows no file
format (`formats.py`), no token and no model.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gar.data.annotated import DROPPED, FILE
from gar.data.sample import MALFORMED, Sample, Unusable

WINDOW = 8  # shards that are open at once, and whose samples are shuffled together

Row = TypeVar("Row")
Make = Callable[[Sample, random.Random], Any]


class Lazy(Sequence[Sample]):
    """Samples that are made of their rows when they are asked for. Raises Unusable where a row is not as it should."""

    def __init__(self, rows: Sequence[Row], make: Callable[[Row], Sample]):
        self.rows, self.make = rows, make

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        try:
            return self.make(row)
        except MALFORMED as error:
            raise Unusable("malformed record", f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is opened as a whole.

    name: its path or URL. open: gives its samples. rows: of which only these count, in this order; None: all.
    """

    name: str
    open: Callable[[], Sequence[Sample]]
    rows: Sequence[int] | None = None


class Place(NamedTuple):
    """How far a walk has come: the epoch, the group of shards, and the rows of this taker that are done in it."""

    epoch: int = 0
    group: int = 0
    row: int = 0


START = Place()


class Rejects:
    """The records that could not be used, each once: counted by reason and written as JSON lines.

    Several processes may share the file: they append whole lines to it, and read those of the others. What a process
    that was killed left of a line does not count.

    Args:
        path: of the file; without one the records are only counted.

    Attributes:
        last: the last one in words.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else None
        self.last = ""
        self._reasons: dict[str, str] = {}
        self._read = 0  # bytes of the file that are known

    def add(self, record: str, error: ValueError, picture: str = "") -> None:
        """Note a record (and its picture's name) with the reason of its rejection, unless it stands there already."""
        reason, detail = (error.reason, error.detail) if isinstance(error, Unusable) else ("refused", str(error))
        detail = f"{picture}: {detail}" if picture else detail
        self.last = f"{record}: {reason}: {detail}"
        self._refresh()
        if record in self._reasons:
            return
        self._reasons[record] = reason
        if self.path:
            line = json.dumps({"record": record, "reason": reason, "detail": detail}) + "\n"
            if self._unread():
                line = "\n" + line  # behind one that was cut off
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)

    def counts(self) -> Counter[str]:
        """Reason -> number of records, of all processes that write to the file."""
        self._refresh()
        return Counter(self._reasons.values())

    def summary(self) -> str:
        """The counts in words; empty without any."""
        return ", ".join(f"{n} {reason}" for reason, n in self.counts().most_common())

    def _refresh(self) -> None:
        if self.path and self._unread():
            with self.path.open("rb") as file:
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole + end)
            for line in whole.splitlines():
                with suppress(ValueError, *MALFORMED):
                    known = json.loads(line)
                    self._reasons[known["record"]] = known["reason"]

    def _unread(self) -> bool:
        return self.path is not None and self.path.exists() and self.path.stat().st_size > self._read


def made_of(sample: Sample, make: Make, rng: random.Random) -> Any:
    """What is made of a sample. Raises ValueError where that is nothing, as `make` does."""
    made = make(sample, rng)
    if made is None:
        raise Unusable("nothing to train", "no text of it fits")
    return made


class Data:
    """A data set, opened by `open_data`.

    Iterating gives its usable samples once, in the order of the files. `walk` is for training.

    Attributes:
        shards: its parts, in name order.
        rejects: what could not be used so far.
        remote: its shards are fetched over a network.
    """

    def __init__(self, shards: Sequence[Shard], rejects: Rejects, remote: bool = False):
        self.shards, self.rejects, self.remote = list(shards), rejects, remote
        self._opened: OrderedDict[int, Sequence[Sample]] = OrderedDict()

    def num_records(self) -> int:
        """How many records there are, usable or not."""
        return sum(len(self.rows(shard)) for shard in range(len(self.shards)))

    def rows(self, shard: int) -> Sequence[int]:
        """The rows of a shard; where they are not known, it is opened, and so fetched if it is remote."""
        known = self.shards[shard].rows
        return range(len(self._samples(shard))) if known is None else known

    def __iter__(self) -> Iterator[Sample]:
        for _, sample in self.records():
            yield sample

    def records(self, make: Make | None = None, seed: int | str = 0) -> Iterator[tuple[str, Any]]:
        """The same, each with the name of its record: "SHARD row N". With `make` what is made of it, see `walk`."""
        for shard in range(len(self.shards)):
            for row in self.rows(shard):
                made = self._take(shard, row, make, f"{seed}/{shard}/{row}")
                if made is not None:
                    yield self._record(shard, row), made

    def walk(
        self,
        seed: int | str,
        *,
        start: Place = START,
        taker: int = 0,
        takers: int = 1,
        make: Make | None = None,
    ) -> Iterator[tuple[Place, Any]]:
        """Samples without end, each epoch in another order: shards shuffled, then the samples of `WINDOW` shards.

        Args:
            seed: of the order, and of the random numbers for `make`.
            start: the place that came with the last sample that was used; the walk goes on behind it, exactly.
            taker, takers: this process among those that share the data (each data worker of each rank is one). Samples
                are dealt out one by one; shards of remote data as a whole, where there are enough, so that each is
                fetched once.
            make: what to make of a sample, e.g. tiles and token ids, with random numbers that depend on the seed, the
                epoch and the sample. ValueErrors that it raises reject the sample, and so does None.

        Yields:
            The place after the sample (three numbers, ready for JSON), and the sample or what was made of it.

        Raises:
            ValueError: a taker that is not there, or to which no record falls; as many records as two epochs hold
                without one that is usable.
        """
        if not 0 <= taker < takers:
            raise ValueError(f"taker {taker} of {takers}: expected 0 <= taker < takers")
        whole = self.remote and len(self.shards) >= takers
        barren = 0  # records since the last usable one
        for epoch in count(start.epoch):
            shards = np.random.default_rng(_number(seed, epoch)).permutation(len(self.shards)).tolist()
            if whole:
                shards = shards[taker::takers]
            groups = [shards[i : i + WINDOW] for i in range(0, len(shards), WINDOW)]
            total = dealt = 0
            for group in range(start.group if epoch == start.epoch else 0, len(groups)):
                rows = [(shard, row) for shard in sorted(groups[group]) for row in self.rows(shard)]
                total += len(rows)
                order = np.random.default_rng(_number(seed, epoch, group)).permutation(len(rows))
                mine = order if whole else order[taker::takers]
                dealt += len(mine)
                first = start.row if (epoch, group) == start[:2] else 0
                for done, index in enumerate(mine[first:].tolist(), start=first + 1):
                    shard, row = rows[index]
                    made = self._take(shard, row, make, f"{seed}/{epoch}/{shard}/{row}")
                    barren += 1
                    if made is not None:
                        barren = 0
                        yield Place(epoch, group, done), made
            if epoch == start.epoch and (start.group or start.row):
                continue  # only a part of it has been seen
            if total and not dealt:
                raise ValueError(
                    f"{self.shards[0].name}: none of {total} records falls to taker {taker} of {takers}: take fewer "
                    "data workers or processes"
                )
            if barren >= 2 * total:
                raise ValueError(
                    f"{self.shards[0].name}: not one usable sample for taker {taker} of {takers} "
                    f"(rejected: {self.rejects.summary() or 'none'}) {self.rejects.last}"
                )

    def _take(self, shard: int, row: int, make: Make | None = None, seed: str = "") -> Any:
        """A sample or what is made of it; None where it is rejected."""
        record, picture = self._record(shard, row), ""
        try:
            sample = self._samples(shard)[row]
            picture = str(sample.meta.get(FILE, ""))[:80]
            for number, error in _dropped(sample):
                self.rejects.add(f"{record} annotation {number}", error)
            sample.check()
            return sample if make is None else made_of(sample, make, random.Random(seed))
        except ValueError as error:
            self.rejects.add(record, error, picture)
        return None

    def _record(self, shard: int, row: int) -> str:
        return f"{self.shards[shard].name} row {row}"

    def _samples(self, shard: int) -> Sequence[Sample]:
        if shard not in self._opened:
            self._opened[shard] = self.shards[shard].open()
            if len(self._opened) > WINDOW:
                self._opened.popitem(last=False)
        self._opened.move_to_end(shard)
        return self._opened[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}  # worker processes open their own


def _dropped(sample: Sample) -> list[tuple[int, Unusable]]:
    """Annotations of its picture that could not be used, each by its number."""
    try:
        return [(one["annotation"], Unusable(one["reason"], one["detail"])) for one in sample.meta.get(DROPPED, ())]
    except MALFORMED:  # something of the user's own by that name
        return []


def _number(*parts: object) -> int:
    """A seed for numpy: the same in every process, which `hash` is not."""
    return random.Random("/".join(map(str, parts))).getrandbits(64)
