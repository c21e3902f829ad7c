"""Exercise 01: scale, quantize, fake_quantize, one scale a channel, a bug hunt, a test that finds broken quantizers."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ... import quant
from ...quant import qmax
from . import NotYet, Wrong, task
from .compare import Case, compare, weights

Quantizer = Callable[..., Tensor]

EIGHT = "did you divide by 2**(bits - 1), 8 at 4 bits? The largest code is 7: seven steps lead from 0 to max|w|"
SIGNED = "did you take w.max()? The largest weight may be negative: max|w| does not look at signs"
FIXED = "it is right at 4 bits only: the largest code is 2**(bits - 1) - 1, and that is 7 where bits is 4"
CUT = "did you cut off what follows the point? Turning 4.83 into an integer gives 4: round() first"
FLOOR = "did you use floor()? 4.83 is nearer to 5 than to 4: round() takes the nearest"


def _cases() -> list[Case]:
    """Weights of several shapes, types and bits, and the odd ones."""
    return [
        Case("six weights at 4 bits", (weights(6), 4)),
        Case("weights of shape (5, 7) whose largest is negative", (weights(5, 7, negative=True), 4)),
        Case("weights of shape (4, 3, 3, 3) at 2 bits", (weights(4, 3, 3, 3, bits=2, negative=True), 2)),
        Case("weights of shape (3, 8) at 8 bits", (weights(3, 8, bits=8), 8)),
        Case("weights of type float64 at 5 bits", (weights(9, bits=5, dtype=torch.float64), 5)),
        Case("weights that require gradients, at 3 bits", (weights(2, 6, bits=3).requires_grad_(), 3)),
        Case("a single weight", (weights(1, negative=True), 4)),
        Case("200 small weights and one of -3", (torch.cat([weights(200) / 100, torch.tensor([-3.0])]), 4)),
        Case("weights that are all 0", (torch.zeros(3, 2), 4)),
    ]


@task("1.1")
def scale(student: Any) -> str:
    """max|w| / (2**(bits-1) - 1), a scalar."""
    mistakes: dict[str, Quantizer] = {
        EIGHT: lambda w, bits: w.abs().max() / (qmax(bits) + 1),
        "did you divide by the number of levels, 15 at 4 bits? From 0 to max|w| there are 7 steps": (
            lambda w, bits: w.abs().max() / (2 * qmax(bits) + 1)
        ),
        "did you divide 2 max|w| by 15? 15 levels have 14 steps between them": (
            lambda w, bits: 2 * w.abs().max() / (2 * qmax(bits) + 1)
        ),
        "did you divide by 14, the steps from -max|w| to max|w|? From 0 to max|w| there are 7": (
            lambda w, bits: w.abs().max() / (2 * qmax(bits))
        ),
        SIGNED: lambda w, bits: w.max() / qmax(bits),
        "did you spread the levels from w.min() to w.max()? This grid is symmetric, -max|w| to max|w|": (
            lambda w, bits: (w.max() - w.min()) / (2 * qmax(bits))
        ),
        FIXED: lambda w, bits: w.abs().max() / 7,
        "this is max|w| itself: divide it by the largest code": lambda w, bits: w.abs().max(),
        "it is the other way round: max|w| is divided by the largest code": lambda w, bits: qmax(bits) / w.abs().max(),
        "one scale is asked for, from the largest of all weights: take max()": lambda w, bits: w.abs() / qmax(bits),
    }
    return compare(student, quant.scale, _cases(), mistakes)


@task("1.2")
def quantize(student: Any) -> str:
    """Codes as int8: divided, rounded to the nearest and half way to even, clamped."""

    def codes(bend: Callable[[Tensor], Tensor], low: int = 1, high: int = 1, last: int = 0) -> Quantizer:
        """A student's quantize that bends otherwise, or clamps to so many times the largest code and `last`."""
        return lambda w, s, bits: bend(w / s).clamp(-low * qmax(bits) - last, high * qmax(bits)).to(torch.int8)

    mistakes: dict[str, Quantizer] = {
        CUT: codes(torch.trunc),
        FLOOR: codes(torch.floor),
        "a weight half way between two codes goes to the even one: round() does that, floor(x + 0.5) does not": (
            codes(lambda x: (x + 0.5).floor())
        ),
        "you forgot to clamp: a weight beyond the grid gets the last code, 7 or -7 at 4 bits": codes(torch.round, 9, 9),
        "the clamp is missing below: no code is less than -7 at 4 bits": codes(torch.round, 9, 1),
        "the clamp is missing above: no code is more than 7 at 4 bits": codes(torch.round, 1, 9),
        "did you let -8 in? The grid is symmetric: codes go from -7 to 7 at 4 bits": codes(torch.round, last=1),
        FIXED: lambda w, s, bits: (w / s).round().clamp(-7, 7).to(torch.int8),
        "these are right as numbers; now turn them into integers, with .to(torch.int8)": (
            lambda w, s, bits: (w / s).round().clamp(-qmax(bits), qmax(bits))
        ),
        "these are weights again: the codes are the integers before they are multiplied by the scale": (
            lambda w, s, bits: (w / s).round().clamp(-qmax(bits), qmax(bits)) * s
        ),
        "did you multiply by the scale? The code is weight / scale": (
            lambda w, s, bits: (w * s).round().clamp(-qmax(bits), qmax(bits)).to(torch.int8)
        ),
        "use the scale that you are given: it need not be max|w| / 7": (
            lambda w, s, bits: quant.quantize(w, quant.scale(w, bits), bits)
        ),
    }
    grids = [
        Case(case.words, (case.arguments[0], quant.scale(*case.arguments), case.arguments[1])) for case in _cases()[:7]
    ]
    outside = torch.tensor([-8.6, 3.1, 17.8, 0.4, -30.0])
    odd = [
        Case("weights half way between two codes", ((torch.arange(-7, 7) + 0.5) / 4, torch.tensor(0.25), 4)),
        Case("weights half way between two codes, at 3 bits", (torch.arange(-2.5, 3), torch.tensor(1.0), 3)),
        Case("a scale of 1 and weights far outside of the grid", (outside, torch.tensor(1.0), 4)),
    ]
    return compare(student, quant.quantize, grids + odd, mistakes)


