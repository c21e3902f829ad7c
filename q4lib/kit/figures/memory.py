"""Lesson 07: what a step keeps for backward, what each block needs for a moment, totals, and what PyTorch takes."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from ...layers import quantized_layers
from ...memory import Profile, measure, profile
from ...models import VGG4bit
from ...pruning import hidden_layers, prune, sensitive_blocks
from ...repnet import RepNet
from ..plots import BLUE, GREEN, GREY, ORANGE, PALE, STYLE, panels

MB = 1e6
SIZES = [64, 96, 128, 160, 192, 224]
PARTS = {"everything": ["features", "head"], "side network": None, "last layer": ["head"]}
PRUNED = "side network, pruned"
# The paper's, in V.
RATIOS = {"features.1": 0.3, "features.2": 0.78, "features.3": 0.46, "features.4": 0.46}
Profiles = Mapping[tuple[str, int, str], Profile]


@matplotlib.rc_context(STYLE)
def plot_step(
    saved: Mapping[tuple[int, int], int], parameters: int, batch: int = 32, bits: int = 4, guess: float | None = None
) -> tuple[Figure, str]:
    """A training step's memory over its batch, as areas; `saved` is measured, by bits and batch: dots and a line."""
    small, large = sorted(n for of, n in saved if of == bits)
    each = (saved[bits, large] - saved[bits, small]) / (large - small)
    once, four = saved[bits, small] - small * each, 16 * parameters
    figure, (axes,) = panels(top=0.95)
    x, heights = [0, 128], [four, once]
    labels = ("weights, gradients, m and v", "rounded weights", "saved activations")
    grown = [[height, height] for height in heights] + [[0, 128 * each]]
    axes.stackplot(x, *[[y / MB for y in ys] for ys in grown], labels=labels, colors=(PALE, ORANGE, BLUE), alpha=0.8)
    measured = [(four + saved[bits, n]) / MB for n in (small, large)]
    axes.plot((small, large), measured, "o", color="black", label="measured")
    if guess is not None:
        axes.plot(32, four / MB + guess, "X", color=GREEN, markersize=11, label="your guess")
    axes.axvline(batch, color=GREY, linestyle="--")
    axes.set(xlabel="images in a batch", ylabel="MB", xlim=(0, 130), ylim=(0, 360))
    axes.legend(loc="upper left", frameon=True, framealpha=1, edgecolor="white")
    kept = once + batch * each
    return figure, (
        f"{bits}-bit weights, batch {batch}: {kept / MB:.1f} MB saved, "
        f"of these {batch * each / MB:.1f} MB activations\n"
        f"weights, gradients, m and v: {four / MB:.1f} MB · "
        f"activations are {100 * batch * each / (four + kept):.0f} % of all"
    )


@cache
def kept(frozen: int) -> dict[str, tuple[int, int]]:
    """By layer of VGG4bit: its parameters with its batch norm's, and the bytes an image that backward needs of them.

    The first `frozen` layers do not train. A layer goes from one convolution or linear layer to the next.
    """
    model = VGG4bit()
    names, groups = list(quantized_layers(model)), {}
    for name, module in model.named_children():
        if name in names:
            layer = name
        groups[name] = layer
        module.requires_grad_(names.index(layer) >= frozen)
    found = dict.fromkeys(names, (0, 0))
    saved = {cost.name: cost.saved for cost in profile(model, (3, 32, 32), corrected=True).layers}
    for name, layer in groups.items():
        size, bytes_before = found[layer]
        found[layer] = size + sum(p.numel() for p in model.get_submodule(name).parameters()), bytes_before + saved[name]
    return found


