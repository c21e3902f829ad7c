"""One training step of the paper: clip the gradient, AdamW, pull every weight softly towards zero (III-D, III-F)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def soft_clip_(weights: Iterable[Tensor], c: float = 3.0) -> None:
    """`w <- c tanh(w / c)`, in place (eq 9). For |w| much smaller than c it takes off about `w**3 / (3 c**2)`."""
    for w in weights:
        w.div_(c).tanh_().mul_(c)


class QuantAwareAdamW(torch.optim.AdamW):
    """AdamW between a clip of the gradient's global norm and eq 9's soft clip (III-F); None turns a clip off.

    `soft_clip` acts on parameters of two or more dimensions. Weight decay acts on all of them, as in the paper's code.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        grad_clip: float | None = 0.5,
        soft_clip: float | None = 3.0,
        **adamw: Any,
    ) -> None:
        # Fused steps on a CPU are wrong, silently, where a gradient lies in memory otherwise than its weight.
        if "fused" not in adamw:
            adamw.setdefault("foreach", True)
        super().__init__(params, lr=lr, weight_decay=weight_decay, **adamw)
        self.defaults |= {"grad_clip": grad_clip, "soft_clip": soft_clip}
        self._complete_groups()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete_groups()

    def _complete_groups(self) -> None:
        """A group without clips, as in a torch AdamW's state, gets those this optimizer was made with."""
        for group in self.param_groups:
            for name in ("grad_clip", "soft_clip"):
                value = group.setdefault(name, self.defaults[name])
                if value is not None and not 0 < value < math.inf:
                    raise ValueError(f"{name} must be positive and finite, or None for none, got {value}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns the closure's loss, if there is one. The gradients are left clipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if (max_norm := self.param_groups[0]["grad_clip"]) is not None:
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], max_norm)
        self._update()
        for group in self.param_groups:
            if group["soft_clip"] is not None:
                soft_clip_((p for p in group["params"] if p.dim() >= 2 and p.grad is not None), group["soft_clip"])
        return loss

    def _update(self) -> None:
        super().step()
