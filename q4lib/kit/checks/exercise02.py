"""Exercise 02, first half: straight-through in both ways, and a bug hunt for a wrong slope."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import quant
from ...quant import qmax
from . import Wrong, task
from .compare import Case, compare, fresh, weights
from .slopes import Function, slopes

FLAT = "the values are right, but the gradient is 0, that of round(): "
CUT = "did you cut off what follows the point? 2.7 is nearer to 3 than to 2: round() takes the nearest"
SCALE = "the scale gets a gradient: `backward` should give None for it, its second result"
FLOOR = "did you use floor()? 2.7 is nearer to 3 than to 2: round() takes the nearest"


@task("2.1")
def round_through(student: Any) -> str:
    """round(x) with the gradient of x."""
    values: dict[str, Function] = {
        "these are the numbers you were given: the value should be torch.round(x), only its gradient that of x": (
            lambda x: x.clone()
        ),
        "the difference is the wrong way round: it leads from x to torch.round(x)": lambda x: 2 * x - x.round(),
        "that is the difference alone: add it to x": lambda x: x.round() - x,
        "x and torch.round(x) are added up: add to x only the difference between them": lambda x: x + x.round(),
        CUT: torch.trunc,
        FLOOR: torch.floor,
        "a number half way between two integers goes to the even one: torch.round does that, floor(x + 0.5) does "
        "not": lambda x: (x + 0.5).floor(),
    }
    gradients: dict[str, Function] = {
        FLAT + "+ x and - x cancel. Put .detach() around the whole difference": torch.round,
        "the values are right, but the gradient is -1: you detached x and left - x. Detach the difference": (
            lambda x: -x
        ),
    }
    cases = [
        Case("seven numbers", (3 * weights(7),)),
        Case("numbers of shape (2, 3, 4) and type float64", (9 * weights(2, 3, 4, dtype=torch.float64),)),
        Case("numbers half way between two integers", (torch.arange(-3, 4) + 0.5,)),
        Case("a tensor without dimensions", (torch.rand((), generator=fresh()) + 3.6,)),
        Case("integers, as floats", (torch.tensor([-2.0, 0.0, 5.0]),)),
    ]
    answer = compare(student, torch.round, cases, values)
    slopes(student, lambda x: x, cases, gradients)
    return answer


def _grid(w: Tensor, scale: Tensor, bits: int = 4, extra: int = 0, bend: Function = torch.round) -> Tensor:
    largest = qmax(bits) + extra
    return bend(w / scale).clamp(-largest, largest) * scale


def _through(w: Tensor, scale: Tensor, bits: int = 4) -> Tensor:
    return quant.fake_quantize(w, bits, step=scale)


def _where_inside(w: Tensor, scale: Tensor, bits: int = 4) -> Tensor:
    return w.clamp(-qmax(bits) * scale, qmax(bits) * scale)


@task("2.2")
def on_grid(student: Any) -> str:
    """Weights on a given grid, straight through, by an autograd function."""
    values: dict[str, Function] = {
        "it is right at 4 bits only: the largest code is 2**(bits - 1) - 1, and that is 7 where bits is 4": (
            lambda w, scale, bits: _grid(w, scale, 4)
        ),
        "did you let 8 in? The codes go from -7 to 7 at 4 bits": partial(_grid, extra=1),
        "you forgot to clamp: a weight beyond the grid gets the last code, 7 or -7 at 4 bits": partial(_grid, extra=99),
        "these are the codes: multiply them by the scale to come back": lambda w, s, bits: _grid(w / s, s / s, bits),
        "use the scale that you are given: it need not be max|w| / 7": lambda w, s, bits: quant.fake_quantize(w, bits),
        CUT: partial(_grid, bend=torch.trunc),
        FLOOR: partial(_grid, bend=torch.floor),
        "nothing is rounded in the forward pass: only backward pretends that": lambda w, s, bits: w.clone(),
    }
    gradients: dict[str, Function] = {
        FLAT + "what `backward` returns first is the gradient of w; hand on what came from above": lambda w, *_: 0 * w,
        "the gradient is 1 for every weight, whatever came from above: `backward` gets the gradient of the loss with "
        "respect to the output, and hands that on": lambda w, s, bits: _Ones.apply(w),
        "the values are right, but the weights that the clamp has cut get no gradient. torch's own fake quantization "
        "does that; eq 7 says 1 for every weight": _where_inside,
        "the gradient is divided by the scale: w / scale is inside of `forward`, where autograd does not look, so "
        "nothing must be undone": lambda w, s, bits: w / s,
        "the gradient is multiplied by the scale: the product is inside of `forward`, where autograd does not look, "
        "so hand the gradient on as it is": lambda w, s, bits: w * s,
    }
    cases = [
        Case("24 weights, some outside of the grid", (_spread(24, 0.125), torch.tensor(0.125), 4)),
        Case("weights of shape (2, 3, 3, 3) at 2 bits", (_spread((2, 3, 3, 3), 0.3), torch.tensor(0.3), 2)),
        Case("weights of type float64 at 6 bits", (_spread(30, 0.07).double(), torch.tensor(0.07).double(), 6)),
        Case("a single weight far outside", (torch.tensor([-30.0]), torch.tensor(1.0), 3)),
    ]
    answer = compare(student, _through, cases, values)
    scale = torch.tensor(0.1, requires_grad=True)
    try:
        slopes(student, _through, cases, gradients)
        result = student(_spread(6, 0.1).requires_grad_(), scale, 4)
        (to_scale,) = torch.autograd.grad(result.sum(), scale, allow_unused=True)
    except RuntimeError as error:
        if "number of gradients" in str(error):
            raise Wrong(
                "`backward` returns one thing for each argument of `forward` but ctx: three, two of them None"
            ) from None
        if "invalid gradient" in str(error):
            raise Wrong(SCALE) from None
        raise
    if not _own(result.grad_fn):
        raise Wrong(
            "values and gradients are right, but they do not come from a torch.autograd.Function: this time write one, "
            "and return what its `apply` gives"
        )
    if to_scale is not None:
        raise Wrong(SCALE)
    return answer


def _spread(shape: Any, scale: float) -> Tensor:
    """Weights up to 12 levels from 0, none near an edge, and none between the last level and its edge.

    There the clamp cuts a little, and one may call that inside or outside.
    """
    shape = shape if isinstance(shape, tuple) else (shape,)
    codes = 2 * torch.randint(-6, 7, shape, generator=fresh())
    return (codes + 0.8 * torch.rand(shape, generator=fresh()) - 0.4) * scale


def _own(node: Any) -> bool:
    """Whether a torch.autograd.Function takes part in the backward pass from here."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return True
    return node is not None and any(_own(before) for before, _ in node.next_functions)


