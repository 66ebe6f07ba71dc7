"""Points, scribbles and boxes to masks: GrabCut (OpenCV, no weights) or a SAM checkpoint (transformers).

Knows pictures and regions. Knows nothing of the model that describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from gar.regions import POINTING, Located, Region


class Segmenter(Protocol):
    """Finds the object that a region points at."""

    def segment(self, image: Image.Image, region: Region) -> Region:
        """Turn a point, points, scribble or box into a mask of the picture's size; others come back as they are.

        Args:
            image: an upright RGB picture (`gar.regions.load_image`).
            region: the prompt. It stays reachable as the result's `origin`.

        Raises:
            ValueError: the prompt leaves the picture, or no object is found.
        """
        ...


class GrabCut:
    """Separates object and background by colour and edges, from the picture alone (Rother et al. 2004, in OpenCV).

    Good where an object differs from what surrounds it. Mean IoU with the masks of people and things in photos: a
    scribble along the object 0.7, a box around it 0.7, a click in its middle 0.4 (a guess). Deterministic. Works on a
    window scaled to `side` pixels, so that its time is bounded for any picture.
    """

    side = 256
    rounds = 4

    def segment(self, image: Image.Image, region: Region) -> Region:
        """See `Segmenter.segment`."""
        import cv2

        if region.kind not in _PROMPTS:
            return region
        xy = region.pixels(*image.size)
        x0, y0, x1, y1 = window = _around(xy, image.size) if region.kind == "box" else (0, 0, *image.size)
        scale = self.side / max(x1 - x0, y1 - y0)
        size = (max(2, round((x1 - x0) * scale)), max(2, round((y1 - y0) * scale)))
        small = np.asarray(image.resize(size, Image.Resampling.BOX, box=window))
        points = (xy - (x0, y0)) * (np.array(size) / (x1 - x0, y1 - y0))
        if region.kind == "box":  # what it holds is mostly in its middle, too
            rows, columns = np.indices(small.shape[:2]) + 0.5
            (left, top), (right, bottom) = points
            across, down = (2 * columns - left - right) / (right - left), (2 * rows - top - bottom) / (bottom - top)
            seeds = across**2 + down**2 < 1 / 9
            guesses = [(np.maximum(abs(across), abs(down)) <= 1, None)]
        else:
            seeds = _drawn(points, size, joined=region.kind == "scribble")
            guesses = _guesses(small, seeds, self.side, alike_only=region.kind == "scribble")
        cuts = [self._cut(small, seeds, perhaps, never) for perhaps, never in guesses]
        best = max(cuts, key=lambda mask: _contrast(small, mask))
        whole = cv2.resize(best.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) > 0.5
        mask = np.zeros((image.height, image.width), bool)
        mask[y0:y1, x0:x1] = whole
        if not mask.any():
            raise _nothing_found(region, "GrabCut")
        return Region("mask", array=mask, origin=region)

    def _cut(self, picture: np.ndarray, seeds: np.ndarray, perhaps: np.ndarray, never: np.ndarray | None) -> np.ndarray:
        """One run of GrabCut.

        Args:
            picture: uint8 (H, W, 3).
            seeds: bool (H, W), surely the object.
            perhaps: the first guess of the object.
            never: surely not the object. None: everything outside of `perhaps`.

        Returns:
            Bool (H, W): the pieces found that hold a seed. Empty where it fails.
        """
        import cv2

        labels = np.where(perhaps, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        labels[~perhaps if never is None else never] = cv2.GC_BGD
        labels[seeds] = cv2.GC_FGD
        cv2.setRNGSeed(0)  # it starts from k-means
        try:
            bgr = np.ascontiguousarray(picture[..., ::-1])
            cv2.grabCut(
                bgr, labels, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), self.rounds, cv2.GC_INIT_WITH_MASK
            )
        except cv2.error:  # nothing to separate: too few pixels of object or background
            return np.zeros(seeds.shape, bool)
        found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        _, pieces = cv2.connectedComponents(found.astype(np.uint8), connectivity=8)
        return found & np.isin(pieces, np.unique(pieces[seeds]))


class SAM:
    """A SAM checkpoint: SAM, SAM-HQ, SAM 2, SAM 2.1, or the tracker of SAM 3, as transformers loads them.

    Keeps the features of the last picture, so that further regions of it cost only the small mask decoder.

    Args:
        checkpoint: a folder or a hub id, such as "facebook/sam2.1-hiera-tiny".
        device: where to run; by default the GPU where there is one.
    """

    def __init__(self, checkpoint: str, device: str | None = None):
        import torch
        import transformers

        try:
            self.model: Any = transformers.AutoModelForMaskGeneration.from_pretrained(checkpoint)
            # Checkpoints name the processor of whole videos, or none; the one for pictures is named as its model is.
            name = type(self.model).__name__.removesuffix("Model") + "Processor"
            self.processor: Any = getattr(transformers, name, transformers.Sam2Processor).from_pretrained(checkpoint)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"cannot load the segmenter {checkpoint}: {reason} (GrabCut needs no checkpoint)"
            ) from error
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval()
        self._picture: Image.Image | None = None
        self._features: Any = None

    def segment(self, image: Image.Image, region: Region) -> Region:
        """See `Segmenter.segment`."""
        import torch

        if region.kind not in _PROMPTS:
            return region
        xy = region.pixels(*image.size)
        if region.kind == "box":
            prompt: dict[str, Any] = {"input_boxes": [[xy.reshape(4).tolist()]]}
        else:
            points = _along(xy, 16) if region.kind == "scribble" else xy
            prompt = {"input_points": [[points.tolist()]], "input_labels": [[[1] * len(points)]]}
        inputs = self.processor(images=image, return_tensors="pt", **prompt).to(self.device)
        sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        pixels = inputs.pop("pixel_values")
        with torch.inference_mode():
            if image is not self._picture:
                self._picture, self._features = image, self.model.get_image_embeddings(pixels)
            # One click is ambiguous (part or whole?): of three candidates the one with the highest expected overlap.
            several = region.kind == "point"
            output = self.model(**inputs, image_embeddings=self._features, multimask_output=several)
        best = int(output.iou_scores[0, 0].argmax())
        masks = self.processor.post_process_masks(output.pred_masks.cpu(), *sizes)
        mask = masks[0][0, best].numpy().astype(bool)
        if not mask.any():
            raise _nothing_found(region, "SAM")
        return Region("mask", array=mask, origin=region)


def load_segmenter(name: str | None, device: str | None = None) -> Segmenter | None:
    """The segmenter of this name: "grabcut", or the folder or hub id of a SAM checkpoint. None for None."""
    if name is None:
        return None
    return GrabCut() if name.lower() == "grabcut" else SAM(name, device)


def resolve(image: Image.Image, regions: Sequence[Region], segmenter: Segmenter | None = None) -> list[Located]:
    """The pixels of every region, in order.

    Args:
        image: an upright RGB picture.
        regions: the prompts.
        segmenter: turns points, scribbles and boxes into masks. Without one, boxes stay rectangles, and points and
            scribbles are left to GrabCut.

    Raises:
        ValueError: a region is wrong for this picture or points at nothing that can be found; names it by its number.
    """
    located = []
    for number, region in enumerate(regions):
        try:
            if segmenter is not None or region.kind != "box":
                region = (segmenter or GrabCut()).segment(image, region)
            located.append(region.locate(*image.size))
        except ValueError as error:
            raise ValueError(f"region {number}: {error}") from error
    return located


_PROMPTS = ("box", *POINTING)


def _nothing_found(region: Region, by: str) -> ValueError:
    hint = "leave the segmenter away" if region.kind == "box" else "add points, draw a box"
    return ValueError(f"{by} finds no object at {region}: {hint}, or give a polygon or a mask")


def _around(corners: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box with half its size around it, cut to the picture: shows GrabCut what the background looks like."""
    (x0, y0), (x1, y1) = corners
    across, down = max(4.0, (x1 - x0) / 2), max(4.0, (y1 - y0) / 2)
    left, top = max(0, int(x0 - across)), max(0, int(y0 - down))
    return left, top, min(size[0], int(np.ceil(x1 + across))), min(size[1], int(np.ceil(y1 + down)))


