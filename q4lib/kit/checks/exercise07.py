"""Exercise 07, first half: the bytes of a layer for a moment and until backward, the peak of a list, the pieces."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import Wrong, shown, task
from .compare import Case, compare, fresh
from .plain import Function, converted, number


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers of both signs."""
    return torch.randn(shape, generator=fresh()).to(dtype)


def size() -> int:
    """A side or a number of channels, between 3 and 6."""
    return int(torch.randint(3, 7, (), generator=fresh()))


def _compared(student: Any, right: Function, cases: list[Case], bugs: Mapping[str, Any]) -> str:
    """`compare` for functions that return a number. A bug is a function, or what `right` takes as `bugs`."""
    wrong = {why: bug if callable(bug) else partial(right, bugs=bug) for why, bug in bugs.items()}
    wrong = {why: converted(mistake, number) for why, mistake in wrong.items()}
    return compare(converted(student, number), converted(right, number), cases, wrong)


@task("7.1")
def temporary(student: Any) -> str:
    """The bytes of a layer's input and of its output."""
    mistakes: dict[str, Function] = {
        "these are numbers: multiply by the bytes of each, its element_size()": (
            lambda layer, x: x.numel() + layer(x).numel()
        ),
        "it is right for float32 only: element_size() knows the bytes of a number": (
            lambda layer, x: 4 * (x.numel() + layer(x).numel())
        ),
        "that is what the layer reads: what it writes must be there, too": lambda layer, x: x.nbytes,
        "that is what the layer writes: what it reads must be there, too": lambda layer, x: layer(x).nbytes,
        "a layer need not write as much as it reads: its output is layer(x)": lambda layer, x: 2 * x.nbytes,
        "that is the larger of the two: both are there at the same time": (
            lambda layer, x: max(x.nbytes, layer(x).nbytes)
        ),
        "the weights are there anyway: leave them out": (
            lambda layer, x: x.nbytes + layer(x).nbytes + sum(p.nbytes for p in layer.parameters())
        ),
        "that is for one image of the batch": lambda layer, x: (x.nbytes + layer(x).nbytes) / len(x),
        "that is the memory paper's way, as if a layer in groups wrote one group's share: all of it is written": (
            lambda layer, x: x.nbytes + layer(x).nbytes // getattr(layer, "groups", 1)
        ),
    }
    channels = size()
    cases = [
        Case("a convolution with stride 2", (nn.Conv2d(3, 8, 3, 2, 1), batch(2, 3, 9, 4 + size()))),
        Case("a depthwise convolution", (nn.Conv2d(channels, channels, 3, groups=channels), batch(3, channels, 8, 8))),
        Case("a linear layer in float64", (nn.Linear(7, 8 + size()).double(), batch(size(), 7, dtype=torch.float64))),
        Case("a ReLU", (nn.ReLU(), batch(2, size(), 5, 5))),
        Case("max pooling", (nn.MaxPool2d(2), batch(1, 4, 6, 2 * size()))),
    ]
    return _compared(student, lambda layer, x: x.nbytes + layer(x).nbytes, cases, mistakes)