@matplotlib.rc_context(STYLE)
def plot_kept(frozen: int = 2, guess: float | None = None) -> tuple[Figure, str]:
    """VGG4bit's layers: left their parameters, right the bytes that they keep of an image; the first ones frozen."""
    figure, (left, right) = panels(2, sharey=True, left=0.11, top=0.97, wspace=0.1)
    whole, found = kept(0), kept(frozen)
    names = list(found)
    rows = range(len(names))
    left.set_yticks(rows, names)
    left.set_ylim(len(names) - 0.4, -0.6)
    share = [(0, 0) if i < frozen else (whole[name][0], found[name][1]) for i, name in enumerate(names)]
    for axes, place, unit, label in ((left, 0, MB, "parameters (millions)"), (right, 1, 1e3, "kept of an image (KB)")):
        for values, colour in ((whole.values(), PALE), (share, BLUE)):
            axes.hlines(rows, 0, [value[place] / unit for value in values], color=colour, linewidth=18)
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(axis="y", visible=False)
    size, before = (sum(column) for column in zip(*whole.values(), strict=True))
    held, after = sum(whole[name][0] for name in names[:frozen]), sum(saved for _, saved in found.values())
    if guess is not None:
        right.text(0.97, 0.05, f"your guess: {guess:g} % less", color=GREEN, ha="right", transform=right.transAxes)
    return figure, (
        f"frozen layers: {frozen}, with {100 * held / size:.1f} % of the parameters\n"
        f"kept of an image: {after / MB:.2f} MB of {before / MB:.2f}, {100 * (1 - after / before):.0f} % less"
    )


def profiles() -> dict[tuple[str, int, str], Profile]:
    """A Rep-Net on MobileNetV2, by the part that trains, the image's side, and the convention."""
    from torchvision.models import mobilenet_v2

    model = RepNet(mobilenet_v2())
    ones = {name: torch.ones(layers[4].in_channels) for name, layers in hidden_layers(model).items()}
    networks: dict[str, tuple[nn.Module, Any]] = {part: (model, trains) for part, trains in PARTS.items()}
    networks[PRUNED] = prune(model, RATIOS, ones), None
    return {
        (part, size, convention): profile(network, (3, size, size), trains, convention == "corrected")
        for part, (network, trains) in networks.items()
        for size in SIZES
        for convention in ("corrected", "paper")
    }


def beside_the_paper(found: Profiles) -> str:
    """The paper's numbers for side network at 224 by 224 pixels, in MB, beside both conventions: a table."""
    rows = {
        "temporary, block 2": (5.6, lambda whole, pruned: whole.blocks[2].temporary),
        "peak": (5.72, lambda whole, pruned: whole.peak),
        "kept at the end": (1.9, lambda whole, pruned: whole.cumulative),
        "peak, pruned": (2.02, lambda whole, pruned: pruned.peak),
        "total, batch 8": (51, lambda whole, pruned: whole.total(8)),
    }
    lines = [f"{'MB':20}{'paper':>8}{'reckoned its way':>18}{'corrected':>11}"]
    for name, (printed, value) in rows.items():
        paper, corrected = (
            value(*(found[part, 224, convention] for part in ("side network", PRUNED))) / MB
            for convention in ("paper", "corrected")
        )
        lines.append(f"{name:20}{printed:8}{paper:18.2f}{corrected:11.2f}")
    return "\n".join(lines)


def _short(block: str) -> str:
    return "stem" if block == "features.0" else block.removeprefix("features.")


@matplotlib.rc_context(STYLE)
def plot_blocks(
    found: Profiles,
    part: str = "side network",
    size: int = 224,
    convention: str = "corrected",
    guess: float | None = None,
) -> tuple[Figure, str]:
    """MobileNetV2 with a Rep-Net, block by block: what is kept so far, what is needed for a moment, and the peak."""
    chosen = found[part, size, convention]
    blocks, sensitive = chosen.blocks, sensitive_blocks(chosen)
    figure, (axes,) = panels(top=0.84)
    x = range(len(blocks))
    for marked, colour, label in ((False, BLUE, "temporary"), (True, ORANGE, "temporary, sensitive block")):
        these = [i for i in x if (blocks[i].name in sensitive) == marked]
        # Lines of one collection: twenty bars take three times as long.
        axes.vlines(these, 0, [blocks[i].temporary / MB for i in these], color=colour, linewidth=18, label=label)
    axes.plot(x, [block.cumulative / MB for block in blocks], color=GREY, marker=".", label="kept so far")
    axes.plot(x, [block.peak / MB for block in blocks], "_", color="black", markersize=11, label="peak")
    axes.axhline(chosen.cumulative / MB, color=GREY, linestyle=":")
    if guess is not None:
        axes.plot(2, guess, "X", color=GREEN, markersize=11, label="your guess")
    axes.set_xticks(x[::2], [_short(block.name) for block in blocks[::2]])
    axes.set(xlabel="block; the last is the head", ylabel="MB an image")
    axes.set(xlim=(-0.7, len(blocks) - 0.3), ylim=(0, 1.05 * chosen.peak / MB))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, fontsize=9, columnspacing=1)
    highest = max(blocks, key=lambda block: block.peak)
    names = [_short(name) for name in sensitive]
    listed = "none" if not names else ", ".join(names) if len(names) < 8 else f"{len(names)} of {len(blocks)}"
    return figure, (
        f"{part}, {size} by {size}, {convention}: kept at the end {chosen.cumulative / MB:.2f} MB · "
        f"peak {chosen.peak / MB:.2f} MB, block {_short(highest.name)}\n"
        f"sensitive blocks, temporary above what is kept at the end: {listed}"
    )


