"""Lesson 05: what one training step does to gradients, weights and codes."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...layers import FP32, quantized_layers
from ...optim import QuantAwareAdamW
from ...quant import quantize, scale
from ..plots import BLUE, GREY, ORANGE, PALE, STYLE, panels

RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of some tensors as one vector, cut off from the graph."""
    return torch.cat([t.detach().flatten() for t in tensors])


def codes(model: nn.Module) -> Tensor:
    """The codes of all quantized weights as one int8 vector."""
    layers = quantized_layers(model).values()
    return flat([quantize(a.weight, scale(a.weight, a.bits), a.bits) for a in layers])


def loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor, bits: int = 4) -> tuple[float, Tensor]:
    """Mean loss, and the gradient of all parameters as one vector, at the weights' grid of `bits` (32: no grid)."""
    model = copy.deepcopy(model)
    for layer in quantized_layers(model).values():
        layer.bits = bits
    loss = F.cross_entropy(model(x), y)
    return loss.item(), flat(torch.autograd.grad(loss, list(model.parameters())))


def record_gradients(
    model: nn.Module, x: Tensor, y: Tensor, size: int = 64, steps: int = 22, spoiled: int | None = None
) -> Tensor:
    """The unclipped gradients (steps, parameters) of the first steps of training a copy at the paper's settings.

    In the step called `spoiled` the pixels are ten times too bright.
    """
    model = copy.deepcopy(model)
    optimizer, found = QuantAwareAdamW(model.parameters()), []
    for step, (images, labels) in enumerate(zip(x.split(size)[:steps], y.split(size), strict=False), start=1):
        optimizer.zero_grad()
        F.cross_entropy(model(10 * images if step == spoiled else images), labels).backward()
        found.append(flat([p.grad for p in model.parameters() if p.grad is not None]))
        optimizer.step()
    return torch.stack(found)


def adam_updates(gradients: Tensor, clip: float | None = None, bias_correction: bool = True) -> list[Tensor]:
    """What Adam subtracts in each step, in learning rates, when these gradients (steps, parameters) come in turn."""
    m = v = torch.zeros_like(gradients[0])
    updates = []
    for step, g in enumerate(gradients, start=1):
        if clip is not None:
            g = g * min(1.0, clip / g.norm().item())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        first, second = (1 - 0.9**step, 1 - 0.999**step) if bias_correction else (1.0, 1.0)
        updates.append(m / first / ((v / second).sqrt() + 1e-8))
    return updates


class Run(NamedTuple):
    """The loss before each step, and the share of codes, in percent, that differ from the first after it."""

    loss: list[float]
    changed: list[float]


def run_steps(model: nn.Module, x: Tensor, y: Tensor, learning_rate: float, masters: bool, steps: int = 100) -> Run:
    """The same images again and again; without masters, each step begins with weights rounded to the grid."""
    model = copy.deepcopy(model)
    optimizer, before, run = QuantAwareAdamW(model.parameters(), lr=learning_rate), codes(model), Run([], [])
    for _ in range(steps):
        if not masters:
            for layer in quantized_layers(model).values():
                layer.weight.data = layer.quantized_weight().detach()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        run.loss.append(loss.item())
        run.changed.append(_percent(codes(model) != before))
    return run


def _percent(which: Tensor) -> float:
    return 100 * which.float().mean().item()


