"""Figures, in one style: colours that survive colour blindness, no text under 9 pt."""

import csv
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..train import read_log
from . import asset

BLUE, ORANGE, GREEN, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#666666", "#D6D6D6"
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titley": 1.0,  # else a title looks for what it may stand on: a tenth of the time
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
SIZE = (7.5, 3.5)
MARGINS = {"left": 0.1, "right": 0.98, "bottom": 0.16, "top": 0.9, "wspace": 0.26}


def panels(
    columns: int = 1, rows: int = 1, size: tuple[float, float] = SIZE, sharex: bool = False, sharey: bool = False,
    **grid: Any,
) -> tuple[Figure, list]:  # fmt: skip
    """A figure and its axes in a `grid` of given margins and ratios, with few ticks: each takes time."""
    figure = Figure(figsize=size, dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey, gridspec_kw=MARGINS | grid)
    for one in axes.flat:
        one.locator_params(nbins=5)
    return figure, list(axes.flat)


def paper_run(data: str, epochs: int) -> list[dict[str, float]]:
    """The paper's own log of CIFAR-10, 150 epochs, cut to `epochs`; else empty."""
    if data != "cifar10":
        return []
    with asset("paper-log-cifar10.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)][:epochs]


def plot_run(folder: Path) -> Figure:
    """A run's accuracies over its epochs with the learning rate below; beside a `paper` run, the paper's own record."""
    run, epochs = read_log(folder)
    recipe = run["recipe"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        accuracy, rate = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        x = [line["epoch"] for line in epochs]
        for key, label, colour, marker in (
            ("train_acc", "train (augmented)", GREY, "."),
            ("val_acc", "validation", GREEN, "s"),
            ("test_acc", "test", BLUE, "o"),
        ):
            if epochs and epochs[0][key] is not None:
                accuracy.plot(x, [line[key] for line in epochs], color=colour, marker=marker, label=label)
        theirs = paper_run(recipe["data"], recipe["epochs"]) if recipe["name"] == "paper" else []
        if theirs:
            accuracy.plot(
                [row["epoch"] for row in theirs], [row["test_acc"] for row in theirs],
                color=ORANGE, marker="^", linestyle="--", label="test, the paper's own log",
            )  # fmt: skip
        accuracy.set(ylabel="accuracy (%)", title=_title(recipe, run))
        accuracy.legend(loc="lower right")
        rate.plot(x, [line["lr"] for line in epochs], color=GREY, marker=".")
        highest = max((line["lr"] for line in epochs), default=1)
        rate.set(xlabel="epoch", ylabel="learning rate", ylim=(0, 1.2 * highest or 1))
        rate.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _title(recipe: dict[str, Any], run: dict[str, Any]) -> str:
    what = f"{recipe['name']}: {recipe['model']} on {recipe['data']}"
    return f"{what}, {recipe['bits']}-bit weights, seed {recipe['seed']}, {run['precision']}"
