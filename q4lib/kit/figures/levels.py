"""Lesson 06: levels in use and entropy of each layer over the epochs of recorded runs."""

from functools import cache
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ...train import read_log
from .. import asset
from ..plots import BLUE, ORANGE, PALE, STYLE, panels
from ..records import FIRST
from .run import FAST, PAPER


@cache
def layers(recipe: str) -> dict[str, dict[str, list[float]]]:
    """Levels in use and entropy of each layer after each epoch of a recorded run, by the layer's name."""
    runs = {"fast, max|w|": FIRST, "fast": f"{FAST}-s0", "paper": f"{PAPER}-s0"}
    epochs = read_log(asset(runs[recipe]))[1]
    return {
        name: {key: [line["layers"][name][key] for line in epochs] for key in ("levels", "entropy")}
        for name in epochs[0]["layers"]
    }


@matplotlib.rc_context(STYLE)
def plot_layers(recipe: str = "fast, max|w|", layer: str = "conv1_1", guess: float | None = None) -> tuple[Figure, str]:
    """Levels in use and entropy of all layers after each epoch of a recorded run; one layer is marked."""
    figure, (left, right) = panels(2)
    for axes, key in ((left, "levels"), (right, "entropy")):
        for name, found in layers(recipe).items():
            x, chosen = range(1, len(found[key]) + 1), name == layer
            style: Any = {"color": BLUE, "marker": "o", "zorder": 3} if chosen else {"color": PALE}
            axes.plot(x, found[key], **style)
        axes.set(xlabel="epoch", xlim=(0.5, 10.5), xticks=[1, 4, 7, 10])
    if guess is not None:
        left.plot(10, guess, "X", color=ORANGE, markersize=11, label="your guess", zorder=4)
        left.legend(loc="lower left")
    left.set(title="levels in use, of 15", ylim=(0, 15.5), yticks=[1, 5, 10, 15])
    right.set(title="entropy, in bits of 3.91", ylim=(0, 4), yticks=range(5))
    found = layers(recipe)[layer]
    levels, entropy = ((found[key][0], found[key][-1]) for key in ("levels", "entropy"))
    return figure, (
        f"{recipe}, {layer}, epoch 1 to {len(found['levels'])}: levels {levels[0]} to {levels[1]}, "
        f"entropy {entropy[0]:.2f} to {entropy[1]:.2f} bits"
    )
