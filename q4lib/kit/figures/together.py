"""Lesson 08: both papers together, from recorded runs: accuracy, training memory and file size of each arm."""

import math
from collections import defaultdict

import matplotlib
from matplotlib.figure import Figure

from ..plots import BLUE, GREEN, GREY, ORANGE, STYLE, panels
from ..records import mean_interval
from ..study import MB, ROUNDED, accuracies, memory, missing, said

MARKERS = {"last layer": "s", "Rep-Net, pruned at random": "X", "Rep-Net, pruned": "v", "Rep-Net": "o"}


def _looks(name: str) -> dict[str, str]:
    colour = ORANGE if "4 bits" in name else GREY if name.startswith("last layer") else BLUE
    inside = "white" if name.endswith(("random", "rate 1.5e-3")) else colour
    marker = next(marker for start, marker in MARKERS.items() if name.startswith(start))
    return {"color": colour, "markerfacecolor": inside, "marker": marker}


@matplotlib.rc_context(STYLE)
def plot_together(way: str = "lean", rounded: str = "4 bits", guess: float | None = None) -> tuple[Figure, str]:
    """Accuracy with its 95 % interval over the memory of a step taken in this way, by arm, with the file's size.

    Of the 4-bit backbones, those `rounded` in one way. Points of equal memory stand side by side.
    """
    found = memory()
    others = [f", {how}" for how in ROUNDED if how != rounded]
    arms = [name for name in found if way in found[name]["steps"] and not name.endswith(tuple(others))]
    shown = [name for name in arms if accuracies(name)]
    steps = {name: found[name]["steps"][way] for name in shown}
    places = {name: (step["held"] + step["peak"]) / MB for name, step in steps.items()}
    equal = defaultdict(list)
    for name, place in places.items():
        equal[round(place, 1)].append(name)
    apart = 0.015 * max(1.0, max(places.values(), default=0) - min(places.values(), default=0))
    figure, (axes,) = panels(left=0.09, right=0.56, top=0.95)
    lines = []
    for name, place in places.items():
        mean, half = mean_interval(list(accuracies(name).values()))
        there = equal[round(place, 1)]
        x = place + apart * (2 * there.index(name) - len(there) + 1)
        size = found[name]["file"] / MB
        looks = _looks(name)
        if math.isfinite(half):
            axes.plot([x, x], [mean - half, mean + half], color=looks["color"])
        axes.plot(x, mean, linestyle="", label=f"{name}, {size:.1f} MB", **looks)
        if guess is not None and name == f"Rep-Net, pruned, {rounded}":
            axes.plot(x, guess, "*", color=GREEN, markersize=12, label="your guess of both together")
        held, peak = steps[name]["held"] / MB, steps[name]["peak"] / MB
        lines.append(f"{name}: {said(name)} · {place:.1f} MB, {held:.1f} held and {peak:.1f} made · file {size:.1f} MB")
    axes.set(xlabel=f"memory of a training step, {way} (MB)", ylabel="test accuracy (%)")
    if shown or guess is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title="arm, size of its file")
    absent = [f"no such step is measured of {name}" for name in found if way not in found[name]["steps"]]
    absent += [f"no log: {name}" for name in missing() if name.partition(" (")[0] in arms]
    return figure, "\n".join(lines + absent)
