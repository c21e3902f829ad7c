"""Lesson 08: a ratio a block, channels by norm and at random, backbones retrained, and what a Rep-Net learns."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...data import Dataset
from ...memory import Cost, Profile, profile
from ...pruning import STEM, hidden_layers, kept_width, prune
from ...recipes import run_name
from ...repnet import RepNet
from ...train import evaluate, read_log
from ...transfer import TRANSFERS
from .. import asset
from ..plots import BLUE, GREEN, GREY, ORANGE, PALE, STYLE, panels
from .memory import MB, RATIOS, plot_blocks

FIRST = next(iter(RATIOS))  # its hidden channels are the output of the stem
BATCH, SIDE = 8, 224
SHARES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
DRAWS = 3


@cache
def _ends(convention: str) -> tuple[Profile, Profile, dict[str, tuple[int, int]]]:
    """A Rep-Net whole and with half of the hidden channels; by block how many these are, and a channel's parameters."""
    from torchvision.models import mobilenet_v2

    model = RepNet(mobilenet_v2())
    channels = {}
    for name, layers in hidden_layers(model).items():
        if name in RATIOS:
            width = layers[4].in_channels
            channels[name] = width, sum(p.numel() for layer in layers for p in layer.parameters()) // width
    ones = {name: torch.ones(width) for name, (width, _) in channels.items()}
    halved = prune(model, dict.fromkeys(RATIOS, 0.5), ones)
    whole, half = (profile(one, (3, SIDE, SIDE), corrected=convention == "corrected") for one in (model, halved))
    return whole, half, channels


def pruned(widths: Mapping[str, int], convention: str) -> Profile:
    """What `profile` finds with so many hidden channels a block, at once: a layer's bytes are linear in the width."""
    whole, half, channels = _ends(convention)
    layers: list[Cost] = []
    cumulative = 0
    for layer, less in zip(whole.layers, half.layers, strict=True):
        block = FIRST if layer.block == STEM else layer.block
        share = 2 * (1 - widths[block] / channels[block][0]) if block in channels else 0.0
        temporary = round(layer.temporary + share * (less.temporary - layer.temporary))
        saved = round(layer.saved + share * (less.saved - layer.saved))
        layers.append(Cost(layer.name, layer.block, temporary, cumulative, temporary + cumulative, saved))
        cumulative += saved
    blocks = []
    for block, costs in groupby(layers, lambda cost: cost.block):
        run = list(costs)
        temporary, peak = max(cost.temporary for cost in run), max(cost.peak for cost in run)
        saved = sum(cost.saved for cost in run)
        blocks.append(Cost(block, block, temporary, run[-1].cumulative + run[-1].saved, peak, saved))
    gone = sum((full - widths[name]) * size for name, (full, size) in channels.items())
    return Profile(layers, blocks, whole.trainable, whole.frozen - gone, whole.corrected)


@matplotlib.rc_context(STYLE)
def plot_pruned(
    block_1: float = 0.5,
    block_2: float = 0.5,
    block_3: float = 0.5,
    block_4: float = 0.5,
    convention: str = "corrected",
    guess: float | None = None,
) -> tuple[Figure, str]:
    """MobileNetV2 with a Rep-Net, block by block, with a pruning ratio for each of blocks 1 to 4; pale: not pruned."""
    whole, _, channels = _ends(convention)
    ratios = dict(zip(RATIOS, (block_1, block_2, block_3, block_4), strict=True))
    widths = {name: kept_width(name, channels[name][0], ratio) for name, ratio in ratios.items()}
    found = pruned(widths, convention)
    figure, _ = plot_blocks({("side network", SIDE, convention): found}, convention=convention, guess=guess)
    axes = figure.axes[0]
    heights = [block.temporary / MB for block in whole.blocks[: len(RATIOS) + 1]]
    axes.vlines(range(len(heights)), 0, heights, color=PALE, linewidth=18, zorder=0.9)
    axes.set_ylim(0, 1.05 * whole.peak / MB)
    highest = max(found.blocks, key=lambda block: block.peak)
    where = "stem" if highest.name == STEM else f"block {highest.name.rpartition('.')[2]}"
    stay = ", ".join(f"{width} of {channels[name][0]}" for name, width in widths.items())
    return figure, (
        f"hidden channels that stay in blocks 1 to 4: {stay}\n"
        f"{convention}: peak {found.peak / MB:.2f} MB an image, {where}; not pruned {whole.peak / MB:.2f} MB\n"
        f"batch {BATCH}, with parameters: {found.total(BATCH) / MB:.1f} MB; not pruned {whole.total(BATCH) / MB:.1f} MB"
    )


