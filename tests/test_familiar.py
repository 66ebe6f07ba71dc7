"""Whether a picture is like those that nano learned from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gar
from gar.familiar import FILE, SHARE, Familiar
from gar.predictor import Predictor

ASSETS = Path(gar.__file__).parent / "assets"


@pytest.fixture(scope="module")
def nano() -> Predictor:
    return gar.load("nano", device="cpu")


def test_all_but_the_furthest_are_familiar_and_a_file_keeps_them(tmp_path: Path):
    pictures = torch.randn(500, 32, generator=torch.manual_seed(0)) * 3 + 1
    known = Familiar.of(pictures)
    assert sum(known.unlike(one) for one in pictures) == round(500 * (1 - SHARE))
    assert known.unlike(pictures[0] + 9) and known.distance(pictures).item() == pytest.approx(1, abs=0.01)
    assert Familiar.load(tmp_path) is None
    (tmp_path / FILE).write_bytes(known.to_bytes())
    again = Familiar.load(tmp_path)
    assert again and torch.equal(again.mean, known.mean) and torch.equal(again.limit, known.limit)


def test_nano_knows_its_sample_and_finds_what_no_renderer_made_unlike_it(nano: Predictor):
    assert not nano.unlike(ASSETS / "sample.png")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    assert nano.unlike(noise)
    assert nano.unlike(Image.fromarray(noise[:40, :50]).resize((400, 300)))


def test_most_photographs_are_unlike_it(nano: Predictor, shared: Path):
    photographs = sorted((shared / "benchmarks" / "gar-bench" / "images").glob("*.png"))[::15]
    if not photographs:
        pytest.skip("no photographs in ../shared/benchmarks/gar-bench/images")
    unlike = sum(map(nano.unlike, photographs))
    assert unlike >= 0.8 * len(photographs)


def test_a_checkpoint_that_does_not_say_what_it_knows_calls_nothing_unlike(tmp_path: Path):
    for file in (ASSETS / "nano").iterdir():
        if file.name != FILE:
            shutil.copy(file, tmp_path)
    assert not gar.load(tmp_path, device="cpu").unlike(np.zeros((50, 50, 3), np.uint8))


def test_a_damaged_file_is_named(tmp_path: Path):
    shutil.copytree(ASSETS / "nano", tmp_path / "nano")
    (tmp_path / "nano" / FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        gar.load(tmp_path / "nano", device="cpu")