@matplotlib.rc_context(STYLE)
def plot_total(
    found: Profiles, batch: int = 8, size: int = 224, convention: str = "corrected", guess: float | None = None
) -> tuple[Figure, str]:
    """Training memory of MobileNetV2 with a Rep-Net (equation 4), by the part that trains: batch and parameters."""
    chosen = {part: found[part, size, convention] for part in PARTS}
    totals = {part: one.total(batch) for part, one in chosen.items()}
    peaks = {part: batch * one.peak for part, one in chosen.items()}
    figure, (axes,) = panels(left=0.17, top=0.86)
    axes.barh(list(peaks), [peak / MB for peak in peaks.values()], color=BLUE, label="activations: batch × peak")
    rest = [(totals[part] - peaks[part]) / MB for part in chosen]
    axes.barh(list(peaks), rest, left=[peak / MB for peak in peaks.values()], color=PALE, label="parameters")
    for row, total in enumerate(totals.values()):
        axes.text(total / MB, row, f" {total / MB:,.1f}", va="center")
    if guess is not None:
        axes.plot(guess, 2, "X", color=GREEN, markersize=11, label="your guess")
    axes.set(xlabel="MB", xlim=(0, 1.14 * max(totals.values()) / MB))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    said = " · ".join(f"{part} {total / MB:,.1f} MB" for part, total in totals.items())
    return figure, f"batch {batch}, {size} by {size}, {convention}\n{said}"


class Taken(NamedTuple):
    """Bytes of a training step: saved for backward, the peak; and the peak of a forward pass alone."""

    saved: int
    peak: int
    forward: int


def take(ways: Mapping[str, nn.Module], batches: Sequence[int] = (1, 2, 4, 8)) -> dict[tuple[str, int], Taken]:
    """What a step on images of 224 by 224 really takes, by way and batch. Gradients count; the optimizer does not."""
    return {(way, batch): _take(model, batch) for way, model in ways.items() for batch in batches}


def _take(model: nn.Module, batch: int) -> Taken:
    images, labels = torch.zeros(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)
    model.zero_grad(set_to_none=True)
    step = measure(lambda: F.cross_entropy(model(images), labels).backward())
    with torch.no_grad():
        return Taken(step.saved, step.peak, measure(lambda: model(images)).peak)


@matplotlib.rc_context(STYLE)
def plot_ways(
    taken: Mapping[tuple[str, int], Taken], peak: int, batch: int = 8, guess: float | None = None
) -> tuple[Figure, str]:
    """What steps really take, by way, as `take` found it, beside the analysis: `peak` bytes an image."""
    chosen = {way: found for (way, size), found in taken.items() if size == batch}
    peaks, forwards = ([getattr(found, key) / MB for found in chosen.values()] for key in ("peak", "forward"))
    figure, (axes,) = panels(left=0.17, top=0.86)
    bars = axes.barh(list(chosen), peaks, color=BLUE, label="forward and backward")
    axes.bar_label(bars, [f" {mb:,.1f}" for mb in peaks])
    axes.barh(list(chosen), forwards, height=0.35, color=ORANGE, label="forward alone")
    axes.axvline(batch * peak / MB, color="black", linestyle="--", label="analysis")
    if guess is not None:
        axes.plot(guess, list(chosen).index("eager"), "X", color=GREEN, markersize=11, label="your guess")
    axes.set(xlabel="peak (MB)", xlim=(0, 1.14 * max(peaks)))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, columnspacing=1)
    lines = [
        f"{way:13} peak {whole:6.1f} MB, forward alone {forward:5.1f} MB"
        for way, whole, forward in zip(chosen, peaks, forwards, strict=True)
    ]
    return figure, "\n".join([f"batch {batch}, analysis {batch * peak / MB:.1f} MB", *lines])
