"""How many samples a second does one core read, of data in the published format?

Writes pictures with masks and descriptions by our own writer, and reads them, in one run and one thread:
  plain            `datasets.load_from_disk`, iterated, pictures left encoded
  plain, decoded   the same as it comes: pictures decoded
  in order         our samples, checked, in the order of the files
  shuffled         the same by `walk`, as training reads them
  to N tiles       shuffled, decoded, cut into at most N tiles of 448 with a thumbnail, masks cut likewise (the
                   published models were trained with 16 and 8), as in training
  to N exact tiles the same with tiles that are the published ones to the bit, as for answers
Beside each rate stands its ratio to the plain iteration that does the same with the picture.

    python benchmarks/data.py [--json] [--samples 400] [--width 1024 --height 768] [--repeat 3]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import datasets
import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from gar.data.annotated import Annotation, annotated
from gar.data.formats import open_data
from gar.data.released import write_released
from gar.data.sample import Sample
from gar.inputs.tiling import choose_grid, cut_image, cut_mask
from gar.regions import Located, Region

TILE, MOST_TILES = 448, (16, 8, 4)
TEXT = "A weathered wooden bench with curved iron legs stands on wet gravel, its seat partly covered by leaves. " * 4


def sample(seed: int, width: int, height: int) -> Sample:
    """Smooth noise, which compresses like a photograph, and one to four round regions with a description each."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-12, 13, pixels.shape, np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    regions = []
    for _ in range(rng.integers(1, 5)):
        mask = np.zeros((height, width), np.uint8)
        centre = int(rng.integers(0, width)), int(rng.integers(0, height))
        axes = int(rng.integers(width // 16, width // 4)), int(rng.integers(height // 16, height // 4))
        cv2.ellipse(mask, centre, axes, float(rng.integers(0, 180)), 0, 360, 1, -1)
        regions.append(Annotation(Located.from_mask(mask).rle(), text=TEXT))
    return annotated(file.getvalue(), regions)


def tiles(sample: Sample, _: random.Random, most: int, exact: bool) -> torch.Tensor:
    """The tiles of a sample's picture, and of the union of its masks."""
    pixels = np.asarray(sample.picture())
    height, width = pixels.shape[:2]
    marked = np.any([Region.rle(mask).locate(width, height).mask for mask in sample.masks], axis=0)
    grid = choose_grid(width, height, TILE, most)
    cut_mask(marked, grid, TILE)
    return cut_image(pixels, grid, TILE, exact=exact)


def measure(folder: Path, count: int, repeat: int) -> dict[str, float]:
    """Samples a second of each way to read, the median of repeats that take turns."""

    def encoded() -> Iterator[object]:
        rows = datasets.load_from_disk(folder)
        assert isinstance(rows, datasets.Dataset)
        yield from rows.cast_column("image", datasets.Image(decode=False))

    ways: dict[str, Callable[[], Iterable[object]]] = {
        "plain": encoded,
        "plain, decoded": lambda: iter(datasets.load_from_disk(folder)),
        "in order": lambda: open_data(folder),
        "shuffled": lambda: islice(open_data(folder).walk(0), count),
    }
    for most, exact in [*((most, False) for most in MOST_TILES), (MOST_TILES[0], True)]:
        make = partial(tiles, most=most, exact=exact)
        way = f"to {most} {'exact ' * exact}tiles"
        ways[way] = lambda make=make: islice(open_data(folder).walk(0, make=make), count)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with Console(stderr=True).status("reading") as status:
        for _ in range(repeat):
            for way, read in ways.items():
                status.update(f"reading: {way}")
                start = time.perf_counter()
                seen = sum(1 for _ in read())
                seconds[way].append(time.perf_counter() - start)
                assert seen == count, f"{way} gave {seen} of {count} samples"
    return {way: count / statistics.median(times) for way, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--repeat", type=int, default=3, help="how often everything is measured; medians are shown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "released"
        samples = (sample(seed, arguments.width, arguments.height) for seed in range(arguments.samples))
        write_released(samples, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.arrow"))
        rates = measure(folder, arguments.samples, arguments.repeat)
    ratios = {way: rate / rates["plain, decoded" if way.endswith("tiles") else "plain"] for way, rate in rates.items()}
    if arguments.json:
        print(json.dumps({"bytes": size, "samples_per_second": rates, "ratio_to_plain": ratios}, indent=2))
        return
    table = Table("way to read", "samples/s", "to plain", box=box.SIMPLE)
    for way, rate in rates.items():
        table.add_row(way, f"{rate:.0f}", f"{ratios[way]:.2f}")
    picture = f"{arguments.width}x{arguments.height}"
    Console(width=100).print(f"{arguments.samples} samples of {picture}, {size / 1e6:.0f} MB", table)


if __name__ == "__main__":
    main()
