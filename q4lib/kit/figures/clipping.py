"""Lesson 04: an outlier on the grid, hard and soft clip, what the soft clip does over many steps, and an ablation."""

import copy
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...layers import Conv4bit
from ...optim import soft_clip_
from ...quant import amax, qmax, quantize, scale, statistics
from ...train import read_log
from ..plots import BLUE, GREY, ORANGE, STYLE, panels
from ..records import mean_interval

WEIGHT_DECAY = 5e-4
# The paper's table VII: test accuracy on CIFAR-10 in percent.
TABLE_VII = {
    "full method": 92.21,
    "without soft clip": 87.3,
    "without per-layer scale": 84.1,
    "without gradient clip": 82.5,
    "standard AdamW": 79.2,
}


def _two_digits(value: float) -> str:
    """Rounded to two digits and written out: 7,400, 0.000087."""
    return f"{Decimal(f'{value:.2g}'):,f}"


@matplotlib.rc_context(STYLE)
def plot_outlier(
    weights: Tensor, outlier: float = 0.9, bits: int = 4, guess: float | None = None
) -> tuple[Figure, str]:
    """A layer's weights, one of them planted far out, on the grid that the largest sets; a band holds 99 % of them."""
    weights = torch.cat([weights.flatten()[1:], torch.tensor([outlier])])
    step = scale(weights, bits).item()
    shares = quantize(weights, scale(weights, bits), bits).int().add(qmax(bits)).flatten().bincount() / len(weights)
    used = int((shares.sort(descending=True)[0].double().cumsum(0) < 0.99).sum()) + 1
    levels = 2 * qmax(bits) + 1
    figure, (axes,) = panels(left=0.12, top=0.98)
    axes.stairs(*np.histogram(weights.numpy(), np.linspace(-1, 1, 201)), fill=True, color=GREY)
    if levels <= 31:
        axes.vlines(step * np.arange(-qmax(bits), qmax(bits) + 1), 0.5, 1e5, color=BLUE, linewidth=0.8)
    axes.axvspan(-used * step / 2, used * step / 2, color=BLUE, alpha=0.2, label=f"{used} levels share 99 %")
    if guess is not None:
        for side in (-1, 1):
            label = f"your guess: {guess:g} levels" if side > 0 else None
            axes.axvline(side * guess * step / 2, color=ORANGE, linestyle="--", linewidth=2, label=label)
    if outlier >= weights[:-1].max():
        axes.plot((outlier, outlier), (2.5, 40), color=ORANGE, marker="v", markevery=(0, 2), linewidth=2)
        axes.text(outlier, 60, "the outlier", ha="center", color=ORANGE)
    axes.set(xlabel="weight (a thin line is a level)", ylabel="weights", yscale="log", xlim=(-1, 1), ylim=(0.5, 1e5))
    axes.set(yticks=(1, 100, 10_000), yticklabels=("1", "100", "10,000"))
    axes.minorticks_off()
    axes.grid(visible=False)
    axes.legend(loc="upper left")
    facts = statistics(weights, bits)
    return figure, (
        f"largest weight {amax(weights).item():.2f} · scale {step:.4f} · SQNR {facts['sqnr']:.1f} dB\n"
        f"99 % of the weights share {used} of {levels} levels · {100 * facts['zeros']:.0f} % of them become 0"
    )


@lru_cache
def one_percent(c: float) -> float:
    """The |w| from which the soft clip takes 1 %: where `tanh(w/c) = 0.99 w/c`, found by halving an interval."""
    low, high = 1e-3, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if math.tanh(middle) > 0.99 * middle else (low, middle)
    return c * low


