"""Exercise 03, networks: what they weigh, how they use their levels, turned to 4 bits, designed for a budget."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import FP32, Conv4bit, Linear4bit, quantized_layers
from ...models import SimpleResNet4bit
from ...quant import quantize
from . import NotYet, Wrong, shown, task
from .compare import fresh


def called(student: Any, *arguments: Any) -> Any:
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")
    result = student(*arguments)
    if result is None:
        raise NotYet("your function returns None")
    return result


def draw(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=fresh()))


def _networks() -> dict[str, nn.Module]:
    """Networks of layers with several numbers of bits, some with an odd number of weights."""
    c = 2 * draw(1, 4) + 1
    return {
        "one convolution at 4 bits": nn.Sequential(Conv4bit(3, 8, 3)),
        "layers with an odd number of weights": nn.Sequential(
            Conv4bit(1, c, 3), nn.BatchNorm2d(c), nn.ReLU(), nn.Flatten(), Linear4bit(c, 3, bits=2)
        ),
        "layers with 3, 5 and 8 bits": nn.Sequential(
            Conv4bit(c, 5, 3, bits=5, bias=False), nn.Sequential(Linear4bit(c, 7, bits=3), Linear4bit(7, 3, bits=8))
        ),
        "layers with 4 and with 32 bits": nn.Sequential(Linear4bit(c, 6), nn.ReLU(), Linear4bit(6, 4, bits=FP32)),
        "a 4-bit convolution and torch's own Linear": nn.Sequential(Conv4bit(2, c, 3), nn.Linear(c, 4)),
        "SimpleResNet4bit": SimpleResNet4bit(draw(2, 20)),
    }


def packed_bytes(
    model: nn.Module, half: int = 4, scale: int = 4, rest: Callable[..., Any] = nn.Module.state_dict
) -> int:
    """Bytes of a network's tensors: codes two a byte up to `half` bits, a `scale` a layer, all else as it is."""
    layers = quantized_layers(model)
    total = sum(tensor.numel() * tensor.element_size() for tensor in dict(rest(model)).values())
    for layer in layers.values():
        if layer.bits != FP32:
            codes = layer.weight.numel()
            total += (codes if layer.bits > half else (codes + 1) // 2) + scale - 4 * codes
    return total


def _as_fp32(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _tight(model: nn.Module) -> int:
    """With codes that take no more than their bits."""
    layers = [layer for layer in quantized_layers(model).values() if layer.bits != FP32]
    return _as_fp32(model) + sum((n.weight.numel() * n.bits + 7) // 8 + 4 - 4 * n.weight.numel() for n in layers)


def _down(model: nn.Module) -> int:
    layers = [layer for layer in quantized_layers(model).values() if layer.bits <= 4]
    return packed_bytes(model) - sum(layer.weight.numel() % 2 for layer in layers)


def _fp32_scaled(model: nn.Module) -> int:
    return packed_bytes(model) + 4 * sum(layer.bits == FP32 for layer in quantized_layers(model).values())


PARAMETERS: dict[str, Callable[[nn.Module], int]] = {
    "a state dict holds batch norm's running mean and variance, and a counter, which are not learned: take "
    "model.parameters()": lambda m: sum(t.numel() for t in m.state_dict().values()),
    "these are the weights of the layers on the grid only: biases, batch norm and other layers are learned, too": (
        lambda m: sum(layer.weight.numel() for layer in quantized_layers(m).values())
    ),
    "these are the tensors: count the numbers in them, with numel()": lambda m: len(list(m.parameters())),
    "these are bytes in FP32: a parameter is one number": lambda m: 4 * sum(p.numel() for p in m.parameters()),
}
SIZES: dict[str, Callable[[nn.Module], int]] = {
    "that is all in FP32: the layers on the grid store codes": _as_fp32,
    "the scales are missing: 4 bytes for each layer on the grid": lambda m: packed_bytes(m, scale=0),
    "batch norm's running mean and variance and its counter are stored, too: take model.state_dict()": (
        lambda m: packed_bytes(m, rest=nn.Module.named_parameters)
    ),
    "an odd number of codes takes one byte more: round up": _down,
    "codes of 5 to 8 bits take a byte each: only up to 4 bits do two of them share one": (
        lambda m: packed_bytes(m, half=8)
    ),
    "two codes share a byte, if they have 4 bits or fewer": lambda m: packed_bytes(m, half=0),
    "3 bits are few enough, too: all codes of 2, 3 and 4 bits take half a byte": lambda m: packed_bytes(m, half=2),
    "this format does not pack 2 bits tighter than 4, nor 5 tighter than 8: half a byte, or a whole one": _tight,
    "a layer of 32 bits has no codes: it stays as it is": lambda m: (
        packed_bytes(m) + sum(n.weight.numel() * -3 + 4 for n in quantized_layers(m).values() if n.bits == FP32)
    ),
    "a layer of 32 bits has no scale": _fp32_scaled,
    "these are bits: 8 of them make a byte": lambda m: 8 * packed_bytes(m),
}


@task("3.4")
def size(student: Any) -> str:
    """Parameters and packed bytes of any network."""
    networks, pairs = _networks(), []
    for words, model in networks.items():
        result = called(student, model)
        try:
            parameters, size_in_bytes = (float(number) for number in result)
        except (TypeError, ValueError):
            raise Wrong(f"two numbers are asked for, `return parameters, bytes`; yours is {str(result)[:60]}") from None
        pairs.append((words, model, parameters, size_in_bytes))
    for what, number, right, likely in (
        ("parameters", 2, lambda m: sum(p.numel() for p in m.parameters()), PARAMETERS),
        ("bytes", 3, packed_bytes, SIZES),
    ):
        wrong = [pair for pair in pairs if pair[number] != right(pair[1])]
        if not wrong:
            continue
        for why, mistake in likely.items():
            if all(pair[number] == mistake(pair[1]) for pair in pairs):
                raise Wrong(f"{what}: {why}")
        words, model, *_ = wrong[0]
        raise Wrong(f"{words}: {right(model):,} {what} are asked for, yours are {wrong[0][number]:,.10g}")
    return f"{len(networks)} networks"


def _usage(
    model: nn.Module,
    log: Callable[[Tensor], Tensor] = torch.log2,
    sign: int = -1,
    bits: int = 0,
    all_levels: bool = False,
) -> dict[str, tuple[int, float]]:
    report = {}
    for name, layer in quantized_layers(model).items():
        step = layer.scale() * (2 ** (layer.bits - 1) - 1) / (2 ** (bits - 1) - 1) if bits else layer.scale()
        counts = quantize(layer.weight, step, bits or layer.bits).unique(return_counts=True)[1]
        share = counts / counts.sum()
        levels = 2 ** (bits or layer.bits) - 1 if all_levels else len(counts)
        report[name] = levels, sign * (share * log(share)).sum().item()
    return report


def _master(model: nn.Module) -> dict[str, tuple[int, float]]:
    entropies = _usage(model)
    return {n: (len(m.weight.unique()), entropies[n][1]) for n, m in quantized_layers(model).items()}


def _one_scale(model: nn.Module) -> dict[str, tuple[int, float]]:
    report = {}
    for name, layer in quantized_layers(model).items():
        step = layer.weight.abs().max() / (2 ** (layer.bits - 1) - 1)
        share = quantize(layer.weight, step, layer.bits).unique(return_counts=True)[1] / layer.weight.numel()
        report[name] = len(share), -(share * share.log2()).sum().item()
    return report


@task("3.5")
def usage(student: Any) -> str:
    """Levels in use and entropy of each layer."""
    outlier, zeros = Linear4bit(20, 30), Linear4bit(4, 4)
    with torch.no_grad():
        outlier.weight.normal_(generator=fresh())[0, 0] = 9
        zeros.weight.zero_()
    model = nn.Sequential(
        Conv4bit(3, draw(4, 12), 3),
        nn.ReLU(),
        nn.Sequential(Linear4bit(9, draw(20, 40), bits=2), nn.Linear(3, 3), Linear4bit(30, 30, bits=8)),
        Linear4bit(40, draw(8, 12), bits=3, per_channel=True),
        outlier,
        zeros,
    )
    got, right = called(student, model), _usage(model)
    if not isinstance(got, dict):
        raise Wrong(f"a dictionary is asked for, yours is of type {type(got).__name__}")
    if set(got) != set(right):
        extra, missing = sorted(map(str, set(got) - set(right))), sorted(set(right) - set(got))
        raise Wrong(
            f"the names should be those that quantized_layers gives; missing: {', '.join(missing) or 'none'}, "
            f"too many: {', '.join(extra) or 'none'}"
        )
    try:
        pairs = {name: tuple(float(number) for number in pair) for name, pair in got.items()}
    except (TypeError, ValueError):
        raise Wrong("each value should be a pair of numbers: (levels, entropy)") from None
    likely: dict[str, Callable[..., Any]] = {
        "that is the natural logarithm: entropy in bits takes log2": lambda m: _usage(m, log=torch.log),
        "entropy is the sum of *minus* p * log2(p)": lambda m: _usage(m, sign=1),
        "your entropies are right; levels counts the codes that occur, not those that there are": (
            lambda m: _usage(m, all_levels=True)
        ),
        "your entropies are right; levels counts different codes, not different master weights": _master,
        "a layer has its own scale, layer.scale(): one for each channel, in one of them": _one_scale,
        "a layer has its own number of bits: layer.bits, not 4": lambda m: _usage(m, bits=4),
        "the pair is the wrong way round: levels first, then entropy": lambda m: {
            name: pair[::-1] for name, pair in _usage(m).items()
        },
    }

    def near(expected: dict[str, Any], name: str) -> bool:
        return len(pairs[name]) == 2 and all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in zip(pairs[name], expected[name], strict=True)
        )

    wrong = [name for name in right if not near(right, name)]
    if not wrong:
        return f"{len(right)} layers"
    for why, mistake in likely.items():
        expected = mistake(model)
        if all(near(expected, name) for name in right):
            raise Wrong(why)
    name = wrong[0]
    yours = ", ".join(f"{number:.4g}" for number in pairs[name])
    raise Wrong(f"layer {name}: {right[name][0]} levels and {right[name][1]:.3f} bits are asked for, yours: {yours}")
