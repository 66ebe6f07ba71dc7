"""Small benchmarks in the published layouts, made here: no item of a real one is in it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from gar.regions import Located, Region, load_image

WIDTH, HEIGHT = 64, 48


def rle(x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    return Region.box(x0, y0, x1, y1).locate(WIDTH, HEIGHT).rle()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))
    return path


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


def gar_vqa(folder: Path) -> list[dict[str, Any]]:
    """Six questions: two share a picture and its regions, one has two options, one seven regions."""
    rows = []
    for index in range(6):
        masks = [rle(4 * k, 2, 4 * k + 6, 20) for k in range(7 if index == 5 else 1 + index % 2)]
        options = ["A. red", "B. green"] if index == 4 else ["A. red", "B. green", "C. blue", "D. none of these"]
        rows.append(
            {
                "image_path": f"/far/away/{'same' if index in (0, 2) else index}.jpg",
                "image": f"images/vqa_{index}.png",
                "mask_rles": masks,
                "question": "What is the color of <Prompt0>?" if index < 5 else "Is <Prompt0> on <Prompt6>?",
                "choices": options,
                "answer": "ABCDBA"[index],
                "type": "color" if index < 3 else "relation",
            }
        )
        picture(folder / "images" / f"vqa_{index}.png", 0 if index in (0, 2) else index)
    write(folder / "GAR-Bench-VQA.json", rows)
    return rows


def dlc(folder: Path) -> None:
    """Three regions of two pictures, each with two positive questions and one negative."""
    choices = [["it is not mentioned", 0], ["it is mentioned, and right", 1], ["it is mentioned, but wrong", -1]]
    negative = [["it is not mentioned", 1], ["it is mentioned", -1]]
    questions = [{"question": "Which applies?", "choices": choices, "type": "positive"}] * 2
    questions += [{"question": "Which applies?", "choices": negative, "type": "negative", "subtype": "part"}]
    write(folder / "qa.json", dict.fromkeys(("11", "12", "13"), questions))
    write(folder / "class_names.json", {"11": "cup", "12": "bus", "13": "glasses"})
    regions = [
        {"id": 11 + k, "image_id": k // 2, "segmentation": rle(5 * k, 5, 5 * k + 9, 30), "bbox": [], "area": 1}
        for k in range(3)
    ]
    images = [{"id": k, "file_name": f"{k}.jpg", "height": HEIGHT, "width": WIDTH} for k in range(2)]
    write(folder / "annotations.json", {"annotations": regions, "images": images})
    for k in range(2):
        picture(folder / "images" / f"{k}.jpg", k)


def ferret(folder: Path) -> None:
    """Four boxes, each with its question, context and reference."""
    rows = []
    texts: dict[str, list[dict[str, Any]]] = {"question": [], "answer": [], "context": []}
    for k in range(4):
        box = {"bbox": [3.5, 4, 20, 10], "segmentation": [[3.5, 4, 23.5, 4, 23.5, 14, 3.5, 14]]}
        about = {"question_id": k, "image": f"00{k}.jpg"}
        rows.append({**about, "category": "description", "text": "What is <region>?", "annotation": box})
        for name, some in texts.items():
            some.append({**about, "category": "refer_desc", "text": f"{name} {k}"})
        picture(folder / "annotations" / "coco" / "val2017" / f"00{k}.jpg", k)
    write(folder / "annotations" / "box_refer_caption.json", rows)
    for name, some in texts.items():
        write(folder / "ferret_gpt4_data" / "refer_desc" / f"{name}.jsonl", some)


def mdvp(folder: Path) -> list[dict[str, Any]]:
    """Two sets of two pictures with two regions each."""
    rows = [
        {
            "image_path": f"{kind}_detailed_caption/images/{k}.png",
            "mask_rle": rle(10 * r, 4, 10 * r + 8, 30),
            "dataset_name": f"{kind}_detailed_caption_box",
            "question": "Describe each region.",
            "caption": f"{kind} {k} {r}",
        }
        for kind in ("android", "web")
        for k in range(2)
        for r in range(2)
    ]
    write(folder / "mdvp_caption_mask.json", rows)
    for row in rows:
        picture(folder / row["image_path"])
    return rows


class FakePredictor:
    """Answers by what it is shown: choices in turn by the picture's first pixel, descriptions by the region's box.

    `calls` counts encodings of pictures; `stop_after` answers it dies, as a killed process does.
    """

    def __init__(self, prompts: int = 5, stop_after: int | None = None):
        self.name = "fake"
        self.model = SimpleNamespace(config=SimpleNamespace(max_prompts=prompts))
        self.change_features = None
        self.changes: list[Any] = []
        self.opened: list[list[Region]] = []
        self.asked: list[tuple[str, Any]] = []
        self.left = stop_after

    def open(self, image: Image.Image, regions: list[Region]) -> Any:
        self.opened.append(list(regions))
        self.changes.append(self.change_features)
        shade = sum(load_image(image).getpixel((0, 0)))  # type: ignore

        def ask(question: str, choices: list[str] | None = None, **generation: Any) -> Any:
            self._count()
            self.asked.append((question, choices))
            if choices is None:
                return SimpleNamespace(text=f"{question} {shade}", choice=None, confidence=0.5)
            choice = choices[shade % len(choices)]
            return SimpleNamespace(text=choice[3:], choice=choice[0], confidence=0.5)

        return SimpleNamespace(ask=ask)

    def describe_batch(self, images: list[Any], regions: list[list[Region]], **generation: Any) -> list[list[Any]]:
        self._count()
        located: list[list[Located]] = [
            [region.locate(*image.size) for region in mine] for image, mine in zip(images, regions, strict=True)
        ]
        return [
            [SimpleNamespace(text=f"at {one.box}", choice=None, confidence=0.25) for one in mine] for mine in located
        ]

    def ask_batch(
        self, images: list[Any], questions: list[str], regions: list[list[Region]], **generation: Any
    ) -> list[Any]:
        rows = zip(images, questions, regions, strict=True)
        return [self.open(image, mine).ask(question) for image, question, mine in rows]

    def _count(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
