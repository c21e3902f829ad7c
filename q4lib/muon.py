"""Muon, for the recipes that are faster than the paper's: a weight's step is its momentum, orthogonalized.

K. Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024. torch.optim.Muon takes matrices only,
and orthogonalizes in bf16, which is slow on most processors.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .optim import QuantAwareAdamW


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with all singular values about 1 (0.7 to 1.2), by Newton-Schulz; `g` is read as (out, rest).

    Each step maps a singular value s to 3.4445 s - 4.775 s**3 + 2.0315 s**5. A zero tensor stays zero.
    """
    x: Tensor = g.flatten(1)
    x = x / (x.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if tall else x
    return x.reshape(g.shape)


class MuonAdamW(QuantAwareAdamW):
    """Muon with Nesterov momentum on the convolutions' weights, of four dimensions; the rest by AdamW.

    `hidden` gives Muon the linear layers' weights too, all but the last. Before its step a weight is scaled to rows of
    mean square norm 1: batch norm undoes any scale, and so `muon_lr` is the share of it that a step turns.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        muon_lr: float = 0.08,
        momentum: float = 0.6,
        hidden: bool = False,
        **adamw: Any,
    ) -> None:
        params = list(params)
        muon = [p for p in params if p.dim() == 4] + ([p for p in params if p.dim() == 2][:-1] if hidden else [])
        groups = [
            {"params": [p for p in params if all(p is not chosen for chosen in muon)]},
            {"params": muon, "lr": muon_lr, "momentum": momentum},
        ]
        super().__init__(groups, lr=lr, **adamw)

    def _update(self) -> None:
        rest, muon = groups = self.param_groups
        self.param_groups = [rest]
        super()._update()
        self.param_groups = groups
        for p in muon["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            momentum = state["momentum"].mul_(muon["momentum"]).add_(p.grad)
            p.mul_(len(p) ** 0.5 / p.norm())
            nesterov = p.grad.add(momentum, alpha=muon["momentum"])
            p.add_(orthogonalize(nesterov), alpha=-muon["lr"])
