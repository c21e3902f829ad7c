"""What the checks of exercises share: fresh inputs, a student's function called on them, its results compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import NotYet, Wrong, shown


@dataclass(frozen=True)
class Case:
    """One call of a student's function: its arguments, and what they are, in words."""

    words: str
    arguments: tuple[Any, ...]

    def call(self, function: Callable[..., Any]) -> Any:
        """What `function` gives for copies of the arguments. Wrong if it changes them."""
        given = [a.clone() if isinstance(a, Tensor) else a for a in self.arguments]
        result = function(*given)
        for number, (before, after) in enumerate(zip(self.arguments, given, strict=True), 1):
            if isinstance(before, Tensor) and not _same(after, before):
                raise Wrong(
                    f"it changes the tensor it is given (argument {number}): do without `a *= b` and without methods "
                    "whose name ends in `_`, which work in place"
                )
        return result


def fresh() -> torch.Generator:
    """A generator that the student's seed does not decide."""
    generator = torch.Generator()
    generator.seed()
    return generator


def weights(*shape: int, bits: int = 4, dtype: torch.dtype = torch.float32, negative: bool = False) -> Tensor:
    """Random weights whose largest is `negative` or not. None lies near a rounding boundary of its own grid.

    Right answers may differ in the last bit of a scale; so they round alike.
    """
    generator, largest = fresh(), 2 ** (bits - 1) - 1
    codes = torch.randint(-largest, largest + 1, shape, generator=generator).double()
    codes += 0.8 * torch.rand(shape, dtype=torch.float64, generator=generator) - 0.4
    flat = codes.clamp_(0.1 - largest, largest - 0.1).view(-1)
    at = int(torch.randint(flat.numel(), (1,), generator=generator))
    flat[at] = -largest if negative else largest
    step = 0.02 + torch.rand(1, dtype=torch.float64, generator=generator)
    return (codes * step).to(dtype)


def compare(
    student: Any,
    right: Callable[..., Tensor],
    cases: Sequence[Case],
    mistakes: Mapping[str, Callable[..., Any]],
    at_most: bool = False,
) -> str:
    """Wrong unless `student` gives what `right` gives in each case. `at_most` is for its words alone.

    Each of the `mistakes` is a function with the sentence that explains it. A student who gets in every case what it
    gets has made it; where none fits, the sentence shows the first case that differs.
    """
    got = results(student, cases)
    expected = [case.call(right) for case in cases]
    differs = [i for i in range(len(cases)) if not _same(got[i], expected[i])]
    if not differs:
        return f"{len(cases)} of {len(cases)} cases"
    for why, mistake in mistakes.items():
        if all(_same(got[i], _attempt(case, mistake)) for i, case in enumerate(cases)):
            raise Wrong(why)
    first = differs[0]
    raise Wrong(f"for {cases[first].words}: {_difference(got[first], expected[first], cases[first], at_most)}")


def results(student: Any, cases: Sequence[Case]) -> list[Any]:
    """What a student's function gives in each case. NotYet if that is None in the first, Wrong if in another."""
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")
    got = []
    for case in cases:
        try:
            got.append(case.call(student))
        except Exception as error:
            error.add_note(f"({case.words})")
            raise
        if got[-1] is None and len(got) == 1:
            raise NotYet("your function returns None")
        if got[-1] is None:
            raise Wrong(f"for {case.words} it returns None: does each way through it end in a `return`?")
    return got


def _attempt(case: Case, mistake: Callable[..., Any]) -> Any:
    try:
        return case.call(mistake)
    except Exception:  # it works in place, or for some of the shapes only
        return None


def _same(a: Any, b: Any) -> bool:
    """Tensors of one shape and type whose numbers differ by rounding at most."""
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return both and (a.shape, a.dtype) == (b.shape, b.dtype) and _near(a, b)


def _near(a: Tensor, b: Tensor) -> bool:
    eps = max(torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0 for t in (a, b))
    return torch.allclose(a.detach().double(), b.detach().double(), rtol=32 * eps, atol=0, equal_nan=True)


def _difference(got: Any, expected: Tensor, case: Case, at_most: bool) -> str:
    if not isinstance(got, Tensor):
        return f"a tensor is asked for, yours is of type {type(got).__name__}"
    if got.shape != expected.shape:
        return f"the shape should be {tuple(expected.shape)}, yours is {tuple(got.shape)}"
    got = got.detach()
    if got.is_floating_point() and got.isnan().any():
        return "yours has nan in it, which is what 0 / 0 gives"
    at = int((got.double() - expected.double()).abs().nan_to_num(torch.inf).argmax())
    mine, its = got.flatten()[at].item(), expected.flatten()[at].item()
    if got.dtype != expected.dtype and _near(got, expected):
        return f"the numbers are right; their type should be {expected.dtype}, yours is {got.dtype}"
    if not expected.dim():
        return f"{'at most ' if at_most else ''}{its:.5g} is asked for, yours is {mine:.5g}"
    inputs = case.arguments[0]
    if isinstance(inputs, Tensor) and inputs.shape == expected.shape:
        return f"{inputs.flatten()[at].item():.5g} should become {its:.5g}, yours becomes {mine:.5g}"
    return f"number {at + 1} of {expected.numel()} should be {its:.5g}, yours is {mine:.5g}"
