"""Lesson 06: a run's curve, the recorded runs, learning-rate schedules, mistakes, and memory."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ...recipes import RECIPES, Recipe
from ...train import read_log
from .. import asset
from ..confusion import confusion
from ..pictures import pictures
from ..plots import BLUE, GREEN, GREY, ORANGE, PALE, STYLE, panels, paper_run
from ..records import mean_interval
from .start import shares

PAPER, FAST, TWIN = "paper.e7-cifar10-b4", "fast-cifar10-b4", "fast-cifar10-b32"
EPOCHS, STEPS = RECIPES["fast"].epochs, RECIPES["fast"].steps(50_000)


def so_far(run: Path) -> str:
    """One line on the last epoch of a run."""
    facts, epochs = read_log(run)
    line, (key, label) = epochs[-1], _measured_on(epochs)
    return (
        f"epoch {line['epoch']} of {facts['recipe']['epochs']} · training {line['train_acc']:.2f} % · "
        f"{label} {line[key]:.2f} % · {line['seconds']:.1f} s"
    )


def _measured_on(epochs: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The test set, or the validation split of a run that never reads it: key in the log, and in words."""
    tuning = epochs and epochs[-1]["test_acc"] is None
    return ("val_acc", "validation") if tuning else ("test_acc", "test")


@matplotlib.rc_context(STYLE)
def plot_curve(run: Path, guess: float | None = None) -> tuple[Figure, str]:
    """A run so far: accuracy after each epoch, and the learning rate up to its end."""
    facts, epochs = read_log(run)
    told = facts["recipe"]
    # Of any kind of recipe: a transfer's has fields and models of its own.
    recipe = Recipe(told["name"], **{key: told[key] for key in ("epochs", "schedule", "schedule_epochs", "warmup")})
    end, done = recipe.epochs, [line["epoch"] for line in epochs]
    figure, (left, right) = panels(2)
    for key, label, colour, marker in (("train_acc", "training", GREY, "."), (*_measured_on(epochs), BLUE, "o")):
        left.plot(done, [line[key] for line in epochs], color=colour, marker=marker, label=label)
    if guess is not None:
        left.plot(end, guess, "X", color=ORANGE, markersize=11, label="your guess", clip_on=False)
    left.legend(loc="lower right")
    left.set(title="accuracy (%)", xlabel="epoch", xlim=(0.5, end + 0.5), ylim=(0, 103))
    at = [i / 20 for i in range(20 * end)]
    rates = [recipe.rate(int(x) + 1, x % 1) for x in at]
    past = len(done) * 20
    right.plot(at, rates, color=PALE, linewidth=2)
    right.plot(at[:past], rates[:past], color=BLUE, linewidth=2)
    right.set(title="share of the full learning rate", xlabel="epochs done", xlim=(0, end), ylim=(0, 1.05))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, f"{told['name']}, {told['bits']}-bit weights, {told['data']}\n{so_far(run)}"


@cache
def recorded() -> dict[str, list[list[float]]]:
    """Test accuracy in percent after each epoch of the recorded runs that are shown side by side: a list a seed."""
    runs = {"paper, its own log": [[row["test_acc"] for row in paper_run("cifar10", 150)]]}
    for label, name in {"paper, ours": PAPER, "fast, 4 bits": FAST, "fast, FP32 twin": TWIN}.items():
        logs = sorted(asset(f"{name}-s0").parent.glob(f"{name}-s*"))
        runs[label] = [[line["test_acc"] for line in read_log(log)[1]] for log in logs]
    return runs


