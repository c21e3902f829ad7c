"""Exercise 08, its layers: a block with fewer channels, and a batch norm folded into a convolution."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import Wrong, task
from .compare import Case, compare
from .exercise07 import batch, size
from .exercise08 import unchanged
from .plain import near

LIKE = 1e-4  # of the largest number: folded and pruned layers add up in another order


def trained(layer: nn.Module, eps: float = 1e-5) -> nn.Module:
    """A layer in eval mode whose batch norms have seen something."""
    for norm in layer.modules():
        if isinstance(norm, nn.BatchNorm2d):
            c, norm.eps = norm.num_features, eps
            norm.weight.data, norm.bias.data = batch(c).abs() + 0.3, batch(c)
            norm.running_mean, norm.running_var = batch(c), batch(c).square() + 0.05
    return layer.eval()


def _block(inputs: int, hidden: int, outputs: int, stride: Any = 1) -> nn.Sequential:
    """As the exercise shows it."""
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU6(),
        nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU6(),
        nn.Conv2d(hidden, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )


def module(result: Any) -> nn.Module:
    """What a student returned, if it is a module."""
    if isinstance(result, type):
        raise Wrong(f"that is the class: return one of it, {result.__name__}(...)")
    if not isinstance(result, nn.Module):
        raise Wrong(f"a module is asked for, yours is of type {type(result).__name__}")
    return result


def _on(student: Any) -> Any:
    """What comes out where a student's module, made of all arguments but the last, reads the last one.

    In float64, so that two ways to one result do not differ when they are rounded to float32.
    """

    def function(*arguments: Any) -> Tensor | None:
        *given, x = arguments
        with torch.no_grad():
            result = student(*given)
            return None if result is None else module(result).eval().double()(x.double()).float()

    return function if callable(student) else student


def _silenced(block: nn.Sequential, keep: Tensor, x: Tensor) -> Tensor:
    """What a block computes whose third convolution reads `keep` alone."""
    block = copy.deepcopy(block)
    weight: Any = block[6].weight
    weight.data *= torch.zeros(weight.shape[1]).index_fill(0, keep, 1)[:, None, None]
    return block.double()(x.double()).float()


def _pruned(block: nn.Sequential, keep: Tensor, bugs: str) -> nn.Sequential:
    """What a student takes for the smaller block: `bugs` names what is wrong."""
    first: Any = block[0]
    others = torch.tensor([i for i in range(first.out_channels) if i not in keep.tolist()], dtype=torch.long)
    keep = others if "others" in bugs else keep
    begin, last = torch.arange(len(keep)), "last" in bugs
    small = _block(first.in_channels, len(keep), block[6].out_channels, block[3].stride)  # type: ignore[arg-type]
    state = block.state_dict()
    for name, tensor in state.items():
        if tensor.dim() and name[0] in "0134":
            state[name] = tensor[begin if name[0] in bugs else keep]
    state["6.weight"] = state["6.weight"][:, begin if "6" in bugs else keep]
    lost = [name for name in state if "running" in name and "stats" in bugs or name[0] == "7" and last]
    small.load_state_dict({name: tensor for name, tensor in state.items() if name not in lost}, strict=False)
    return small


@task("8.4")
def pruned(student: Any) -> str:
    """A block without its hidden channels but those that stay."""
    mistakes = {
        "these are the channels that should go: `keep` names those that stay": "others",
        "these are the first channels of each layer: take those that `keep` names, `tensor[keep]`": "0 1 3 4 6",
        "the first convolution's filters are those of other channels: take `weight[keep]`": "0",
        "the first batch norm's numbers are those of other channels: take `[keep]` of all four": "1",
        "the second convolution's filters are those of other channels: take `weight[keep]`": "3",
        "the second batch norm's numbers are those of other channels: take `[keep]` of all four": "4",
        "both batch norms' numbers are those of other channels: take `[keep]` of all four": "1 4",
        "the third convolution reads other channels: take `weight[:, keep]`": "6",
        "the running means and variances are lost: they are buffers, no parameters, and in `state_dict()`": "stats",
        "the last batch norm is a new one: it has no hidden channels, so take it over whole": "last",
    }
    wrong = {why: near(_on(partial(_pruned, bugs=bugs)), _silenced, LIKE) for why, bugs in mistakes.items()}
    wrong["that is the block as it was: nothing is taken out"] = _on(lambda block, keep: copy.deepcopy(block))

    def case(words: str, hidden: int, keep: list[int], stride: int = 1) -> Case:
        block = trained(_block(size(), hidden, 3 + size(), stride))
        return Case(words, (block, torch.tensor(keep), batch(2, block[0].in_channels, 6, 6)))  # type: ignore[index]

    cases = [
        case("8 hidden channels, of which 3 stay", 8, [1, 4, 6]),
        case("a block of stride 2", 9, [0, 2, 5, 7, 8], stride=2),
        case("12 channels, of which one stays", 12, [7]),
        case("6 channels, of which 5 stay", 6, [1, 2, 3, 4, 5]),
    ]
    answer = compare(near(_on(unchanged(student)), _silenced, LIKE), _silenced, cases, wrong)
    for block, keep, _ in (case.arguments for case in cases):
        whole, few = (_numbers(module(made)) for made in (block, student(copy.deepcopy(block), keep)))
        asked = _numbers(_pruned(block, keep, ""))
        if few == whole:
            raise Wrong(f"it computes the right thing, but still has {whole} numbers: zeros take as much memory")
        if few != asked:
            raise Wrong(f"it computes the right thing with {few} numbers: without what nobody reads there are {asked}")
    return f"{answer}, the last with {few} numbers of {whole}"


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, bug: str = "") -> nn.Conv2d:
    """The folded convolution, or what a student takes for it: `bug` names what is wrong."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    below = {"no eps": var.sqrt(), "eps outside": var.sqrt() + norm.eps, "no root": var + norm.eps}
    gain = (1.0 if bug == "no gamma" else norm.weight) / below.get(bug, (var + norm.eps).sqrt())
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias
    shift = {
        "no beta": gain * (bias - mean),
        "no mean": norm.bias + gain * bias,
        "plus mean": norm.bias + gain * (bias + mean),
        "mean as it is": norm.bias + gain * bias - mean,
        "no bias": norm.bias - gain * mean,
        "bias as it is": norm.bias + bias - gain * mean,
        "weight alone": bias,
    }
    new = copy.deepcopy(conv)
    if bug != "bias alone":
        new.weight = nn.Parameter(conv.weight * gain[:, None, None, None])
    new.bias = nn.Parameter(shift.get(bug, norm.bias + gain * (bias - mean)))
    return new


