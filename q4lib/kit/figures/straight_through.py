"""Lesson 02: a staircase without slope, one weight on it, single hops of many weights, and two first networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ...layers import Linear4bit
from ...quant import scale
from ...train import read_log
from ..plots import BLUE, GREEN, GREY, ORANGE, STYLE, panels

STEP, TARGET = 0.2, 0.4  # of the grid with one weight, where max|w| would round every weight to itself
START = -1.0
LOW, HIGH, CHANCE = 30, 85, 10  # accuracies (%) that digits without and with straight-through are compared with


def _round(w: float) -> float:
    return round(w / STEP) * STEP


def _stairs(axes: Any, low: float, high: float, height: Any, **style: Any) -> None:
    """The levels between `low` and `high`, each drawn over its own cell, without the risers."""
    codes = range(round(low / STEP), round(high / STEP) + 1)
    style = {"color": GREY, "linewidth": 2.5} | style
    axes.hlines(
        [height(c * STEP) for c in codes], [(c - 0.5) * STEP for c in codes], [(c + 0.5) * STEP for c in codes], **style
    )


def _loss(value: float, target: float = TARGET) -> float:
    return (value - target) ** 2


@matplotlib.rc_context(STYLE)
def plot_slope(weight: float = 0.13, nudge: float = 0.02, guess: float | None = None) -> tuple[Figure, str]:
    """Left: one weight and its level on the staircase. Right: its loss, flat but for jumps. An arrow is the nudge."""
    figure, sides = panels(2)
    places = weight, round(weight + nudge, 2)  # 0.13 + 0.17 is the edge at 0.3, and not a last bit beyond
    for axes, height, label in zip(sides, (lambda q: q, _loss), ("q(w)", "loss"), strict=True):
        _stairs(axes, -0.6, 0.8, height)
        heights = [height(_round(w)) for w in places]
        axes.annotate(
            "", (places[1], heights[1]), (places[0], heights[0]), arrowprops={"arrowstyle": "->", "color": ORANGE}
        )
        axes.plot(places[0], heights[0], "o", color=BLUE, label="w")
        axes.plot(places[1], heights[1], "s", color=ORANGE, fillstyle="none", label="w + nudge")
        axes.set(xlabel="weight w", ylabel=label, xlim=(-0.7, 0.9), xticks=[-0.4, 0, 0.4, 0.8])
    if guess is not None:
        ends = [weight - 0.2, weight + 0.2]
        line = [_loss(_round(weight)) + guess * (end - weight) for end in ends]
        sides[1].plot(ends, line, "--", color=GREEN, label=f"your slope: {guess:g}")
    sides[1].legend(loc="upper right")
    before, after = (_loss(_round(w)) for w in places)
    return figure, (
        f"w {places[0]:.2f}: level {_round(places[0]) + 0:.1f}, loss {before:.2f}\n"
        f"w + nudge {places[1]:.2f}: level {_round(places[1]) + 0:.1f}, loss {after:.2f}\n"
        f"change of the loss / nudge: {(after - before) / nudge + 0:.2f}"
    )


def _descend(rate: float, steps: int, start: float, target: float, falling_rate: bool = False) -> list[float]:
    """The weight before each step and after the last: gradient descent on (q(w) - target)**2, straight through q."""
    path = [start]
    for done in range(steps):
        now = rate * (1 - done / steps) if falling_rate else rate
        path.append(path[-1] - now * 2 * (_round(path[-1]) - target))
    return path


@matplotlib.rc_context(STYLE)
def plot_descent(rate: float = 0.1, guess: float | None = None) -> tuple[Figure, str]:
    """A weight's way over 60 steps: with straight-through it walks down the stairs, without it the weight stands."""
    path = _descend(rate, 60, START, TARGET)
    levels = [_round(w) for w in path]
    figure, (left, right) = panels(2, width_ratios=(2, 3))
    _stairs(left, -1.2, 2, _loss)
    left.plot(path, [_loss(q) for q in levels], "o", color=BLUE, markersize=5, alpha=0.6)
    left.plot(START, _loss(START), "s", color=ORANGE)
    left.set(xlabel="weight w", ylabel="loss", xlim=(-1.4, 2.2))
    right.plot(levels, color=GREY, drawstyle="steps-post", linewidth=2.5, label="its level q(w)")
    right.plot(path, ".-", color=BLUE, label="w, straight-through")
    right.axhline(START, color=ORANGE, linestyle="--", label="w without")
    right.axhline(TARGET, color=GREEN, linestyle=":", label="target")
    if guess is not None:
        right.plot(60, guess, "D", color="black", label="your guess", clip_on=False)
    right.set(xlabel="training step", ylim=(-1.2, 2.0))
    figure.legend(loc="upper center", ncols=5, fontsize=9.5, columnspacing=1.2)
    still = max((i for i, w in enumerate(path) if w != path[-1]), default=-1) + 1
    rest = f"at rest after step {still}" if still < 60 else "still moving"
    return figure, (
        f"rate {rate:.2f}, 60 steps\n"
        f"without straight-through: w {START:.2f}, level {_round(START):.1f}, loss {_loss(_round(START)):.2f}\n"
        f"with: w {path[-1] + 0:.2f}, level {levels[-1] + 0:.1f}, loss {_loss(levels[-1]):.2f}; {rest}"
    )


