"""Exercise 04: a grid beside an outlier, the levels that the weights use, and a range with a small error."""

import math
from typing import Any

import torch
from torch import Tensor

from ... import quant
from ...quant import qmax
from . import Wrong, task
from .compare import Case, compare, fresh, results, weights
from .plain import Function, converted, number


def _counts(codes: Tensor) -> Tensor:
    return codes.unique(return_counts=True)[1]


def _needed(counts: Tensor, share: float) -> int:
    """How many of the counts, from the first on, together hold the share."""
    return int((counts.cumsum(0) / counts.sum() < share).sum()) + 1


def _fullest(w: Tensor, bits: int, share: float) -> int:
    return _needed(_counts(quant.quantize(w, quant.scale(w, bits), bits)).sort(descending=True)[0], share)


def _from_the_middle(w: Tensor, bits: int, share: float) -> int:
    sizes = quant.quantize(w, quant.scale(w, bits), bits).int().abs()
    return 2 * _needed(sizes.flatten().bincount(), share) - 1


def _layer(counts: dict[int, int]) -> Tensor:
    """Weights with so many on each code, in any order."""
    codes = torch.tensor([code for code, count in counts.items() for _ in range(count)])
    return codes[torch.randperm(len(codes), generator=fresh())] * (0.02 + torch.rand(1, generator=fresh()))


@task("4.2")
def levels_used(student: Any) -> str:
    """How many levels, the fullest first, hold a share of the weights."""

    def counted(bend: Function) -> Function:
        return lambda w, bits, share: bend(_counts(quant.quantize(w, quant.scale(w, bits), bits)), share)

    mistakes: dict[str, Function] = {
        "these are all levels in use: how many of them, the fullest first, hold the share?": (
            counted(lambda counts, share: len(counts))
        ),
        "these are all levels of the grid, used or not": lambda w, bits, share: 2 * qmax(bits) + 1,
        "a share of the levels is not a share of the weights: count the weights on each level": (
            counted(lambda counts, share: math.ceil(share * len(counts)))
        ),
        "the fullest levels need not stand next to each other: sort the counts": counted(_needed),
        "the emptiest levels came first: sort the counts with descending=True": (
            counted(lambda counts, share: _needed(counts.sort()[0], share))
        ),
        "did you count from level 0 outwards? The fullest levels need not lie in the middle": _from_the_middle,
        "one level is missing: those before it hold less than the share": (
            lambda w, bits, share: _fullest(w, bits, share) - 1
        ),
        "one too many where the levels hold exactly the share: at least the share is asked for": (
            counted(
                lambda counts, share: int((counts.sort(descending=True)[0].cumsum(0) / counts.sum() <= share).sum()) + 1
            )
        ),
        "it is right at 4 bits only: hand `bits` to `scale` and to `quantize`": (
            lambda w, bits, share: _fullest(w, 4, share)
        ),
        "it is right for 99 % only: use `share`": lambda w, bits, share: _fullest(w, bits, 0.99),
    }
    bell = torch.randn(2003, generator=fresh()) / 50
    cases = [
        Case("2,003 weights and one of 0.9", (torch.cat([bell, torch.tensor([0.9])]), 4, 0.99)),
        Case("32 weights, and levels that hold exactly the share", (_layer({5: 16, -7: 8, 0: 4, 2: 2, 7: 2}), 4, 0.75)),
        Case("100 weights at 2 bits", (_layer({0: 25, 1: 55, -1: 20}), 2, 0.6)),
        Case("200 weights at 8 bits", (weights(200, bits=8), 8, 0.61)),
        Case("weights of shape (4, 2, 3, 3)", (weights(4, 2, 3, 3), 4, 0.51)),
        Case("weights that are all 0", (torch.zeros(3, 2), 4, 0.99)),
        Case("a single weight", (weights(1, negative=True), 4, 0.99)),
    ]
    wrong = {why: converted(mistake, number) for why, mistake in mistakes.items()}
    return compare(converted(student, number), converted(_fullest, number), cases, wrong)


def _squared(w: Tensor, ranges: Tensor, bits: int) -> Tensor:
    """The sum of squared errors on the grid of each range."""
    w, step = w.detach().double().flatten(), ranges.view(-1, 1) / qmax(bits)
    codes = (w / step.masked_fill(step == 0, math.inf)).round().clamp(-qmax(bits), qmax(bits))
    return (w - codes * step).square().sum(1)


