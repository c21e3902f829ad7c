"""Lesson 03: a 4-bit network's shapes, parameters, work, levels and entropy."""

import copy
import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ...layers import FP32, QuantizedWeight
from ...models import SimpleResNet4bit, VGG4bit
from ...pack import save_model
from ...quant import scale
from ...train import read_log
from ..plots import BLUE, GREY, ORANGE, PALE, SIZE, STYLE, panels

BLOCKS = {"block 1": (0, 2), "block 2": (2, 4), "block 3": (4, 6), "classifier": (6, 8)}


class Layer(NamedTuple):
    """A layer of VGG4bit: the shapes it takes, gives and stores, the channels of the batch norm after it, its work."""

    takes: tuple[int, ...]
    gives: tuple[int, ...]
    weight: tuple[int, ...]
    norm: int
    multiply_adds: int

    @property
    def weights(self) -> int:
        return math.prod(self.weight)

    @property
    def parameters(self) -> int:
        return self.weights + self.weight[0]

    @property
    def packed(self) -> int:
        """Bytes of the codes, two a byte, of the FP32 biases and of the FP32 scale."""
        return (self.weights + 1) // 2 + 4 * self.weight[0] + 4


@cache
def vgg_layers(classes: int = 10) -> dict[str, Layer]:
    """The eight layers of VGG4bit by their names, measured on one image that has shapes and no values."""
    with torch.device("meta"):
        model, x = VGG4bit(classes, bits=FP32).eval(), torch.empty(1, 3, 32, 32)
    layers, name = {}, ""
    for child, module in model.named_children():
        y = module(x)
        if isinstance(module, QuantizedWeight):
            name, places = child, y[0, 0].numel()
            shapes = (tuple(x.shape[1:]), tuple(y.shape[1:]), tuple(module.weight.shape))
            layers[name] = Layer(*shapes, norm=0, multiply_adds=module.weight.numel() * places)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            layers[name] = layers[name]._replace(norm=module.num_features)
        x = y
    return layers


