"""Lesson 00: a file's size, a network's answers, and rounding afterwards against training rounded."""

from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...data import normalize
from ...layers import FP32, quantized_layers
from ...pack import load_model
from .. import asset
from ..pictures import pictures
from ..plots import BLUE, GREEN, GREY, ORANGE, STYLE, panels
from ..rounded import BITS, compared, round_afterwards, run
from .network import file_size

SMALL = 1.0  # points of accuracy: with one seed each, a smaller difference is called none
AFTERWARDS, TRAINED = "rounded afterwards", "trained rounded"
COLOURS = {AFTERWARDS: ORANGE, TRAINED: BLUE}


@cache
def _sizes(file: Path) -> tuple[int, int]:
    """Bytes of a packed model's file, and of the same network's with all weights in FP32."""
    model, _ = load_model(file)
    for layer in quantized_layers(model).values():
        layer.bits = FP32
    return file.stat().st_size, file_size(model)


@matplotlib.rc_context(STYLE)
def plot_files(file: Path, guess: float | None = None) -> tuple[Figure, str]:
    """Bars: the size of a network's file in FP32 and packed at 4 bits; an empty one is what you guessed."""
    packed, full = _sizes(file)
    bars: Any = {"FP32": (full, GREY), "4 bits": (packed, BLUE)}
    if guess:
        bars["your guess"] = (full / guess, "white")
    figure, (axes,) = panels(size=(7.5, 2.4), left=0.14, right=0.97, bottom=0.22, top=0.99)
    sizes, colours = ([*of] for of in zip(*bars.values(), strict=True))
    drawn = axes.barh(list(bars), [size / 1e6 for size in sizes], color=colours, edgecolor=GREY)
    axes.bar_label(drawn, [f"{size / 1e6:.2f} MB" for size in sizes], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="megabytes", xlim=(0, 1.16 * max(sizes) / 1e6))
    axes.grid(axis="y", visible=False)
    return figure, f"FP32: {full:,} bytes · 4 bits: {packed:,} bytes · {full / packed:.1f} times smaller"


@torch.inference_mode()
def shares(model: nn.Module, images: Tensor) -> Tensor:
    """The ten softmax shares (N, 10) that a CIFAR-10 network gives to uint8 images (N, 3, 32, 32)."""
    return model(normalize(images, "cifar10")).softmax(1)


def _percent(share: float) -> str:
    """A share as a whole percentage that claims neither certainty nor impossibility."""
    return "over 99 %" if share >= 0.995 else "under 1 %" if share < 0.005 else f"{100 * share:.0f} %"


@matplotlib.rc_context(STYLE)
def _answer(share: Tensor, image: Tensor, label: int | None = None) -> tuple[Figure, str]:
    """The image (1, 3, 32, 32) enlarged beside the three largest of the ten shares as bars, and the three in words."""
    place: Any = {"left": 0.01, "right": 0.96, "bottom": 0.17, "top": 0.97, "wspace": 0.3, "width_ratios": (1, 1.7)}
    figure, (left, right) = panels(2, size=(7.5, 3), **place)
    left.imshow(image[0].permute(1, 2, 0).numpy())
    left.axis("off")
    said = []
    for row, i in enumerate(share.argsort(descending=True)[:3].tolist()):
        name, width, percent = pictures().classes[i], 100 * share[i].item(), _percent(share[i].item())
        right.barh(name, width, color=GREY if label is None else GREEN if i == label else ORANGE)
        inside: Any = {"x": width - 2, "ha": "right", "color": "white"} if width > 55 else {"x": width + 2}
        right.text(y=row, s=percent + ("  right answer" if i == label else ""), va="center", **inside)
        said.append(f"{name} {percent}")
    right.invert_yaxis()
    right.set(xlabel="softmax share (%)", xlim=(0, 100))
    right.grid(axis="y", visible=False)
    return figure, f"the network says {', '.join(said)}"


def plot_answer(model: nn.Module, picture: int = 1) -> tuple[Figure, str]:
    """One of the twenty test pictures, enlarged, beside the network's three likeliest classes as bars."""
    images, labels, _, classes = pictures()
    image, label = images[picture - 1 : picture], int(labels[picture - 1])
    share = shares(model, image)[0]
    figure, said = _answer(share, image, label)
    rank = int((share > share[label]).sum()) + 1
    verdict = "right" if rank == 1 else f"wrong: {classes[label]} is number {rank} of its 10"
    return figure, f"picture {picture} of {len(labels)}: {classes[label]}\n{said}: {verdict}"


