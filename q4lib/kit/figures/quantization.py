"""Lesson 01: numbers on a grid, a layer before and after rounding, and the range with the smallest error."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ...quant import amax as largest
from ...quant import dequantize, qmax, quantize, scale, statistics
from ..plots import BLUE, GREEN, GREY, ORANGE, STYLE, panels

LIGHT = "#7FB8D8"  # BLUE, half as dark
ARROWS: Any = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.002, "headwidth": 7, "headlength": 8}
GUESS: Any = {"color": "black", "markerfacecolor": "white", "markersize": 13, "linestyle": "none", "zorder": 1.9}
PERCENTS = range(4, 101)
FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
# QLoRA's table, to the digits that a figure shows.
NF4 = (-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.723, 1)  # fmt: skip
FORMATS = {
    "15 levels": {code: code / 7 for code in range(-7, 8)},
    "16 levels": {code: code / 8 for code in range(-8, 8)},
    "zero point": {code: (code - 5) / 10 for code in range(16)},
    "FP4": {sign * i: sign * value / 6 for sign in (-1, 1) for i, value in enumerate(FP4)},
    "NF4": dict(enumerate(NF4)),
}


class Error(NamedTuple):
    """What a grid does to a layer: its error's two parts in percent of the weights' power, and its SQNR in dB."""

    rounding: float
    clipping: float

    @property
    def total(self) -> float:
        return self.rounding + self.clipping

    @property
    def sqnr(self) -> float:
        return 10 * math.log10(100 / self.total) if self.total else math.inf


def _grid(weights: Tensor, bits: int, amax_percent: float) -> tuple[float, Tensor]:
    """The range and the scale when the range is that percentage of the largest weight."""
    amax = largest(weights).item() * amax_percent / 100
    return amax, torch.tensor(amax / qmax(bits))


def grid_error(weights: Tensor, bits: int = 4, amax_percent: float = 100) -> Error:
    """The error of a grid that spans that percentage of `max|w|`."""
    return _error(weights, weights._version, bits, amax_percent)


# A slider asks for the same again and again. The version counts what the reader writes into a tensor.
@lru_cache(maxsize=1024)
def _error(weights: Tensor, version: int, bits: int, amax_percent: float) -> Error:
    amax, step = _grid(weights, bits, amax_percent)
    sizes, sums = _sums(weights, version)
    levels = torch.arange(qmax(bits) + 1)
    # Each level's share of the weights lies between two borders; what is beyond amax has the last level, too.
    borders = torch.cat([(levels[:-1] + 0.5) * step, torch.tensor([amax])])
    ends = torch.cat([torch.tensor([0]), torch.searchsorted(sizes, borders, right=True), torch.tensor([len(sizes)])])
    many, of_sizes, of_squares = sums[:, ends].diff(dim=1)
    at = torch.cat([levels, levels[-1:]]) * step.double()
    *rounding, clipping = (of_squares - 2 * at * of_sizes + at.square() * many).tolist()
    return Error(*(100 * part / sums[2, -1].item() for part in (sum(rounding), clipping)))


@lru_cache(maxsize=4)
def _sums(weights: Tensor, version: int) -> tuple[Tensor, Tensor]:
    """The weights' sizes, sorted; before each, and at the end, how many there are, their sum, their squares' sum."""
    sizes = weights.flatten().abs().sort().values
    # In float64 a sum has the same digits, as many as are printed, whatever the processor's order of adding.
    sums = torch.stack([sizes.double() ** power for power in range(3)]).cumsum(1)
    return sizes, F.pad(sums, (1, 0))


@lru_cache(maxsize=4)
def _histogram(weights: Tensor, version: int) -> tuple[Tensor, Tensor]:
    edge = 1.02 * largest(weights).item()
    return torch.histogram(weights.flatten(), 120, range=(-edge, edge))


def _two(label: str, value: float) -> str:
    return f"{label} {value:.2g} %" if value else f"{label} 0 %"


@matplotlib.rc_context(STYLE)
def plot_ruler(weights: Tensor, bits: int = 2, guess: int | None = None) -> tuple[Figure, str]:
    """A few numbers above a ruler with the levels; an arrow takes each number to its level, the guess has its own."""
    rulers = {bits: (BLUE, f"{bits} bits")}
    if guess is not None and guess != bits:
        rulers[guess] = (ORANGE, f"your guess:\n{guess} bits")
    figure, (axes,) = panels(left=0.01, right=0.99, top=0.99)
    lines = []
    for row, (width, (colour, label)) in enumerate(rulers.items()):
        step, q = scale(weights, width), qmax(width)
        codes = quantize(weights, step, width)
        levels, y = torch.arange(-q, q + 1) * step, -1.6 * row
        axes.plot(levels, [y] * len(levels), "|-", color=colour, markersize=14)
        axes.text(-1.06 * step * q, y, label, ha="right", va="center", color=colour, fontsize=10)
        # One artist: annotate takes as long for each of its arrows as this for all.
        way = dequantize(codes, step) - weights
        axes.quiver(weights, [y + 0.8] * len(way), way, [-0.75] * len(way), color=GREY, **ARROWS)
        for number in weights.tolist():
            axes.text(number, y + 0.85, f"{number:g}", ha="center", fontsize=10)
        if q <= 7:
            for code, level in zip(range(-q, q + 1), levels.tolist(), strict=True):
                axes.text(level, y - 0.2, str(code), ha="center", va="top", fontsize=10, color=colour)
        listed = " ".join(map(str, codes.tolist()))
        lines.append(f"{width} bits: {2 * q + 1} levels · scale {step:.4f} · codes {listed}")
    top = largest(weights).item()
    axes.set(xlim=(-1.35 * top, 1.1 * top), ylim=(-1.6 * len(rulers) + 0.8, 1.3), yticks=(), xlabel="weight")
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    return figure, "\n".join(lines)


@matplotlib.rc_context(STYLE)
def plot_formats(x: float = 0.3, guess: float | None = None) -> tuple[Figure, str]:
    """Five sets of 4-bit values, a row each; a line stands at x, a filled circle where x lands in each row."""
    figure, (axes,) = panels(left=0.24, top=0.9)
    landed = {}
    for row, (name, levels) in enumerate(FORMATS.items()):
        # Half way between two, the even code has it: 0 and -0 of FP4 are one value.
        code = min(levels, key=lambda code: (round(abs(x - levels[code]), 9), code % 2))
        landed[name] = levels[code]
        axes.text(1.08, row, f"{levels[code]:.3f}", va="center", color=BLUE)
    places = [(value, row) for row, levels in enumerate(FORMATS.values()) for value in levels.values()]
    axes.plot(*zip(*places, strict=True), "|", color=GREY, markersize=16, markeredgewidth=1.5)
    axes.plot(landed.values(), range(5), "o", color=BLUE, markersize=9)
    axes.axvline(x, color=BLUE, linewidth=1)
    if guess is not None:
        axes.plot(guess, 1, "D", label="your guess for x = 1", **GUESS)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
    axes.set(xlim=(-1.08, 1.3), ylim=(4.5, -0.5), xticks=(-1, -0.5, 0, 0.5, 1), xlabel="weight ÷ largest weight")
    axes.set_yticks(range(5), ["15 levels: −7 … 7", "16 levels: −8 … 7", "16 with a zero point", "FP4 (E2M1)", "NF4"])
    axes.grid(axis="y", visible=False)
    values = [f"{name} {value:.3f}" for name, value in landed.items()]
    return figure, f"x = {x:.2f} becomes:\n{' · '.join(values[:3])}\n{' · '.join(values[3:])}"


def _log(axes: Any, low: float, high: float, ticks: Sequence[float]) -> None:
    """A logarithmic y axis with plain labels, and no minor ticks: both cost time at every move of a slider."""
    axes.set(yscale="log", ylim=(low, high))
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _draw_weights(axes: Any, weights: Tensor, amax: float, levels: Sequence[float]) -> None:
    """Histogram of the weights, logarithmic, orange beyond the range; up to 31 levels as lines."""
    counts, edges = _histogram(weights, weights._version)
    cut = ((edges[1:] + edges[:-1]) / 2).abs() > amax
    for part, colour in ((counts * ~cut, LIGHT), (counts * cut, ORANGE)):
        axes.stairs(part.numpy(), edges.numpy(), fill=True, color=colour)
    if len(levels) <= 31:
        axes.vlines(levels, 0, 1, transform=axes.get_xaxis_transform(), color=GREY, linewidth=0.8)
    _log(axes, 0.7, 3 * counts.max().item(), (1, 10, 100, 1000, 10000))
    axes.set(ylabel="weights", xlim=(edges[0].item(), edges[-1].item()))
    axes.grid(visible=False)


@matplotlib.rc_context(STYLE)
def plot_grid(weights: Tensor, bits: int = 4, guess: float | None = None) -> tuple[Figure, str]:
    """Above, a layer's weights before rounding and the levels; below, what percentage of them sits on each level."""
    (amax, step), q = _grid(weights, bits, 100), qmax(bits)
    codes = quantize(weights, step, bits)
    share = 100 * (codes.int() + q).flatten().bincount(minlength=2 * q + 1) / codes.numel()
    levels = (torch.arange(-q, q + 1) * step).tolist()
    figure, (before, after) = panels(1, 2, sharex=True, left=0.12, top=0.92, hspace=0.3)
    _draw_weights(before, weights, amax, levels)
    before.set_title("before rounding (logarithmic)", fontsize=11, loc="left")
    after.vlines(levels, 0, share.numpy(), color=BLUE, linewidth=min(40, max(1, 250 / (2 * q + 1))))
    if guess is not None:
        after.axhline(guess, color="black", linestyle="--", label="your guess for 0 at 4 bits")
        after.legend(loc="upper right")
    after.set(ylabel="% of weights", xlabel="weight")
    after.set_title("after rounding", fontsize=11, loc="left")
    after.grid(axis="x", visible=False)
    zeros = f"{bits} bits: scale {step:.4f} · {share[q]:.1f} % of the weights become 0"
    used = f"{(share > 0).sum()} of {2 * q + 1} levels in use"
    return figure, f"{zeros}\n{used} · SQNR {grid_error(weights, bits, 100).sqnr:.1f} dB"


