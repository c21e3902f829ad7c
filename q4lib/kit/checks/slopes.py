"""Where values are right and gradients may not be: a student's gradient compared with the right one's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import Wrong
from .compare import Case, fresh

Function = Callable[..., Any]

CONSTANT = "the values are right, but for autograd they are constants: no gradient comes back. Did you detach too much?"


def slopes(student: Function, right: Function, cases: Sequence[Case], mistakes: Mapping[str, Function]) -> None:
    """Wrong unless the gradient of the first argument is that of `right`, with random gradients coming from above.

    Each of the `mistakes` is a function with the student's gradient, and the sentence that explains it.
    """
    seeds = [fresh().initial_seed() for _ in cases]
    got = [_gradient(student, case, seed) for case, seed in zip(cases, seeds, strict=True)]
    if any(slope is None for slope in got):
        raise Wrong(CONSTANT)

    def differing(function: Function) -> list[int]:
        expected = [_gradient(function, case, seed) for case, seed in zip(cases, seeds, strict=True)]
        return [i for i, slope in enumerate(got) if not torch.allclose(slope, expected[i], rtol=1e-4, atol=1e-5)]

    if not (wrong := differing(right)):
        return
    for why, mistake in mistakes.items():
        if not differing(mistake):
            raise Wrong(why)
    case, mine, its = cases[wrong[0]], got[wrong[0]], _gradient(right, cases[wrong[0]], seeds[wrong[0]])
    at = int((mine - its).abs().nan_to_num(torch.inf).argmax())
    weight, its, mine = (tensor.flatten()[at].item() for tensor in (case.arguments[0], its, mine))
    raise Wrong(
        f"the values are right, the gradient is not: for {case.words}, at {weight:.4g} it should be {its:.4g} "
        f"(the gradients that come from above are random), yours is {mine:.4g}"
    )


def _gradient(function: Function, case: Case, seed: int) -> Any:
    """The gradient of the first argument; None if the result has none."""
    first, *rest = case.arguments
    leaf = first.detach().clone().requires_grad_()
    with torch.enable_grad():
        result = function(leaf, *rest)
        if not result.requires_grad:
            return None
        above = torch.rand(result.shape, generator=torch.Generator().manual_seed(seed)).to(result) + 0.5
        (slope,) = torch.autograd.grad((result * above).sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if slope is None else slope