def plot_gradients(
    model: nn.Module, x: Tensor, y: Tensor, bits: int = 4, guess: float | None = None
) -> tuple[Figure, str]:
    """Each parameter's gradient at the grid against that at its master weight; the share of equal signs by bits."""
    loss, at_masters = loss_and_gradient(model, x, y, FP32)
    at_grid = {b: loss_and_gradient(model, x, y, b) for b in range(2, 9)}
    kept = {b: _percent(g.sign() == at_masters.sign()) for b, (_, g) in at_grid.items()}
    cosine = F.cosine_similarity(at_grid[bits][1], at_masters, dim=0).item()
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = panels(2)
        end = 1.05 * at_masters.abs().max().item()
        left.plot([-end, end], [-end, end], color=GREY, linewidth=1)
        left.plot(at_masters, at_grid[bits][1], "o", markersize=2, markeredgewidth=0, color=BLUE)
        left.set(title=f"gradients, {bits} bits", xlabel="at the master weight", ylabel="at the grid weight")
        left.set(xlim=(-end, end), ylim=(-end, end), xticks=[-0.1, 0, 0.1], yticks=[-0.1, 0, 0.1])
        right.plot(list(kept), list(kept.values()), color=GREY, marker="o")
        right.plot(bits, kept[bits], color=BLUE, marker="o", markersize=11)
        if guess is not None:
            right.axhline(guess, color=ORANGE, linestyle="--", label="your guess")
            right.legend(loc="lower right")
        right.set(title="same sign at both", xlabel="bits", ylabel="% of the parameters", ylim=(0, 105))
        right.set(xticks=range(2, 9), yticks=range(0, 101, 20))
    numbers = f"{bits} bits · {kept[bits]:.0f} % of the gradients keep their sign · cosine {cosine:.2f}"
    return figure, f"{numbers}\nloss {at_grid[bits][0]:.2f} at the grid, {loss:.2f} at the masters"


def plot_clip(gradients: Tensor, clip: float = 0.5, step: int = 1, guess: float | None = None) -> tuple[Figure, str]:
    """The gradient's norm in each step with the clip across it, and how far AdamW moves with and without the clip."""
    norms = [g.norm().item() for g in gradients]
    clipped, free = ([u.square().mean().sqrt().item() for u in adam_updates(gradients, c)] for c in (clip, None))
    steps = range(1, len(norms) + 1)
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = panels(2)
        # Lines of one collection: bars take three times as long.
        left.vlines(steps, 0.01, norms, color=[GREY if s == step else PALE for s in steps], linewidth=8)
        left.axhline(clip, color=BLUE, linewidth=2)
        left.set(title=f"the gradient's norm, clip {clip:g}", xlabel="step", yscale="log", ylim=(0.03, 30))
        left.set_xticks([1, 8, 15, 22])
        left.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
        left.minorticks_off()
        right.plot(steps, free, color=ORANGE, marker="^", markersize=5, label="no clip")
        right.plot(steps, clipped, color=BLUE, marker="o", markersize=4, label=f"clip {clip:g}")
        right.axvline(step, color=GREY, linewidth=1, zorder=0)
        if guess is not None:
            right.plot(1, guess / 100, "X", color=GREY, markersize=10, label="your guess, step 1")
        right.set(title="the step's size, in learning rates", xlabel="step", xticks=[1, 8, 15, 22])
        right.set_ylim(bottom=0)
        right.legend(loc="lower left")
    norm, at = norms[step - 1], step - 1
    to = f"clipped to {clip:g}" if norm > clip else "not clipped"
    return figure, (
        f"step {step} · gradient norm {norm:.2f}, {to}\n"
        f"size of the update: {clipped[at]:.2f} learning rates with the clip, {free[at]:.2f} without"
    )


def plot_adam(
    gradients: Tensor, step: int = 1, bias_correction: bool = True, guess: float | None = None
) -> tuple[Figure, str]:
    """Each parameter's update by Adam against its gradient, both in size and on logarithmic axes."""
    g = gradients[step - 1].abs()
    update = adam_updates(gradients[:step], None, bias_correction)[-1].abs()[g > 0]
    g = g[g > 0]
    g_low, g_high = g.quantile(torch.tensor([0.05, 0.95])).tolist()
    low, high = update.quantile(torch.tensor([0.05, 0.95])).tolist()
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panels()
        axes.plot(g, update, "o", markersize=2.5, markeredgewidth=0, color=BLUE)
        axes.axhline(1, color=GREY, linewidth=1)
        if guess is not None:
            axes.plot([1e-4, 1e-2], [1 / max(guess, 1e-6), 1], "--", color=ORANGE, label="your guess")
            axes.legend(loc="lower right")
        axes.set(xscale="log", yscale="log", xlim=(1e-6, 1), ylim=(0.01, 10))
        axes.set_xticks([1e-6, 1e-4, 1e-2, 1], ["0.000001", "0.0001", "0.01", "1"])
        axes.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        axes.minorticks_off()
        axes.set(xlabel="size of the gradient", ylabel="update, in learning rates")
        axes.set_title(f"step {step}, bias correction {'on' if bias_correction else 'off'}")
    return figure, (
        f"step {step} · nine of ten gradients lie between {g_low:.1g} and {g_high:.1g}\n"
        f"nine of ten updates lie between {low:.2f} and {high:.2f} learning rates"
    )