def _kept(layer: nn.Module, x: Tensor, gradient: bool, bugs: str = "") -> float:
    """What a layer must keep, or what a student takes for it: `bugs` names what is wrong."""
    if "nothing before" in bugs and not gradient:
        return 0
    if isinstance(layer, nn.ReLU):
        n = x.numel()
        ways = {"whole": x.nbytes, "byte a bit": n, "rounded down": n // 8, "fraction": n / 8}
        passes = gradient or "always" in bugs or "relu regardless" in bugs
        return next((size for bug, size in ways.items() if bug in bugs), -(-n // 8)) if passes else 0
    if isinstance(layer, nn.MaxPool2d):
        y = layer(x)
        ways = {"pool reads": x.numel(), "pool floats": y.nbytes, "places": 8 * y.numel(), "pool bits": y.numel() // 8}
        passes = gradient or "always" in bugs or "pool regardless" in bugs
        return next((size for bug, size in ways.items() if bug in bugs), y.numel()) if passes else 0
    weight = getattr(layer, "weight", None)
    if weight is None:
        return x.nbytes if "others" in bugs else 0
    if not weight.requires_grad and "frozen" not in bugs:
        return x.nbytes if "bias" in bugs and layer.bias is not None and layer.bias.requires_grad else 0
    counted = layer(x) if "output" in bugs else x
    return 4 * x.numel() if "four" in bugs else counted.numel() if "numbers" in bugs else counted.nbytes


def _frozen(layer: nn.Module, bias: bool = False) -> nn.Module:
    """A layer in eval mode without a parameter that trains, or with a `bias` that does."""
    for name, parameter in layer.eval().named_parameters():
        parameter.requires_grad_(bias and name == "bias")
    return layer


@task("7.2")
def kept(student: Any) -> str:
    """The bytes that a layer must keep for the backward pass."""
    mistakes = {
        "a frozen layer keeps nothing": "frozen",
        "the bias's gradient needs nothing but what comes back from above: only a weight that trains keeps the "
        "input": "bias",
        "a layer whose weight trains keeps its input, whether or not anything before it trains: `gradient` is for "
        "ReLU and max pooling": "nothing before",
        "where no gradient passes, ReLU and max pooling keep nothing. The memory paper counts the ReLU's bits "
        "there, too": "always",
        "where no gradient passes, a ReLU keeps nothing. The memory paper counts its bits there, too": (
            "relu regardless"
        ),
        "where no gradient passes, max pooling keeps nothing": "pool regardless",
        "a whole number for each is what PyTorch's ReLU keeps: one bit is enough": "whole",
        "a ReLU needs one bit a number, that is a byte: divide by 8": "byte a bit",
        "9 bits need 2 bytes: round up": "rounded down",
        "whole bytes are asked for: 9 bits need 2 bytes": "fraction",
        "max pooling keeps one byte for each number that it writes, not for each that it reads": "pool reads",
        "max pooling keeps a byte for each number that it writes, not the number": "pool floats",
        "8 bytes a place is what PyTorch's max pooling keeps: one byte is enough to say which number it was": "places",
        "one bit says no more than yes or no: max pooling needs a byte": "pool bits",
        "these are numbers: multiply by the bytes of each, its element_size()": "numbers",
        "it is right for float32 only: element_size() knows the bytes of a number": "four",
        "for the gradient of its weight a layer needs its input, not its output": "output",
        "a mean or a change of shape needs nothing to find the way back": "others",
    }
    c = size()
    maps, eights = batch(2, c, 5, 5), batch(3, 8, 4, 4)
    cases = [
        Case("a convolution, and nothing before it trains", (nn.Conv2d(c, 8, 3), maps, False)),
        Case("a convolution", (nn.Conv2d(c, 3, 3, bias=False), maps, True)),
        Case("a frozen convolution", (_frozen(nn.Conv2d(c, 8, 3)), maps, True)),
        Case("a convolution of which the bias alone trains", (_frozen(nn.Conv2d(c, 7, 3), bias=True), maps, True)),
        Case("a linear layer in float64", (nn.Linear(9, c).double(), batch(4, 9, dtype=torch.float64), True)),
        Case("batch norm", (nn.BatchNorm2d(c), maps, False)),
        Case("a frozen batch norm", (_frozen(nn.BatchNorm2d(c)), maps, True)),
        Case("a batch norm in eval mode, without parameters", (nn.BatchNorm2d(8, affine=False).eval(), eights, True)),
        Case("a ReLU of 9 numbers", (nn.ReLU(), batch(3, 3), True)),
        Case("a ReLU", (nn.ReLU(), eights, True)),
        Case("a ReLU in float64", (nn.ReLU(), batch(c, 7, dtype=torch.float64), True)),
        Case("a ReLU, and nothing before it trains", (nn.ReLU(), eights, False)),
        Case("max pooling", (nn.MaxPool2d(2), eights, True)),
        Case("max pooling of odd maps", (nn.MaxPool2d(2), maps, True)),
        Case("max pooling, and nothing before it trains", (nn.MaxPool2d(2), eights, False)),
        Case("average pooling", (nn.AvgPool2d(2), eights, True)),
        Case("a change of shape", (nn.Flatten(), maps, True)),
    ]
    return _compared(student, _kept, cases, mistakes)


Layers = list[tuple[str, int, int]]


def _peak(layers: Layers, bugs: str = "") -> tuple[int, str]:
    """The peak and its place, or what a student takes for it: `bugs` names what is wrong."""
    highest, where, so_far = 0, layers[0][0], 0
    for name, moment, keeps in layers:
        if "own" in bugs:
            so_far += keeps
        before = 0 if "moment" in bugs or "at the end" in bugs else so_far
        here = before if "no temporary" in bugs else before + moment
        if here > highest:
            highest, where = here, name
        so_far = keeps if "one before" in bugs else so_far if "own" in bugs else so_far + keeps
    return (highest + so_far if "at the end" in bugs else highest), where


def _first(result: Any) -> Tensor:
    """The first of two results, as a number."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong(f"two things are asked for, the peak and the layer's name, yours is {shown(result)}")
    if isinstance(result[0], str):
        raise Wrong(f"the peak comes first, then the layer's name; yours is {shown(result)}")
    return number(result[0])


@task("7.3")
def peak(student: Any) -> str:
    """The largest sum of what a layer needs for a moment and what those before it have kept."""
    mistakes = {
        "what a layer keeps itself is among its bytes for a moment: compare first, then add `kept`": "own",
        "what the layers before it have kept is missing": "moment",
        "not all that is kept is there while the hungriest layer runs: only what layers before it have kept": "at the "
        "end",
        "that is what is kept: the running layer's bytes for a moment come on top": "no temporary",
        "all layers before it have kept something, not only the last of them: add up": "one before",
    }
    steps = torch.randint(100, 900, (9, 2), generator=fresh()).tolist()
    drawn = [(f"conv{i}", 1000 + moment, keeps) for i, (moment, keeps) in enumerate(steps)]
    first, second, third = 1000 + 10 * size(), 20 * size(), 10 * size()
    cases = [
        Case("three layers, the second the hungriest", ([("a", 600, 200), ("b", first, 250), ("c", 400, 100)],)),
        Case("nine layers", (drawn,)),
        Case("a late layer that finds much kept", ([("a", 900, 700), ("b", 500, 400), ("c", second, 0)],)),
        Case("two peaks of one height", ([("a", first, third), ("b", first - third, 9), ("c", 1, 5)],)),
        Case("three peaks of one height", ([("x", 50, 5), ("y", 45, 5), ("z", 40, 5)],)),
        Case("layers that keep nothing", ([("a", second, 0), ("b", 3 * second, 0), ("c", second, 0)],)),
        Case("one layer that needs one byte", ([("a", 1, 1)],)),
    ]
    wrong = {why: converted(partial(_peak, bugs=bug), _first) for why, bug in mistakes.items()}
    answer = compare(converted(student, _first), converted(_peak, _first), cases, wrong)
    for case in cases:
        mine, where = case.call(student)[1], case.call(_peak)[1]
        if mine != where:
            raise Wrong(
                f"for {case.words}: the peak is right, and {where!r} is the first layer where it is so high; yours is "
                f"{shown(mine)}"
            )
    return answer


def _pieces(batch: int, memory: int, peak: int, trainable: int, frozen: int, bugs: str = "") -> float:
    """In how many pieces a batch fits, or what a student takes for it: `bugs` names what is wrong."""
    each, rest = (4, 1) if "paper" in bugs else (16, 16 if "all sixteen" in bugs else 0 if "no frozen" in bugs else 4)
    parameters = 0 if "no parameters" in bugs else each * trainable + rest * frozen
    parameters = trainable + frozen if "unweighted" in bugs else parameters
    if "each image" in bugs:
        images = memory // (peak + parameters)
    else:
        images = (memory - parameters) / peak  # type: ignore[assignment]
        images = images if "fraction" in bugs else math.ceil(images) if "images up" in bugs else math.floor(images)
    if "at least one" in bugs:
        images = max(images, 1)
    if images == 0 or (images < 1 and "no zero" not in bugs):
        return 0
    if "images" in bugs.split(", "):
        return images
    return batch // images + ("one more" in bugs) if "down" in bugs or "one more" in bugs else math.ceil(batch / images)


def _divides(student: Any) -> Any:
    """`student`, with a sentence for its division by the images that fit, where none does."""
    if not callable(student):
        return student

    def function(*arguments: Any) -> Any:
        try:
            return student(*arguments)
        except ZeroDivisionError:
            if _pieces(*arguments):
                raise
            raise Wrong("where no image fits, you divide by 0: give back 0 before that") from None

    return function


@task("7.4")
def pieces(student: Any) -> str:
    """The fewest pieces of a batch that fit beside the parameters."""
    mistakes = {
        "the parameters are missing: what they take is no room for images": "no parameters",
        "these are the bytes of the memory paper's count, 4 and 1: a trained parameter takes 16, a frozen one 4": (
            "paper"
        ),
        "a frozen parameter takes 4 bytes: it has no gradient, no m and no v": "all sixteen",
        "the frozen parameters are missing: they take 4 bytes each": "no frozen",
        "parameters have bytes: 16 each, or 4 where frozen": "unweighted",
        "the parameters are there once, not once an image": "each image",
        "that is how many images fit at once: in how many pieces does that cut the batch?": "images",
        "a rest of the batch is one more piece: round up": "down",
        "where the pieces come out even, none is left over: round up, do not add one": "one more",
        "a piece has whole images: round down what fits": "fraction",
        "images that do not quite fit do not fit: round down": "images up",
        "where not even one image fits, 0 is asked for": "at least one",
        "where the parameters alone do not fit, there is room for less than no image: 0 is asked for there, too": (
            "no zero"
        ),
        "a piece has whole images, so round down what fits; and where not even one fits, 0 is asked for": (
            "fraction, no zero"
        ),
    }
    image, room, some = 1000 + 100 * size(), size(), 40 + size()
    parameters = 16 * some + 4 * 10 * some
    cases = [
        Case("a batch that leaves a rest", (3 * room + 1, parameters + room * image + 700, image, some, 10 * some)),
        Case("pieces that come out even", (4 * room, parameters + room * image + 50, image, some, 10 * some)),
        Case("images that fill the memory to the byte", (64, parameters + room * image, image, some, 10 * some)),
        Case("a batch that fits whole", (room, parameters + 9 * image, image, some, 10 * some)),
        Case("many frozen parameters", (32, 16 + 4 * 5000 + 5 * image + 3, image, 1, 5000)),
        Case("nothing frozen", (2000, 16 * 3000 + 7 * image, image, 3000, 0)),
        Case("a memory in which one image fits", (9, parameters + image, image, some, 10 * some)),
        Case("a memory one byte too small for an image", (8, parameters + image - 1, image, some, 10 * some)),
        Case("a memory too small for the parameters", (8, parameters - 500, image, some, 10 * some)),
    ]
    return _compared(_divides(student), _pieces, cases, mistakes)
