"""Exercise 05: the clip of the gradient, AdamW's step, the soft clip on weights, the codes it changes, its memory."""

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ... import quant
from ...optim import soft_clip_
from . import Wrong, task
from .compare import Case, compare, fresh, weights
from .plain import Function, converted, number

SHAPES = ((4, 2, 3, 3), (4,), (3, 4), (3,))  # a convolution and a linear layer


def random(*shape: int, low: float = 0.3, high: float = 3.0) -> Tensor:
    """FP64 numbers of both signs and of some size: what is left of a difference near 0 is mostly rounding."""
    size = low + (high - low) * torch.rand(shape, generator=fresh(), dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=fresh()) < 0.5, -size, size)


def flat(tensors: Any, like: Sequence[Tensor]) -> Tensor:
    """A student's list of tensors as one. Wrong unless they are as many, and shaped, as those of another list."""
    shapes = [tuple(t.shape) for t in like]
    if not isinstance(tensors, tuple | list) or not all(isinstance(t, Tensor) for t in tensors):
        raise Wrong(f"a list of {len(like)} tensors is asked for, yours is of type {type(tensors).__name__}")
    if [tuple(t.shape) for t in tensors] != shapes:
        raise Wrong(f"tensors of the shapes {shapes} are asked for, yours have {[tuple(t.shape) for t in tensors]}")
    return torch.cat([t.detach().flatten() for t in tensors]).float()


def _clip(max_norm: float, *gradients: Tensor, of: Function | None = None, most: float = 1) -> list[Tensor]:
    """Gradients clipped by the norm of all, or by what a student takes for it."""
    norm = torch.cat([g.flatten() for g in gradients]).norm() if of is None else of(gradients)
    return [g * (max_norm / norm).clamp(max=most) for g in gradients]


@task("5.1")
def clip_gradients(student: Any) -> str:
    """All gradients times one factor, where their global norm is too long."""

    def given(function: Any) -> Any:
        if not callable(function):
            return function

        def listed(max_norm: float, *gradients: Tensor) -> Tensor | None:
            before = [g.clone() for g in gradients]
            result = function(list(gradients), max_norm)
            if not all(map(torch.equal, before, gradients)):
                raise Wrong("it changes the gradients it is given: `g *= factor` works in place, `g * factor` does not")
            return None if result is None else flat(result, list(gradients))

        return listed

    def mistake(**how: Any) -> Function:
        return given(lambda gradients, max_norm: _clip(max_norm, *gradients, **how))

    mistakes = {
        "each tensor is clipped by its own norm: one norm is taken over all of them together": given(
            lambda gradients, max_norm: [_clip(max_norm, g)[0] for g in gradients]
        ),
        "gradients that are short enough have grown: the factor is 1 at most": mistake(most=inf),
        "each number is cut on its own, which turns the gradient: one factor multiplies them all": given(
            lambda gradients, max_norm: [g.clamp(-max_norm, max_norm) for g in gradients]
        ),
        "norms do not add: add their squares, and take the root": mistake(of=lambda all: sum(g.norm() for g in all)),
        "that is the squared norm: take its root": mistake(of=lambda all: sum(g.square().sum() for g in all)),
        "that is the largest of the norms: one norm is taken over all numbers together": mistake(
            of=lambda all: torch.stack([g.norm() for g in all]).max()
        ),
        "the gradients are as they were": mistake(of=lambda all: torch.tensor(1e-9)),
        "did you take the mean of the squares? A norm adds them": mistake(
            of=lambda all: torch.cat([g.flatten() for g in all]).square().mean().sqrt()
        ),
    }
    cases = [
        Case("three long gradients", (0.5, random(3, 4), random(3), random(2, 3, 2))),
        Case("gradients that are short enough", (90.0, random(5, 2), random(5))),
        Case("gradients each of which is short enough", (2.0, *(random(4, low=0.6, high=0.9) for _ in range(5)))),
        Case("a single number", (0.1, random(1, low=1))),
        Case("gradients of type float32", (1.0, random(4, 4).float(), random(4).float())),
        Case("gradients that are all 0", (0.5, torch.zeros(3), torch.zeros(2, 2))),
    ]
    return compare(given(student), given(lambda gradients, max_norm: _clip(max_norm, *gradients)), cases, mistakes)


