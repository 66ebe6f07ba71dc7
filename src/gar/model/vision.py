"""Tiles and their mask -> features: mask embedding, timm tower, projector.

Every tile is encoded by itself: tiles never attend to each other, and the mask embedding has no bias, so a tile that
no region touches has the same features whatever is marked elsewhere.

Shapes: T tiles, H W pixels of a tile, L tokens of the tower, E tower width, D language width, g cells along a side
of a tile's feature map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from gar.model.config import GARConfig


class MaskEmbedding(nn.Conv2d):
    """The mask prompt: a patch convolution, without bias and zero at first, over the mask of all regions.

    Its input is the binary mask on three equal channels, its output is added to the tower's patch embedding.
    """

    def __init__(self, config: GARConfig, width: int):
        super().__init__(3, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, mask_THW: Tensor) -> Tensor:
        """(T, H, W), 1 inside any region, else 0 -> (T, E, H / patch, W / patch)."""
        mask_T3HW = mask_THW.to(self.weight.dtype)[:, None].expand(-1, 3, -1, -1)
        return super().forward(mask_T3HW)


class Projector(nn.Module):
    """Tower width -> language width by a two-layer MLP, then average pooling of the cells."""

    def __init__(self, config: GARConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.feature_width, width)
        self.linear_2 = nn.Linear(width, width)
        self.map_size = config.map_size

    def forward(self, features_TLE: Tensor) -> Tensor:
        """(T, L, E), cells row-major -> (T, g, g, D)."""
        features_TLD = self.linear_2(F.gelu(self.linear_1(features_TLE)))
        side = int(features_TLD.shape[1] ** 0.5)
        features_TDss = features_TLD.transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(features_TDss, self.map_size).permute(0, 2, 3, 1)


class Pyramid(nn.Module):
    """The levels of a convolutional tower, fused to one map, with a learned position per cell.

    Args:
        channels, strides: of the levels. What is finer than the map comes in by patches, what is coarser is enlarged.
    """

    def __init__(self, config: GARConfig, channels: list[int], strides: list[int]):
        super().__init__()
        patches = [max(1, config.feature_stride // stride) for stride in strides]
        self.lateral = nn.ModuleList(
            nn.Conv2d(c, config.feature_width, patch, patch) for c, patch in zip(channels, patches, strict=True)
        )
        side = config.tile_size // config.feature_stride
        self.position = nn.Parameter(torch.randn(1, config.feature_width, side, side) * 0.02)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels (T, C_i, H_i, W_i), finest first -> (T, L, E)."""
        size = self.position.shape[-2:]
        fused = self.position
        for lateral, level in zip(self.lateral, levels, strict=True):
            fused = fused + F.interpolate(lateral(level), size=size, mode="bilinear", align_corners=False)
        return F.gelu(fused).flatten(2).transpose(1, 2)


class Place(nn.Linear):
    """Where a box is in the picture, by sines and cosines of its sides; without bias and zero at first."""

    waves = 4  # from two pictures long to a quarter of one

    def __init__(self, width: int):
        super().__init__(4 * 2 * self.waves, width, bias=False)

    def forward(self, boxes_R4: Tensor) -> Tensor:
        """(R, 4) in float32 as (x0, y0, x1, y1), 0 to 1 -> (R, D)."""
        angles_R4W = boxes_R4[..., None] * torch.pi * 2.0 ** torch.arange(self.waves, device=boxes_R4.device)
        waves_RN = torch.cat([angles_R4W.sin(), angles_R4W.cos()], -1).flatten(1)
        return super().forward(waves_RN.to(self.weight.dtype))


class Finder(nn.Module):
    """Where things have their middle in a tile, whether they are marked or not, and what stands there.

    Middles are the peaks of a map (Zhou et al., Objects as Points, arXiv 1904.07850). None is found at birth.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width // 3, kernel_size=3, padding=1)
        self.middle = nn.Conv2d(width // 3, 1, kernel_size=1)
        self.found = nn.Parameter(torch.zeros(width))

    def forward(self, features_TggD: Tensor) -> Tensor:
        """(T, g, g, D) -> (T, g, g), the logits of each cell's having the middle of a thing."""
        features_TDgg = F.rms_norm(features_TggD, features_TggD.shape[-1:]).permute(0, 3, 1, 2)
        return self.middle(F.gelu(self.conv(features_TDgg)))[:, 0]

    def things(self, features_TggD: Tensor, pooling: int) -> tuple[Tensor, Tensor]:
        """Which tokens of `pooling` cells along each side have a middle in them, (N, 1), and what is around it.

        Returns:
            The latter as (N, D): the mean over a middle and its neighbours, and over all middles that a token has.
        """
        with torch.no_grad():
            found_T1gg = peaks(self(features_TggD))[:, None].to(features_TggD.dtype)
        number_T1tt = F.avg_pool2d(found_T1gg, pooling, divisor_override=1)
        sums_TDtt = F.avg_pool2d(around(features_TggD).permute(0, 3, 1, 2) * found_T1gg, pooling, divisor_override=1)
        things_ND = (sums_TDtt / number_T1tt.clamp(min=1)).permute(0, 2, 3, 1).flatten(0, 2)
        return number_T1tt.flatten()[:, None] > 0, things_ND


def around(features_TggD: Tensor) -> Tensor:
    """(T, g, g, D) -> the same, the mean of each cell and its neighbours."""
    features_TDgg = features_TggD.permute(0, 3, 1, 2)
    return F.avg_pool2d(features_TDgg, 3, stride=1, padding=1, count_include_pad=False).permute(0, 2, 3, 1)


def peaks(logits_Tgg: Tensor, likely: float = 0.35) -> Tensor:
    """(T, g, g) -> the same in bool: the cells that are this likely, and the likeliest of the nine around them."""
    highest_Tgg = F.max_pool2d(logits_Tgg, 3, stride=1, padding=1)
    return (logits_Tgg == highest_Tgg) & (logits_Tgg.sigmoid() > likely)


def cell_boxes(side: int, device: torch.device | None = None) -> Tensor:
    """The boxes (side * side, 4) of a tile's cells, row-major, as (x0, y0, x1, y1) from 0 to 1 in the tile."""
    low = torch.arange(side, device=device) / side
    corners_N2 = torch.cartesian_prod(low, low).flip(1)
    return torch.cat([corners_N2, corners_N2 + 1 / side], 1)


def patch_embedding(vision_tower: PreTrainedModel) -> Any:
    """The module of a timm tower whose output the mask embedding joins: patch embedding of a ViT, stem of a CNN."""
    timm_model: Any = vision_tower.timm_model
    return timm_model.patch_embed if hasattr(timm_model, "patch_embed") else timm_model.conv_stem
