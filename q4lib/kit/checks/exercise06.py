"""Exercise 06: a schedule with and without restarts, the epoch that a run reports, two arms of other seeds."""

import math
import statistics
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from . import Wrong, shown, task
from .compare import Case, compare, fresh
from .exercise04_ablation import T
from .plain import Function, converted, near, number

Epochs = list[dict[str, Any]]


def _cosine(done: int, period: int, turn: float = math.pi) -> float:
    return (1 + math.cos(turn * done / period)) / 2


def _rate(epoch: int, first: float, period: int, restart: bool) -> float:
    done = epoch - 1
    return first * _cosine(done % period if restart else done, period)


def _with_restart(done: Function, always: bool = False) -> Function:
    """A student's function that takes `done(epoch, period)` for the epochs behind, where it is to restart."""

    def function(epoch: int, first: float, period: int, restart: bool) -> float:
        return first * _cosine(done(epoch, period) if restart or always else epoch - 1, period)

    return function


HARD_CODED = "0.001 and 100 are the values of `first` and `half_period` where none are given: use the names"


@task("6.1")
def rate(student: Any) -> str:
    """The cosine that runs on, and the one that restarts."""
    mistakes: dict[str, Function] = {
        "epoch 1 has the full rate: of the period, `epoch - 1` epochs have gone by": lambda e, *a: _rate(e + 1, *a),
        "with `restart`, too, epoch 1 has the full rate: take 1 off first, `(epoch - 1) % half_period`": _with_restart(
            lambda e, p: e % p
        ),
        "epoch 1 has the full rate, so count `epoch - 1`; and it always restarts: without `restart` it runs on": (
            _with_restart(lambda e, p: e % p, always=True)
        ),
        "take 1 off first, and then the remainder: `(epoch - 1) % half_period`": _with_restart(lambda e, p: e % p - 1),
        "the half is missing: the first rate is 1 + cos(0) = 2 times too much": lambda *a: 2 * _rate(*a),
        HARD_CODED: lambda e, first, p, restart: _rate(e, 0.001, 100, restart),
        f"{HARD_CODED} (`first` is right)": lambda e, first, p, restart: _rate(e, first, 100, restart),
        f"{HARD_CODED} (`half_period` is right)": lambda e, first, p, restart: _rate(e, 0.001, p, restart),
        "that is the share: times `first`": lambda e, first, *a: _rate(e, 1.0, *a),
        "`math.cos` takes radians: π is half a turn": lambda e, first, p, restart: (
            first * _cosine((e - 1) % p if restart else e - 1, p, turn=180)
        ),
        "after `half_period` epochs the rate is at its least, so half a turn has gone by, π and not 2π": (
            lambda e, first, p, restart: first * _cosine((e - 1) % p if restart else e - 1, p, turn=2 * math.pi)
        ),
        "it always restarts: without `restart` the cosine runs on past its end, and climbs": _with_restart(
            lambda e, p: (e - 1) % p, always=True
        ),
        "it never restarts: with `restart` it jumps back to `first` after each period": _with_restart(
            lambda e, p: e - 1
        ),
        "it restarts once: after two periods it restarts again, which `%` does": _with_restart(
            lambda e, p: e - 1 - p if e > p else e - 1
        ),
        "the restart comes an epoch late: after `half_period` epochs the next one has the rate `first`": _with_restart(
            lambda e, p: (e - 1) % (p + 1)
        ),
        "a restart is a jump back to `first`, yours stays at zero": _with_restart(lambda e, p: min(e - 1, p)),
        "without `restart` nothing stops at zero: the formula is run on, and climbs again": (
            lambda e, first, p, restart: _rate(e if restart else min(e, p + 1), first, p, restart)
        ),
    }
    drawn = (5 + 20 * torch.rand(6, generator=fresh())).int().tolist()
    cases = [
        Case("the paper's epoch 150", (150, 0.001, 100, False)),
        Case("epoch 1", (1, 0.01, 30, False)),
        Case("epoch 1, with restarts", (1, 0.02, 30, True)),
        Case("an epoch in the first period", (drawn[0], 0.005, 40, False)),
        Case("an epoch in the first period, with restarts", (drawn[1], 0.3, 40, True)),
        Case("the last epoch before a restart", (50, 1.0, 50, True)),
        Case("the first epoch after a restart", (51, 0.5, 50, True)),
        Case("an epoch in the second period, with restarts", (30 + drawn[2], 0.1, 30, True)),
        Case("an epoch in the second period", (30 + drawn[3], 0.1, 30, False)),
        Case("an epoch in the third period, with restarts", (54 + drawn[4], 0.7, 27, True)),
        Case("an epoch in the third period", (54 + drawn[5], 0.7, 27, False)),
    ]
    right = converted(_rate, number)
    wrong = {why: near(converted(mistake, number), right, 1e-5) for why, mistake in mistakes.items()}
    return compare(near(converted(student, number), right, 1e-5), right, cases, wrong)