def _through(divide: Quantizer, bend: Callable[[Tensor], Tensor] = torch.round, zero: float = 1) -> Quantizer:
    """A fake_quantize with a scale of its own, or that bends otherwise, or that divides zeros by another `zero`."""

    def quantizer(w: Tensor, bits: int = 4) -> Tensor:
        s = divide(w, bits)
        return bend(w / s.where(s != 0, zero)).clamp(-qmax(bits), qmax(bits)) * s

    return quantizer


@task("1.3")
def fake_quantize(student: Any) -> str:
    """Weights rounded to their grid, in floats."""
    mistakes: dict[str, Quantizer] = {
        "it is right except where all weights are 0: their scale is 0 too, and 0 / 0 is nan": _through(
            quant.scale, zero=0
        ),
        EIGHT: _through(lambda w, bits: w.abs().max() / (qmax(bits) + 1)),
        SIGNED: _through(lambda w, bits: w.max() / qmax(bits)),
        FIXED: lambda w, bits: quant.fake_quantize(w, 4),
        CUT: _through(quant.scale, torch.trunc),
        FLOOR: _through(quant.scale, torch.floor),
        "these are the codes: multiply them by the scale to come back": (
            lambda w, bits: quant.quantize(w, quant.scale(w, bits), bits)
        ),
        "these are the codes, as floats: multiply them by the scale to come back": (
            lambda w, bits: quant.quantize(w, quant.scale(w, bits), bits).to(w.dtype)
        ),
        "nothing has been rounded: these are the weights": lambda w, bits: w,
        "did you take a scale for each channel? Here one scale serves all weights": (
            lambda w, bits: quant.fake_quantize(w, bits, per_channel=True)
        ),
    }
    return compare(student, quant.fake_quantize, _cases(), mistakes)


@task("1.4")
def channel_scale(student: Any) -> str:
    """A scale for each output channel, shaped (out, 1, ...)."""

    def over(*dims: int) -> Quantizer:
        return lambda w, bits: w.abs().amax(dims, keepdim=True) / qmax(bits)

    def inner(w: Tensor) -> tuple[int, ...]:
        return tuple(range(1, w.dim()))

    sizes = torch.tensor([3.0, 0.2, 1.0, 0.0])
    mistakes: dict[str, Quantizer] = {
        "this is one scale for all weights: one for each output channel is asked for, the first dimension": quant.scale,
        "the numbers are right, their shape is (out,): w / scale needs (out, 1, ...), so keep the dimensions": (
            lambda w, bits: w.abs().amax(inner(w)) / qmax(bits)
        ),
        "did you take the largest over the output channels? They are what must stay: take it over all others": over(0),
        "you took the largest over the last dimension only: a channel's weights lie in all dimensions but the first": (
            over(-1)
        ),
        SIGNED.replace("max()", "amax(...)"): lambda w, bits: w.amax(inner(w), keepdim=True) / qmax(bits),
        EIGHT: lambda w, bits: w.abs().amax(inner(w), keepdim=True) / (qmax(bits) + 1),
        FIXED: lambda w, bits: w.abs().amax(inner(w), keepdim=True) / 7,
    }
    cases = [
        Case("a convolution's weights, (4, 3, 3, 3)", (weights(4, 3, 3, 3) * sizes.view(4, 1, 1, 1), 4)),
        Case("a linear layer's weights, (4, 7)", (weights(4, 7, negative=True) * sizes.view(4, 1), 4)),
        Case("weights of shape (4, 2, 5) at 3 bits", (weights(4, 2, 5) * sizes.view(4, 1, 1), 3)),
        Case("weights of type float64 at 6 bits", (weights(2, 3, 3, 3, dtype=torch.float64), 6)),
        Case("weights that require gradients", (weights(3, 6).requires_grad_(), 4)),
        Case("a single weight", (weights(1, 1, 1, 1, negative=True), 4)),
    ]
    return compare(student, lambda w, bits: quant.scale(w, bits, per_channel=True), cases, mistakes)