@matplotlib.rc_context(STYLE)
def plot_clips(c: float = 3.0, guess: float | None = None) -> tuple[Figure, str]:
    """Left: what the hard and the soft clip make of a weight. Right: their slopes, 1 where nothing happens."""
    w = np.linspace(0, 6, 601)
    figure, (left, right) = panels(2, top=0.97)
    lines = (
        ("hard: clamp(w, -c, c)", ORANGE, "--", np.minimum(w, c), np.where(w < c, 1.0, 0.0)),
        ("soft: c tanh(w / c)", BLUE, "-", c * np.tanh(w / c), 1 - np.tanh(w / c) ** 2),
    )
    for label, colour, line, clipped, slope in lines:
        left.plot(w, clipped, color=colour, linestyle=line, linewidth=2, label=label)
        right.plot(w, slope, color=colour, linestyle=line, linewidth=2)
    left.plot(w, w, color=GREY, linestyle=":", label="w, as it was")
    at = one_percent(c)
    left.plot(at, 0.99 * at, "o", color=BLUE, label="here soft takes 1 %")
    if guess is not None:
        left.plot(guess, c * math.tanh(guess / c), "D", color="black", label="your guess")
    left.set(xlabel="weight before", ylabel="weight after", xlim=(0, 6), ylim=(0, 6))
    left.set(xticks=(0, 2, 4, 6), yticks=(0, 2, 4, 6))
    left.legend(loc="upper left", fontsize=9.5)
    right.set(xlabel="weight before", ylabel="slope", xlim=(0, 6), ylim=(-0.05, 1.1))
    right.set(xticks=(0, 2, 4, 6), yticks=(0, 0.5, 1))
    return figure, (
        f"c = {c:g} · soft takes 1 % off at |w| = {at:.2f}, hard takes nothing off below {c:g}\n"
        f"of a weight of 0.1, soft takes {_two_digits(100 * (1 - 10 * c * math.tanh(0.1 / c)))} %\n"
        f"slope at |w| = c: soft {1 - math.tanh(1) ** 2:.2f}; hard falls from 1 to 0 there"
    )


@lru_cache
def clipped_alone(start: float, c: float, steps: int) -> np.ndarray:
    """A weight's values from `start` through `steps` soft clips with nothing between them: (steps + 1,)."""
    values = [start]
    for _ in range(steps):
        values.append(c * math.tanh(values[-1] / c))
    return np.array(values)


@matplotlib.rc_context(STYLE)
def plot_decay(steps: int = 10_000, c: float = 3.0, guess: float | None = None) -> tuple[Figure, str]:
    """Weights of 1.0 and of 0.1 under the soft clip alone, over the number of steps; points are the formula's."""
    longest = 39_100
    figure, (axes,) = panels(top=0.98)
    ends = {}
    for start, colour, marker in ((1.0, ORANGE, "s"), (0.1, BLUE, "o")):
        values = clipped_alone(start, c, longest)
        n = np.unique(np.geomspace(1, longest, 200).astype(int))
        axes.plot(n, values[n], color=colour, linewidth=2, label=f"from {start}")
        n = np.geomspace(1, longest, 12)
        formula = 1 / np.sqrt(1 / start**2 + 2 * n / (3 * c**2))
        axes.plot(n, formula, marker, color=colour, markersize=5, label=f"from {start}, by the formula")
        ends[start] = values[steps]
    axes.axvline(steps, color=GREY, linestyle="--")
    if guess is not None:
        axes.plot(10_000, guess, "D", color="black", label="your guess for 0.1 at 10,000")
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="weight", ylim=(0.01, 1.3))
    axes.set(xticks=[1, 10, 100, 1000, 10_000], xticklabels=["1", "10", "100", "1,000", "10,000"])
    axes.set(yticks=[0.01, 0.03, 0.1, 0.3, 1], yticklabels=["0.01", "0.03", "0.1", "0.3", "1"])
    axes.minorticks_off()
    axes.legend(loc="lower left")
    large, small = ends.values()
    return figure, (
        f"c = {c:g}, after {steps:,} {'step' if steps == 1 else 'steps'} of the soft clip alone\n"
        f"1.0 has become {large:.4f} and 0.1 has become {small:.4f}\n"
        f"the larger was 10 times the smaller; it is {large / small:.2f} times"
    )