def plot_codes(
    model: nn.Module, x: Tensor, y: Tensor, learning_rate: float = 0.001, guess: float | None = None
) -> tuple[Figure, str]:
    """Thirty weights on their grid before and after one step, and the share of codes that one step changes."""
    gradient = loss_and_gradient(model, x, y)[1].split([p.numel() for p in model.parameters()])
    before, share, moved = codes(model), {}, model
    for rate in sorted({*RATES, learning_rate}):
        after = copy.deepcopy(model)
        for p, g in zip(after.parameters(), gradient, strict=True):
            p.grad = g.view_as(p).clone()
        QuantAwareAdamW(after.parameters(), lr=rate).step()
        share[rate] = _percent(codes(after) != before)
        moved = after if rate == learning_rate else moved
    layer, layer_after = (next(iter(quantized_layers(m).values())) for m in (model, moved))
    step = scale(layer.weight).item()
    few = slice(0, 30)
    start, end = (weight.detach().flatten()[few] / scale(weight) for weight in (layer.weight, layer_after.weight))
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = panels(2)
        colours = [BLUE if same else ORANGE for same in (start.round() == end.round()).tolist()]
        left.hlines([border + 0.5 for border in range(-7, 7)], -1, 30, color=PALE, linewidth=0.8)
        left.vlines(range(30), start, end, color=colours, linewidth=1.5)
        left.scatter(range(30), end, s=16, color=colours)
        left.grid(False)
        left.set(title="30 weights (new code: orange)", ylabel="weight / scale", yticks=range(-7, 8, 2), xticks=[])
        left.set(ylim=(-7.5, 7.5))
        right.plot(list(share), list(share.values()), color=GREY, marker="o")
        right.plot(learning_rate, share[learning_rate], color=BLUE, marker="o", markersize=11)
        if guess is not None:
            right.plot(0.001, max(guess, 0.1), "X", color=ORANGE, markersize=11, label="your guess")
            right.legend(loc="lower right")
        right.set(xscale="log", yscale="log", ylim=(0.08, 130), xlabel="learning rate")
        right.set(title="% of codes that one step changes")
        right.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        right.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["0.0001", "0.001", "0.01", "0.1"])
        right.minorticks_off()
    return figure, (
        f"learning rate {learning_rate:g} is {100 * learning_rate / step:.1f} % of a grid step ({step:.4f})\n"
        f"one step changes {share[learning_rate]:.1f} % of the {len(before)} codes"
    )


def plot_masters(
    runs: dict[float, tuple[Run, Run]], learning_rate: float = 0.001, guess: float | None = None
) -> tuple[Figure, str]:
    """Loss and share of changed codes over a hundred steps, with FP32 master weights and with the codes alone."""
    with_masters, alone = runs[learning_rate]
    with matplotlib.rc_context(STYLE):
        figure, sides = panels(2, bottom=0.26)
        for run, label, colour, style in (
            (with_masters, "FP32 masters", BLUE, "-"),
            (alone, "codes only", ORANGE, "--"),
        ):
            for axes, values in zip(sides, run, strict=True):
                axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=style, linewidth=2, label=label)
        if guess is not None:
            sides[1].plot(len(alone.loss), guess, "X", color=GREY, markersize=11, label="your guess", clip_on=False)
        sides[0].set(
            title=f"loss, learning rate {learning_rate:g}",
            xlabel="step",
            ylim=(0, 3),
            xticks=[1, 50, 100],
            yticks=[0, 1, 2, 3],
        )
        sides[1].set(title="% of codes changed so far", xlabel="step", ylim=(-3, 103), xticks=[1, 50, 100])
        figure.legend(*sides[1].get_legend_handles_labels(), loc="lower center", ncols=3)
    half = next((f" (half of them by step {t})" for t, share in enumerate(with_masters.changed, 1) if share >= 50), "")
    return figure, (
        f"with masters: loss {with_masters.loss[-1]:.2f}, {with_masters.changed[-1]:.0f} % of the codes changed"
        f"{half}\n"
        f"codes only:   loss {alone.loss[-1]:.2f}, {alone.changed[-1]:.0f} % of the codes changed"
    )