def plot_upload(model: nn.Module, image: Tensor) -> tuple[Figure, str]:
    """Your picture as the network sees it, 32 × 32 pixels, beside its three likeliest classes as bars."""
    return _answer(shares(model, image)[0], image)


@matplotlib.rc_context(STYLE)
def plot_rounded(bits: int = 4, guess: float | None = None) -> tuple[Figure, str]:
    """Pairs of bars, accuracy rounded afterwards and trained rounded, from 8 bits down to the chosen ones.

    A diamond marks your guess for 4 bits rounded afterwards.
    """
    pairs = compared()
    seen = BITS[: BITS.index(bits) + 1]
    figure, (axes,) = panels(left=0.09, right=0.99, bottom=0.1, top=0.86)
    for offset, (name, colour), values in zip(
        (-0.2, 0.2), COLOURS.items(), zip(*(pairs[b] for b in seen), strict=True), strict=True
    ):
        bars = axes.bar([i + offset for i in range(len(seen))], values, 0.38, color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", padding=-16, color="white")
    for i in range(len(seen), len(BITS)):
        axes.text(i, 50, "?", ha="center", fontsize=20, color=GREY)
    axes.axhline(pairs[FP32].trained, color=GREY, linestyle="--", label=f"FP32: {pairs[FP32].trained:.1f}")
    axes.axhline(10, color=GREY, linestyle=":", label="chance: 10")
    if guess is not None:
        axes.plot(BITS.index(4) - 0.2, guess, "D", color="black", markeredgecolor="white", label="your guess")
    axes.set(ylabel="accuracy (%)", ylim=(0, 105), xlim=(-0.5, len(BITS) - 0.5), yticks=range(0, 101, 20))
    axes.set_xticks(range(len(BITS)), [f"{b} bits" for b in BITS])
    axes.grid(axis="x", visible=False)
    figure.legend(loc="upper center", ncols=5, columnspacing=1.2, handlelength=1.5, fontsize=10)
    return figure, verdict(bits)


def verdict(bits: int) -> str:
    """One line of what the records say at `bits`."""
    pair = compared()[bits]
    points = f"{abs(pair.gain):.1f} points {'better' if pair.gain > 0 else 'worse'}"
    said = points if abs(pair.gain) >= SMALL else f"less than {SMALL:g} point apart"
    return f"{bits} bits: {AFTERWARDS} {pair.afterwards:.1f} %, {TRAINED} {pair.trained:.1f} %: {said}"


@cache
def _answers(bits: int) -> dict[str, Tensor]:
    """Which class each of the two networks gives to each of the twenty pictures."""
    full, trained = (load_model(asset(f"{run(b)}/model.safetensors"))[0] for b in (FP32, bits))
    networks = {AFTERWARDS: round_afterwards(full, bits), TRAINED: trained}
    return {name: shares(network, pictures().images).argmax(1) for name, network in networks.items()}


@matplotlib.rc_context(STYLE)
def plot_twenty(bits: int = 4) -> tuple[Figure, str]:
    """The twenty test pictures; below each, what the network rounded afterwards and the one trained rounded answer."""
    images, labels, _, classes = pictures()
    answers = _answers(bits)
    # One picture of all twenty: axes for each would take four times as long.
    wide, high, top, side = 40, 56, 13, 32
    figure = Figure(figsize=(8.2, 8.2 * (top + 2 * high) / (10 * wide)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    canvas = torch.full((top + 2 * high, 10 * wide, 3), 255, dtype=torch.uint8)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = wide * (i // 2) + 4, top + high * (i % 2)
        canvas[y : y + side, x : x + side] = image.permute(1, 2, 0)
        middle: Any = {"x": x + side / 2, "ha": "center", "va": "center", "fontsize": 9}
        if i % 2 == 0:
            axes.text(y=top / 2, s=classes[label], **middle)
        for row, (name, colour) in enumerate(COLOURS.items()):
            answer = answers[name][i]
            word = "✓" if answer == label else classes[answer]
            axes.text(y=y + side + 6 + 9 * row, s=word, color=colour, **middle)
    axes.imshow(canvas.numpy(), interpolation="nearest")
    right = " · ".join(f"{int((answer == labels).sum())} {name}" for name, answer in answers.items())
    differ = int((answers[AFTERWARDS] != answers[TRAINED]).sum())
    return figure, f"{bits} bits, right of 20: {right}\nthe two answer differently on {differ}"
