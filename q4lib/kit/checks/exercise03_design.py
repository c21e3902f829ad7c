"""Exercise 03, two networks: one turned from FP32 to 4 bits, and one of the student's own within a budget."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers import FP32, QuantizedWeight, quantized_layers
from ...quant import fake_quantize
from . import Wrong, task
from .exercise03_network import called, draw, packed_bytes

BYTES, WORK = 12_000, 1_500_000
STEPS, LEARNED = 20, 1.5


def _fp32_network() -> nn.Module:
    """Convolutions and linear layers, some in blocks, and batch norm that has seen images."""
    a, b = draw(2, 4), draw(2, 4)
    block = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    model = nn.Sequential(
        nn.Conv2d(2, a, 3, stride=2, padding=1), nn.BatchNorm2d(a), block, nn.Flatten(), nn.Linear(b * 5 * 6, 3)
    )
    model(torch.randn(4, 2, 9, 9))
    return model.eval()


def _bugs(student: Any, bits: int) -> list[str]:
    """What is wrong with the student's conversion of a fresh network, bug by bug."""
    original = _fp32_network()
    given, x = copy.deepcopy(original), torch.randn(3, 2, 9, 9)
    result = called(student, given, bits)
    if not isinstance(result, nn.Module):
        raise Wrong(f"a network is asked for, yours is of type {type(result).__name__}")
    bugs, old, new = [], dict(original.named_modules()), dict(result.named_modules())
    wanted = {name: layer for name, layer in old.items() if isinstance(layer, nn.Conv2d | nn.Linear)}
    changed = [name for name, layer in given.named_modules() if type(layer) is not type(old.get(name))]
    mine, its = given.state_dict(), original.state_dict()
    if changed or any(not torch.equal(mine[key], its[key]) for key in its):
        bugs.append("the network that it is given is another afterwards")
    if set(new) != set(old):
        raise Wrong("the new network should have the same layers under the same names")
    left = [name for name in wanted if not isinstance(new[name], QuantizedWeight)]
    if left:
        where = "inside of a block" if all("." in name for name in left) else f"such as {left[0]!r}"
        bugs.append(f"some layers are still FP32, {where}")
    done = {name: (layer, new[name]) for name, layer in wanted.items() if name not in left}
    if any(layer.bits != bits for _, layer in done.values()):
        bugs.append("a layer has another number of bits than was asked for")
    if any(getattr(a, key, 0) != getattr(b, key, 0) for a, b in done.values() for key in ("stride", "padding")):
        bugs.append("a convolution has lost its stride or its padding")
    for key in ("weight", "bias"):
        pairs = [(getattr(a, key), getattr(b, key)) for a, b in done.values()]
        if all(torch.equal(a, b) for a, b in pairs):
            continue
        if key == "weight" and all(torch.equal(b, a) or torch.equal(b, fake_quantize(a, bits)) for a, b in pairs):
            bugs.append("a layer's master weight is rounded: it starts where the FP32 weight was, forward rounds it")
        else:
            bugs.append(f"a layer has not got its old {key}")
    if not bugs and not _same_output(original, result, x, bits):
        raise Wrong("all layers are right, but the new network gives something else: is all between them as it was?")
    shared = {p.data_ptr() for p in given.parameters()} & {p.data_ptr() for p in result.parameters()}
    if shared and not changed:
        bugs.append("old and new network share weights in memory: training the one changes the other")
    return bugs


def _same_output(original: nn.Module, result: nn.Module, x: Tensor, bits: int) -> bool:
    twin = copy.deepcopy(original)
    for layer in twin.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data = fake_quantize(layer.weight.data, bits)
    with torch.no_grad():
        return torch.allclose(twin(x), result.eval()(x), atol=1e-4)


@task("3.6")
def mended(student: Any) -> str:
    """The broken conversion without its five bugs."""
    for bits in (4, 2):
        if bugs := _bugs(student, bits):
            raise Wrong(f"{len(bugs)} bug{'s' * (len(bugs) > 1)} left that can be seen: {'; '.join(bugs)}")
    return "a new network, and the old one as it was"


def _work(model: nn.Module) -> int:
    """Multiply-adds of the quantized layers for one image."""
    total = 0

    def count(layer: Any, _: Any, y: Tensor) -> None:
        nonlocal total
        places = y[0, 0].numel() if isinstance(layer, nn.Conv2d) else y[0].numel() // y.shape[-1]
        total += layer.weight.numel() * places

    hooks = [layer.register_forward_hook(count) for layer in quantized_layers(model).values()]
    with torch.no_grad():
        y = model(torch.randn(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    if not isinstance(y, Tensor) or y.shape != (1, 10):
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise Wrong(f"an image of shape (1, 3, 32, 32) should give logits of shape (1, 10), yours gives {shape}")
    return total


def _within_the_rules(model: nn.Module) -> tuple[int, int]:
    """Bytes and multiply-adds of a network on the grid; Wrong if it is not, or has too many."""
    layers = quantized_layers(model)
    on_grid = {id(layer.weight) for layer in layers.values()}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in on_grid:
            raise Wrong(f"{name} is not on the grid: take Conv4bit and Linear4bit for all layers")
    if wide := [name for name, layer in layers.items() if layer.bits == FP32]:
        raise Wrong(f"layer {wide[0]} has 32 bits: 8 are the most")
    size, work = packed_bytes(model), _work(model)
    if size > BYTES:
        raise Wrong(f"it has {size:,} bytes, {size - BYTES:,} too many: which layer has the most weights?")
    if work > WORK:
        raise Wrong(
            f"it needs {work:,} multiply-adds an image, {work / WORK:.1f} times as many as allowed: make the picture "
            "small early, with a stride of 2 or pooling"
        )
    return size, work


@task("3.7")
def design(student: Any) -> str:
    """A network of the student's own, within its budget, that can learn."""
    model = called(student)
    if not isinstance(model, nn.Module):
        raise Wrong(f"a network is asked for, yours is of type {type(model).__name__}: return it, new at each call")
    size, work = _within_the_rules(model.eval())
    a, b = torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        ya, yb, both, zero = model(torch.cat([a, b, a + b, 0 * a])).split(8)
    if torch.allclose(ya + yb, both + zero, atol=1e-3 * float(ya.abs().max() + 1e-9)):
        raise Wrong("nothing bends: as it is, all layers together are one linear layer. Put nn.ReLU() between them")
    if any(torch.allclose(shares.sum(1), torch.ones(8), atol=1e-4) for shares in (ya, ya.exp())):
        raise Wrong("it ends with a softmax: the loss has one already, so give the logits")
    loss = _learn(model.train(), a)
    if loss > LEARNED:
        raise Wrong(
            f"{STEPS} steps on eight images bring the loss to {loss:.2f} only; guessing has 2.3. Does every layer "
            "learn? Batch norm helps, a ReLU at the very end hinders"
        )
    return f"{size:,} bytes, {work:,} multiply-adds, and it learns"


def _learn(model: nn.Module, images: Tensor) -> float:
    """The loss on eight images when it is low enough, or after all steps; each goes against the gradient's sign."""
    # By hand: the first step of one of torch's optimizers loads its compiler, which takes seconds.
    parameters, labels = dict(model.named_parameters()), torch.arange(8)
    for _ in range(STEPS):
        with torch.enable_grad():
            loss = F.cross_entropy(model(images), labels)
            slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        if loss <= LEARNED:
            break
        for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
            if slope is None:
                raise Wrong(f"{name} gets no gradient: is its layer used?")
            parameter.data -= 0.01 * slope.sign()
    return loss.item()
