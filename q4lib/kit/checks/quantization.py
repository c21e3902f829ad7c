"""Lesson 01's inline checks: a scale and five codes by hand, five numbers through the grid, the bytes of a layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Wrong, shown, task

FIVE = torch.tensor([0.31, -0.84, 0.05, 0.58, -0.20], dtype=torch.float64)
AMAX = 0.63


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Wrong(f"a number is asked for, yours is {shown(value)}") from None


def _five(value: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if len(numbers) != 5:
        raise Wrong(f"five numbers are asked for, one for each weight, yours is {shown(value)}")
    return numbers


def _near(a: Tensor | float, b: Tensor | float) -> bool:
    return bool((torch.as_tensor(a) - torch.as_tensor(b)).abs().max() < 1e-4)


CUT = "did you cut off what follows the point ({})? Round to the nearest: {}"
HALF = "0.58 / 0.12 = 4.83 is nearer to 5 than to 4"
SMALL = "0.05 / 0.09 = 0.56 is nearer to 1 than to 0"


@task("01.a")
def scale_by_hand(value: Any) -> str:
    """The scale of the five numbers at 4 bits."""
    number, top = _number(value), FIVE.abs().max().item()
    likely = {
        top / 8: "did you divide by 8? The largest code is 7, so seven steps lead from 0 to max|w|",
        top / 15: "did you divide by 15? That is the number of levels; from 0 to max|w| there are 7 steps",
        2 * top / 15: "15 levels have 14 steps between them, as 8 posts have 7 gaps",
        0.58 / 7: "did you take the largest number? It is max|w|: the sign does not count, so -0.84 is the largest",
        (0.58 + 0.84) / 14: "did you spread the levels from -0.84 to 0.58? This grid is symmetric: -0.84 to 0.84",
        top: "this is max|w|, the whole range: divide it into 7 steps",
        7 / top: "this is 7 / max|w|; the scale is the other way round",
    }
    for wrong, why in likely.items():
        if abs(number - wrong) < 5e-4:
            raise Wrong(f"{number:.4g}: {why}")
    if abs(number - top / 7) > 5e-4:
        raise Wrong(f"{number:.4g}: the scale is max|w| / 7, and max|w| is {top:g} here")
    return f"{top:g} / 7 = {top / 7:.2f}"


@task("01.b")
def codes_by_hand(value: Any) -> str:
    """The codes of the five numbers at 4 bits."""
    codes, x = _five(value), (FIVE / 0.12).round(decimals=6)
    if _near(codes, x.round()):
        return "each number divided by 0.12 and rounded to the nearest"
    if _near(codes, (FIVE / 0.105).round()) or _near(codes, (FIVE / 0.105).round().clamp(-7, 7)):
        raise Wrong("did you divide max|w| by 8? The scale is 0.84 / 7 = 0.12")
    if _near(codes, x.floor()):
        raise Wrong(CUT.format("`floor`", HALF))
    if _near(codes, x.trunc()):
        raise Wrong(CUT.format("`int` or `trunc`", HALF))
    if _near(codes, x.round().abs()):
        raise Wrong("the codes have signs: a negative number has a negative code")
    if _near(codes, x.round() * 0.12):
        raise Wrong("these are the numbers after rounding; the codes are the integers before × 0.12")
    if not _near(codes, codes.round()):
        raise Wrong("codes are integers: divide by the scale, then round")
    if _near(codes.abs(), x.round().abs()):
        first = int((codes - x.round()).abs().argmax())
        raise Wrong(f"look at the sign of {FIVE[first]:g}: its code has the same sign, yours is {codes[first]:.0f}")
    if codes.abs().max() > 7:
        raise Wrong(f"{codes.abs().max():.0f} is no code: they go from -7 to 7")
    first = int((codes - x.round()).abs().argmax())
    raise Wrong(f"look at {FIVE[first]:g} again: {FIVE[first]:g} / 0.12 = {x[first]:.2f}, yours is {codes[first]:.0f}")


@task("01.c")
def bytes_of_a_layer(value: Any) -> str:
    """Bytes of 147,456 codes of 4 bits."""
    number, weights = _number(value), 128 * 128 * 3 * 3
    likely = {
        weights: "that is one byte a weight: a byte has 8 bits, so two codes fit into it",
        4 * weights: "did you read 4 bits as 4 bytes? FP32 needs that much",
        weights // 4: "one byte holds two codes of 4 bits, not four",
        weights // 8: "that is FP32's bytes over 32, or one bit a weight: 4 bits are half a byte",
        weights // 2 / 1000: "this is in kB; bytes are asked for",
        weights // 2 / 1024: "this is in KiB; bytes are asked for",
    }
    if number in (weights // 2, weights // 2 + 4):
        return f"{weights:,} / 2 = {weights // 2:,}, and 4 more for the FP32 scale; FP32 weights: {4 * weights:,}"
    for wrong, why in likely.items():
        if abs(number - wrong) < 0.01:
            raise Wrong(f"{number:,.10g}: {why}")
    raise Wrong(f"{number:,.10g}: take the {weights:,} weights times 4 bits, and 8 bits a byte")


def _through(step: float, bend: Callable[[Tensor], Tensor] = torch.round, most: float = 7) -> Tensor:
    return bend(FIVE / step).clamp(-most, most) * step


@task("01.d")
def five_through_the_grid(value: Any) -> str:
    """The five numbers quantized and dequantized with amax = 0.63, which cuts one of them."""
    wq, step = _five(value), AMAX / 7
    likely = {
        "-0.84 became -0.81: you forgot to clamp. Its code would be -9, and 4 bits end at -7": _through(step, most=99),
        "did you divide amax by 8? The scale is 0.63 / 7 = 0.09": _through(AMAX / 8),
        "did you divide amax by 8, and let -8 in? The scale is 0.63 / 7, the codes are -7 to 7": _through(
            AMAX / 8, most=8
        ),
        CUT.format("`floor`", SMALL): _through(step, torch.floor),
        CUT.format("`int` or `trunc`", SMALL): _through(step, torch.trunc),
        "these are the codes: multiply them by the scale to come back": _through(step) / step,
        "the range is amax = 0.63 this time, not max|w|": _through(0.12),
        "the numbers are cut at amax, but not rounded": FIVE.clamp(-AMAX, AMAX),
        "did you clamp to -8? The codes are -7 to 7": _through(step).where(FIVE > -AMAX, -8 * step),
        "nothing has been quantized: these are the five numbers": FIVE,
    }
    if _near(wq, _through(step)):
        return "-0.84 is cut to -0.63, the others move by less than half a step"
    for why, wrong in likely.items():
        if _near(wq, wrong):
            raise Wrong(why)
    first = int((wq - _through(step)).abs().argmax())
    raise Wrong(f"{FIVE[first]:g} should become {_through(step)[first]:.2f}, yours is {wq[first]:.4g}")