@matplotlib.rc_context(STYLE)
def plot_edge(
    target: float = 0.45, rate: float = 0.1, falling_rate: bool = False, guess: float | None = None
) -> tuple[Figure, str]:
    """A weight whose target lies between two levels crosses the edge between them again and again: last 60 steps."""
    path = _descend(rate, 300, target, target, falling_rate)
    levels = [_round(w) for w in path]
    last = range(100, 300)
    flips = sum(abs(levels[i + 1] - levels[i]) > STEP / 2 for i in last)
    mean = sum(levels[i] for i in last) / len(last)
    figure, (axes,) = panels()
    steps = range(240, 301)
    axes.plot(steps, levels[240:], color=GREY, drawstyle="steps-post", linewidth=2.5, label="its level q(w)")
    axes.plot(steps, path[240:], ".-", color=BLUE, label="w")
    axes.axhline(target, color=GREEN, linestyle=":", label="target")
    axes.set(xlabel="training step", ylabel="weight", ylim=(0.35, 0.7))
    axes.legend(loc="upper right", ncols=3)
    if guess is not None:
        axes.set_title(f"your guess: {guess:g} flips, counted: {flips}", fontsize=11)
    return figure, (
        f"flips in the last 200 steps: {flips} · mean level {mean:.3f}, target {target:.2f}\n"
        f"w between {min(path[101:]):.3f} and {max(path[101:]):.3f}, at the end on level {levels[-1]:.1f}"
    )


class Hops(NamedTuple):
    """What moving each weight alone promises and does to the loss, (out, in); the loss before and after all move."""

    promised: Tensor
    true: Tensor
    before: float
    after: float

    @property
    def wrong(self) -> float:
        """Percent of the weights that change level for which the loss rises."""
        return 100 * int((self.true > 0).sum()) / max(1, int((self.true != 0).sum()))


def hops(layer: Linear4bit, images: Tensor, labels: Tensor, way: float) -> Hops:
    """Each weight goes `way` levels against its straight-through gradient, on a grid that is held still."""
    unit, weight, bias = scale(layer.weight, layer.bits), layer.weight.detach(), layer.bias.detach()
    with torch.enable_grad():
        logits = layer(images)
        loss = F.cross_entropy(logits, labels)
        (slope,) = torch.autograd.grad(loss, layer.weight)
    moved = unit * torch.round((weight - way * unit * slope.sign()) / unit)
    jump = moved - unit * torch.round(weight / unit)
    share, true = logits.detach().softmax(1), torch.empty_like(weight)
    for i in range(len(weight)):  # a jump in row i changes logit i alone, by jump * pixel
        rise = images * jump[i]
        true[i] = (torch.log1p(share[:, i : i + 1] * torch.expm1(rise)) - (labels == i)[:, None] * rise).mean(0)
    after = F.cross_entropy(F.linear(images, moved, bias), labels)
    return Hops(-way * unit * slope.abs(), true, loss.item(), after.item())


