"""Exercise 02, many weights: the staircase from afar, what a gradient promises and what comes true."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import quant
from . import Wrong, task
from .compare import Case, compare, fresh
from .slopes import Function


def _number(function: Function) -> Function:
    """The same function, its number turned into a tensor in float64."""

    if not callable(function):
        return function  # `compare` says so

    def wrapped(*arguments: Any) -> Any:
        result = function(*arguments)
        if result is None or (isinstance(result, Tensor) and result.numel() != 1):
            return result
        try:
            return torch.tensor(float(result), dtype=torch.float64)
        except (TypeError, ValueError):
            raise Wrong(f"a number is asked for, yours is {str(result)[:60]}") from None

    return wrapped


def _stairs(step: Tensor, gain: Tensor, w: Tensor) -> Tensor:
    """A staircase that is a ramp of slope `gain` from afar."""
    return (w / step).round() * step * gain


def _slope(q: Function, w: Tensor, way: float) -> Tensor:
    return (q(w + way) - q(w)) / way


@task("2.5")
def mean_slope(student: Any) -> str:
    """The mean finite difference of a staircase."""
    mistakes: dict[str, Function] = {
        "this is the mean rise: divide it by the way": lambda q, w, way: (q(w + way) - q(w)).mean(),
        "these are the slopes of all weights: their mean is asked for": _slope,
        "this is the sum of the slopes: their mean is asked for": lambda q, w, way: _slope(q, w, way).sum(),
        "the sign: it is the level after the nudge minus the level before": lambda q, w, way: -_slope(q, w, way).mean(),
        "you nudged to both sides: nudge each weight up, by `way`, and compare with where it was": (
            lambda q, w, way: (q(w + way) - q(w - way)).mean() / (2 * way)
        ),
        "the slope is the rise of the *level* over the way: compare q(w + way) with q(w), not with w": (
            lambda q, w, way: (q(w + way) - w).mean() / way
        ),
        "you nudged the level: nudge the weight, then round": lambda q, w, way: (q(q(w) + way) - q(w)).mean() / way,
    }
    cases = []
    for words, shape, way in (
        ("50 weights", (50,), 0.3),
        ("weights of shape (6, 7)", (6, 7), 2.5),
        ("a nudge downwards", (40,), -0.2),
    ):
        step = 2.0 ** torch.randint(-3, 0, (), generator=fresh()).double()
        gain = 1.2 + torch.rand((), generator=fresh()).double()
        w = (torch.randint(-40, 40, shape, generator=fresh()).double() + 1 / 7) * step / 8
        cases.append(Case(words, (partial(_stairs, step, gain), w, way * step.item())))
    wrapped = {why: _number(mistake) for why, mistake in mistakes.items()}
    return compare(_number(student), _number(lambda q, w, way: _slope(q, w, way).mean()), cases, wrapped)


def _through(w: Tensor, step: Tensor) -> Tensor:
    return quant.fake_quantize(w, step=step)


def _problem(*shape: int) -> tuple[Function, Tensor]:
    """A loss of rounded weights, and weights for a step of 0.25; without rounding errors, ties, or use for weight 0."""
    count = torch.Size(shape).numel()
    factors = torch.randint(-3, 4, (8, count), generator=fresh()).float()
    if count > 1:
        factors[:, 0] = 0
    aims = torch.randint(-16, 17, (8,), generator=fresh()) / 8 + 1 / 16
    offsets = 2 * torch.randint(-4, 4, shape, generator=fresh()) + 1
    w = (torch.randint(-3, 4, shape, generator=fresh()) + offsets / 16) / 4
    return lambda wq: (factors @ wq.flatten() - aims).square().sum(), w


def _gradient(loss: Function, w: Tensor, step: Tensor, rounded: bool = True) -> Tensor:
    leaf = w.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(_through(leaf, step) if rounded else leaf), leaf)[0]


def _truth(
    loss: Function, w: Tensor, step: Tensor, way: float, sign: int = -1, grid: Function = _through, stays: bool = False,
) -> Tensor:  # fmt: skip
    """The true changes of the loss; or with moves along the gradient, on another grid, or that stay made."""
    move, moved, true = sign * way * step * _gradient(loss, w, step).sign(), w.clone(), torch.zeros_like(w)
    before = loss(grid(w, step))
    for i in range(w.numel()):
        moved = moved if stays else w.clone()
        moved.view(-1)[i] += move.view(-1)[i]
        true.view(-1)[i] = loss(grid(moved, step)) - before
    return true


def _together(loss: Function, w: Tensor, step: Tensor, way: float) -> Tensor:
    moved = w - way * step * _gradient(loss, w, step).sign()
    return torch.zeros_like(w) + loss(_through(moved, step)) - loss(_through(w, step))


def _part(function: Function, number: int) -> Function:
    """The same function, of its two results only this one, as a tensor."""

    if not callable(function):
        return function  # `compare` says so

    def wrapped(*arguments: Any) -> Any:
        result = function(*arguments)
        if result is None:
            return None
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise Wrong(f"two tensors are asked for, `return promised, true`; yours is of type {type(result).__name__}")
        return torch.as_tensor(result[number]).detach().float()

    return wrapped


@task("2.6")
def promise_and_truth(student: Any) -> str:
    """Promised and true change of the loss, each weight moved alone."""
    promises: dict[str, Function] = {
        "the gradient is 0: take it through fake_quantize, not through torch.round": lambda loss, w, *_: 0 * w,
        "the move goes against the gradient: gradient times move is negative": (
            lambda loss, w, step, way: way * step * _gradient(loss, w, step).abs()
        ),
        "the way is counted in levels: the move is way * step": (
            lambda loss, w, step, way: -way * _gradient(loss, w, step).abs()
        ),
        "you moved each weight by its gradient: all go equally far, against the gradient's sign": (
            lambda loss, w, step, way: -way * step * _gradient(loss, w, step).square()
        ),
        "that is the move: the promise is gradient times move": (
            lambda loss, w, step, way: -way * step * _gradient(loss, w, step).sign()
        ),
        "that is the gradient: the promise is gradient times move": lambda loss, w, step, way: _gradient(loss, w, step),
        "your gradient is that of the unrounded weights: the forward pass uses fake_quantize(w, step=step)": (
            lambda loss, w, step, way: -way * step * _gradient(loss, w, step, rounded=False).abs()
        ),
    }
    truths: dict[str, Function] = {
        "the moved weights are not rounded: the loss sees fake_quantize(moved, step=step)": partial(
            _truth, grid=lambda w, step: w
        ),
        "the grid moves along with the weights: keep it, with fake_quantize(moved, step=step)": partial(
            _truth, grid=lambda w, step: quant.fake_quantize(w)
        ),
        "the weights before stay moved when you move the next: begin each time with a fresh copy": partial(
            _truth, stays=True
        ),
        "the weights move along their gradients: against them is asked for": partial(_truth, sign=1),
        "the sign: it is the loss after the move minus the loss before": lambda *a: -_truth(*a),
        "you moved all weights at once: each alone is asked for": _together,
        "that is the loss after the move: take the loss before off": lambda loss, w, step, way: (
            _truth(loss, w, step, way) + loss(_through(w, step))
        ),
    }
    cases = [
        Case(words, (*_problem(*shape), torch.tensor(0.25), way))
        for words, shape, way in [
            ("six weights and a short way", (6,), 5 / 32),
            ("weights of shape (3, 4)", (3, 4), 33 / 32),
            ("weights of shape (2, 2, 2) and a long way", (2, 2, 2), 67 / 32),
            ("a single weight", (1,), 21 / 32),
        ]
    ]
    for number, (name, right, mistakes) in enumerate(
        [
            ("promised", lambda loss, w, step, way: -way * step * _gradient(loss, w, step).abs(), promises),
            ("true", _truth, truths),
        ]
    ):
        try:
            answer = compare(_part(student, number), right, cases, mistakes)
        except Wrong as error:
            raise Wrong(f"{name}: {error}") from None
    return answer