class _Ones(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.ones_like(grads[0])


def _leaky(
    w: Tensor, bits: int, top: int | None = None, zero: float = 1.0, extra: int = 0, little: float = 0.0
) -> Tensor:
    """The bug hunt's function: a scale that carries a gradient, perhaps one `top` for all bits, and nan for zeros."""
    scale = w.abs().max() / (top or qmax(bits) + extra) + little
    scale = scale.where(scale != 0, zero)
    x = w / scale
    return (x + (x.round() - x).detach()) * scale


@task("2.3")
def mended(student: Any) -> str:
    """The broken fake_quantize without its three bugs."""
    values: dict[str, Function] = {
        "two bugs at least are left: it gives nan where all weights are 0, and it takes 4 bits whatever `bits` is": (
            partial(_leaky, top=7, zero=0.0)
        ),
        "one bug at least is left: where all weights are 0, so is the scale, and 0 / 0 is nan": (
            partial(_leaky, zero=0.0)
        ),
        "one bug at least is left: it takes 4 bits, whatever `bits` is": partial(_leaky, top=7),
        "now it divides by 2**(bits - 1), 8 at 4 bits: the largest code is 7": partial(_leaky, extra=1),
        "these are the codes: multiply them by the scale": lambda w, bits: quant.quantize(
            w, quant.scale(w, bits), bits
        ).to(w.dtype),
    }
    values |= {
        f"with {little} added to the scale, each level moves a little: take another scale only where it is 0": (
            partial(_leaky, little=float(little))
        )
        for little in ("1e-5", "1e-6", "1e-7", "1e-8", "1e-9", "1e-10", "1e-12")
    }
    gradients: dict[str, Function] = {
        "the values are right, one bug is left: the gradient of the largest weight is wrong, since it comes through "
        "max|w| too": _leaky,
        FLAT + "you detached too much of the codes, or of w": lambda w, *_: 0 * w,
    }
    cases = [
        Case("six weights", (weights(6), 4)),
        Case("weights of shape (4, 2, 3, 3) whose largest is negative", (weights(4, 2, 3, 3, negative=True), 4)),
        Case("weights of shape (5, 5) at 3 bits", (weights(5, 5, bits=3), 3)),
        Case("weights of type float64 at 8 bits", (weights(30, bits=8, dtype=torch.float64), 8)),
        Case("a single weight at 2 bits", (weights(1, bits=2), 2)),
        Case("a layer of zeros", (torch.zeros(3, 2), 4)),
    ]
    answer = compare(student, quant.fake_quantize, cases, values)
    slopes(student, quant.fake_quantize, cases, gradients)
    return answer