def file_size(model: nn.Module) -> int:
    """Bytes of the file that `save_model` writes: packed, or plain FP32 for a model of 32 bits."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_model(file, model)
        return file.stat().st_size


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def plot_shapes(layer: str = "conv2_1") -> tuple[Figure, str]:
    """VGG4bit drawn layer by layer: each box is what a layer gives, its parameters stand below, one layer is marked.

    A box is as high as the picture's side and as wide as the root of its channels.
    """
    layers = vgg_layers()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for i, (name, facts) in enumerate({"image": None, **layers}.items()):
            channels, *sides = facts.gives if facts else (3, 32, 32)
            side = sides[0] if sides else 1
            width, marked = 0.03 * math.sqrt(channels) + 0.04, name == layer
            box = Rectangle((i - width / 2, 0), width, side, facecolor=BLUE if marked else PALE, edgecolor=GREY)
            axes.add_patch(box)
            style: Any = {"ha": "center", "fontsize": 9, "color": BLUE if marked else "black"}
            axes.text(i, side + 1, name, va="bottom", **style)
            axes.text(i, -1.5, "×".join(map(str, facts.gives if facts else (3, 32, 32))), va="top", **style)
            if facts:
                axes.text(i, -6, f"{facts.parameters:,}", va="top", **style)
        for block, (first, last) in BLOCKS.items():
            axes.plot([first + 0.6, last + 0.4], [-11, -11], color=GREY)
            axes.text((first + last) / 2 + 0.5, -12.5, block, ha="center", va="top", fontsize=9.5, color=GREY)
            if last < 8:
                axes.plot([last + 0.5] * 2, [0, 36], color=GREY, linestyle=":")
                axes.text(last + 0.5, 37, "pool", ha="center", va="bottom", fontsize=9.5, color=GREY)
        axes.text(-0.5, -6, "parameters", va="top", fontsize=9.5, color=GREY)
        axes.set(xlim=(-0.6, 8.6), ylim=(-17, 41))
    facts = layers[layer]
    norm = f"batch norm after it: 2 × {facts.norm} parameters, always FP32"
    return figure, (
        f"{layer} takes {_times(facts.takes)} and gives {_times(facts.gives)}\n"
        f"weight {_times(facts.weight)}, bias {facts.weight[0]}: {facts.parameters:,} parameters\n"
        f"{4 * facts.parameters:,} bytes in FP32 · " + (norm if facts.norm else "no batch norm after it")
    )


def plot_work(classes: int = 10, guess: float | None = None) -> tuple[Figure, str]:
    """Each layer's share of VGG4bit's parameters beside its share of the multiply-adds; a diamond is your guess."""
    layers = vgg_layers(classes)
    total = sum(layer.parameters + 2 * layer.norm for layer in layers.values())
    work = sum(layer.multiply_adds for layer in layers.values())
    shares = {
        "parameters": (ORANGE, -0.2, [100 * layer.parameters / total for layer in layers.values()]),
        "multiply-adds": (BLUE, 0.2, [100 * layer.multiply_adds / work for layer in layers.values()]),
    }
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panels(left=0.09, right=0.99, bottom=0.09, top=0.98)
        for label, (colour, offset, values) in shares.items():
            places = [i + offset for i in range(len(layers))]
            axes.vlines(places, 0, values, color=colour, linewidth=23, label=label)  # quicker than bars
            for x, value in zip(places, values, strict=True):
                axes.text(x, value + 1, f"{value:.0f}" if value >= 0.5 else "<0.5", ha="center", fontsize=9)
        if guess is not None:
            axes.plot(6.2, guess, "D", color="black", label="your guess for fc1's work")
        axes.set(
            ylabel="share (%)", xticks=range(len(layers)), xticklabels=layers, ylim=(0, max(80, 1.1 * (guess or 0)))
        )
        axes.grid(axis="x", visible=False)
        for line in axes.legend(loc="upper left").legend_handles[:2]:
            line.set_linewidth(9)
    fc1 = layers["fc1"]
    return figure, (
        f"{classes} classes: {total:,} parameters, {work / 1e6:.1f} million multiply-adds an image\n"
        f"fc1 has {100 * fc1.parameters / total:.1f} % of the parameters "
        f"and does {100 * fc1.multiply_adds / work:.1f} % of the multiply-adds"
    )


def _run(model: SimpleResNet4bit, images: Tensor, layer: str, factor: float) -> tuple[Tensor, dict[str, float]]:
    """The network's outputs when `layer`'s weight is `factor` times as big, and the spread after it and its norm."""
    model = copy.deepcopy(model).train()
    weight = model.get_submodule(layer).get_parameter("weight")
    seen: dict[str, float] = {}
    for name in {layer, layer.replace("convs", "bns")}:
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.std().item()}))
    with torch.no_grad():
        weight.mul_(factor)
        outputs = model(images)
    return outputs, seen | {"scale": scale(weight).item()}


def plot_rescaled(
    model: SimpleResNet4bit, images: Tensor, layer: str = "convs.1", factor: float = 10, guess: float | None = None
) -> tuple[Figure, str]:
    """The network's ten outputs before (circles) and after (dots) one layer's weight is multiplied; diamonds: guess."""
    (before, was), (after, now) = (_run(model, images, layer, f) for f in (1, factor))
    change = 100 * (after - before).abs().max() / before.abs().max()
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = panels(right=0.67, top=0.97)
        axes.plot(before[0], "o", color=GREY, markersize=11, fillstyle="none", label="before")
        axes.plot(after[0], "o", color=BLUE, markersize=5, label=f"{layer}'s weight × {factor:g}")
        if guess is not None:
            axes.plot(guess * before[0], "D", color=ORANGE, fillstyle="none", label=f"your guess: outputs × {guess:g}")
        axes.set(xlabel="class", ylabel="the network's output", xticks=range(10))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    times = {name: f"× {now[name] / was[name]:.3g}" for name in was}
    norm = times.get(layer.replace("convs", "bns")) if layer != "fc" else None
    return figure, (
        f"{layer}: weight × {factor:g}, scale {times['scale']}, output {times[layer]}\n"
        + (f"after batch norm {norm}\n" if norm else "no batch norm follows\n")
        + f"the network's outputs change by {change:.1f} % of the largest"
    )


def plot_levels(run: Path, epoch: int = 7, guess: float | None = None) -> tuple[Figure, str]:
    """Levels in use and entropy of the codes, layer by layer, after an epoch of a recorded run; dashed: the most."""
    line = read_log(run)[1][epoch - 1]
    levels = [layer["levels"] for layer in line["layers"].values()]
    entropy = [layer["entropy"] for layer in line["layers"].values()]
    weights = [layer.weights for layer in vgg_layers().values()]
    mean = sum(h * n for h, n in zip(entropy, weights, strict=True)) / sum(weights)
    with matplotlib.rc_context(STYLE):
        figure, sides = panels(2, sharey=True, left=0.105, right=0.99, top=0.88, wspace=0.1)
        rows = range(len(levels))
        for axes, values, form, most, colour, label in zip(
            sides, (levels, entropy), ("d", ".2f"), (15, math.log2(15)),
            (ORANGE, BLUE), ("levels in use, of 15", "entropy, of 3.91 bits"), strict=True,
        ):  # fmt: skip
            axes.hlines(rows, 0, values, color=colour, linewidth=18)  # quicker than bars
            for y, value in zip(rows, values, strict=True):
                axes.text(0.03 * most, y, f"{value:{form}}", va="center", color="white")
            axes.axvline(most, color=GREY, linestyle="--")
            axes.set(xlabel=label, xlim=(0, 1.2 * most), ylim=(-0.6, len(levels) - 0.4))
            axes.grid(visible=False)
        if guess is not None:
            axes.plot(guess, 6, "D", color="black", label="your guess for fc1")
            figure.legend(loc="upper right")
        axes.set_yticks(rows, list(line["layers"]))
        axes.invert_yaxis()
    return figure, (
        f"epoch {epoch}, conv1_1 to fc2 · levels in use: {' '.join(map(str, levels))}\n"
        f"entropy in bits: {' '.join(f'{h:.2f}' for h in entropy)}\n"
        f"mean over all weights: {mean:.2f} bits of 4"
    )
