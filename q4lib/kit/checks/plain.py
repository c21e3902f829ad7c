"""Students' functions that return a number, or several things, in the form that `compare` compares."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Wrong, shown

Function = Callable[..., Any]


def converted(student: Any, convert: Callable[[Any], Any]) -> Any:
    """`student` with its result, unless that is None, through `convert`."""
    if not callable(student):
        return student

    def function(*arguments: Any) -> Any:
        result = student(*arguments)
        return None if result is None else convert(result)

    return function


def number(result: Any) -> Tensor:
    """A number, or a tensor with one, as FP32 without dimensions: two right ways to it may differ in FP64."""
    try:
        return torch.tensor(float(result))
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"one number is asked for, yours is {shown(result)}") from None


def near(student: Any, right: Callable[..., Tensor], tolerance: float) -> Any:
    """`student` with what is right in place of what is nearly so, within `tolerance` times its largest number."""
    if not callable(student):
        return student

    def function(*arguments: Any) -> Any:
        result = student(*arguments)
        expected = None if result is None else right(*arguments)
        if not isinstance(result, Tensor) or not isinstance(expected, Tensor) or result.shape != expected.shape:
            return result
        largest = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0
        close = torch.allclose(result.detach().to(expected), expected, rtol=0, atol=tolerance * largest)
        return expected if close else result

    return function