@matplotlib.rc_context(STYLE)
def plot_pulls(learning_rate: float = 1e-3, c: float = 3.0, guess: float | None = None) -> tuple[Figure, str]:
    """What a step takes off a weight, over its size: soft clip and weight decay, and what one Adam step gives."""
    w = np.geomspace(1e-4, 3, 200)
    clip = w - c * np.tanh(w / c)
    share = learning_rate * WEIGHT_DECAY
    equal, held = math.sqrt(3 * c**2 * share), (3 * c**2 * learning_rate) ** (1 / 3)
    figure, (axes,) = panels(left=0.11, right=0.73, top=0.97)
    axes.plot(w, clip, color=BLUE, linewidth=2, label="soft clip")
    axes.plot(w, share * w, color=ORANGE, linewidth=2, linestyle="--", label="weight decay")
    axes.axhline(learning_rate, color=GREY, linestyle=":", linewidth=2, label="Adam's step, about")
    axes.plot(equal, share * equal, "o", color=ORANGE, label=f"equal at {_two_digits(equal)}")
    axes.plot(held, learning_rate, "s", color=GREY, label=f"equal at {held:.2f}")
    if guess is not None:
        axes.axvline(guess, color="black", linestyle="-.", label="your guess")
    axes.set(xscale="log", yscale="log", xlabel="|w|", ylabel="taken off in a step", ylim=(1e-14, 3))
    # Plain text: the formulas that matplotlib makes of powers of ten take longer than all else.
    axes.set(xticks=(1e-4, 1e-3, 1e-2, 0.1, 1), xticklabels=("0.0001", "0.001", "0.01", "0.1", "1"))
    axes.set(yticks=(1e-12, 1e-8, 1e-4, 1), yticklabels=("10⁻¹²", "10⁻⁸", "10⁻⁴", "1"))
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    tenth = 0.1 - c * math.tanh(0.1 / c)
    return figure, (
        f"learning rate {_two_digits(learning_rate)}: "
        f"soft clip and weight decay take the same at |w| = {_two_digits(equal)}\n"
        f"at |w| = 0.1 the soft clip takes {_two_digits(tenth / (0.1 * share))} times as much\n"
        f"it takes as much as a whole Adam step gives at |w| = {held:.2f}"
    )