@matplotlib.rc_context(STYLE)
def plot_recorded(last: int = 8, guess: float | None = None) -> tuple[Figure, str]:
    """Test accuracy of recorded runs up to a last epoch: the paper's log, ours of its recipe, `fast`, its twin."""
    runs = recorded()
    figure, (axes,) = panels(right=0.7)
    styles = ((ORANGE, "--", "^"), (GREEN, "-", "s"), (BLUE, "-", "o"), (GREY, "-", "D"))
    said = []
    for (label, seeds), (colour, style, marker) in zip(runs.items(), styles, strict=True):
        seen = [values[:last] for values in seeds]
        epochs = range(1, len(seen[0]) + 1)
        every = max(1, len(epochs) // 10)
        for values in seen[1:]:
            axes.plot(epochs, values, color=colour, linestyle=style, linewidth=0.8)
        axes.plot(epochs, seen[0], color=colour, linestyle=style, marker=marker, markevery=every, label=label)
        said.append(f"{label:19} epoch {len(epochs):3}: {', '.join(f'{values[-1]:.2f}' for values in seen)} %")
    twins = [values[-1] for values in runs["fast, FP32 twin"]]
    if guess is not None:
        axes.plot(EPOCHS, mean(twins) - guess, "X", color="black", markersize=11, label="your guess")
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", xlim=(0, last + 1), ylim=(60, 95))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
    gaps = [twin - values[-1] for twin, values in zip(twins, runs["fast, 4 bits"], strict=True)]
    gap, half = mean_interval(gaps)
    pairs = ", ".join(f"{gap:+.2f}" for gap in gaps)
    said += [
        f"fast, FP32 minus 4 bits at the last epoch, seed by seed: {pairs} points",
        f"the mean gap {gap:+.2f}, its 95 % interval from {gap - half:+.2f} to {gap + half:+.2f}",
    ]
    return figure, "\n".join(said)


@matplotlib.rc_context(STYLE)
def plot_cosine(epoch: int = 100, restart: bool = False, guess: float | None = None) -> tuple[Figure, str]:
    """The paper's run over 150 epochs: test accuracy above, learning rate below, one epoch marked."""
    rows, recipe = paper_run("cifar10", 150), RECIPES["paper"]
    x = [int(row["epoch"]) for row in rows]
    rates = [recipe.learning_rate(e) for e in x]
    figure, (above, below) = panels(1, 2, left=0.12, hspace=0.18, top=0.97)
    above.plot(x, [row["test_acc"] for row in rows], color=BLUE)
    above.plot(epoch, rows[epoch - 1]["test_acc"], "o", color=BLUE, markersize=9)
    if guess is not None:
        above.plot(150, guess, "X", color=ORANGE, markersize=11, label="your guess")
        above.legend(loc="lower center")
    above.set(ylabel="test (%)", ylim=(80, 94), xticklabels=[])
    below.plot(x, rates, color=BLUE, label="as it was run")
    below.plot(epoch, rates[epoch - 1], "o", color=BLUE, markersize=9)
    said = (
        f"epoch {epoch}: learning rate {rates[epoch - 1]:.7f}, {100 * recipe.rate(epoch):.2f} % of the first · "
        f"test accuracy {rows[epoch - 1]['test_acc']:.2f} %"
    )
    if restart:
        again = [recipe.learning_rate((e - 1) % 100 + 1) for e in x]
        below.plot(x, again, color=ORANGE, linestyle="--", label="a restart")
        below.legend(loc="upper right", bbox_to_anchor=(0.66, 1.0))
        said += f"\nwith a restart after epoch 100 the rate would be {again[epoch - 1]:.7f}"
    below.set(ylabel="learning rate", xlabel="epoch", ylim=(0, 0.00108), yticks=[0, 0.0005, 0.001])
    for axes in (above, below):
        axes.set_xlim(0, 152)
        axes.axvline(epoch, color=GREY, linewidth=1, zorder=0)
    return figure, said


@matplotlib.rc_context(STYLE)
def plot_linear(schedule: int = EPOCHS, warmup: float = 0.0) -> tuple[Figure, str]:
    """A linear schedule of some epochs in a run of `fast`: up over its share `warmup`, then down to zero."""
    recipe = Recipe("fast", schedule="linear", schedule_epochs=schedule, warmup=warmup)
    at = [(step + 0.5) / STEPS for step in range(EPOCHS * STEPS)]
    rates = [recipe.rate(int(x) + 1, x % 1) for x in at]
    figure, (axes,) = panels()
    beyond = [EPOCHS + i / 20 for i in range(161)]
    axes.plot(beyond, [recipe.rate(int(x) + 1, x % 1) for x in beyond], color=PALE, linestyle="--", linewidth=2)
    axes.plot(at, rates, color=BLUE, linewidth=2)
    axes.axvline(EPOCHS, color=GREY, linestyle="--")
    axes.text(EPOCHS - 0.05, 1.02, "the run ends", ha="right", va="bottom", color=GREY)
    axes.set(xlabel="epochs done", ylabel="share of the full rate", xlim=(0, 16), ylim=(0, 1.12))
    idle = sum(rate == 0 for rate in rates)
    return figure, (
        f"highest {100 * max(rates):.0f} % after {at[rates.index(max(rates))]:.1f} epochs · "
        f"last step {100 * rates[-1]:.1f} %"
        + (f" · the last {idle} of {len(rates):,} steps have rate 0" if idle else "")
    )


TABLE, PLACE = (7.5, 4.6), (0.16, 0.01, 0.79, 0.83)


@cache
def _table() -> np.ndarray:
    """The recorded table without a mark, as pixels: its hundred texts are the same at every move of a slider."""
    counts, classes = confusion()
    errors = counts - counts.diag().diag()
    figure = Figure(figsize=TABLE, dpi=100)
    axes = figure.add_axes(PLACE)
    axes.imshow(errors.numpy(), cmap="Blues", vmax=1.6 * errors.max().item(), aspect="auto")
    style: Any = {"ha": "center", "va": "center", "fontsize": 10}
    for i, values in enumerate(counts.tolist()):
        for j, count in enumerate(values):
            if count:
                axes.text(j, i, f"{count}", color=GREY if i == j else "black", **style)
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylabel("is a ...")
    figure.text(0.02, 0.93, "is called ...")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.grid(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@matplotlib.rc_context(STYLE)
def plot_confusion(true: str = "cat", guess: Sequence[str] | None = None) -> tuple[Figure, str]:
    """What the network answers to 1,000 test images of each class: true classes down, answers across."""
    counts, classes = confusion()
    row = classes.index(true)
    errors = counts - counts.diag().diag()
    figure = Figure(figsize=TABLE, dpi=100)
    figure.figimage(_table(), zorder=-1)
    axes = figure.add_axes(PLACE, xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
    axes.axis("off")
    axes.add_patch(Rectangle((-0.5, row - 0.5), len(classes), 1, fill=False, edgecolor=BLUE, linewidth=2))
    pairs = sorted(((errors[i, j] + errors[j, i]).item() for i in range(len(classes)) for j in range(i)), reverse=True)
    wrong = errors[row]
    said = [
        f"{true}: {counts[row, row]} of {counts[row].sum():,} right · most often taken for {classes[wrong.argmax()]}, "
        f"{wrong.max()} times",
        f"called {true}, but something else: {errors[:, row].sum()} · all classes: "
        f"{100 * counts.trace() / counts.sum():.2f} % right",
    ]
    if guess is not None:
        if not (isinstance(guess, tuple | list) and len(set(guess)) == 2 and set(guess) <= set(classes)):
            raise ValueError(f"guess must be two of {', '.join(classes)}, such as ('ship', 'truck'), got {guess!r}")
        a, b = (classes.index(name) for name in guess)
        for x, y in ((a, b), (b, a)):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=3))
        both = (errors[a, b] + errors[b, a]).item()
        said.append(
            f"your guess, {guess[0]} and {guess[1]}: {both} mistakes, number {pairs.index(both) + 1} of 45 pairs"
        )
    return figure, "\n".join(said)


@cache
def _answers(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The largest share in percent and its class for each of the twenty pictures."""
    share, answers = shares(model, pictures().images).max(1)
    return 100 * share, answers


@matplotlib.rc_context(STYLE)
def plot_surest(model: nn.Module, least: int = 0) -> tuple[Figure, str]:
    """The twenty test pictures with the network's answers; none where its largest share is below `least` %."""
    images, labels, _, classes = pictures()
    share, answers = _answers(model)
    # One picture of all twenty: axes for each would take four times as long.
    wide, high, side = 40, 48, 32
    figure = Figure(figsize=(7.5, 7.5 * 2 * high / (10 * wide)), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    canvas = torch.full((2 * high, 10 * wide, 3), 255, dtype=torch.uint8)
    said = share >= least
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = wide * (i // 2) + 4, high * (i % 2) + 2
        canvas[y : y + side, x : x + side] = image.permute(1, 2, 0)
        right = answers[i] == label
        word = f"{'' if right else '✗ '}{classes[answers[i]]}" if said[i] else "-"
        colour = GREY if not said[i] else GREEN if right else ORANGE
        axes.text(x + side / 2, y + side + 6, word, ha="center", va="center", fontsize=9, color=colour)
    axes.imshow(canvas.numpy(), interpolation="nearest")
    right = int((said & (answers == labels)).sum())
    return figure, f"shares of {least} % and more: {int(said.sum())} of 20 pictures answered, {right} of them rightly"


@matplotlib.rc_context(STYLE)
def plot_memory(pairs: Sequence[tuple[float, float]], guess: float | None = None) -> tuple[Figure, str]:
    """Bars: by how much training steps raise a fresh process' peak memory, at 4 bits and in FP32; the middle pair."""
    figure, (axes,) = panels(size=(7.5, 2.2), left=0.16, bottom=0.28)
    if not pairs:
        return figure, "not measured: only Linux tells a process' own peak"
    ours, twin = sorted(pairs, key=lambda pair: pair[0] / pair[1])[len(pairs) // 2]
    bars: Any = {"FP32": (twin, GREY), "4 bits": (ours, BLUE)}
    if guess is not None:
        bars["your guess"] = (guess * twin, "white")
    axes.barh(list(bars), [b[0] / 2**20 for b in bars.values()], color=[b[1] for b in bars.values()], edgecolor=GREY)
    axes.invert_yaxis()
    axes.set(xlabel="MiB")
    axes.grid(axis="y", visible=False)
    near = "yes" if 0.9 < ours / twin < 1.1 else "no"
    return figure, (
        f"4 bits {ours / 2**20:.0f} MiB, FP32 {twin / 2**20:.0f} MiB: {ours / twin:.2f} times as much\n"
        f"between 0.9 and 1.1 times: {near}"
    )