def adamw(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, learning_rate: float, decay: float, bugs: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW, or what a student makes of it: `bugs` names what is wrong."""
    if "coupled" in bugs:
        g = g + decay * w
    elif "no decay" not in bugs and "decay last" not in bugs:
        w = w * (1 - (1 if "no rate" in bugs else learning_rate) * decay)
    first, second = (0.999, 0.9) if "betas" in bugs else (0.9, 0.999)
    m, v = first * m + (1 - first) * g, second * v + (1 - second) * (g if "no square" in bugs else g**2)
    corrections = 1 - first**t, 1 - second**t
    if "uncorrected" in bugs:
        corrections = 1.0, 1.0
    elif "always the first" in bugs:
        corrections = 1 - first, 1 - second
    m_hat, v_hat = m / corrections[0], v / corrections[1]
    root = (v_hat + 1e-8).sqrt() if "inside" in bugs else v_hat if "no root" in bugs else v_hat.sqrt()
    update = learning_rate * m_hat / (root if "inside" in bugs or "no epsilon" in bugs else root + 1e-8)
    w = w + update if "uphill" in bugs else w - update
    if "decay last" in bugs:
        w = w * (1 - learning_rate * decay)
    return (w, m_hat, v_hat) if "hats" in bugs else (w, m, v)


@task("5.2")
def adamw_step(student: Any) -> str:
    """The weight, m and v after one step of AdamW."""

    def three(function: Any) -> Any:
        if not callable(function):
            return function

        def joined(*arguments: Any) -> Tensor | None:
            result = function(*arguments)
            if isinstance(result, Tensor):
                raise Wrong("three tensors are asked for, `return w, m, v`: the next step needs m and v")
            return None if result is None else flat(result, list(arguments[:1]) * 3)

        return joined

    mistakes = {
        "the weight decay went into the gradient, where Adam divides it away again: in AdamW it is decoupled, and "
        "multiplies w": "coupled",
        "the bias correction is missing: divide m by 1 - 0.9**t and v by 1 - 0.999**t": "uncorrected",
        "the bias correction is that of the first step in every step: 1 - 0.9**t": "always the first",
        "the weight decay is missing": "no decay",
        "nearly: AdamW shrinks the weight as it is before the update, not after it": "decay last",
        "the weight decay is multiplied by the learning rate: w * (1 - learning_rate * decay)": "no rate",
        "return m and v themselves: the corrected ones are for this step only": "hats",
        "v is a mean of squares: divide by its root": "no root",
        "v is a mean of the squared gradients: square g": "no square",
        "0.00000001 is added to the root, not to what stands under it": "inside",
        "a gradient that was always 0 gives 0 / 0: add 0.00000001 to the root": "no epsilon",
        "that goes uphill: the update is subtracted": "uphill",
        "0.9 belongs to m, 0.999 to v": "betas",
    }
    tiny, zeros = 1e-8 * random(5), torch.zeros(2, 3, dtype=torch.float64)
    cases = [
        Case("a first step", (random(2, 3), random(2, 3), zeros, zeros, 1, 0.1, 0.5)),
        Case("a third step", (random(6), random(6), random(6), random(6).abs(), 3, 0.01, 0.1)),
        Case("a third step with tiny gradients", (random(5), tiny, tiny, tiny**2 / 100, 3, 0.1, 0.0)),
        Case("a weight without dimensions", (random(), random(), random(), random().abs(), 700, 0.1, 0.05)),
        Case("a gradient that was always 0", (random(2), *[torch.zeros(2, dtype=torch.float64)] * 3, 2, 0.1, 0.5)),
    ]
    wrong = {why: three(partial(adamw, bugs=bugs)) for why, bugs in mistakes.items()}
    return compare(three(student), three(adamw), cases, wrong)


@task("5.3")
def soft_clip(student: Any) -> str:
    """The soft clip in place, on parameters with two or more dimensions; how many that are."""

    def after(function: Any) -> Any:
        if not callable(function):
            return function

        def numbers(c: float, *tensors: Tensor) -> Tensor | None:
            parameters = [nn.Parameter(t.clone()) for t in tensors]
            try:
                count = function(parameters, c)
            except RuntimeError as error:
                if "leaf Variable" not in str(error):
                    raise
                raise Wrong("autograd wants to record the change: put it under `with torch.no_grad():`") from None
            if count is None:
                if all(map(torch.equal, parameters, tensors)):
                    return None
                raise Wrong("the parameters are clipped: now return how many you clipped")
            return torch.cat([number(count).view(1), flat(parameters, parameters)])

        return numbers

    def clipping(chosen: Function, counted: Function | None = None, bend: Function = torch.tanh) -> Function:
        """A student's function that clips the parameters `chosen`, and returns the number of those `counted`."""

        def function(parameters: list[Tensor], c: float) -> int:
            with torch.no_grad():
                for p in filter(chosen, parameters):
                    p.copy_(c * bend(p / c))
            return len(list(filter(counted or chosen, parameters)))

        return after(function)

    def is_weight(p: Tensor) -> bool:
        return p.dim() >= 2

    def anything(p: Tensor) -> bool:
        return True

    nothing = "the parameters are what they were: `p = ...` gives a new tensor a name. Write into p, with p.copy_(...)"
    mistakes = {
        nothing: clipping(lambda p: False, is_weight),
        "biases and batch norm's parameters are clipped, too: they have one dimension, and stay": clipping(anything),
        "linear layers' weights have two dimensions, and are clipped, too": clipping(lambda p: p.dim() > 2),
        "a convolution's weight has four dimensions: clip whatever has two or more": clipping(lambda p: p.dim() == 2),
        "linear layers' weights have two dimensions: clip whatever has two or more": clipping(lambda p: p.dim() == 4),
        "the clip is right; return how many parameters you clipped, not how many there are": (
            clipping(is_weight, anything)
        ),
        "return how many parameters you clipped, each of them a tensor, not how many numbers are in them": after(
            lambda parameters, c: _counted_clip(parameters, c) and sum(p.numel() for p in parameters if is_weight(p))
        ),
        "that is the hard clip: c tanh(w / c) is asked for": clipping(is_weight, bend=lambda x: x.clamp(-1, 1)),
        "use the c that you are given": after(lambda parameters, c: _counted_clip(parameters, 3.0)),
    }
    cases = [
        Case("a convolution, batch norm and a linear layer", (3.0, *(random(*shape) for shape in SHAPES))),
        Case("a linear layer, c = 0.5", (0.5, random(3, 4), random(3))),
        Case("a weight of shape (2, 3, 4), c = 1", (1.0, random(2, 3, 4))),
        Case("biases alone", (3.0, random(3), random(5))),
    ]
    return compare(after(student), after(_counted_clip), cases, mistakes)


def _counted_clip(parameters: list[Tensor], c: float) -> int:
    chosen = [p for p in parameters if p.dim() >= 2]
    soft_clip_(chosen, c)
    return len(chosen)


def _codes(w: Tensor, bits: int, step: Tensor | None = None) -> Tensor:
    return quant.quantize(w, quant.scale(w, bits) if step is None else step, bits)


@task("5.5")
def codes_changed(student: Any) -> str:
    """The percentage of codes that differ, all layers together."""

    def share(differ: Function) -> Function:
        """A student's function: 100 times all `differ(before, after, bits)` over the number of weights."""

        def function(before: list[Tensor], after: list[Tensor], bits: int) -> float:
            counts = [float(differ(w, u, bits).sum()) for w, u in zip(before, after, strict=True)]
            return 100 * sum(counts) / sum(w.numel() for w in before)

        return function

    def right(w: Tensor, u: Tensor, bits: int) -> Tensor:
        return _codes(w, bits) != _codes(u, bits)

    mistakes: dict[str, Function] = {
        "the new weights have a grid of their own: take their scale anew": share(
            lambda w, u, bits: _codes(w, bits) != _codes(u, bits, quant.scale(w, bits))
        ),
        "you compare weights on the grid: a code may stay while its level moves with the scale": share(
            lambda w, u, bits: quant.fake_quantize(w, bits) != quant.fake_quantize(u, bits)
        ),
        "you compare the weights themselves: quantize them first": share(lambda w, u, bits: w != u),
        "a code that moves by several levels has changed once": share(
            lambda w, u, bits: (_codes(w, bits).int() - _codes(u, bits).int()).abs()
        ),
        "that is the share of codes that stayed": share(lambda w, u, bits: ~right(w, u, bits)),
        "that is a share between 0 and 1: percent are asked for": lambda *a: share(right)(*a) / 100,
        "that is the number of codes: percent are asked for": (
            lambda before, after, bits: share(right)(before, after, bits) / 100 * sum(w.numel() for w in before)
        ),
        "that is the mean of the layers' shares: a large layer has more codes, so count them all together": (
            lambda before, after, bits: (
                sum(share(right)([w], [u], bits) for w, u in zip(before, after, strict=True)) / len(before)
            )
        ),
        "it is right at 4 bits only: hand `bits` on": lambda before, after, bits: share(right)(before, after, 4),
    }
    sizes = ((4, 9), (30, 5), (3, 2, 3, 3))
    before = [weights(*size) for size in sizes]
    moved = [w.where(torch.rand(w.shape, generator=fresh()) < 0.7, w.roll(1)) for w in before]
    cases = [
        Case("three layers, at 4 bits", (before, moved, 4)),
        Case(
            "two layers at 8 bits", ([weights(20, 3, bits=8) for _ in "ab"], [weights(20, 3, bits=8) for _ in "ab"], 8)
        ),
        Case("two layers at 2 bits", ([weights(7, 3, bits=2) for _ in "ab"], [weights(7, 3, bits=2) for _ in "ab"], 2)),
        Case("weights that have all shrunk alike", (before, [0.9 * w for w in before], 4)),
        Case("weights that have not moved", (before, before, 4)),
    ]
    wrong = {why: converted(mistake, number) for why, mistake in mistakes.items()}
    return compare(converted(student, number), converted(share(right), number), cases, wrong)