BUGS = {
    "largest": "the last level, which should lie at amax",
    "round": "weights between two levels",
    "clamp": "weights below -amax",
}


def _broken(bugs: tuple[str, ...]) -> Quantizer:
    """The bug hunt's function with these bugs left; the fourth, that it changes its input, shows otherwise."""

    def quantizer(w: Tensor, amax: Tensor, bits: int) -> Tensor:
        largest = qmax(bits) + ("largest" in bugs)
        x = w / (amax / largest)
        codes = x.trunc() if "round" in bugs else x.round()
        return codes.clamp(-torch.inf if "clamp" in bugs else -largest, largest) * (amax / largest)

    return quantizer


@task("1.5")
def mended(student: Any) -> str:
    """The broken quantizer without its four bugs."""
    mistakes = {
        f"{count} of the four bugs {'is' if count == 1 else 'are'} left: look at "
        + ", and at ".join(BUGS[bug] for bug in bugs): _broken(bugs)
        for count in range(1, len(BUGS) + 1)
        for bugs in combinations(BUGS, count)
    }
    mistakes[FIXED] = lambda w, amax, bits: _broken(())(w, amax, 4)

    def case(words: str, w: Tensor, bits: int, beyond: int = 1) -> Case:
        """Weights drawn for the grid of `beyond` more bits, of which this one is the middle part."""
        return Case(words, (w, w.abs().max() * qmax(bits) / qmax(bits + beyond), bits))

    cases = [
        case("six weights inside of the range", weights(6), 4, beyond=0),
        case("weights on both sides of the range", weights(40, bits=5), 4),
        case("weights of shape (2, 3, 3) at 3 bits", weights(2, 3, 3, bits=4, negative=True), 3),
        case("weights of type float64 at 5 bits", weights(30, bits=6, dtype=torch.float64), 5),
    ]
    return compare(student, _broken(()), cases, mistakes)


def _in_place(w: Tensor, bits: int = 4) -> Tensor:
    return w.copy_(quant.fake_quantize(w, bits))


RIGHT: tuple[Quantizer, ...] = (
    quant.fake_quantize,
    _through(lambda w, bits: w.abs().max() * (1 / qmax(bits))),
    lambda w, bits=4: quant.fake_quantize(w.double(), bits).to(w.dtype),
)
WRONG: dict[str, Quantizer] = {
    "does nothing at all": lambda w, bits=4: w.clone(),
    "divides by 8, not by 7": _through(lambda w, bits: w.abs().max() / (qmax(bits) + 1)),
    "takes w.max() for max|w|": _through(lambda w, bits: w.max().abs() / qmax(bits)),
    "always rounds down": _through(quant.scale, torch.floor),
    "always takes 4 bits, whatever it is told": lambda w, bits=4: quant.fake_quantize(w, 4),
    "takes a scale for each channel": lambda w, bits=4: quant.fake_quantize(w, bits, per_channel=True),
    "gives nan where all weights are 0": _through(quant.scale, zero=0),
    "changes the weights it is given": _in_place,
}


@task("1.6")
def accepts(student: Any) -> str:
    """The student's test: True for right quantizers, False for broken ones."""
    if not callable(student):
        raise Wrong("a function is asked for: give its name, without brackets after it")
    for right in RIGHT:
        verdict = student(right)
        if verdict is None:
            raise NotYet("your function returns None")
        if not verdict:
            raise Wrong(
                "it rejects a quantizer that is right: one may differ from another in the last digit, so compare with "
                "torch.allclose, and mind that weights half way between two levels can go either way then"
            )
    passed = [name for name, wrong in WRONG.items() if student(wrong)]
    if len(passed) == len(WRONG):
        raise Wrong("it accepts every quantizer, one too that does nothing at all: return False for what is wrong")
    score = f"it finds {len(WRONG) - len(passed)} of {len(WRONG)} broken quantizers"
    if passed:
        raise Wrong(f"{score}; one that it lets pass {passed[0]}")
    return f"{score}, and accepts {len(RIGHT)} that are right"