def thinned(model: nn.Module, data: Dataset, norms: Mapping[str, Tensor]) -> dict[str, list[list[float]]]:
    """Test accuracy in percent after pruning alone, by order of channels: a list a draw, a number a share of SHARES."""
    orders: dict[str, list[Mapping[str, Tensor]]] = {"least norm first": [norms], "at random": []}
    for seed in range(DRAWS):
        draw = torch.Generator().manual_seed(seed)
        orders["at random"].append({name: torch.rand(len(of), generator=draw) for name, of in norms.items()})

    def accuracy(share: float, order: Mapping[str, Tensor]) -> float:
        smaller = prune(model, dict.fromkeys(norms, share), order)
        return evaluate(smaller, data.x_test, data.y_test, data.name)[1]

    return {name: [[accuracy(share, one) for share in SHARES] for one in of] for name, of in orders.items()}


@matplotlib.rc_context(STYLE)
def plot_thinned(
    found: Mapping[str, Sequence[Sequence[float]]], share: float = 0.5, guess: float | None = None
) -> tuple[Figure, str]:
    """Accuracy of a pruned network that was not retrained, over the share pruned: by norm, and draws at random."""
    figure, (axes,) = panels(top=0.95)
    at = SHARES.index(share)
    lines = []
    for (order, draws), colour, marker in zip(found.items(), (BLUE, ORANGE), "os", strict=True):
        for i, draw in enumerate(draws):
            axes.plot(
                SHARES, draw, color=colour, marker=marker, alpha=1 if i == 0 else 0.5, label=order if i == 0 else None
            )
        lines.append(f"{order}: {', '.join(f'{draw[at]:.0f}' for draw in draws)} % right")
    if guess is not None:
        axes.plot(0.5, guess, "X", color=GREEN, markersize=11, label="your guess", zorder=3)
    axes.axvline(share, color=GREY, linestyle="--", zorder=0)
    axes.set(xlabel="share of the hidden channels pruned", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.legend(loc="lower left")
    return figure, "\n".join([f"share pruned: {share:.1f}, not retrained", *lines])


RETRAINED = {"whole": "not pruned", "pruned": "pruned by norm", "random": "pruned at random"}


@cache
def retrained() -> dict[str, list[float]]:
    """Test accuracy in percent after each epoch of the three recorded backbones of the study, one seed each."""
    runs = {words: asset(run_name(TRANSFERS[name])) for name, words in RETRAINED.items()}
    return {words: [line["test_acc"] for line in read_log(run)[1]] for words, run in runs.items()}


@matplotlib.rc_context(STYLE)
def plot_retrained(epoch: int = 7, guess: float | None = None) -> tuple[Figure, str]:
    """The study's three backbones while they are trained on: test accuracy on five classes after each epoch."""
    runs = retrained()
    figure, (axes,) = panels(top=0.95)
    x = range(1, len(runs["not pruned"]) + 1)
    for (words, values), colour, marker in zip(runs.items(), (GREY, BLUE, ORANGE), "Dos", strict=True):
        axes.plot(x, values, color=colour, marker=marker, label=words)
    norm, chance = runs["pruned by norm"], runs["pruned at random"]
    if guess is not None:
        axes.plot(x[-1], norm[-1] - guess, "X", color=GREEN, markersize=11, label="your guess")
    axes.axvline(epoch, color=GREY, linestyle="--", zorder=0)
    axes.set(xlabel="epoch after pruning", ylabel="test accuracy (%)")
    axes.legend(loc="lower center")
    said = " · ".join(f"{words} {values[epoch - 1]:.2f} %" for words, values in runs.items())
    return figure, (
        f"epoch {epoch}: {said}\n"
        f"by norm ahead of at random: {norm[epoch - 1] - chance[epoch - 1]:.2f} points; one run each, no spread"
    )


@matplotlib.rc_context(STYLE)
def plot_learned(runs: Mapping[str, Path], guess: float | None = None) -> tuple[Figure, str]:
    """Runs of transfer side by side: test accuracy after each epoch."""
    figure, (axes,) = panels(top=0.95)
    lines = []
    for (name, run), colour, marker in zip(runs.items(), (BLUE, GREY), "os", strict=True):
        accuracies = [line["test_acc"] for line in read_log(run)[1]]
        axes.plot(range(1, len(accuracies) + 1), accuracies, color=colour, marker=marker, label=name)
        if guess is not None and name == "Rep-Net":
            axes.plot(len(accuracies), guess, "X", color=GREEN, markersize=11, label="your guess", zorder=3)
        lines.append(f"{name}: {accuracies[-1]:.1f} % after epoch {len(accuracies)}")
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    return figure, "\n".join(lines)