def _error(w: Tensor, amax: float, bits: int) -> float:
    return _squared(w, torch.tensor([amax], dtype=torch.float64), bits).item()


def _searched(first: float = 0.01) -> Function:
    """A student's search for the least error, over ranges from `first` to 1 times the largest weight."""

    def function(w: Tensor, bits: int) -> float:
        ranges = torch.linspace(first, 1, 300, dtype=torch.float64) * w.abs().max()
        return ranges[_squared(w, ranges, bits).argmin()].item()

    return function


@task("4.6")
def good_range(student: Any) -> str:
    """Wrong unless the student's ranges have errors within 5 % of the least."""
    small = torch.randn(1500, generator=fresh()) / 40
    heavy = torch.randn(40, 30, generator=fresh()) / torch.rand(40, 30, generator=fresh()).clamp_min(0.02)
    top = (0.8 + torch.rand(1, generator=fresh()) / 5).neg()
    cases = [
        Case("1,500 weights and one of about -0.9, at 4 bits", (torch.cat([small, top]), 4)),
        Case("1,500 weights without an outlier, at 4 bits", (small, 4)),
        Case("the same at 2 bits", (small, 2)),
        Case("1,500 weights and one of about -0.9, at 8 bits", (torch.cat([small, top]), 8)),
        Case("weights of shape (40, 30) with many outliers, at 3 bits", (heavy, 3)),
        Case("two weights of one size, at 4 bits", (top * torch.tensor([-0.3, 0.3]), 4)),
        Case("weights that are all 0", (torch.zeros(3, 2), 4)),
    ]
    got = [result.item() for result in results(converted(student, number), cases)]
    return _scored(got, cases)


def _scored(got: list[float], cases: list[Case]) -> str:
    """Wrong unless each of the ranges `got` is good for its case; a range within 1 % of a mistake's is that mistake."""
    mistakes: dict[str, Function] = {
        "this is max|w|: beside an outlier a smaller range has less error": lambda w, bits: w.abs().max().item(),
        "this is the scale, the distance between two levels: the range is amax, the largest level": (
            lambda w, bits: _searched()(w, bits) / qmax(bits)
        ),
        "this is the error itself: return the range that has it": lambda w, bits: _error(w, _searched()(w, bits), bits),
        "did you search with 4 bits in every case? Fewer levels ask for a smaller range": (
            lambda w, bits: _searched()(w, 4)
        ),
        "did you look at ranges from a half of max|w| on? Beside an outlier the best may be much smaller": (
            _searched(first=0.5)
        ),
    }
    for share in (0.95, 0.99, 0.999):
        mistakes[
            f"did you take the range that holds {100 * share:g} % of the weights? How many to cut depends on how far "
            "out they lie, and on the bits: measure the error"
        ] = lambda w, bits, share=share: w.abs().flatten().quantile(share).item()
    for many in (2, 3, 4):
        mistakes[
            f"did you take {many} standard deviations? That knows neither the outlier nor the bits: measure the error"
        ] = lambda w, bits, many=many: many * w.std().item()
    times = []
    for case, amax in zip(cases, got, strict=True):
        w, bits = case.arguments
        if not math.isfinite(amax) or amax < 0:
            raise Wrong(f"for {case.words} your range is {amax:g}: it should be a finite number, and not negative")
        least = _error(w, _searched()(w, bits), bits)
        hardly = 1e-4 * w.double().square().sum().item()  # where no error at all is possible, nobody has to find it
        times.append(_error(w, amax, bits) / max(least, hardly, 1e-30))
    if max(times) <= 1.05:
        return f"within 5 % of the least error in {len(cases)} of {len(cases)} cases"
    for why, mistake in mistakes.items():
        if all(
            math.isclose(a, mistake(*case.arguments), rel_tol=0.01, abs_tol=1e-9)
            for case, a in zip(cases, got, strict=True)
        ):
            raise Wrong(why)
    at = times.index(max(times))
    raise Wrong(
        f"for {cases[at].words}: the error with your range of {got[at]:.4g} is {times[at]:.3g} times the least; 1.05 "
        "times is allowed"
    )
