"""Exercise 03, one layer: a convolution and a linear layer on the grid, and how their weights begin."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import quant
from ...layers import FP32
from . import NotYet, Wrong, shown, task
from .compare import Case, compare, fresh, weights
from .slopes import Function, slopes

MASTER = (
    "after the forward pass, layer.weight is another: it is the master weight, which the optimizer changes. Put the "
    "rounded weight into a variable of its own"
)
PLAIN = "the weight is not rounded: it should go through fake_quantize"
FOUR = "it takes 4 bits whatever the layer's number of bits is: use self.bits"
CHANNELS = "did you take a scale for each channel? Here one scale serves the whole weight"
BIAS = "did you forget the bias?"
ROUNDED_BIAS = "the bias is rounded, too: only weights have 4 bits, the bias stays in FP32"
ROUNDED_INPUT = "what comes in is rounded, too: only weights have 4 bits, activations stay in FP32"
FLAT = "the values are right, but the weight gets no gradient through its rounding: use fake_quantize"


def _plain(w: Tensor, bits: int) -> Tensor:
    step = quant.scale(w, bits)
    return (w / step).round() * step


def _layer(
    student: Any, kind: Any, cases: list[Case], right: Function, mistakes: Mapping[str, Function], flat: Function
) -> str:
    """Compare a layer's values and its weight's gradient; all functions here take a layer and its input."""

    def run(made: Any, forward: Function | None = None) -> Function:
        def call(weight: Tensor, x: Tensor, bias: Tensor | None, sizes: tuple[int, ...], options: dict) -> Any:
            given = dict(options)
            bits = given.pop("bits")
            layer = kind(*sizes, **given) if forward else made(*sizes, bits=bits, **given)
            if forward:
                layer.bits, layer.forward = bits, partial(forward, layer)
            parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
            result = torch.func.functional_call(layer, parameters, (x,))
            # Computed in 64 bits, compared in 32: right ways that add up in another order come out alike.
            return result.float() if isinstance(result, Tensor) and result.dtype == torch.float64 else result

        return call

    if not (isinstance(student, type) and issubclass(student, kind)):
        raise Wrong(f"the class is asked for, without brackets after it; yours is {shown(student)}")
    _, x, _, sizes, options = cases[0].arguments
    layer = student(*sizes, **options).double()
    with torch.no_grad():
        layer.weight.copy_(cases[0].arguments[0])
    if layer(x) is None:
        raise NotYet("your forward returns None")
    if not torch.equal(layer.weight, cases[0].arguments[0]):
        raise Wrong(MASTER)
    answer = compare(run(student), run(None, right), cases, {why: run(None, wrong) for why, wrong in mistakes.items()})
    slopes(run(student), run(None, right), cases, {FLAT: run(None, flat)})
    return answer


def _convolve(layer: Any, x: Tensor, w: Tensor, *forgotten: str) -> Tensor:
    told = ("stride", "padding", "dilation", "groups")
    bias = None if "bias" in forgotten else layer.bias
    return F.conv2d(x, w, bias, **{name: getattr(layer, name) for name in told if name not in forgotten})


def _case(words: str, *sizes: int, x: tuple[int, ...], shape: tuple[int, ...], **options: Any) -> Case:
    bits = options["bits"]
    weight = weights(*shape, bits=min(bits, 8), negative=True, dtype=torch.float64)
    bias = torch.randn(shape[0], generator=fresh()).double() if options.get("bias", True) else None
    return Case(words, (weight, torch.randn(x, generator=fresh()).double(), bias, sizes, options))


@task("3.1")
def convolution(student: Any) -> str:
    """A Conv2d with its weight on the grid."""

    def through(layer: Any, x: Tensor, *forgotten: str, bits: int | None = None, per_channel: bool = False) -> Tensor:
        w = quant.fake_quantize(layer.weight, bits or layer.bits, per_channel)
        return _convolve(layer, x, w, *forgotten)

    def rounded_bias(layer: Any, x: Tensor) -> Tensor:
        w = quant.fake_quantize(layer.weight, layer.bits)
        bias = None if layer.bias is None else quant.fake_quantize(layer.bias, layer.bits)
        return F.conv2d(x, w, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    mistakes: dict[str, Function] = {
        PLAIN: lambda layer, x: _convolve(layer, x, layer.weight),
        FOUR: lambda layer, x: through(layer, x, bits=4),
        "did you forget the padding? It is layer.padding": lambda layer, x: through(layer, x, "padding"),
        "did you forget the stride? It is layer.stride": lambda layer, x: through(layer, x, "stride"),
        "did you forget stride and padding? The layer has both": lambda layer, x: through(
            layer, x, "stride", "padding", "dilation"
        ),
        "did you forget the dilation? It is layer.dilation": lambda layer, x: through(layer, x, "dilation"),
        BIAS: lambda layer, x: through(layer, x, "bias"),
        ROUNDED_BIAS: rounded_bias,
        ROUNDED_INPUT: lambda layer, x: through(layer, quant.fake_quantize(x, layer.bits)),
        CHANNELS: lambda layer, x: through(layer, x, per_channel=True),
    }
    cases = [
        _case(
            "a layer of 3 to 4 channels with padding", 3, 4, 3, x=(2, 3, 6, 6), shape=(4, 3, 3, 3), bits=4, padding=1
        ),
        _case("a layer with stride 2", 2, 3, 3, x=(1, 2, 9, 9), shape=(3, 2, 3, 3), bits=2, padding=1, stride=2),
        _case("a layer without bias", 2, 5, 1, x=(1, 2, 4, 4), shape=(5, 2, 1, 1), bits=8, bias=False),
        _case("a layer with dilation 2", 2, 2, 3, x=(1, 2, 9, 9), shape=(2, 2, 3, 3), bits=3, dilation=2),
        _case("a layer of two groups", 4, 6, 3, x=(1, 4, 5, 5), shape=(6, 2, 3, 3), bits=4, groups=2),
    ]
    plain = lambda layer, x: _convolve(layer, x, _plain(layer.weight, layer.bits))  # noqa: E731
    return _layer(student, nn.Conv2d, cases, through, mistakes, plain)


@task("3.2")
def linear(student: Any) -> str:
    """A Linear with its weight on the grid, but not at 32 bits."""

    def rounded(layer: Any, bits: int | None = None, per_channel: bool = False) -> Tensor:
        bits = bits or layer.bits
        return layer.weight if bits == FP32 else quant.fake_quantize(layer.weight, bits, per_channel)

    def rounded_bias(layer: Any, x: Tensor) -> Tensor:
        bias = layer.bias
        if bias is not None and layer.bits != FP32:
            bias = quant.fake_quantize(bias, layer.bits)
        return F.linear(x, rounded(layer), bias)

    mistakes: dict[str, Function] = {
        PLAIN: lambda layer, x: F.linear(x, layer.weight, layer.bias),
        FOUR: lambda layer, x: F.linear(x, rounded(layer, FP32 if layer.bits == FP32 else 4), layer.bias),
        "with bits=32 the weight is not rounded at all: yours is": lambda layer, x: F.linear(
            x, rounded(layer, min(layer.bits, 8)), layer.bias
        ),
        "with bits=32 the weight is not rounded at all; and with other bits than 4 your grid is another": (
            lambda layer, x: F.linear(x, rounded(layer, 4), layer.bias)
        ),
        "it is the other way round: 32 bits are not rounded, fewer are": lambda layer, x: F.linear(
            x, layer.weight if layer.bits != FP32 else rounded(layer, 4), layer.bias
        ),
        BIAS: lambda layer, x: F.linear(x, rounded(layer)),
        ROUNDED_BIAS: rounded_bias,
        ROUNDED_INPUT: lambda layer, x: F.linear(
            x if layer.bits == FP32 else quant.fake_quantize(x, layer.bits), rounded(layer), layer.bias
        ),
        CHANNELS: lambda layer, x: F.linear(x, rounded(layer, per_channel=True), layer.bias),
    }
    cases = [
        _case("a layer of 6 to 4", 6, 4, x=(3, 6), shape=(4, 6), bits=4),
        _case("a layer of 2 bits", 5, 7, x=(2, 3, 5), shape=(7, 5), bits=2),
        _case("a layer of 8 bits without bias", 5, 3, x=(2, 5), shape=(3, 5), bits=8, bias=False),
        _case("a layer of 32 bits", 6, 4, x=(3, 6), shape=(4, 6), bits=FP32),
    ]

    def plain(layer: Any, x: Tensor) -> Tensor:
        w = layer.weight if layer.bits == FP32 else _plain(layer.weight, layer.bits)
        return F.linear(x, w, layer.bias)

    return _layer(student, nn.Linear, cases, lambda layer, x: F.linear(x, rounded(layer), layer.bias), mistakes, plain)


@task("3.3")
def initialize(student: Any) -> str:
    """Normal weights of the paper's variances, biases of 0."""
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")
    kinds: dict[str, Any] = {
        "Conv2d(24, 96, 3)": nn.Conv2d(24, 96, 3),
        "Linear(60, 400)": nn.Linear(60, 400),
        "Conv2d(16, 90, (1, 5)) without bias": nn.Conv2d(16, 90, (1, 5), bias=False),
        "Linear(500, 90) without bias": nn.Linear(500, 90, bias=False),
    }
    for words, layer in kinds.items():
        first = layer.weight.detach().clone()
        result = student(layer)
        if result is None and torch.equal(layer.weight, first):
            raise NotYet("your function returns None")
        if result is None:
            raise Wrong("the weights are new, but it returns None: return the layer")
        if result is not layer:
            raise Wrong(f"the same layer should come back, changed in place; yours is a {type(result).__name__}")
        if torch.equal(layer.weight, first):
            raise Wrong(f"{words}: the weights are as torch made them: draw new ones, in place")
        _looks_normal(words, layer)
        second = layer.weight.detach().clone()
        if torch.equal(student(layer).weight, second):
            raise Wrong("two calls give the same weights: do not set the seed inside")
    return f"{len(kinds)} layers begin as the paper's"