def _drawn(points: np.ndarray, size: tuple[int, int], joined: bool) -> np.ndarray:
    """Bool (H, W): discs at the points (N, 2), and the line through them where they are joined."""
    import cv2

    drawn = np.zeros((size[1], size[0]), np.uint8)
    for x, y in points:
        cv2.circle(drawn, (int(x), int(y)), 3, 1, cv2.FILLED)
    if joined:
        cv2.polylines(drawn, [points.astype(np.int32)], False, 1, 5)
    return drawn.astype(bool)


def _guesses(
    picture: np.ndarray, seeds: np.ndarray, side: int, alike_only: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """First guesses (perhaps the object, never the object), each bool (H, W), for an object that holds the seeds.

    One is what has the seeds' colours and hangs together with them; enough where a stroke shows the object's colours.
    The others, for a click, are the surroundings of the seeds at two sizes.
    """
    import cv2

    height, width = seeds.shape
    smooth = cv2.cvtColor(cv2.GaussianBlur(picture, (5, 5), 0), cv2.COLOR_RGB2LAB)
    alike = np.zeros((height + 2, width + 2), np.uint8)
    rows, columns = np.nonzero(seeds)
    step = max(1, len(rows) // 24)
    flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY
    for x, y in zip(columns[::step].tolist(), rows[::step].tolist(), strict=True):
        filled = np.zeros_like(alike)
        cv2.floodFill(smooth, filled, (x, y), (0, 0, 0), (8, 8, 8), (8, 8, 8), flags)
        alike |= filled
    border = np.ones(seeds.shape, bool)
    border[1:-1, 1:-1] = False
    guesses = [(alike[1:-1, 1:-1].astype(bool) | seeds, border)]
    if not alike_only:
        away = cv2.distanceTransform((~seeds).astype(np.uint8), cv2.DIST_L2, 5)
        guesses += [(away < reach * side, border | (away > 1.6 * reach * side)) for reach in (0.12, 0.22)]
    return guesses


def _contrast(picture: np.ndarray, mask: np.ndarray) -> float:
    """How much the colours just inside of a mask's edge differ from those just outside; 0 without an edge."""
    import cv2

    brush = np.ones((9, 9), np.uint8)
    inner = mask & (cv2.erode(mask.astype(np.uint8), brush) == 0)
    outer = ~mask & (cv2.dilate(mask.astype(np.uint8), brush) > 0)
    if not inner.any() or not outer.any():
        return 0.0
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    return float(np.linalg.norm(lab[inner].mean(0) - lab[outer].mean(0)))


def _along(points: np.ndarray, count: int) -> np.ndarray:
    """At most `count` points, evenly spaced on the line through the given ones."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    way = np.concatenate([[0], np.cumsum(steps)])
    if way[-1] == 0:
        return points[:1]
    at = np.linspace(0, way[-1], count)
    return np.stack([np.interp(at, way, points[:, axis]) for axis in (0, 1)], 1)
