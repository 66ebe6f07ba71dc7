"""What the pictures that a checkpoint learned from look like to its vision, so that it can say of one that it is unlike
all of them.

Knows features; knows no model, no picture and no text. Kept in a file beside the checkpoint's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

FILE = "familiar.safetensors"
SHARE = 0.96  # of the pictures that a checkpoint learned from are like the others


@dataclass(frozen=True)
class Familiar:
    """Of the pictures that a checkpoint learned from, each as its features' mean over the picture, nothing marked.

    mean, deviation: (D,) of all these. limit: no more than 1 - `SHARE` of them are further away.
    """

    mean: Tensor
    deviation: Tensor
    limit: Tensor

    @classmethod
    def of(cls, pictures_ND: Tensor) -> Familiar:
        """That of some pictures, N at least 2."""
        plain = cls(pictures_ND.mean(0), pictures_ND.std(0).clamp(min=1e-6), torch.tensor(torch.inf))
        far_N = torch.stack([plain.distance(picture_D) for picture_D in pictures_ND])
        return cls(plain.mean, plain.deviation, far_N.quantile(SHARE))

    def distance(self, picture_D: Tensor) -> Tensor:
        """The mean over the features of their squared distance in standard deviations: about 1 for a familiar one."""
        return ((picture_D.to(self.mean) - self.mean) / self.deviation).square().mean()

    def unlike(self, picture_D: Tensor) -> bool:
        """Whether a picture is further away than nearly all that the checkpoint learned from."""
        return bool(self.distance(picture_D) > self.limit)

    def to_bytes(self) -> bytes:
        """What the file `FILE` in a checkpoint's folder holds."""
        return save({"mean": self.mean, "deviation": self.deviation, "limit": self.limit})

    @classmethod
    def load(cls, folder: Path) -> Familiar | None:
        """That of a checkpoint's folder, or None where it says nothing of the kind."""
        return cls(**load_file(folder / FILE)) if (folder / FILE).is_file() else None