@matplotlib.rc_context(STYLE)
def plot_hops(
    layers: Mapping[int, Linear4bit], images: Tensor, labels: Tensor, trained: int = 0, way: float = 0.05,
    guess: float | None = None,
) -> tuple[Figure, str]:  # fmt: skip
    """Left: a dot a weight, its promised and its true change of the loss. Right: for how many it stood, fell, rose."""
    found = hops(layers[trained], images, labels, way)
    promised, true = found.promised.flatten(), found.true.flatten()
    rose, fell = true > 0, true < 0
    stood = ~(rose | fell)
    share = 100 / len(true)
    figure, (left, right) = panels(2, width_ratios=(3, 2), wspace=0.42, top=0.86)
    bars = {"stood still": (stood, GREY, "."), "fell": (fell, BLUE, "."), "rose": (rose, ORANGE, "^")}
    for chosen, colour, marker in bars.values():
        left.plot(1000 * promised[chosen], 1000 * true[chosen], marker, color=colour, markersize=5, alpha=0.6)
    low = 1000 * promised.min().item()
    left.plot([low, 0], [low, 0], "--", color=GREEN, label="promise kept")
    left.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="promised change of the loss (thousandths)", ylabel="true change (thousandths)")
    left.legend(loc="lower right")
    counts = [int(chosen.sum()) for chosen, _, _ in bars.values()]
    drawn = right.barh(list(bars), counts, color=[colour for _, colour, _ in bars.values()])
    right.bar_label(drawn, [f"{count * share:.0f} %" for count in counts], padding=3)
    right.set(xlabel="weights", xlim=(0, 1.2 * len(true)))
    right.invert_yaxis()
    right.grid(visible=False)
    if guess is not None:
        right.set_title(
            f"of those that hop, rose for {found.wrong:.0f} %\n(guessed for 0 steps, 0.05: {guess:g} %)", fontsize=10
        )
    return figure, (
        f"trained {trained} steps, way {way:g}: {share * int((~stood).sum()):.0f} % of the weights change level, "
        f"the loss rises for {found.wrong:.0f} % of these\n"
        f"true changes together / promised together: {(true.sum() / promised.sum()).item():.1f}\n"
        f"all weights moved at once: loss {found.before:.2f} -> {found.after:.2f}"
    )


@matplotlib.rc_context(STYLE)
def plot_runs(runs: Mapping[str, Path], guess: float | None = None) -> tuple[Figure, str]:
    """Test accuracy over the epochs of two runs, with and without straight-through, and that of guessing blindly."""
    logs = {name: read_log(folder)[1] for name, folder in runs.items()}
    accuracies = {name: [line["test_acc"] for line in log] for name, log in logs.items()}
    figure, (axes,) = panels(right=0.66)
    for (name, values), colour, marker in zip(accuracies.items(), (BLUE, ORANGE), "os", strict=True):
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, marker=marker, color=colour, label=f"{name}: {values[-1]:.1f} %")
    axes.axhline(CHANCE, color=GREY, linestyle=":", label=f"blind: {CHANCE} %")
    if guess is not None:
        axes.plot(len(values), guess, "D", color="black", label="your guess: without")
    axes.set(xlabel="epoch", ylabel="digits right (%)", ylim=(0, 102))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(title="straight-through", loc="center left", bbox_to_anchor=(1, 0.5))
    first, *_, last = (line["train_loss"] for line in logs["without"])
    questions = {
        f"with straight-through over {HIGH} % right": accuracies["with"][-1] > HIGH,
        f"without it over {LOW} % right": accuracies["without"][-1] > LOW,
        "without it the training loss falls": last < first,
    }
    return figure, "\n".join(f"{question}: {'yes' if answer else 'no'}" for question, answer in questions.items())
