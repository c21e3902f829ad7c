"""Exercise 08, the connection: a side network that learns beside a frozen block, and begins with nothing."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import Wrong, task
from .compare import Case, results
from .exercise07 import batch, size
from .exercise08_layers import module, trained


def _side(c: int) -> nn.Sequential:
    conv1, conv2 = nn.Conv2d(c, c + 1, 3, padding=1, bias=False), nn.Conv2d(c + 1, c, 1, bias=False)
    return nn.Sequential(conv1, nn.BatchNorm2d(c + 1), nn.ReLU(), conv2, nn.BatchNorm2d(c))


class _Beside(nn.Module):
    """The right one, in training mode."""

    def __init__(self, block: nn.Module, side: nn.Sequential) -> None:
        super().__init__()
        self.block, self.side = block.eval().requires_grad_(False), side
        nn.init.zeros_(side[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.side(x)


def _training(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _step(model: nn.Module, x: Tensor, above: Tensor) -> list[Tensor]:
    """The gradients of a step of plain gradient descent, 0 where there is none; and the step."""
    y = model(x)
    if not y.requires_grad:
        raise Wrong("no gradient reaches the side network: is something detached, or under torch.no_grad()?")
    model.zero_grad()
    (y * above).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in _training(model)]
    for p, gradient in zip(_training(model), gradients, strict=True):
        p.data -= 0.01 * gradient
    return gradients


def _alike(a: Any, b: Any) -> bool:
    if isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    near = 1e-4 * float(b.abs().max()) + 1e-6
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=near)


@task("8.6")
def beside(student: Any) -> str:
    """A frozen block and a side network beside it whose last batch norm starts at 0."""
    c = size()
    x, above = batch(6, c, 5, 5), batch(6, c, 5, 5)
    block = trained(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU()))
    side = _side(c)
    right = _Beside(copy.deepcopy(block), copy.deepcopy(side))
    with torch.no_grad():
        frozen, added, by_batch = block(x), copy.deepcopy(side)(x), copy.deepcopy(block).train()(x)
        [result] = results(student, [Case("a block and a side network", (block.train(), side))])
        model = module(result)
        likely = {
            "the side network is added already: set the γ of `side[-1]` to 0": frozen + added,
            "the block normalizes by the batch, and the side network is added already: eval mode for the one, a γ of 0 "
            "for the last batch norm of the other": by_batch + added,
            "that is the side network alone, without the block": added,
            "that is nothing but zeros: the block is missing": 0 * added,
        }
        new = {"the block normalizes by the batch: put it into eval mode in `__init__`, with `self.train()`": by_batch}
        right.side.train(model.training)(x)
        _first(model(x), frozen, likely | new, "at the beginning")
        trains = {
            "the block normalizes by the batch: `train()` reaches all that is in a module, so write one of your own "
            "that brings the block back": by_batch
        }
        right.side.train()(x)
        _train(model)
        _first(model(x), frozen, trains, "after `train()`")
    if (count := len(_training(model))) != len(_training(right)):
        why = (
            "is the block frozen, `block.requires_grad_(False)`?" if count else "is it kept as `self.side`, not frozen?"
        )
        raise Wrong(f"{count} tensors train, those of the side network are {len(_training(right))}: {why}")
    if _training(model)[-2].any():
        raise Wrong("the γ of `side[-1]` is not 0: something else silences the side network, and hinders its learning")
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and layer.weight.requires_grad]
    if not all(layer.training for layer in norms):
        raise Wrong("after `train()` the side network is still in eval mode: its batch norms should see the batch")
    got, expected = _step(model, x, above), _step(right, x, above)
    if not _alike(got, expected):
        raise Wrong(_why(got, expected))
    later = _step(model, x, above)
    if not _alike(later, _step(right, x, above)):
        raise Wrong("the first step is right, the second is not: is γ set back to 0 in each forward pass?")
    if not _alike(model.eval()(x).detach(), right.eval()(x).detach()):
        raise Wrong("after `eval()` the side network should use its running means: does your `train` hand `mode` on?")
    first, second = (sum(bool(gradient.any()) for gradient in gradients) for gradients in (got, later))
    return f"the first step gives {first} of {len(got)} side tensors a gradient, the second {second}"


def _train(model: nn.Module) -> None:
    """`train()`; Wrong unless it can be called as PyTorch does, in `eval` too."""
    try:
        model.train(True)
        returned = model.train()
    except TypeError as error:
        raise Wrong(f"PyTorch calls your `train` with True or False: `def train(self, mode=True)` ({error})") from None
    if returned is not model:
        raise Wrong("your `train` returns something else: end it with `return self`")


def _first(y: Any, frozen: Tensor, likely: dict[str, Tensor], moment: str) -> None:
    """Wrong unless a module computes what the block computes."""
    if _alike(y, frozen):
        return
    why = next((why for why, value in likely.items() if _alike(y, value)), "yours does not")
    raise Wrong(f"{moment} your module should compute what the frozen block computes: {why}")


def _why(got: list[Tensor], expected: list[Tensor]) -> str:
    """What is wrong with the gradients of the first step."""
    if _alike(got, [-gradient for gradient in expected]):
        return "the side network is subtracted: block(x) + side(x)"
    count = sum(bool(gradient.any()) for gradient in got)
    return f"in the first step {count} of {len(got)} side tensors get a gradient; the γ of `side[-1]` alone should be 0"