def _log(val: Sequence[float] | None, test: Sequence[float]) -> Epochs:
    """A log whose training accuracy has its best in another epoch than validation and test have theirs."""
    train = [99.9, *(50.0 + i for i in range(len(test) - 1))]
    return [
        {"epoch": i + 1, "train_acc": train[i], "val_acc": val[i] if val else None, "test_acc": test[i]}
        for i in range(len(test))
    ]


def _apart(student: Any) -> Any:
    """`student` on copies: its sort() or append() is no matter."""
    return (lambda *arguments: student(*deepcopy(arguments))) if callable(student) else student


def _pair(result: Any) -> Tensor:
    try:
        first, second = result
        return torch.tensor([float(first), float(second)])
    except (TypeError, ValueError):
        raise Wrong(f"two numbers are asked for, `return a, b`, yours is {shown(result)}") from None


def _line(choose: Function, key: str = "test_acc", offset: int = 0) -> Function:
    """A student's function that returns the epoch that `choose` takes, and one of its accuracies."""

    def function(epochs: Epochs) -> tuple[float, float]:
        line = choose(epochs)
        return line["epoch"] - offset, line[key]

    return function


def _by(key: str) -> Function:
    return lambda epochs: max(epochs, key=lambda line: line[key])


def _honest(epochs: Epochs) -> dict[str, Any]:
    return epochs[-1] if epochs[0]["val_acc"] is None else _by("val_acc")(epochs)


@task("6.2")
def chosen(student: Any) -> str:
    """The last epoch of a run without validation split, else the first best one on it; its test accuracy."""

    def of_ties_the_last(epochs: Epochs) -> dict[str, Any]:
        return epochs[-1] if epochs[0]["val_acc"] is None else _by("val_acc")(epochs[::-1])

    def looks_where_it_must_not(epochs: Epochs) -> dict[str, Any]:
        return _by("test_acc")(epochs) if epochs[0]["val_acc"] is None else _by("val_acc")(epochs)

    mistakes = {
        "that is the best epoch on the test set: it was chosen by what it is to be measured on": _line(_by("test_acc")),
        "without a validation split you choose by the test set: nothing is left to choose by, so take the last": _line(
            looks_where_it_must_not
        ),
        "that is the last epoch of every run: where there is a validation split, it chooses": _line(lambda e: e[-1]),
        "that is the best epoch in training: it says how well the network knows these images by heart": _line(
            _by("train_acc")
        ),
        "the epoch is right; the accuracy to report is the test accuracy, since the epoch was chosen by the other": (
            _line(_honest, "val_acc")
        ),
        "epochs count from 1: take the number that stands in the line": _line(_honest, offset=1),
        "two epochs are equally good on the validation split: the first of them counts": _line(of_ties_the_last),
    }
    draw = (70 + 20 * torch.rand(12, generator=fresh())).tolist()
    cases = [
        Case("a run with a validation split", (_log([60, 90, 80, 70], [draw[0], draw[1], 92, 61]),)),
        Case("a run without", (_log(None, [draw[2], 95, draw[3], 60, draw[4]]),)),
        Case("two epochs equally good on the validation split", (_log([50, 80, 70, 80], [60, *draw[5:7], 91]),)),
        Case("a run whose last epoch is its best on the validation split", (_log([50, 60, 99], [93, *draw[7:9]]),)),
        Case("a single epoch", (_log(None, draw[9:10]),)),
    ]
    wrong = {why: _wrongly(mistake) for why, mistake in mistakes.items()}
    return compare(converted(_apart(student), _pair), converted(_line(_honest), _pair), cases, wrong)