@matplotlib.rc_context(STYLE)
def plot_range(
    weights: Tensor, bits: int = 4, amax_percent: int = 100, guess: float | None = None
) -> tuple[Figure, str]:
    """Left, a layer's weights with the grid's range, orange what is cut; right, the rounding and the clipping error."""
    amax, step = _grid(weights, bits, amax_percent)
    q, error = qmax(bits), grid_error(weights, bits, amax_percent)
    figure, (left, right) = panels(2, width_ratios=(3, 2), left=0.12, wspace=0.32)
    _draw_weights(left, weights, amax, (torch.arange(-q, q + 1) * step).tolist())
    left.axvspan(-amax, amax, color="black", alpha=0.05)
    left.set(xlabel="weight")
    parts = {"rounding": (error.rounding, BLUE), "clipping": (error.clipping, ORANGE), "both": (error.total, GREY)}
    heights = [max(value, 1e-4) for value, _ in parts.values()]
    right.bar(range(3), heights, color=[colour for _, colour in parts.values()])
    for i, (value, _) in enumerate(parts.values()):
        right.text(i, 1.2 * heights[i], f"{value:.2g}", ha="center", fontsize=10)
    right.set_xticks(range(3), list(parts))
    _log(right, 1e-4, 500, (0.001, 0.01, 0.1, 1, 10, 100))
    right.set_ylabel("error (% of power)")
    right.grid(axis="x", visible=False)
    lines = [
        f"amax {amax:.4f} = {amax_percent} % of max|w| · scale {step:.4f}",
        f"{_two('rounding', error.rounding)} + {_two('clipping', error.clipping)} · SQNR {error.sqnr:.1f} dB",
    ]
    if guess is not None:
        at = amax / amax_percent * guess
        left.vlines(
            (-at, at), 0, 1, transform=left.get_xaxis_transform(), color="black", linestyle="--", label="your guess"
        )
        left.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
        lines.append(f"your guess, {guess:g} % of max|w|: SQNR {grid_error(weights, bits, guess).sqnr:.1f} dB")
    return figure, "\n".join(lines)


