"""The command line: what it hands on, what it writes, and how it fails. A stand-in answers for the model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gar
from gar.cli import main
from gar.regions import Located, Region, load_image

Python = Callable[[str], str]

NANO = Path(gar.__file__).parent / "assets" / "nano" / "model.safetensors"


class FakePredictor:
    """Says of each region where it is; keeps what it was asked."""

    def __init__(self):
        self.calls: list[SimpleNamespace] = []
        self.loaded: dict[str, Any] = {}
        self.knows = True

    def unlike(self, image: Any) -> bool:
        return not self.knows

    def load(self, model: str, **how: Any) -> FakePredictor:
        if model == "missing":
            raise ValueError("no checkpoint 'missing':\ngive a folder")
        self.loaded = {"model": model, **how}
        return self

    def describe(self, image: str, regions: list[Region], together: bool = False, **generation: Any) -> list[Any]:
        located = self._locate(image, regions)
        self.calls.append(SimpleNamespace(image=image, regions=regions, together=together, generation=generation))
        return [
            SimpleNamespace(text=f"thing at {one.box[0]}", choice=None, confidence=0.5, regions=[one])
            for one in located
        ]

    def ask(self, image: str, question: str, regions: list[Region], choices: Any = None, **generation: Any) -> Any:
        located = self._locate(image, regions)
        self.calls.append(SimpleNamespace(image=image, regions=regions, question=question, choices=choices))
        text, choice = ("red", "B") if choices else ("It is red.", None)
        return SimpleNamespace(text=text, choice=choice, confidence=0.25, regions=located)

    def _locate(self, image: str, regions: list[Region]) -> list[Located]:
        size = load_image(image).size
        return [
            region.locate(*size)
            if region.kind in ("box", "polygon", "mask", "rle")
            else Region.box(1, 1, 2, 2).locate(*size)
            for region in regions
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePredictor:
    predictor = FakePredictor()
    module = ModuleType("gar.predictor")
    vars(module)["load"] = predictor.load
    monkeypatch.setitem(sys.modules, "gar.predictor", module)
    monkeypatch.setattr(gar, "predictor", module, raising=False)
    return predictor


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (64, 48), (90, 90, 90)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must end with status 2 and write nothing else."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("gar: error: ")
    return err


# --- describe ---------------------------------------------------------------------------------------------------------


def test_describe_prints_the_text_of_a_region_and_nothing_else(fake: FakePredictor, picture: str, capsys):
    assert main(["describe", picture, "--box", "8,4,20,30"]) == 0
    assert capsys.readouterr() == ("thing at 8\n", "")
    assert fake.loaded == {"model": "nano", "device": "auto", "dtype": "auto", "segment": None}


def test_describe_names_the_regions_where_there_are_several(fake: FakePredictor, picture: str, capsys):
    assert main(["describe", picture, "--box", "8,4,20,30", "--box", "3,4,20,30"]) == 0
    assert capsys.readouterr().out == "<Prompt0>: thing at 8\n<Prompt1>: thing at 3\n"


def test_describe_writes_the_json_of_the_contract(fake: FakePredictor, picture: str, capsys):
    assert main(["describe", picture, "--box", "8,4,20,30", "--json", "--model", "some/model"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": picture,
        "model": "some/model",
        "width": 64,
        "height": 48,
        "regions": [
            {"prompt": "<Prompt0>", "box": [8, 4, 20, 30], "area": 312, "text": "thing at 8", "confidence": 0.5}
        ],
    }


def test_regions_keep_the_order_of_the_command_line_across_kinds(fake: FakePredictor, picture: str, tmp_path: Path):
    mask = np.zeros((48, 64), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rle = Located.from_mask(mask).rle()
    (tmp_path / "rle.json").write_text(json.dumps([rle, rle]))
    regions = ["--point", "3,4", "--box=1,2,30,40", "--scribble", "1,1 9,9", "--point", "5,6 7,8"]
    regions += ["--mask", str(tmp_path / "mask.png"), "--box", "0,0,5,5", "--rle", str(tmp_path / "rle.json")]
    regions += ["--polygon", "0,0 9,0 0,9"]
    assert main(["describe", *regions[:3], picture, *regions[3:]]) == 0
    given = fake.calls[0].regions
    assert [region.kind for region in given] == (
        ["point", "box", "scribble", "points", "mask", "box", "rle", "rle", "polygon"]
    )
    assert given[3].coordinates == ((5, 6), (7, 8)) and given[5].coordinates == ((0, 0), (5, 5))


def test_options_reach_the_predictor(fake: FakePredictor, picture: str):
    options = ["--normalized", "--together", "--max-new-tokens", "7", "--device", "cpu", "--dtype", "float32"]
    assert main(["describe", picture, "--box", "0,0,0.5,1", *options, "--segment"]) == 0
    call = fake.calls[0]
    assert call.regions[0].normalized and call.together and call.generation == {"max_new_tokens": 7}
    assert fake.loaded == {"model": "nano", "device": "cpu", "dtype": "float32", "segment": "grabcut"}


def test_segment_takes_a_name_but_never_the_picture(fake: FakePredictor, picture: str):
    assert main(["describe", "--box", "0,0,9,9", "--segment", picture]) == 0
    assert fake.loaded["segment"] == "grabcut"
    assert main(["describe", "--segment", "facebook/sam2.1-hiera-tiny", "--box", "0,0,9,9", picture]) == 0
    assert fake.loaded["segment"] == "facebook/sam2.1-hiera-tiny"
    assert main(["ask", picture, "--segment", "What is it?", "--box", "0,0,9,9"]) == 0
    assert fake.calls[-1].question == "What is it?" and fake.loaded["segment"] == "grabcut"
    assert main(["describe", "--box", "0,0,9,9", "--segment", str(Path(picture).parent)]) == 0
    assert fake.loaded["segment"] == "grabcut"


def test_of_pictures_unlike_those_it_learned_from_it_says_so_in_one_line(fake: FakePredictor, picture: str, capsys):
    fake.knows = False
    for arguments, out in (
        (["describe", picture, "--box", "4,2,9,9"], "thing at 4\n"),
        (["ask", picture, "What is it?", "--box", "4,2,9,9"], "It is red.\n"),
        (["describe", picture, picture, "--box", "4,2,9,9"], 2 * f"{picture}: thing at 4\n"),
    ):
        assert main(arguments) == 0
        said = capsys.readouterr()
        assert said.out == out and said.err.count("\n") == 1 and "unlike the rendered scenes" in said.err
    assert "2 of the pictures, such as" in said.err and picture in said.err


def test_a_bad_picture_does_not_stop_the_others(fake: FakePredictor, picture: str, tmp_path: Path, capsys):
    folder = tmp_path / "more"
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "c.jpg")
    (folder / "b.png").write_text("no picture")
    (folder / "notes.txt").write_text("not looked at")
    Image.new("RGB", (5, 5)).save(folder / "small.png")
    assert main(["describe", picture, str(folder), str(tmp_path / "none.png"), "--box", "8,4,20,30"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{picture}: thing at 8\n{folder / 'c.jpg'}: thing at 8\n"
    assert "3 of 5 pictures failed" in err
    assert all(name in err for name in ("b.png", "small.png", "none.png")) and "Traceback" not in err


def test_show_draws_one_picture_or_a_folder_of_them(fake: FakePredictor, picture: str, tmp_path: Path):
    assert main(["describe", picture, "--box", "8,4,20,30", "--show", str(tmp_path / "shown.png")]) == 0
    assert Image.open(tmp_path / "shown.png").width >= 640
    assert main(["describe", picture, picture, "--box", "8,4,20,30", "--show", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    question = ["ask", picture, "What?", "--box", "8,4,20,30", "--show", str(tmp_path / "asked.png")]
    assert main(question) == 0 and (tmp_path / "asked.png").exists()


def test_show_takes_the_place_of_no_picture_and_of_no_other_drawing(
    fake: FakePredictor, picture: str, tmp_path: Path, capsys
):
    before = Path(picture).read_bytes()
    region = ["--box", "8,4,20,30", "--show"]
    folder = str(Path(picture).parent)
    assert "would take the place of the picture" in fails(capsys, "describe", folder, *region, folder)
    assert "would take the place of the picture" in fails(capsys, "describe", picture, *region, picture)
    (tmp_path / "two").mkdir()
    for name in ("b.png", "b.jpg"):
        Image.open(picture).convert("RGB").save(tmp_path / "two" / name)
    said = fails(capsys, "describe", str(tmp_path / "two"), *region, str(tmp_path / "out"))
    assert "b.jpg and" in said and "would both be drawn as b.png" in said
    (tmp_path / "dir.png").mkdir()
    assert "dir.png: name a picture" in fails(capsys, "describe", picture, *region, str(tmp_path / "dir.png"))
    assert main(["describe", picture, *region, "/proc/x.png"]) == 2
    assert "--show /proc/x.png: cannot be written" in capsys.readouterr().err
    assert Path(picture).read_bytes() == before and not [*tmp_path.rglob(".*")]


# --- ask --------------------------------------------------------------------------------------------------------------


def test_a_picture_may_come_from_a_pipe(fake: FakePredictor, picture: str, tmp_path: Path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for command in (["describe", str(pipe)], ["ask", str(pipe), "What?"]):
        writer = Thread(target=pipe.write_bytes, args=(Path(picture).read_bytes(),))
        writer.start()
        assert main([*command, "--box", "8,4,20,30", "--show", str(tmp_path / "shown.png")]) == 0
        writer.join()
    assert capsys.readouterr().out == "thing at 8\nIt is red.\n"


def test_an_empty_argument_is_not_the_folder_one_stands_in(fake: FakePredictor, capsys):
    assert "an empty argument" in fails(capsys, "describe", "", "--box", "1,2,30,8")


def test_ask_prints_the_answer(fake: FakePredictor, picture: str, capsys):
    assert main(["ask", picture, "What colour is <Prompt0>?", "--box", "8,4,20,30"]) == 0
    assert capsys.readouterr().out == "It is red.\n"
    assert fake.calls[0].question == "What colour is <Prompt0>?" and fake.calls[0].choices is None


def test_ask_with_choices_prints_the_chosen_one_with_its_letter(fake: FakePredictor, picture: str, capsys):
    choices = ["--choice", "A. green", "--choice", "B. red"]
    assert main(["ask", picture, "Colour?", "--box", "8,4,20,30", *choices]) == 0
    assert capsys.readouterr().out == "B. red\n"
    assert fake.calls[0].choices == ["A. green", "B. red"]


def test_ask_writes_the_json_of_the_contract(fake: FakePredictor, picture: str, capsys):
    assert (
        main(["ask", picture, "Colour?", "--box", "8,4,20,30", "--choice", "A. x", "--choice", "B. y", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == {
        "image": picture,
        "model": "nano",
        "question": "Colour?",
        "text": "red",
        "choice": "B",
        "confidence": 0.25,
        "regions": [{"prompt": "<Prompt0>", "box": [8, 4, 20, 30], "area": 312}],
    }


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_describe_without_a_region_names_the_ways_to_give_one(picture: str, capsys):
    line = fails(capsys, "describe", picture)
    assert all(
        word in line for word in ("--box", "--point", "--polygon", "--scribble", "--mask", "--rle", "everything")
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--box", "1,2,3"], "four numbers, as in --box 10,20,110,90"),
        (["--box", "1,2,3,x"], "numbers"),
        (["--box", "9,2,3,8"], "x0 < x1"),
        (["--box", "nan,2,3,8"], "finite"),
        (["--box", "1,2,300,8"], "64x48"),
        (["--box", "0,0,1,1"], "for coordinates in 0..1 give --normalized"),
        (["--point", "0.5,0.25"], "for coordinates in 0..1 give --normalized"),
        (["--box", "-1,2,30,8"], "-1"),
        (["--point", "3"], "pairs"),
        (["--point", ""], "an empty argument"),
        (["--show", "--box", "1,2,30,8"], "--box stands where the option before it needs its value"),
        (["--point", " "], "pairs"),
        (["--polygon", "1,1 2,2"], "at least 3"),
        (["--mask", "none.png"], "none.png"),
        (["--rle", "none.json"], "none.json"),
        (["--rle", __file__], "not a JSON file"),
        (["--box"], "requires an argument"),
        (["--bx", "1,2,3,4"], "--box"),
        (["--box", "1,2,30,8", "--max-new-tokens", "0"], "max-new-tokens"),
        (["--box", "1,2,30,8", "--model", "missing"], "no checkpoint 'missing': give a folder"),
        (["--box", "1,2,30,8", "--show", "shown"], "shown.png"),
        (["--box", "1,2,30,8", "--show", "no/such/folder/a.png"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line(fake: FakePredictor, picture: str, arguments: list[str], says: str, capsys):
    assert says in fails(capsys, "describe", picture, *arguments)


def test_a_missing_picture_is_told_before_the_model_is_loaded(fake: FakePredictor, capsys):
    assert "none.png: no such file" in fails(capsys, "describe", "none.png", "--box", "1,2,30,8")
    assert "none.png: no such file" in fails(capsys, "ask", "none.png", "What?")
    assert not fake.loaded


def test_an_unknown_command_is_one_line(capsys):
    assert "No such command" in fails(capsys, "destribe")


def test_a_folder_without_pictures_is_one_line(tmp_path: Path, capsys):
    assert "no picture" in fails(capsys, "describe", str(tmp_path), "--box", "1,2,3,4")


def test_a_missing_extra_is_named(fake: FakePredictor, picture: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def load(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'mitsuba'", name="mitsuba")

    monkeypatch.setattr(sys.modules["gar.predictor"], "load", load)
    assert "pip install 'grasp-any-region[scenes]'" in fails(capsys, "describe", picture, "--box", "1,2,30,8")


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_help_needs_no_model_and_no_torch(python: Python):
    code = "import sys, gar.cli; gar.cli.main(['--help']); print(*{'torch', 'transformers', 'numpy'} & {*sys.modules})"
    said = python(code)
    assert "describe" in said and said.splitlines()[-1] == ""


@pytest.mark.skipif(not NANO.exists(), reason="this checkout holds no built-in model")
def test_nano_describes_a_region_of_a_picture(picture: str, capsys):
    assert main(["describe", picture, "--box", "8,4,20,30", "--json"]) == 0
    out, err = capsys.readouterr()
    (region,) = json.loads(out)["regions"]
    assert region["text"] and 0 <= region["confidence"] <= 1 and err.count("\n") == 1 and "unlike" in err
    assert main(["ask", picture, "What is <Prompt1>?", "--box", "8,4,20,30"]) == 2
    assert "Prompt1" in capsys.readouterr().err


def test_a_gpu_that_is_full_is_one_line_too(monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 24 GiB")

    monkeypatch.setattr("gar.train.finetune.run", full)
    said = fails(capsys, "train", "finetune", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert "Tried to allocate 2.00 GiB: for training give --lora, then --recipe qlora" in said
