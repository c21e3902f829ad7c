"""Lesson 02's inline checks: the trick in one line, its gradient by hand, and what learns without it."""

from typing import Any

import torch
from torch import Tensor

from ...models import SimpleResNet4bit
from . import Wrong, shown, task


@task("02.a")
def straight_through(value: Any) -> str:
    """Eq 8 as a function of w and wq: the value of wq, the gradient of w."""
    if not callable(value):
        raise Wrong("write it as a function: straight_through = lambda w, wq: ...")
    # Leaves of their own, so that the way of the gradient shows what was detached.
    w = torch.tensor([0.13, -0.52, 0.9], requires_grad=True)
    wq = torch.tensor([0.2, -0.6, 1.0], requires_grad=True)
    result = value(w, wq)
    if not isinstance(result, Tensor) or result.shape != w.shape:
        raise Wrong("the line should give a tensor shaped like w")
    to_w, to_wq = _slopes(result, w, wq)
    if not torch.allclose(result, wq):
        raise Wrong(_wrong_value(result, w, wq))
    if (to_w, to_wq) == (0, 0) and not result.requires_grad:
        raise Wrong("right values, but no gradient at all: everything is detached. Leave the first w as it is")
    if (to_w, to_wq) == (0, 0):
        raise Wrong("right values, but the gradient is 0: you detached wq alone, and - w still cancels w")
    if to_w == -1:
        raise Wrong("right values, but the gradient is -1: you detached w, and - w is left. Detach the difference")
    if to_w == 0:
        raise Wrong("right values, but the gradient is 0, that of round: + w and - w cancel. Did you forget detach?")
    if to_w != 1:
        raise Wrong(f"right values, but the gradient is {to_w:g}: it should be 1, as if nothing had been rounded")
    return "forward the value of wq, backward the gradient of w"


def _slopes(result: Tensor, *leaves: Tensor) -> list[float]:
    if not result.requires_grad:
        return [0.0] * len(leaves)
    slopes = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    return [0.0 if slope is None else round(slope[0].item(), 4) for slope in slopes]


def _wrong_value(result: Tensor, w: Tensor, wq: Tensor) -> str:
    if torch.allclose(result, w):
        return "the value is w: nothing is rounded. The gradient may pretend that, the value may not: it should be wq"
    if torch.allclose(result, 2 * w - wq):
        return "the difference is the wrong way round: from w to wq it is wq - w"
    if torch.allclose(result, w + wq):
        return "w and wq are added up: to come from w to wq, add only their difference"
    if torch.allclose(result, wq - w):
        return "that is the difference alone: add it to w"
    return "the value should be wq: start from w and add what is missing"


@task("02.b")
def gradient(value: Any) -> str:
    """The straight-through gradient of (q(w) - 0.4)**2 at w = 0.13, where q(w) = 0.2."""
    number = _number(value)
    likely = {
        0.0: "that is the staircase's own gradient: straight-through takes the slope of q as 1, not 0",
        -0.54: "you put w into the loss; the forward pass uses the level, q(w) = 0.2",
        -0.27: "you put w into the loss, and the square's factor 2 is missing; the level is q(w) = 0.2",
        -0.2: "nearly: the square's factor 2 is missing",
        0.4: "the sign: q(w) - target is negative here, so the loss falls as w grows",
        0.2: "the sign, and the square's factor 2: it is 2 (q(w) - target)",
        0.04: "that is the loss; asked is its slope",
        -0.04: "that is one step at a rate of 0.1, with its sign turned; asked is the gradient alone",
    }
    for wrong, why in likely.items():
        if abs(number - wrong) < 1e-4:
            raise Wrong(f"{number:g}: {why}")
    if abs(number + 0.4) > 1e-4:
        raise Wrong(f"{number:g} is not it: the gradient is 2 (q(w) - target), times 1 for q's slope")
    return "-0.4: gradient descent now pushes w up, where round() gave 0"


@task("02.c")
def learning(value: Any) -> str:
    """How many parameters of SimpleResNet4bit get a gradient without straight-through: biases and batch norm."""
    number = _number(value)
    parameters = dict(SimpleResNet4bit().named_parameters())
    free = {name: p.numel() for name, p in parameters.items() if p.dim() == 1}
    right, norm = sum(free.values()), sum(count for name, count in free.items() if name.startswith("bns"))
    total = sum(p.numel() for p in parameters.values())
    likely = {
        0: "not everything goes through round(): which parameters are not weights of a quantized layer?",
        total: "these are all: the weights of the seven layers get the gradient 0",
        total - right: "these are the ones that do not learn: you counted the weights",
        norm: "this is batch norm alone; the layers' biases are not rounded either",
        right - norm: "these are the biases of the layers; batch norm has parameters too",
        len(free): "so many tensors; count the numbers in them, with numel()",
        total - norm: "without batch norm; and the weights get the gradient 0: do not count those",
    }
    if number in likely:
        raise Wrong(f"{number:,.0f}: {likely[int(number)]}")
    if number != right:
        raise Wrong(
            f"{number:,.10g} is too {'many' if number > right else 'few'}: count the parameters with one dimension"
        )
    return f"{right} of {total:,}: the biases and batch norm"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Wrong(f"a number is asked for, yours is {shown(value)}") from None