def best_percent(weights: Tensor, bits: int = 4) -> int:
    """The range, in whole percent of `max|w|` from 4 to 100, with the smallest error."""
    return min(PERCENTS, key=lambda percent: grid_error(weights, bits, percent).total)


@matplotlib.rc_context(STYLE)
def plot_curve(weights: Tensor, bits: int = 4, guess: float | None = None) -> tuple[Figure, str]:
    """Rounding error, clipping error and their sum over the range; marked are the smallest, max|w| and your guess."""
    errors = [grid_error(weights, bits, percent) for percent in PERCENTS]
    best = best_percent(weights, bits)
    smallest, whole = grid_error(weights, bits, best), errors[-1]
    figure, (axes,) = panels(left=0.12, right=0.74, top=0.96)
    axes.plot(PERCENTS, [e.rounding for e in errors], color=BLUE, linestyle="--", label="rounding")
    axes.plot(PERCENTS, [e.clipping or math.nan for e in errors], color=ORANGE, linestyle=":", label="clipping")
    axes.plot(PERCENTS, [e.total for e in errors], color="black", linewidth=2, label="both")
    axes.plot(best, smallest.total, "o", color=GREEN, markersize=11, label=f"smallest: {best} %")
    axes.plot(100, whole.total, "s", color=GREY, markersize=9, label="amax = max|w|", clip_on=False)
    _log(axes, 3e-4, 300, (0.001, 0.01, 0.1, 1, 10, 100))
    axes.set(xlim=(0, 101), xlabel="amax (% of max|w|)", ylabel="error (% of power)")
    lines = [
        f"{bits} bits: smallest error at {best} % of max|w|, SQNR {smallest.sqnr:.1f} dB",
        f"amax = max|w|: SQNR {whole.sqnr:.1f} dB, {smallest.sqnr - whole.sqnr:.1f} dB less",
    ]
    if guess is not None:
        guessed = grid_error(weights, bits, guess)
        axes.plot(guess, guessed.total, "D", label="your guess", **GUESS)
        lines.append(f"your guess, {guess:g} %: SQNR {guessed.sqnr:.1f} dB, {smallest.sqnr - guessed.sqnr:.1f} dB less")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure, "\n".join(lines)


