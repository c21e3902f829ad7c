"""What each part of a recipe brings: the paper's table VII in small, and the ingredients of `fast`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...data import nearest
from ...recipes import RECIPES, Recipe, run_name
from ...train import read_log, reported
from .. import asset
from ..classroom import ARMS
from ..plots import BLUE, GREY, ORANGE, STYLE, panels
from ..records import mean_interval
from .clipping import TABLE_VII


@cache
def _accuracy(run: str) -> float:
    """A recorded run's test accuracy in percent at its last epoch; its validation accuracy, where the split says so."""
    line = reported(read_log(asset(run))[1], "last")
    return float(line["val_acc"] if line["test_acc"] is None else line["test_acc"])


@dataclass(frozen=True)
class Study:
    """Recorded runs of one recipe and of arms that depart from it, the first of them in nothing; the same seeds.

    `pooled` takes the spread from all arms together, as if each scattered alike: for many arms with few seeds.
    """

    recipe: Recipe
    arms: dict[str, dict[str, Any]]
    seeds: Sequence[int]
    digits: int = 1
    pooled: bool = False

    def runs(self, arm: str) -> list[str]:
        """The names of an arm's runs, seed by seed."""
        return [run_name(replace(self.recipe, seed=seed, **self.arms[arm])) for seed in self.seeds]

    def accuracies(self, arm: str) -> list[float]:
        """Accuracy in percent at the last epoch, seed by seed."""
        return [_accuracy(run) for run in self.runs(arm)]

    def losses(self, arm: str) -> list[float]:
        """Points that an arm loses to the first, seed by seed: a pair has the same first weights and the same order."""
        whole = self.accuracies(next(iter(self.arms)))
        return [full - less for full, less in zip(whole, self.accuracies(arm), strict=True)]

    def lost(self, arm: str) -> tuple[float, float]:
        """The mean of an arm's losses, and half the width of its 95 % interval."""
        mean, half = mean_interval(self.losses(arm))
        if self.pooled:
            from scipy.stats import t

            found = np.array([self.accuracies(arm) for arm in self.arms])
            # What is neither the arm's nor the seed's.
            left = found - found.mean(0) - found.mean(1, keepdims=True) + found.mean()
            free = (len(self.arms) - 1) * (len(self.seeds) - 1)
            half = float(t.ppf(0.975, free) * np.sqrt(2 * (left**2).sum() / free / len(self.seeds)))
        return mean, half

    def verdicts(self) -> list[str]:
        """A line an arm: the first one's mean accuracy, what the others lose to it; each with its 95 % interval."""
        (first, *others), digits = self.arms, self.digits
        mean, half = mean_interval(self.accuracies(first))
        lines = [f"{first}: {mean:.{digits}f} ± {half:.{digits}f} %, {len(self.seeds)} seeds"]
        for arm in others:
            mean, half = self.lost(arm)
            said = "costs accuracy" if mean > half else "gains accuracy" if mean < -half else "cannot tell"
            low, middle, high = (f"{value:+z.{digits}f}" for value in (mean - half, mean, mean + half))
            lines.append(f"{arm}: {middle} points lost, {low} to {high}: {said}")
        return lines

    def draw(self, axes: Axes) -> None:
        """A row an arm but the first: the points that it loses, one a seed, their mean and its interval."""
        arms = list(self.arms)[1:]
        rows = range(len(arms))
        means, halves = zip(*map(self.lost, arms), strict=True)
        axes.plot(
            [self.losses(arm) for arm in arms], [[row - 0.12] * len(self.seeds) for row in rows], "o", color=BLUE,
            alpha=0.4, label=["ours, a seed"] + [None] * (len(self.seeds) - 1),
        )  # fmt: skip
        axes.errorbar(
            means, [row + 0.1 for row in rows], xerr=halves, fmt="D", color=BLUE, capsize=5,
            label="ours, mean and\n95 % interval",
        )  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(yticks=rows, yticklabels=arms, ylim=(len(arms) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)


SMALL = Study(RECIPES["miniature"], ARMS, range(5))

# `fast` as it was before this study, in half of its epochs then, without most of its ingredients, and with two that it
# left out. Recipes are chosen by such tables: measured on training images held out, and the test set stays unread.
INGREDIENTS = Study(
    replace(RECIPES["fast"], dropout=0.1, warmup=0.15, epochs=5, schedule_epochs=5, val=10_000),
    {
        "fast as it was, 5 epochs": {},
        "AdamW alone at 0.002": {"optimizer": "adamw", "lr": 2e-3},
        "Muon on convolutions alone": {"optimizer": "muon"},
        "grid out to the largest weight": {"normal_range": False},
        "no label smoothing": {"label_smoothing": 0.0},
        "no dropout": {"dropout": 0.0},
        "no shift": {"crop": 0},
        "no warm-up": {"warmup": 0.0},
        "mirrored by a coin": {"alternate": False},
        "black border": {"reflect": False},
        "neither dropout nor warm-up": {"dropout": 0.0, "warmup": 0.0},  # run after all others: `fast` as it is
        "with the paper's soft clip": {"soft_clip": 3.0},
        "with a scale per channel": {"per_channel": True},
    },
    range(3),
    digits=2,
    pooled=True,
)
FAR = 1.75  # points, at which the picture ends; what lies beyond is written there


@matplotlib.rc_context(STYLE)
def plot_small_table(guess: float | None = None) -> tuple[Figure, str]:
    """Points lost with each part left out: our small runs, a point a seed, beside the paper's table VII."""
    figure, (axes,) = panels(left=0.27, right=0.7, top=0.96)
    SMALL.draw(axes)
    axes.set_xlabel("points of test accuracy lost")
    arms = list(ARMS)[1:]
    lost = [TABLE_VII["full method"] - TABLE_VII[arm] for arm in arms]
    axes.plot(lost, range(len(arms)), "s", color=GREY, label="the paper,\none number")
    if guess is not None:
        axes.plot(guess, 0, "X", color=ORANGE, markersize=11, label="your guess")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure, "\n".join(SMALL.verdicts())


@matplotlib.rc_context(STYLE)
def plot_ingredients(guess: str | None = None) -> tuple[Figure, str]:
    """Points that five epochs of `fast` as it was lose without an ingredient, or with one more; a point a seed."""
    figure, (axes,) = panels(size=(7.5, 5.5), left=0.33, right=0.72, top=0.98, bottom=0.11)
    INGREDIENTS.draw(axes)
    axes.set(xlabel="points of validation accuracy lost", xlim=(-1.25, FAR))
    arms = list(INGREDIENTS.arms)[1:]
    for row, arm in enumerate(arms):
        if (lost := INGREDIENTS.lost(arm)[0]) > FAR:
            axes.text(FAR, row, f"{lost:+.1f} ▸ ", color=BLUE, ha="right", va="center")
    if guess is not None:
        if guess not in arms:
            raise ValueError(f"guess must be one of {', '.join(arms)}, got {guess!r}{nearest(guess, arms)}")
        axes.get_yticklabels()[arms.index(guess)].set(color=ORANGE, fontweight="bold")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure, "\n".join(INGREDIENTS.verdicts())
