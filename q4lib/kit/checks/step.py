"""Lesson 05's inline checks: the clip, AdamW, the soft clip and the memory of one training step, by hand."""

from math import hypot, sqrt, tanh
from typing import Any

from . import COMMA, Wrong, shown, task


def compare_number(value: Any, right: float, likely: dict[float, str], otherwise: str, tolerance: float) -> None:
    """Wrong, with the reason for a `likely` mistake, unless `value` is the `right` number."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"one number is asked for, yours is {shown(value)}{COMMA * isinstance(value, tuple)}") from None
    if abs(number - right) <= tolerance:
        return
    for mistaken, why in likely.items():
        if abs(number - mistaken) <= tolerance * max(1, abs(mistaken)):  # 83.9, rounded, is 83.904 in percent
            raise Wrong(f"{_told(number)}: {why}")
    if number == float(f"{right:.2g}") and not float(right).is_integer():  # a count is right or wrong
        raise Wrong(f"{_told(number)} is right as far as it goes: round less, to three digits")
    raise Wrong(f"{_told(number)} is too {'large' if number > right else 'small'}: {otherwise}")


def _told(number: float) -> str:
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e15 else f"{number:.4g}"


@task("05.a")
def clip_factor(value: Any) -> str:
    """What multiplies the gradients of three tensors, of norms 3, 4 and 12, when the global norm is clipped to 0.5."""
    right = 0.5 / hypot(3, 4, 12)
    likely = {
        0.5 / 3: "that clips the first tensor on its own: one norm is taken over all three",
        0.5 / 4: "that clips the second tensor on its own: one norm is taken over all three",
        0.5 / 12: "that clips the third tensor on its own: one norm is taken over all three",
        0.5 / 19: "norms do not add: add their squares, then take the root",
        0.5 / 169: "that is the squared norm: take the root of 9 + 16 + 144",
        hypot(3, 4, 12): "that is the global norm: by what must it be multiplied to become 0.5?",
        2 * hypot(3, 4, 12): "upside down: the gradients must get shorter",
        0.5: "that is the length afterwards: by what must the length before be multiplied?",
    }
    compare_number(value, right, likely, "take one norm over all three tensors, then 0.5 over it", 5e-5)
    return "the norm is 13, and every gradient, in whichever tensor, is multiplied by 0.5 / 13"


def _two_steps(by: str = "") -> float:
    """AdamW's weight after two steps from w = 2, with gradients 0.3 and -0.1, rate 0.1, decay 0.5; `by` a mistake."""
    w, m, v, rate, decay = 2.0, 0.0, 0.0, 0.1, 0.5
    for step, g in enumerate((0.3, -0.1), start=1):
        if by == "decay in the gradient":
            g += decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = 1 if by == "corrected as in step 1" else step
        first, second = (1.0, 1.0) if by == "uncorrected" else (1 - 0.9**step, 1 - 0.999**step)
        update = m / first / (v / second if by == "no root" else sqrt(v / second))
        if by == "decay last":
            w = (w - rate * update) * (1 - rate * decay)
        else:
            w *= 1.0 if by in ("no decay", "decay in the gradient") else 1 - rate * decay
            w += rate * update if by == "uphill" else -rate * update
    return w


@task("05.b")
def second_step(value: Any) -> str:
    """One weight after two steps of AdamW."""
    mistakes = {
        "decay in the gradient": "the weight decay went into the gradient, where Adam divides it away again: "
        "in AdamW it is decoupled, w is multiplied by 1 - rate × decay",
        "uncorrected": "the bias correction is missing: divide m by 1 - 0.9**t and v by 1 - 0.999**t",
        "corrected as in step 1": "the bias correction of step 2 divides by 1 - 0.9**2 and 1 - 0.999**2",
        "no decay": "the weight decay is missing: w is also multiplied by 1 - rate × decay in each step",
        "decay last": "nearly: AdamW shrinks the weight as it is before the update, not after it",
        "no root": "v is a mean of squares: divide by its root",
        "uphill": "that goes uphill: the update is subtracted",
    }
    likely = {_two_steps(by): why for by, why in mistakes.items()}
    likely[2 * (1 - 0.1 * 0.5) - 0.1] = "that is w after the first step: take the second too"
    otherwise = "print m, v and w after step 1: they should be 0.03, 0.00009 and 1.8"
    compare_number(value, _two_steps(), likely, otherwise, 5e-4)
    return "m still remembers the first gradient: w went on downwards, against the second one"


@task("05.c")
def whole_step(value: Any) -> str:
    """A weight of 2 after its first whole step: gradient -4, rate 0.1, decay 0.1, clip 0.5, soft clip 3."""
    after = 2 * (1 - 0.1 * 0.1) + 0.1
    right = 3 * tanh(after / 3)
    likely = {
        3 * tanh(2 / 3) * (1 - 0.1 * 0.1) + 0.1: "the soft clip came before the step: it comes last",
        after: "the soft clip is missing: it moves weights below 3 too",
        3 * tanh((2 * 0.99 - 0.1) / 3): "the gradient is negative, so that the weight must grow",
        3 * tanh((2 * 0.99 + 0.05) / 3): "the rate was multiplied by the clipped gradient: Adam divides its size away",
        3 * tanh((2 * 0.99 + 0.4) / 3): "the rate was multiplied by the gradient: Adam divides its size away",
        3 * tanh(2.1 / 3): "the weight decay is missing: w is multiplied by 1 - rate × decay",
        3 * tanh(2.1 * 0.99 / 3): "the decay comes before the update: 2 × 0.99 + 0.1, not 2.1 × 0.99",
        3 * tanh(2 / 3): "that is the soft clip alone: decay and update come before it",
    }
    compare_number(value, right, likely, "decay: 2 × 0.99; update: 0.1 against the gradient; then 3 tanh(w / 3)", 5e-4)
    return "the soft clip took off more than the update had added"


@task("05.d")
def bytes_a_parameter(value: Any) -> str:
    """Bytes that stay in memory from step to step, or within it, for one parameter: masters, gradient, m, v."""
    likely = {
        12.5: "that counts the weight as its code, half a byte: the FP32 master weight stays",
        4: "that is the master weight alone: its gradient, m and v have its shape",
        0.5: "that is the packed file: training keeps the master weight, the gradient, m and v",
        2: "four numbers of 4 bits: but all four are FP32",
        8: "that is two numbers: master weight, gradient, m and v are four",
        12: "one of the four is missing: master weight, gradient, m, v",
        16.5: "the code is not kept: it is made from the master weight in every forward pass",
        20: "the weight on its grid is made anew in every forward pass: leave it out here",
        128: "these are bits: 8 of them make a byte",
    }
    compare_number(value, 16, likely, "count the FP32 numbers that one parameter needs, 4 bytes each", 1e-6)
    return "four FP32 numbers a parameter, as in training without a grid"
