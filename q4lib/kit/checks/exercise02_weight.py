"""Exercise 02, one weight: trained by hand, and brought to rest on its best level."""

from functools import partial
from random import SystemRandom
from typing import Any

import torch

from . import NotYet, Wrong, shown, task
from .compare import Case, compare
from .slopes import Function

DRAW = SystemRandom()  # numbers that the student's seed does not decide


def _descend(
    w: float, step: float, target: float, rate: float, steps: int,
    bend: Function = round, slope: Function = lambda w, level, target: 2 * (level - target), master: bool = True,
) -> list[float]:  # fmt: skip
    path = [w]
    for _ in range(steps):
        level = step * bend(w / step)
        w = (w if master else level) - rate * slope(w, level, target)
        path.append(w)
    return path


def _levels(w: float, step: float, *rest: Any) -> list[float]:
    return [step * round(value / step) for value in _descend(w, step, *rest)]


def _numbers(function: Function) -> Function:
    """The same function, what it gives turned into a tensor of numbers."""

    if not callable(function):
        return function  # `compare` says so

    def wrapped(*arguments: Any) -> Any:
        result = function(*arguments)
        if result is None:
            return None
        try:
            values = [float(value) for value in (result if isinstance(result, (list, tuple)) else list(result))]
        except (TypeError, ValueError):
            raise Wrong(f"a list of numbers is asked for, yours is {str(result)[:60]}") from None
        return torch.tensor(values, dtype=torch.float64)

    return wrapped


@task("2.4")
def descend(student: Any) -> str:
    """The path of one weight, by straight-through gradients and hand."""
    mistakes: dict[str, Function] = {
        "the loss sees the level, not w: the gradient is 2 * (level - target)": partial(
            _descend, slope=lambda w, level, target: 2 * (w - target)
        ),
        "the gradient's factor 2 is missing: it is the slope of a square": partial(
            _descend, slope=lambda w, level, target: level - target
        ),
        "the weight runs away from the target: take the gradient off, do not add it": partial(
            _descend, slope=lambda w, level, target: 2 * (target - level)
        ),
        "w has not moved: that is the staircase's own gradient, 0. Straight-through takes the slope of q as 1": partial(
            _descend, slope=lambda *_: 0
        ),
        "your step starts from the level, so that small steps are rounded away: take it off w itself, the master "
        "weight": partial(_descend, master=False),
        "these are the levels: asked for is w itself, before and after each step": _levels,
        "the first value is missing: the list begins with w as it was given": lambda *a: _descend(*a)[1:],
        "the last value is missing: the list has steps + 1 numbers": lambda *a: _descend(*a)[:-1],
        "did you use floor()? 2.7 is nearer to 3 than to 2: round() takes the nearest": partial(
            _descend, bend=lambda x: x // 1
        ),
        "did you cut off what follows the point? int(2.7) is 2: round() takes the nearest": partial(_descend, bend=int),
        "the levels are multiples of `step`: yours are the integers": lambda w, step, *rest: _descend(w, 1.0, *rest),
    }

    def case(words: str, step: float, target: float, rate: float, steps: int) -> Case:
        # Sums of powers of two, an odd number of the smallest: no rounding error and no tie decides a step.
        return Case(words, (step * (DRAW.randrange(-799, 800, 2) / 128), step, target, rate, steps))

    cases = [
        case("a target on a level", 0.25, 0.5, 0.125, 40),
        case("a target between two levels", 0.25, -0.28125, 0.0625, 40),
        case("a large rate", 0.5, 1.125, 0.5, 12),
        case("levels that lie 2 apart", 2.0, 5.0, 0.25, 20),
        case("no step at all", 0.25, 0.5, 0.125, 0),
    ]
    wrapped = {why: _numbers(mistake) for why, mistake in mistakes.items()}
    return compare(_numbers(student), _numbers(_descend), cases, wrapped)


class Slope:
    """The slope of a parabola, asked for at a level; it counts the calls."""

    def __init__(self, lowest: float, curve: float, step: float, steps: int) -> None:
        self.lowest, self.curve, self.step, self.left, self.steps = lowest, curve, step, steps, steps

    def __call__(self, level: Any) -> float:
        where = float(level) / self.step
        if abs(where - round(where)) > 1e-4:
            raise Wrong(f"gradient({float(level):.4g}) is no level's: give it the level of w, step * round(w / step)")
        self.left -= 1
        if self.left < 0:
            raise Wrong(f"more than {self.steps} calls of gradient(): each of the steps has one")
        return self.curve * (float(level) - self.lowest)


def _settle(gradient: Function, w: float, step: float, rate: float, steps: int, falling: bool = False) -> float:
    """Plain training, whose weight ends where it happens to be."""
    for done in range(steps):
        w -= rate * (1 - done / steps if falling else 1) * gradient(step * round(w / step))
    return w


def _signed(gradient: Function, w: float, step: float, rate: float, steps: int) -> float:
    seen = {}
    for _ in range(steps):
        level = step * round(w / step)
        seen[level] = gradient(level)
        w -= rate * seen[level]
    return min(seen, key=lambda level: seen[level])


@task("2.7")
def settle(student: Any) -> str:
    """A training of the student's own that ends on the best level."""
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")
    rate, steps, ends, problems = 0.1, 60, [], []
    for _ in range(40):
        step, best = DRAW.choice((0.125, 0.2, 1.0)), DRAW.randint(-5, 5)
        lowest = step * (best + DRAW.choice((-1, 1)) * DRAW.choice((0.1, 0.3, 0.4, 0.45)))
        problems.append((lowest, DRAW.uniform(2, 5), step, step * (best + DRAW.uniform(-4, 4)), best))

    def end(function: Function, lowest: float, curve: float, step: float, start: float) -> Any:
        result = function(Slope(lowest, curve, step, steps), start, step, rate, steps)
        return None if result is None else round(float(result) / step)

    for *problem, _ in problems:
        ends.append(end(student, *problem))
        if ends[0] is None:
            raise NotYet("your function returns None")
        if ends[-1] is None:
            raise Wrong("it returns None for some weights: does each way through it end in a `return`?")
    bad = [i for i, problem in enumerate(problems) if ends[i] != problem[-1]]
    if not bad:
        return f"the best level in {len(problems)} of {len(problems)} problems"
    score = f"in {len(bad)} of {len(problems)} problems there is a better level"
    likely: dict[str, Function] = {
        "it ends where the weight happens to be: remember which of the levels it saw was the best": _settle,
        "a falling rate freezes the weight on whichever level it is: remember which was the best": partial(
            _settle, falling=True
        ),
        "the smallest slope is the most negative one: how far it is from 0 counts, abs(slope)": _signed,
        "that is the level it started on, or near it: does w move?": lambda gradient, w, *_: w,
    }
    for why, mistake in likely.items():
        if ends == [end(mistake, *problem) for *problem, _ in problems]:
            raise Wrong(f"{score}; {why}")
    lowest, curve, step, _, best = problems[bad[0]]
    mine = ends[bad[0]]
    raise Wrong(
        f"{score}; in one the weight ends on {step * mine:.4g}, where the slope is "
        f"{curve * (step * mine - lowest):.3g}; on {step * best:.4g} it is {curve * (step * best - lowest):.3g}"
    )