def _convolution(student: Any) -> Any:
    """`student`; Wrong if it does not make a convolution with the options of the one it is given."""

    def function(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Any:
        result = student(conv, norm)
        if result is None or not isinstance(result, nn.Conv2d):
            if isinstance(result, nn.Module):
                raise Wrong(f"one convolution is asked for, yours is of type {type(result).__name__}")
            return result
        for name in ("stride", "padding", "groups"):
            mine, its = (getattr(layer, name) for layer in (result, conv))
            if mine != its:
                raise Wrong(f"its {name} is {mine}, that of `conv` is {its}: copy.deepcopy(conv) keeps all of that")
        return result

    return function if callable(student) else student


@task("8.5")
def folded(student: Any) -> str:
    """One convolution in the place of a convolution and a batch norm in eval mode."""
    mistakes = {
        "ε is missing: `norm.eps` is added to the variance, before the root": "no eps",
        "ε belongs under the root: √(var + ε)": "eps outside",
        "divide by the root of the variance: the variance itself is the deviation's square": "no root",
        "γ is missing: it is `norm.weight`": "no gamma",
        "β is missing: it is `norm.bias`": "no beta",
        "the running mean is missing: batch norm takes it away first": "no mean",
        "batch norm takes the running mean away, yours adds it": "plus mean",
        "the running mean is multiplied by the gain, too: batch norm takes it away before": "mean as it is",
        "where the convolution has a bias, that is lost": "no bias",
        "the convolution's own bias runs through the batch norm, too: multiply it by the gain": "bias as it is",
        "the weight is right, the bias is the old one: batch norm shifts, too": "weight alone",
        "the bias is right, the weight is the old one: multiply it by the gain": "bias alone",
    }
    right = _on(_folded)
    wrong = {why: near(_on(partial(_folded, bug=bug)), right, LIKE) for why, bug in mistakes.items()}
    c = size()

    def case(words: str, conv: nn.Conv2d) -> Case:
        norm = trained(nn.BatchNorm2d(conv.out_channels), eps=0.02 + 0.01 * size())
        return Case(words, (conv.eval().double(), norm.double(), batch(2, conv.in_channels, 7, 7)))

    cases = [
        case("a convolution with a bias", nn.Conv2d(3, c, 3, padding=1)),
        case("a convolution without a bias", nn.Conv2d(c, 8, 1, bias=False)),
        case("a convolution in groups with stride 2", nn.Conv2d(2 * c, 2 * c, 3, 2, groups=2 * c)),
        case("a convolution over rows", nn.Conv2d(3, 5, (1, 3), bias=False)),
    ]
    return compare(near(_on(_convolution(unchanged(student))), right, LIKE), right, cases, wrong)