def _wrongly(mistake: Function) -> Function:
    """As if right where it fails: a validation accuracy that is None cannot be returned, nor compared."""

    def function(epochs: Epochs) -> Tensor:
        result = mistake(epochs)
        return _pair(_line(_honest)(epochs) if None in result else result)

    return function


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _half(values: Sequence[float]) -> float:
    """Half the width of a mean's 95 % interval."""
    return math.inf if len(values) < 2 else T[len(values) - 1] * _spread(values)


def _difference(arm: list[float], full: list[float]) -> tuple[float, float]:
    return statistics.mean(arm) - statistics.mean(full), math.hypot(_half(arm), _half(full))


def _with(half: Function) -> Function:
    """A student's function whose half width is `half(arm, full)`; where one run has no spread, it is right."""

    def function(arm: list[float], full: list[float]) -> tuple[float, float]:
        mean, right = _difference(arm, full)
        return mean, right if math.isinf(right) else half(arm, full)

    return function


def _by_place(arm: list[float], full: list[float]) -> float:
    pairs = [a - b for a, b in zip(arm, full, strict=False)]
    return _half(pairs)


@task("6.3")
def difference(student: Any) -> str:
    """The difference of two means, and half the width of its interval."""
    mistakes: dict[str, Function] = {
        "it is the other way round: `arm` minus `full`": lambda arm, full: _difference(full, arm),
        "the two half widths are added: they are two sides of a right triangle, and the third is shorter": _with(
            lambda arm, full: _half(arm) + _half(full)
        ),
        "take the root: that is the sum of the squares": _with(lambda arm, full: _half(arm) ** 2 + _half(full) ** 2),
        "that is the interval of `arm` alone: the mean of `full` is not known better": _with(lambda a, f: _half(a)),
        "these are other seeds, so nothing belongs together: do not pair them by their place": _with(_by_place),
        "that is the mean of the two half widths": _with(lambda a, f: (_half(a) + _half(f)) / 2),
        "the half width of a mean is T × deviation / √n: did you leave out √n?": _with(
            lambda a, f: math.hypot(_half(a) * math.sqrt(len(a)), _half(f) * math.sqrt(len(f)))
        ),
        "1.96 is for many runs: with few, take `T` of one less than their number": _with(
            lambda a, f: 1.96 * math.hypot(_spread(a), _spread(f))
        ),
        "T is missing: that is the standard error": _with(lambda a, f: math.hypot(_spread(a), _spread(f))),
        "`T` is looked up by the degrees of freedom, one less than the number of runs": _with(
            lambda a, f: math.hypot(T[len(a)] * _spread(a), T[len(f)] * _spread(f))
        ),
        "the deviation of a sample divides by n - 1: take statistics.stdev, not pstdev": _with(
            lambda a, f: math.hypot(*(_half(v) * math.sqrt((len(v) - 1) / len(v)) for v in (a, f)))
        ),
    }
    draw = torch.rand(40, generator=fresh()).tolist()

    def accuracies(start: float, count: int, at: int) -> list[float]:
        return [start + (i % 2) + draw[at + i] for i in range(count)]

    cases = [
        Case("five runs and five", (accuracies(92, 5, 0), accuracies(95, 5, 5))),
        Case("two runs and five", (accuracies(97, 2, 10), accuracies(95, 5, 12))),
        Case("four runs and three", (accuracies(80, 4, 17), accuracies(60, 3, 21))),
        Case("three runs that are all alike, and four", ([90.0] * 3, accuracies(91, 4, 24))),
        Case("one run and four", (accuracies(70, 1, 28), accuracies(71, 4, 29))),
        Case("four runs and one", (accuracies(70, 4, 33), accuracies(71, 1, 37))),
    ]
    right = converted(_difference, _pair)
    wrong = {why: near(converted(mistake, _pair), right, 1e-5) for why, mistake in mistakes.items()}
    return compare(near(converted(_apart(student), _pair), right, 1e-5), right, cases, wrong)
