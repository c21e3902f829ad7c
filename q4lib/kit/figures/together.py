"""Lesson 08: what pruning cost, and both papers together: recorded accuracies, training memory and file sizes."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..plots import BLUE, GREEN, ORANGE, PALE, STYLE, panels
from ..records import mean_interval
from ..study import MB, ROUNDED, accuracies, difference, memory, missing, said

MARKERS = {"Rep-Net, pruned at random": "X", "Rep-Net, pruned": "v", "Rep-Net": "o"}
ARMS = ["last layer", "last layer, rate 1.5e-3", "Rep-Net", "Rep-Net, pruned", "Rep-Net, pruned at random"]
COMPARED = [(ARMS[2], ARMS[0]), (ARMS[2], ARMS[1]), (ARMS[3], ARMS[2]), (ARMS[3], ARMS[4])]
BOTH = [
    *((f"Rep-Net, {how}", "Rep-Net") for how in ROUNDED),
    ("Rep-Net, pruned", "Rep-Net"),
    *((f"Rep-Net, pruned, {how}", "Rep-Net") for how in ROUNDED),
]


@matplotlib.rc_context(STYLE)
def plot_cost(way: str = "eager", guess: float | None = None) -> tuple[Figure, str]:
    """Arms of the study: left the test accuracy, a dot a seed and the 95 % interval; right what a step takes."""
    steps = {name: memory()[name]["steps"].get(way) for name in ARMS}
    seeds = {name: list(accuracies(name).values()) for name in ARMS}
    means, halves = zip(*(mean_interval(found) for found in seeds.values()), strict=True)
    figure, (left, right) = panels(2, sharey=True, left=0.3, top=0.9, wspace=0.08)
    rows = range(len(ARMS))
    each = [(accuracy, row - 0.15) for row, found in enumerate(seeds.values()) for accuracy in found]
    left.plot(*zip(*each, strict=True), "o", color=BLUE, alpha=0.4)
    low, high = ([mean + sign * half for mean, half in zip(means, halves, strict=True)] for sign in (-1, 1))
    left.hlines([row + 0.12 for row in rows], low, high, color=BLUE)
    left.plot(means, [row + 0.12 for row in rows], "D", color=BLUE)
    taken = [(row, step["held"] / MB, step["peak"] / MB) for row, step in enumerate(steps.values()) if step]
    these = [row for row, _, _ in taken]
    right.hlines(these, 0, [held + made for _, held, made in taken], color=BLUE, linewidth=18, label="made by the step")
    right.hlines(these, 0, [held for _, held, _ in taken], color=PALE, linewidth=18, label="held before")
    for row, held, made in taken:
        right.text(held + made, row, f"  {held + made:.1f}", va="center")
    if guess is not None:
        place = means[ARMS.index("Rep-Net")] - guess, ARMS.index("Rep-Net, pruned")
        left.plot(*place, "X", color=GREEN, markersize=11, label="your guess")
        left.legend(loc="lower left")
    left.set(xlabel="test accuracy (%)", yticks=rows, yticklabels=ARMS, ylim=(len(ARMS) - 0.4, -0.6))
    right.set(xlabel=f"step, {way} (MB)", xlim=(0, 60))
    right.grid(axis="y", visible=False)
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    sizes = {name: f"{(step['held'] + step['peak']) / MB:.1f} MB" if step else "-" for name, step in steps.items()}
    return figure, "\n".join(f"{name:26} {said(name):24} {way}: {size}" for name, size in sizes.items())


def compared(pairs: Sequence[tuple[str, str]]) -> str:
    """Pairs of arms, the first less the second: points of accuracy with their interval, MB of a step and of a file."""

    def whole(arm: dict[str, Any], way: str) -> int:
        step: dict[str, int] = arm["steps"][way]
        return step["held"] + step["peak"]

    lines = [f"{'MB more or less:':52} eager    lean    file"]
    for more, less in pairs:
        if points := difference(more, less):
            ours, theirs = memory()[more], memory()[less]
            changes = [
                (whole(ours, "eager") - whole(theirs, "eager")) / MB,
                (whole(ours, "lean") - whole(theirs, "lean")) / MB,
                (ours["file"] - theirs["file"]) / MB,
            ]
            lines += [f"{more} against {less}", f"  {points:50}" + "".join(f"{change:+8.1f}" for change in changes)]
    return "\n".join(lines)


def _looks(name: str) -> dict[str, str]:
    colour = ORANGE if "4 bits" in name else BLUE
    inside = "white" if name.endswith("random") else colour
    marker = next(marker for start, marker in MARKERS.items() if name.startswith(start))
    return {"color": colour, "markerfacecolor": inside, "marker": marker}


@matplotlib.rc_context(STYLE)
def plot_together(way: str = "lean", rounded: str = "4 bits", guess: float | None = None) -> tuple[Figure, str]:
    """Accuracy with its 95 % interval over the memory of a step taken in this way, by Rep-Net, with the file's size.

    Of the 4-bit backbones, those `rounded` in one way. Points of nearly equal memory stand side by side.
    """
    found = memory()
    others = [f", {how}" for how in ROUNDED if how != rounded]
    arms = [name for name in found if name.startswith("Rep-Net") and not name.endswith(tuple(others))]
    shown = [name for name in arms if accuracies(name)]
    steps = {name: found[name]["steps"][way] for name in shown}
    places = {name: (step["held"] + step["peak"]) / MB for name, step in steps.items()}
    equal = defaultdict(list)
    for name, place in places.items():
        equal[round(place)].append(name)
    right = 1.05 * max(places.values(), default=1.0)
    figure, (axes,) = panels(left=0.09, right=0.56, top=0.95)
    lines = []
    for name, place in places.items():
        mean, half = mean_interval(list(accuracies(name).values()))
        there = equal[round(place)]
        x = place + 0.008 * right * (2 * there.index(name) - len(there) + 1)
        size = found[name]["file"] / MB
        looks = _looks(name)
        if math.isfinite(half):
            axes.plot([x, x], [mean - half, mean + half], color=looks["color"])
        axes.plot(x, mean, linestyle="", label=f"{name}, {size:.1f} MB", **looks)
        if guess is not None and name == f"Rep-Net, pruned, {rounded}":
            axes.plot(x, guess, "*", color=GREEN, markersize=12, label="your guess of both together")
        held, peak = steps[name]["held"] / MB, steps[name]["peak"] / MB
        lines.append(f"{name}: {said(name)} · {place:.1f} MB, {held:.1f} held and {peak:.1f} made · file {size:.1f} MB")
    axes.set(xlabel=f"a training step, {way} (MB)", ylabel="test accuracy (%)", xlim=(0, right))
    if shown or guess is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title="arm, size of its file")
    absent = [f"no log: {name}" for name in missing() if name.partition(" (")[0] in arms]
    return figure, "\n".join(lines + absent)
