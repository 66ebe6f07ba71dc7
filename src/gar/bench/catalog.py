"""The benchmarks by name."""

from __future__ import annotations

import re

from gar.bench.dlc import DLC
from gar.bench.ferret import Ferret
from gar.bench.gar_bench import VQA, Detailed, Simple
from gar.bench.mdvp import MDVP
from gar.bench.naming import LVIS, PACO
from gar.bench.refcocog import RefCOCOg
from gar.bench.task import Benchmark
from gar.bench.videorefer import VideoReferD, VideoReferQ

BENCHMARKS: tuple[Benchmark, ...] = (
    VQA(),
    Simple(),
    Detailed(),
    DLC(),
    Ferret(),
    MDVP(),
    VideoReferQ(),
    VideoReferD(),
    LVIS(),
    PACO(),
    RefCOCOg(),
)


def benchmark(name: str) -> Benchmark:
    """The one of this name, which may be shortened to words or to a piece that no other has ("vqa", "garbench-vqa").

    Raises:
        ValueError: none, or several.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    found = [one for one in BENCHMARKS if words and set(words) <= set(one.name.split("-"))]
    found = found or [one for one in BENCHMARKS if words and "".join(words) in one.name.replace("-", "")]
    if len(found) != 1:
        which = f"means {', '.join(one.name for one in found)}" if found else "is no benchmark"
        raise ValueError(f"{name!r} {which}: expected one of {', '.join(one.name for one in BENCHMARKS)}")
    return found[0]
