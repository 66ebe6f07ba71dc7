"""What each step sees: packs of a list of samples, or of a walk over data in streaming.

It depends on the seed and on how far the run has come, and on nothing else; `Feed.places` is what to save of a walk.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from gar.data.conversation import chat_pack
from gar.data.packing import Pack, pack
from gar.data.sample import Sample, Unusable
from gar.data.stream import START, Data, Place, Rejects, made_of
from gar.inputs.processor import GARProcessor
from gar.train.recipes import Stage

Augment = Callable[[Image.Image, random.Random], Image.Image]
Places = list[list[int]]  # of each data worker, all processes' in turn


def share(stage: Stage, rank: int, world: int) -> range:
    """A process's pictures of a step, as places in its batch: whole groups of `Stage.at_once`.

    Raises:
        ValueError: the groups do not fill the batch, or there are fewer of them than processes.
    """
    if not stage.at_once:
        if stage.batch % world:
            raise ValueError(f"{stage.batch} pictures a step cannot be shared evenly by {world} processes")
        return range(rank * stage.batch // world, (rank + 1) * stage.batch // world)
    groups, rest = divmod(stage.batch, stage.at_once)
    if rest or groups < world:
        raise ValueError(
            f"{stage.batch} pictures a step in groups of {stage.at_once}: expected whole groups, at least one for each "
            f"of {world} processes"
        )
    return range(rank * groups // world * stage.at_once, (rank + 1) * groups // world * stage.at_once)


class Steps(Dataset):
    """Step number -> this process's packs of that step, out of a list; or what is wrong with all of it, for the one
    who asks to raise: thrown in a data worker, torch would make a trace the text of another error."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: GARProcessor,
        stage: Stage,
        seed: int,
        augment: Augment | None = None,
        rank: int = 0,
        world: int = 1,
        rejects: Rejects | None = None,
    ):
        self.samples, self.stage, self.seed = samples, stage, seed
        self.rejects = rejects or Rejects()
        self.make = Packer(processor, stage, augment)
        self.share = share(stage, rank, world)

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Pack] | Exception:
        try:
            return [self._pack(step * self.stage.batch + place) for place in self.share]
        except (OSError, ValueError) as error:
            return error

    def _pack(self, place: int) -> Pack:
        """Samples in a fresh order each epoch. One that cannot be used is noted, and the one half an epoch further on
        taken in its place, or else one of those that follow."""
        total = len(self.samples)
        epoch, index = divmod(place, total)
        half = max(total // 2, 1)
        for further in chain([0], range(half, total), range(1, half)):
            number = self._order(epoch)[(index + further) % total]
            rng = random.Random(f"{self.seed}/{self.stage.name}/{place + further}")
            try:
                return made_of(self.samples[number], self.make, rng)
            except ValueError as error:
                self.rejects.add(f"sample {number}", error)
        raise ValueError(
            f"not one of {total} samples can be used in stage {self.stage.name} (rejected: {self.rejects.summary()}) "
            f"{self.rejects.last}"
        )

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._shuffled = epoch, list(range(len(self.samples)))
            random.Random(f"{self.seed}/{self.stage.name}/epoch {epoch}").shuffle(self._shuffled)
        return self._shuffled


class Walk(IterableDataset):
    """This process's packs of each step from `start` on, out of a data set, and the place of the worker that made them.

    The data workers of a process take turns, a whole step each. torch begins with its first one, so that one takes
    over the part whose turn it is at `start`.
    """

    def __init__(
        self,
        data: Data,
        processor: GARProcessor,
        stage: Stage,
        seed: int,
        augment: Augment | None,
        rank: int,
        world: int,
        start: int,
        places: Places,
    ):
        self.data, self.seed, self.rank, self.world = data, f"{seed}/{stage.name}", rank, world
        self.make = Packer(processor, stage, augment)
        self.share, self.steps = share(stage, rank, world), range(start, stage.steps)
        self.places = places

    def __iter__(self) -> Iterator[tuple[list[Pack], int, Place] | Exception]:
        try:
            yield from self._steps()
        except (OSError, ValueError) as error:
            yield error  # as `Steps` does

    def _steps(self) -> Iterator[tuple[list[Pack], int, Place]]:
        info = get_worker_info()
        first, workers = (info.id, info.num_workers) if info else (0, 1)
        taker = self.rank * workers + (self.steps.start + first) % workers
        place = Place(*self.places[taker])
        walk = self.data.walk(self.seed, start=place, taker=taker, takers=self.world * workers, make=self.make)
        for _ in self.steps[first::workers]:
            packs = []
            for _ in self.share:
                place, made = next(walk)
                packs.append(made)
            yield packs, taker, place


class Feed:
    """Iterates over this process's packs, step after step.

    Attributes:
        places: how far each data worker of this process has come with what was given out; others' as at the start.

    Args:
        source: a list, or data with rejects of its own. rejects: for what of a list cannot be used.
        start: the first step. places: as saved, of all processes; none to begin, or for a list of samples.
    """

    def __init__(
        self,
        source: Sequence[Sample] | Data,
        processor: GARProcessor,
        stage: Stage,
        seed: int,
        augment: Augment | None,
        rank: int,
        world: int,
        start: int,
        places: Places,
        workers: int,
        rejects: Rejects | None = None,
    ):
        loading: dict[str, Any] = {"batch_size": None, "num_workers": workers, "collate_fn": _as_it_is}
        loading["prefetch_factor"] = 4 if workers else None
        if isinstance(source, Data):
            self.places = _dealt(places, world * max(workers, 1))
            walk = Walk(source, processor, stage, seed, augment, rank, world, start, self.places)
            self._loader = DataLoader(walk, **loading)
        else:
            self.places = []
            steps = Steps(source, processor, stage, seed, augment, rank, world, rejects)
            self._loader = DataLoader(steps, sampler=range(start, stage.steps), **loading)

    def __iter__(self) -> Iterator[list[Pack]]:
        for made in self._loader:
            if isinstance(made, Exception):
                raise made
            if self.places:
                made, taker, place = made
                self.places[taker] = list(place)
            yield made


@dataclass(frozen=True)
class Packer:
    """What a stage makes of a sample; a class, because it travels to worker processes.

    Raises Unusable as `pack` and `chat_pack`, and where a text is longer than the model reads.
    """

    processor: GARProcessor
    stage: Stage
    augment: Augment | None = None

    def __call__(self, sample: Sample, rng: random.Random) -> Pack | None:
        stage = self.stage
        if stage.chat:
            made = chat_pack(sample, self.processor, rng, stage.regions)
        else:
            made = pack(
                sample, self.processor, rng, num_turns=stage.turns, max_regions=stage.regions, augment=self.augment,
                hidden=stage.hidden, few=stage.few, zoomed=stage.zoomed,
            )  # fmt: skip
        most = self.processor.config.text_config.max_position_embeddings
        if made and max(made.positions) >= most:
            raise Unusable("text too long", f"{max(made.positions) + 1} tokens, the model reads {most}")
        return made


def _dealt(places: Places, takers: int) -> Places:
    """Places for so many takers. Of another number only about the same amount of data can be passed over."""
    if not places:
        return [list(START) for _ in range(takers)]
    if len(places) == takers:
        return [list(place) for place in places]
    epoch, group, row = min(places)
    print(f"gar: {takers} data workers after {len(places)}: goes on near the same sample", file=sys.stderr)
    return [[epoch, group, row * len(places) // takers] for _ in range(takers)]


def _as_it_is(made: Any) -> Any:
    return made
