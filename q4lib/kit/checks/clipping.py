"""Lesson 04's inline checks: what rounds to zero, the soft clip, where it begins to bite, how long a decay takes."""

import math
from typing import Any

import torch

from . import Wrong, shown, task

BEFORE, C = (0.1, 0.9, -3.0, 30.0), 3.0


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Wrong(f"a number is asked for, yours is {shown(value)}") from None


def _compare(value: Any, right: float, likely: dict[float, str], otherwise: str, tolerance: float = 0.015) -> None:
    """Wrong, with the reason for the `likely` mistake that `value` is, unless it is `right` within the tolerance."""
    number = _number(value)
    if math.isclose(number, right, rel_tol=tolerance):
        return
    for mistake, why in likely.items():
        if math.isclose(number, mistake, rel_tol=tolerance):
            raise Wrong(f"{number:,.4g}: {why}")
    raise Wrong(f"{number:,.4g} is too {'large' if number > right else 'small'}: {otherwise}")


@task("04.a")
def zero(value: Any) -> str:
    """The |w| below which a weight rounds to 0, at 4 bits under an outlier of 0.9."""
    likely = {
        0.9 / 7: "that is a whole step; a weight goes to the nearest level, so only half of it counts",
        0.9 / 15: "15 levels have 14 steps between them, not 15",
        1.8 / 15: "15 levels have 14 steps between them, and only half a step rounds to 0",
        0.9 / 8: "did you divide by 8? The largest code is 7; and only half a step rounds to 0",
        0.9 / 16: "did you divide by 8? The largest code is 7",
    }
    _compare(value, 0.9 / 14, likely, "the step is 0.9 / 7, and a weight goes to the nearest level", 0.006)
    return "half a step; the figure shows how many weights lie below it"


@task("04.b")
def soft(value: Any) -> str:
    """0.1, 0.9, -3 and 30 through the soft clip with c = 3."""
    try:
        clipped = torch.as_tensor(value, dtype=torch.float32).detach().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"a tensor of four numbers is asked for, yours is {shown(value)}") from None
    if len(clipped) != len(BEFORE):
        raise Wrong(f"w has {len(BEFORE)} numbers, yours has {len(clipped)}")
    w = torch.tensor(BEFORE)
    mistakes = {
        "nothing happened to w": w,
        "that is the hard clip: 0.9 stays 0.9 and 30 becomes exactly 3": w.clamp(-C, C),
        "tanh alone ends at 1: divide by c before it, and multiply by c after it": w.tanh(),
        "it ends at 1, not at c: multiply by c after the tanh": (w / C).tanh(),
        "0.1 has grown to three times its size: divide by c before the tanh": C * w.tanh(),
        "the factors are swapped: divide by c before the tanh, multiply after it": (C * w).tanh() / C,
        "multiply by c after the tanh, where you divide": (w / C).tanh() / C,
    }
    if torch.allclose(clipped, C * (w / C).tanh(), rtol=0, atol=0.0015):
        return "0.1 hardly moved, 0.9 became 0.87, and 30 ends at 3"
    for why, mistake in mistakes.items():
        if torch.allclose(clipped, mistake, rtol=0, atol=0.0015):
            raise Wrong(why)
    at = int((clipped - C * (w / C).tanh()).abs().argmax())
    raise Wrong(f"{BEFORE[at]:g} becomes {clipped[at]:.4g} in yours: it should be 3 tanh({BEFORE[at]:g} / 3)")


@task("04.c")
def one_percent(value: Any) -> str:
    """The |w| at which the soft clip with c = 0.3 takes 1 % off: 0.1738 c, since tanh(0.1738) / 0.1738 = 0.99."""
    share = 0.1738
    likely = {
        share * 3: "that is the place for c = 3; how does it move with c?",
        share * 30: "a smaller c begins earlier, not later",
        share: "that is the place for c = 1; it moves with c",
        0.3: "that is c itself: there the soft clip takes 24 %",
        0.03: "that is c / 10; the figure says where it is for other c, and it moves in proportion",
        0.003: "that is 1 % of c; asked for is the weight of which 1 % is taken",
    }
    why = "read two places off the figure, for two values of c: they move in proportion"
    _compare(value, share * 0.3, likely, why, 0.03)
    return "it begins long before c, at about c / 6"


@task("04.d")
def halved(value: Any) -> str:
    """Steps in which the soft clip alone, c = 3, halves a weight of 0.1: (1/0.05² - 1/0.1²) · 27 / 2."""
    likely = {
        0.05 / (0.1**3 / 27): "that keeps the first step's amount, but the weight shrinks, and with it what is taken",
        math.log(2) * 27 / 0.01: "that keeps the first step's share, but the share is w² / 27, and w shrinks",
        300: "300 is what 2n / 27 must reach; solve for n",
        300 * 27: "the formula has 2n / 27, you took n / 27",
        400 * 27 / 2: "you took 1 / 0.05² alone: 1 / 0.1² was there at the start",
    }
    _compare(value, 300 * 27 / 2, likely, "set the formula to 0.05: 1 / 0.05² = 1 / 0.1² + 2n / 27")
    return "about ten epochs of CIFAR-10, at 391 steps each"
