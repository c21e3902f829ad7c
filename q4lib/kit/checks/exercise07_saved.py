"""Exercise 07, second half: a counter of saved bytes, a ReLU that keeps bits, where to cut a chain of layers."""

import math
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from . import Wrong, shown, task
from .compare import Case, compare, fresh
from .exercise07 import batch, size
from .plain import Function, converted, number
from .slopes import slopes

BUGS = {  # the colleague's four
    "twice": "a tensor that two layers save",
    "part": "a tensor that is a part of another",
    "floats": "whole numbers",
    "before": "what was there before",
}
HALF = {  # mended half way
    "ids": "id() tells Python's objects apart, and several may lie in one storage: the storage's place tells those",
    "ids before": "`before` is a list of Python's objects: what is saved may be others in the same storages, so ask "
    "these for their places",
    "tensors": "a part of a tensor may lie in another place than the whole: ask what is saved for its storage's place",
    "tensors before": "ask the tensors of `before` for their storages' places: a batch may be a part of a data set",
    "four": "not every number has four bytes, and a part keeps the whole storage: ask that for its nbytes()",
}
WAYS = (
    ("", "twice", "ids", "tensors"),
    ("", "part", "four"),
    ("", "floats"),
    ("", "before", "ids before", "tensors before"),
)


def _saved(step: Function, before: list[Tensor], bugs: tuple[str, ...] = ()) -> int:
    """Bytes saved by a step, or what a student takes for them: `bugs` names what is wrong."""

    def named(where: str) -> Function:
        if f"ids{where}" in bugs:
            return id
        return Tensor.data_ptr if f"tensors{where}" in bugs else lambda tensor: tensor.untyped_storage().data_ptr()

    key, old = named(""), named(" before")
    looked_up = old if old is id or {"twice", "ids"} & {*bugs} else key
    there = {old(tensor) for tensor in before}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        new = "before" in bugs or looked_up(tensor) not in there
        if new and (tensor.is_floating_point() or "floats" not in bugs):
            at = len(sizes) if "twice" in bugs else key(tensor)
            whole = tensor.untyped_storage().nbytes()
            sizes[at] = 4 * tensor.numel() if "four" in bugs else tensor.nbytes if "part" in bugs else whole
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def _steps() -> list[Case]:
    """Forward passes, each with what was there before it."""
    n = size()
    model = nn.Sequential(nn.Conv2d(3, n, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9 * n, 2))
    data, x = batch(8, 3, 8, 8), batch(2 * n, 10)
    images, w = data[4:], batch(10, 7).requires_grad_()
    maps, start = batch(2, n, 6, 6, dtype=torch.float64).requires_grad_(), batch(4, 3 * n).requires_grad_()

    def two_readers() -> Tensor:
        y = 2 * start
        loss = (y * y).sum() + y.flatten().square().sum()
        loss.backward()
        return loss

    def two_parts() -> Tensor:
        y = 2 * start
        return y[:, :2].square().sum() + y[2:, :4].square().sum()

    def pooled() -> Tensor:
        return F.max_pool2d(2 * maps, 2).sum()

    return [
        Case("a small network", (lambda: model(images).sum(), [*model.parameters(), images])),
        Case("a whole step, with a tensor that two layers save", (two_readers, [start])),
        Case("a part of a tensor", (lambda: (2 * start)[:, :2].square().sum(), [start])),
        Case("two parts of one tensor", (two_parts, [start])),
        Case("a row seen as many", (lambda: (2 * start[0]).expand(20, -1).square().sum(), [start])),
        Case("max pooling in float64", (pooled, [maps])),
        Case("a weight, and a part of the images", (lambda: (x[1:] @ w).exp().sum(), [x, w])),
    ]


def _left(bugs: tuple[str, ...]) -> str:
    """What is wrong in a counter with these bugs."""
    places, half = [BUGS[bug] for bug in bugs if bug in BUGS], [HALF[bug] for bug in bugs if bug in HALF]
    are = "is" if len(places) == 1 else "are"
    count = [f"{len(places)} of the four bugs {are} left: look at {', and at '.join(places)}"] if places else []
    return "; and ".join(count + half)