@matplotlib.rc_context(STYLE)
def plot_channels(weights: Tensor, bits: int = 4, guess: float | None = None) -> tuple[Figure, str]:
    """Left, each output channel's largest weight, sorted; right, the SQNR with one scale and with one a channel."""
    tops = largest(weights, per_channel=True).flatten().sort().values
    one, many = (statistics(weights, bits, per_channel)["sqnr"] for per_channel in (False, True))
    figure, (left, right) = panels(2, width_ratios=(3, 2), top=0.96)
    left.plot(tops.numpy(), ".", color=BLUE, label="max|w| of a channel")
    left.axhline(tops[-1].item(), color=GREY, linestyle="--", label="max|w| of the layer")
    left.set(xlabel="output channel, sorted", ylabel="weight", ylim=(0, 1.3 * tops[-1].item()))
    left.legend(loc="upper left")
    bars = right.bar((0, 1), (one, many), color=(GREY, BLUE))
    right.bar_label(bars, fmt="{:.1f}", fontsize=10, label_type="center", color="white")
    right.set_xticks((0, 1), ("1 scale", f"{len(tops)} scales"))
    if guess is not None:
        right.plot(1, one + guess, "D", label="your guess", **GUESS)
        right.legend(loc="upper left")
    right.set(ylabel="SQNR (dB)", ylim=(0, 1.3 * max(one, many)))
    right.grid(axis="x", visible=False)
    return figure, (
        f"{bits} bits: SQNR {one:.1f} dB with one scale, {many:.1f} dB with {len(tops)}: {many - one:+.1f} dB\n"
        f"the smallest channel's max|w| is {100 * tops[0] / tops[-1]:.0f} % of the largest's\n"
        f"{len(tops) - 1} more FP32 scales: {4 * (len(tops) - 1):,} bytes"
    )