def _looks_normal(words: str, layer: Any) -> None:
    """Wrong unless mean, deviation and the shape of the distribution are as asked, and the biases 0."""
    w = layer.weight.detach().double()
    out, channels, inputs, count = w.shape[0], w.shape[1], w[0].numel(), w.numel()
    gain = 2 if isinstance(layer, nn.Conv2d) else 1
    deviation, wanted = w.std().item(), (gain / inputs) ** 0.5
    likely = [
        (wanted**2, "this is the variance: the deviation is its square root"),
        ((gain * channels / count) ** 0.5, "you divided by the outputs: divide by the inputs that one output sees"),
        ((gain / out) ** 0.5, "you divided by the outputs: divide by the inputs that one output sees"),
        ((gain / channels) ** 0.5, "you left out the kernel: an output sees in * height * width numbers"),
        ((2 / inputs) ** 0.5, "the 2 belongs to convolutions: a linear layer has the variance 1 / in"),
        ((1 / inputs) ** 0.5, "a convolution's variance has a 2: 2 / (in * height * width)"),
        (1.0, "the deviation is 1: that is normal_'s own, if you do not say another"),
    ]
    if abs(deviation / wanted - 1) > 0.06:  # of thousands of numbers; by chance it is off by one percent
        for value, why in likely:
            if abs(deviation / value - 1) < 0.06:
                raise Wrong(f"{words}: {why}")
        raise Wrong(f"{words}: the weights' deviation should be about {wanted:.3g}, yours is {deviation:.3g}")
    if abs(w.mean().item()) > 6 * wanted / w.numel() ** 0.5:
        raise Wrong(f"{words}: the weights' mean should be about 0, yours is {w.mean():.3g}")
    if ((w - w.mean()) / deviation).pow(4).mean() < 2.4:
        raise Wrong(f"{words}: the deviation is right, but these are no normal numbers. Did you draw uniform ones?")
    if layer.bias is not None and layer.bias.any():
        raise Wrong(f"{words}: the biases should be 0")
    if not layer.weight.requires_grad:
        raise Wrong(f"{words}: the weight no longer learns: change it in place, with nn.init.normal_")