@task("7.5")
def saved_bytes(student: Any) -> str:
    """The bytes of the storages that a step saves, without those that were there before."""
    ways = [tuple(filter(None, bugs)) for bugs in product(*WAYS)]
    mistakes: dict[str, Function] = {_left(bugs): partial(_saved, bugs=bugs) for bugs in sorted(ways, key=len) if bugs}
    wrong = {why: converted(mistake, number) for why, mistake in mistakes.items()}
    return compare(converted(student, number), converted(_saved, number), _steps(), wrong)


class _Ones(torch.autograd.Function):
    """ReLU whose gradient is 1 or 0, whatever comes from above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return positive.to(grads[0])


@task("7.6")
def bit_relu(student: Any) -> str:
    """ReLU and its gradient, for one bit a number."""
    values: dict[str, Function] = {
        "these are the numbers you were given: negative ones should become 0": lambda x: x.clone(),
        "these are the truth values: the positive numbers themselves are asked for": lambda x: (x > 0).to(x),
        "the truth values are to be kept; what comes out are the numbers": lambda x: x > 0,
        "negative numbers become 0, they do not change their sign": lambda x: x.abs(),
        "positive numbers stay as they are: nothing ends at 1 or 6": lambda x: x.clamp(0, 1),
        "that keeps the negative numbers": lambda x: x.clamp(max=0),
    }
    gradients: dict[str, Function] = {
        "the values are right, but the gradient passes everywhere: only where x was positive it should": lambda x: x,
        "the values are right, but no gradient passes: where x was positive it should": lambda x: 0 * x,
        "the values are right; at 0 the gradient should be 0, so take x > 0 and not x >= 0": (
            lambda x: x.where(x >= 0, 0)
        ),
        "the values are right, but the gradient is 1, whatever came from above: multiply by `grad`": _Ones.apply,
        "the values are right, but the gradient passes where x was not positive: the other way round": (
            lambda x: x.where(x <= 0, 0)
        ),
        "the values are right, but the gradient is multiplied by x: multiply by True or False": (
            lambda x: x.clamp(min=0).square() / 2
        ),
    }
    cases = [
        Case("13 numbers", (batch(13),)),
        Case("a batch of maps", (batch(2, size(), 5, 5),)),
        Case("numbers in float64", (9 * batch(3, 7, dtype=torch.float64),)),
        Case("integers, as floats", (torch.tensor([-2.0, 0.0, 5.0, 0.0, 1.0]),)),
        Case("negative numbers alone", (-batch(6).abs() - 0.1,)),
    ]
    answer = compare(student, torch.relu, cases, values)
    try:
        slopes(student, torch.relu, cases, gradients)
    except (AttributeError, TypeError) as error:
        if "tuple" not in str(error):
            raise
        raise Wrong(
            "`ctx.saved_tensors` is a tuple, even with one tensor in it: take that out, `(bits,) = ctx.saved_tensors`"
        ) from None
    for case in cases:
        x = case.arguments[0].clone().requires_grad_()
        kept = _saved(lambda x=x: student(x), [])
        few, n = -(-x.numel() // 8), x.numel()
        if not kept:
            raise Wrong(
                "values and gradients are right, but what you keep is not in ctx.save_for_backward: neither autograd "
                "nor the lesson's counter sees it elsewhere"
            )
        if kept == n:
            raise Wrong(f"of {n} numbers it keeps {n} bytes: a truth value takes a byte. pack_bits makes {few} of them")
        if kept >= x.nbytes:
            raise Wrong(
                f"values and gradients are right, but of {n} numbers it keeps {kept} bytes, the numbers themselves: "
                f"one bit each is enough, {few} bytes"
            )
        if kept != few:
            raise Wrong(f"of {n} numbers it keeps {kept} bytes: one bit each is enough, {few} bytes")
    return f"{answer}, one bit a number"


Inputs = list[int]


def _most(inputs: Inputs, begins: Inputs, count: str = "before") -> int:
    """The most bytes at once of a plan; with `count` "all", as if the first inputs of later segments were there."""
    ends = [*begins[1:], len(inputs)]
    firsts = [inputs[begin] for begin in begins]
    pieces = [sum(inputs[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    if count == "all":
        return max(sum(firsts) - first + piece for first, piece in zip(firsts, pieces, strict=True))
    return max(sum(firsts[:i]) + piece for i, piece in enumerate(pieces))


def _even(inputs: Inputs, length: int) -> Inputs:
    return list(range(0, len(inputs), length))


def _best_even(inputs: Inputs, count: str = "before") -> Inputs:
    plans = [_even(inputs, length) for length in range(1, len(inputs) + 1)]
    return min(plans, key=lambda begins: _most(inputs, begins, count))


def _least(inputs: Inputs) -> int:
    """The fewest bytes at once that any plan reaches."""

    def fits(limit: int) -> bool:
        firsts = [0, *[sum(inputs)] * len(inputs)]  # the least sum of first inputs before a cut at each place
        for begin, first in enumerate(inputs):
            for end in range(begin + 1, len(inputs) + 1):
                if firsts[begin] + sum(inputs[begin:end]) <= limit:
                    firsts[end] = min(firsts[end], firsts[begin] + first)
        return firsts[-1] < sum(inputs)

    return next(limit for limit in range(max(inputs), sum(inputs) + 1) if fits(limit) or limit == sum(inputs))


def _scored(function: Any) -> Any:
    """The most bytes of a student's plan; one that does better than segments of one length is as good as they."""
    if not callable(function):
        return function

    def most(inputs: Inputs) -> Tensor | None:
        result = function(list(inputs))
        if result is None:
            return None
        try:
            begins = [int(place) for place in result]
        except (TypeError, ValueError):
            raise Wrong(f"a list of places is asked for, such as [0, 4, 8], yours is {shown(result)}") from None
        if begins[:1] != [0]:
            raise Wrong(f"the first segment begins at 0, your places are {shown(begins)}")
        if begins != sorted(set(begins)) or begins[-1] >= len(inputs):
            raise Wrong(f"places go up, and end before {len(inputs)}, the number of layers; yours are {shown(begins)}")
        return number(max(_most(inputs, begins), _most(inputs, _best_even(inputs))))

    return most


