"""RoI-aligned feature replay: the regions' features cut out of the global feature map, for a whole batch at once.

Knows feature maps and normalised boxes; knows no token and no text.

Shapes: B pictures, T tiles of all pictures, R regions of all pictures, D width, g cells along a tile's side,
P cells along a replayed region's side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def merge_tiles(tiles_TggD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put one picture's tiles back together as one map.

    Args:
        tiles_TggD: features of the tiles, row-major, no thumbnail.
        grid: (tiles_w, tiles_h).

    Returns:
        (D, tiles_h * g, tiles_w * g).
    """
    tiles_w, tiles_h = grid
    _, g, _, width = tiles_TggD.shape
    rows = tiles_TggD.view(tiles_h, tiles_w, g, g, width).permute(4, 0, 2, 1, 3)
    return rows.reshape(width, tiles_h * g, tiles_w * g)


def replay(
    maps_DHW: list[Tensor], boxes_rel: list[list[tuple[float, float, float, float]]], size: int, scale: float = 1.0
) -> Tensor:
    """RoIAlign every region of every picture in one call.

    Args:
        maps_DHW: one feature map per picture; heights and widths may differ.
        boxes_rel: for each picture its regions' boxes, normalised xyxy of the picture.
        size: P, the replayed grid's side.
        scale: applied to a box after it is in cells. 1 samples the region itself; the published code scaled a second
            time by `1 / stride` and so sampled a corner of the map (see docs/parity.md).

    Returns:
        (R, P * P, D), pictures in order, regions in the order given, cells row-major. Sampled with 2x2 points a cell
        in float32 and pixel-centre alignment, cast back.
    """
    height = max(m.shape[1] for m in maps_DHW)
    width = max(m.shape[2] for m in maps_DHW)
    # Samples beyond the last cell's centre take the edge's value, so a smaller map is padded with its own edge.
    maps_BDHW = torch.stack(
        [m if m.shape[1:] == (height, width) else _extend(m, height, width) for m in (m.float() for m in maps_DHW)]
    )
    rois = [
        maps_BDHW.new_tensor(boxes).view(-1, 4) * maps_BDHW.new_tensor([m.shape[2], m.shape[1]] * 2)
        for m, boxes in zip(maps_DHW, boxes_rel, strict=True)
    ]
    cut_RDPP = roi_align(maps_BDHW, rois, output_size=size, spatial_scale=scale, sampling_ratio=2, aligned=True)
    return cut_RDPP.flatten(2).transpose(1, 2).to(maps_DHW[0].dtype)


def _extend(map_DHW: Tensor, height: int, width: int) -> Tensor:
    pad = (0, width - map_DHW.shape[2], 0, height - map_DHW.shape[1])
    return F.pad(map_DHW[None], pad, mode="replicate")[0]
