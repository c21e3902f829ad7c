"""Lesson 04: the paper's table VII in small, from recorded runs."""

from dataclasses import replace
from functools import cache

import matplotlib
from matplotlib.figure import Figure

from ...recipes import RECIPES, run_name
from ...train import read_log, reported
from .. import asset
from ..classroom import ARMS
from ..plots import BLUE, GREY, ORANGE, STYLE, panels
from ..records import mean_interval
from .clipping import TABLE_VII

SEEDS = range(5)


@cache
def accuracies(arm: str) -> tuple[float, ...]:
    """Test accuracy in percent of an arm's recorded runs at their last epoch, seed by seed."""
    runs = [asset(run_name(replace(RECIPES["miniature"], seed=seed, **ARMS[arm]))) for seed in SEEDS]
    return tuple(reported(read_log(run)[1], "last")["test_acc"] for run in runs)


def losses(arm: str) -> list[float]:
    """Points that a part's absence costs, seed by seed: a pair has the same first weights and the same batches."""
    return [full - less for full, less in zip(accuracies("full method"), accuracies(arm), strict=True)]


def _verdict(arm: str) -> str:
    mean, half = mean_interval(losses(arm))
    said = "costs accuracy" if mean > half else "gains accuracy" if mean < -half else "cannot tell"
    return f"{arm}: {mean:+.1f} points lost, {mean - half:+.1f} to {mean + half:+.1f}: {said}"


@matplotlib.rc_context(STYLE)
def plot_small_table(guess: float | None = None) -> tuple[Figure, str]:
    """Points lost with each part left out: our small runs, a point a seed, beside the paper's table VII."""
    arms = list(ARMS)[1:]
    figure, (axes,) = panels(left=0.27, right=0.7, top=0.96)
    rows = range(len(arms))
    means, halves = zip(*(mean_interval(losses(arm)) for arm in arms), strict=True)
    axes.plot(
        [losses(arm) for arm in arms], [[row - 0.12] * len(SEEDS) for row in rows], "o", color=BLUE, alpha=0.4,
        label=["ours, a seed"] + [None] * (len(SEEDS) - 1),
    )  # fmt: skip
    axes.errorbar(
        means, [row + 0.1 for row in rows], xerr=halves, fmt="D", color=BLUE, capsize=5,
        label="ours, mean and\n95 % interval",
    )  # fmt: skip
    axes.plot(
        [TABLE_VII["full method"] - TABLE_VII[arm] for arm in arms],
        rows,
        "s",
        color=GREY,
        label="the paper,\none number",
    )
    if guess is not None:
        axes.plot(guess, 0, "X", color=ORANGE, markersize=11, label="your guess")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="points of test accuracy lost", yticks=rows, yticklabels=arms, ylim=(3.6, -0.6))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    mean, half = mean_interval(accuracies("full method"))
    return figure, "\n".join([f"full method: {mean:.1f} ± {half:.1f} %, {len(SEEDS)} seeds", *map(_verdict, arms)])