@matplotlib.rc_context(STYLE)
def plot_scaled(
    conv: Conv4bit, norm: nn.BatchNorm2d, images: Tensor, factor: float = 10.0, guess: float | None = None
) -> tuple[Figure, str]:
    """A convolution's weights multiplied: its outputs after batch norm, before and after; what one soft clip takes."""
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm).train()
    with torch.no_grad():
        before = norm(conv(images))
        conv.weight.mul_(factor)
        after = norm(conv(images))
        largest = amax(conv.weight).item()
        shares = []
        for size in (largest / factor, largest):
            w = torch.tensor([size], dtype=torch.float64)
            soft_clip_([w])
            shares.append(100 * (1 - w.item() / size))
    figure, (left, right) = panels(2, width_ratios=(3, 2), wspace=0.35, top=0.97)
    seen = slice(None, None, max(1, before.numel() // 300))
    x, y = before.flatten()[seen], after.flatten()[seen]
    left.plot(x, y, "o", color=BLUE, markersize=4, label=f"weights × {factor:g}")
    ends = torch.tensor([x.min(), x.max()])
    left.plot(ends, ends, color=GREY, linestyle=":", label="unchanged")
    if guess is not None:
        left.plot(ends, guess * ends, color=ORANGE, linestyle="--", label=f"your guess: × {guess:g}")
    left.set(xlabel="output, weights × 1", ylabel="output after batch norm", ylim=(-6, 6), yticks=(-4, 0, 4))
    left.legend(loc="upper left", fontsize=9.5)
    bars = right.bar((0, 1), shares, color=[GREY, BLUE])
    right.bar_label(bars, [f"{_two_digits(share)} %" for share in shares])
    right.set(ylabel="one soft clip takes (%)", yscale="log", ylim=(1e-5, 1e3))
    right.set(yticks=(1e-4, 1e-2, 1, 100), yticklabels=("0.0001", "0.01", "1", "100"))
    right.set_xticks((0, 1), ("× 1", f"× {factor:g}"))
    right.minorticks_off()
    spread = (after.std() / before.std()).item()
    return figure, (
        f"weights × {factor:g}: after batch norm the output is × {spread:.2f}\n"
        f"of the largest weight one soft clip takes {_two_digits(shares[1])} %; it took {_two_digits(shares[0])} %"
    )


@matplotlib.rc_context(STYLE)
def plot_table(guess: float | None = None) -> tuple[Figure, str]:
    """The points of accuracy that the paper's table VII loses with each part left out."""
    full, *rest = TABLE_VII.values()
    losses = dict(zip(list(TABLE_VII)[1:], [full - value for value in rest], strict=True))
    figure, (axes,) = panels(left=0.25, top=0.98)
    bars = axes.barh(list(losses), losses.values(), color=[BLUE, GREY, GREY, GREY])
    axes.bar_label(bars, [f"{loss:.1f}" for loss in losses.values()], label_type="center", color="white")
    if guess is not None:
        axes.plot(guess, 0, "D", color=ORANGE, label="your guess")
        axes.legend(loc="upper right")
    axes.set(xlabel=f"points lost of {full} % (CIFAR-10, 100 epochs, as the paper prints it)", xlim=(0, 15))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    clip = losses["without soft clip"]
    rank = 1 + sum(loss > clip for loss in losses.values())
    return figure, (
        f"without the soft clip: {clip:.1f} points lost\n"
        f"by size, that is number {rank} of the table's {len(losses)} losses"
    )


def _accuracies(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[float]]:
    return {arm: [read_log(run)[1][-1]["test_acc"] for run in folders] for arm, folders in runs.items()}


def compare(runs: Mapping[str, Sequence[Path]]) -> str:
    """Two arms' test accuracies at the last epoch: mean and range; and their difference, taken seed by seed."""
    found = _accuracies(runs)
    first, second = found.values()
    mean, half = mean_interval([a - b for a, b in zip(first, second, strict=True)])
    lines = [f"{arm}: {sum(a) / len(a):.1f} % ({min(a):.1f} to {max(a):.1f})" for arm, a in found.items()]
    lines += [f"{' minus '.join(found)}: {mean:+.1f} points, 95 % interval {mean - half:+.1f} to {mean + half:+.1f}"]
    return "\n".join(lines)


@matplotlib.rc_context(STYLE)
def plot_arms(runs: Mapping[str, Sequence[Path]], guess: float | None = None) -> tuple[Figure, str]:
    """Two arms of an ablation, a point a seed. Left: each layer's largest weight at the end. Right: test accuracy."""
    ends = {arm: [read_log(run)[1][-1]["layers"] for run in folders] for arm, folders in runs.items()}
    largest, sqnr = (
        {arm: [[layer[key] for layer in end.values()] for end in of] for arm, of in ends.items()}
        for key in ("amax", "sqnr")
    )
    accuracies = _accuracies(runs)
    (first, clipped), (second, free) = largest.items()
    layers = list(ends[first][0])
    figure, (left, right) = panels(2, width_ratios=(3, 2), bottom=0.22, top=0.97)
    for i, (arm, colour, marker) in enumerate(zip(runs, (BLUE, ORANGE), "os", strict=True)):
        places = np.arange(len(layers)) + 0.3 * i - 0.15
        left.plot(np.tile(places, len(largest[arm])), np.ravel(largest[arm]), marker, color=colour, label=arm)
        right.plot([i] * len(accuracies[arm]), accuracies[arm], marker, color=colour)
        right.plot([i - 0.2, i + 0.2], [np.mean(accuracies[arm])] * 2, color=colour)
    if guess is not None:
        height = np.mean(accuracies[first]) - guess
        right.plot(1.3, height, "D", color="black")
        right.annotate("your guess  ", (1.3, height), ha="right", va="center", fontsize=9.5)
    left.set(ylabel="largest |w|", xticks=range(len(layers)), xticklabels=layers, ylim=(0, None))
    left.tick_params(axis="x", labelrotation=45)
    left.legend(loc="upper center")
    right.set(ylabel="test accuracy (%)", xticks=(0, 1), xticklabels=list(runs), xlim=(-0.5, 1.5))
    smaller = sum(all(a < b for a, b in zip(*pair, strict=True)) for pair in zip(clipped, free, strict=True))
    pairs = [pair for arms in zip(*sqnr.values(), strict=True) for pair in zip(*arms, strict=True)]
    return figure, (
        f"{len(clipped)} seeds an arm\n"
        f"largest weight, {first} against {second}: smaller in every layer in {smaller} of {len(clipped)} seeds\n"
        f"SQNR, layer by layer: higher in {sum(a > b for a, b in pairs)} of {len(pairs)}"
    )
