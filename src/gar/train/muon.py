"""Muon (Jordan et al. 2024) for the matrices of a transformer's blocks, AdamW for everything else.

A gradient's momentum is replaced by its nearest orthogonal matrix, so that every direction of a matrix learns equally
fast. On nano's language model that takes about half as many steps as AdamW alone. `torch.optim.Muon` computes in
bfloat16, which CPUs without its instructions cannot do at a useful speed.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor

from gar.train.processes import rank_and_world

MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """`torch.optim.AdamW`, but groups with a true `muon` hold matrices that move by Muon, at their group's own rate.

    Several processes that train together, with equal gradients, share the work.
    """

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As every optimiser's. Matrices that move by Muon lose their gradients."""
        alike = defaultdict(list)
        for group in self.param_groups:
            for p in group["params"] if group.get("muon") else ():
                if p.grad is not None:
                    alike[tuple(sorted(p.shape))].append((p, p.grad, group))
        for members in alike.values():
            self._move(members)
        return super().step(closure)

    def _move(self, members: list[tuple[Tensor, Tensor, dict]]) -> None:
        """Matrices of one shape, lying or standing, all at once."""
        lying = []
        for p, gradient, _ in members:
            momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
            momentum.lerp_(gradient, 1 - MOMENTUM)
            ahead = gradient.lerp(momentum, MOMENTUM)
            lying.append(ahead if p.shape[0] <= p.shape[1] else ahead.T)
            p.grad = None  # nothing is left for AdamW
        rank, world = rank_and_world()
        momenta_NAB = torch.stack(lying)
        moves_NAB = torch.zeros_like(momenta_NAB)
        moves_NAB[rank::world] = orthogonal(momenta_NAB[rank::world])
        if world > 1:
            dist.all_reduce(moves_NAB)
        for (p, _, group), move in zip(members, moves_NAB, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            rows, columns = p.shape
            p.add_(move if rows <= columns else move.T, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrices_NAB: Tensor) -> Tensor:
    """Roughly the orthogonal factor of each matrix (A <= B): singular values between .7 and 1.2, by five rounds of
    Newton and Schulz with the published coefficients."""
    x = matrices_NAB / (matrices_NAB.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * (square @ square) - 4.775 * square) @ x
    return x