@task("7.7")
def plan(student: Any) -> str:
    """Where to cut a chain of layers, so that few bytes are kept at once."""
    mistakes: dict[str, Function] = {
        "all inputs are there at once: in one segment when it runs again, and in a segment for each layer because "
        "nothing is dropped": lambda inputs: [0],
        "the root of the number of layers is the best length where all inputs have one size: try all lengths": (
            lambda inputs: _even(inputs, round(math.sqrt(len(inputs))))
        ),
        "the root of the number of layers is the best length where all inputs have one size, and is to be rounded up "
        "or down: try all lengths": lambda inputs: _even(inputs, math.ceil(math.sqrt(len(inputs)))),
        "that is two segments: sometimes more are better": lambda inputs: (
            [0, len(inputs) // 2] if len(inputs) > 1 else [0]
        ),
        "the first inputs of later segments are gone when an early one runs again: count those before it": (
            lambda inputs: _best_even(inputs, "all")
        ),
    }
    drawn = torch.randint(5, 90, (2, 14), generator=fresh()).tolist()
    vgg = [12, 256, 64, 128, 32, 64, 64, 16, 32, 32, 8, 8, 8]
    chains = {
        "12 layers of one size": [size()] * 12,
        "14 layers of one size": [10] * 14,
        "layers that get smaller, as in VGG": vgg,
        "layers that get larger": vgg[::-1],
        "layers that get much smaller": [2**i for i in range(9, -1, -1)],
        "layers that get much larger": [2**i for i in range(10)],
        "11 layers": drawn[1][:11],
        "two layers": [5, 9],
        "one layer": [7],
        "14 layers": drawn[0],
    }
    cases = [Case(f"{words}, the most bytes at once", (inputs,)) for words, inputs in chains.items()]
    wrong = {why: _scored(mistake) for why, mistake in mistakes.items()}
    answer = compare(_scored(student), _scored(_best_even), cases, wrong, at_most=True)
    inputs = drawn[0]
    mine = _most(inputs, [int(place) for place in student(list(inputs))])
    return (
        f"{answer}; of {sum(inputs)} bytes of {len(inputs)} layers yours keeps {mine}, the best plan {_least(inputs)}"
    )
