"""Lesson 00's inline check: different numbers in a layer of the shipped model."""

from typing import Any

from torch import Tensor

from ...pack import load_model
from .. import asset
from . import Wrong, shown, task


@task("00.a")
def different(value: Any) -> str:
    """How many different numbers `conv1_2.weight` of the shipped 4-bit model holds."""
    weight = load_model(asset("fast-cifar10-b4-s0/model.safetensors"))[0].get_parameter("conv1_2.weight")
    right = len(weight.unique())
    if isinstance(value, Tensor) and value.numel() > 1:
        raise Wrong("these are the numbers themselves: how many are there? len(...) counts them")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Wrong(f"a number is asked for, yours is {shown(value)}") from None
    if number == weight.numel():
        raise Wrong(f"{number:,.0f} is how many weights there are: most of them are equal to others")
    if number == 16:
        raise Wrong("4 bits can tell 16 things apart, but count what is there: `unique()` lists each number once")
    if number != right:
        raise Wrong(f"not {number:g}: `unique()` lists each number once, and `len(...)` counts the list")
    return f"{weight.numel():,} weights share {right} of 15 possible numbers"
