"""Exercise 04: an ablation of two arms, an accuracy a seed: the interval of their difference, and what it says."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from . import Wrong, shown, task
from .compare import Case, compare, fresh
from .plain import Function, converted, near

Arm = dict[int, float]
# Student's t at 97.5 %, by the degrees of freedom, as the exercise gives it: scipy takes too long to import.
T = {1: 12.706, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706}
WORDS = ("hurts", "cannot tell", "helps")


def _word(low: float, high: float) -> str:
    return "helps" if low > 0 else "hurts" if high < 0 else "cannot tell"


def _pairs(first: Arm, second: Arm) -> list[float]:
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def _ends(result: Any) -> Tensor:
    try:
        low, high, _ = result
        return torch.tensor([float(low), float(high)])
    except (TypeError, ValueError):
        mine = shown(result)
        raise Wrong(f"two numbers and a word are asked for, `return low, high, word`, yours is {mine}") from None


def _around(mean: float, half: float) -> tuple[float, float]:
    return mean - half, mean + half


def _with(factor: Function) -> Function:
    """A student's interval whose half width is `factor` of the pairs times their standard error."""

    def read(first: Arm, second: Arm) -> tuple[float, float]:
        pairs = _pairs(first, second)
        if len(pairs) < 2:
            return -math.inf, math.inf
        return _around(statistics.mean(pairs), factor(len(pairs)) * statistics.stdev(pairs) / math.sqrt(len(pairs)))

    return read


_read = _with(lambda n: T[n - 1])


def _unpaired(first: Arm, second: Arm) -> tuple[float, float]:
    """The two arms' spreads taken apart, as if their seeds were other seeds."""
    if len(_pairs(first, second)) < 2:
        return -math.inf, math.inf
    a, b = list(first.values()), list(second.values())
    spread = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return _around(statistics.mean(a) - statistics.mean(b), T[min(len(a), len(b)) - 1] * spread)


def _smallest_and_largest(first: Arm, second: Arm) -> tuple[float, float]:
    pairs = _pairs(first, second)
    return (min(pairs), max(pairs)) if len(pairs) > 1 else _read(first, second)


def _by_place(first: Arm, second: Arm) -> tuple[float, float]:
    pairs = dict(enumerate(a - b for a, b in zip(first.values(), second.values(), strict=False)))
    return _read(pairs, dict.fromkeys(pairs, 0.0))


def _one_pair(first: Arm, second: Arm) -> tuple[float, float]:
    pairs = _pairs(first, second)
    return (pairs[0], pairs[0]) if len(pairs) == 1 else _read(first, second)


def _arms(differences: list[float], seeds: list[int] | None = None) -> tuple[Arm, Arm]:
    """Two arms whose seeds differ by much more than the arms do; the second's seeds come in another order."""
    seeds, draw = seeds or list(range(len(differences))), torch.rand(40, generator=fresh()).tolist()
    size, base = (
        0.8 + 0.4 * draw[0],
        {seed: 80 + 9 * (0.7 * (i % 2) + 0.3 * draw[i + 1]) for i, seed in enumerate(seeds)},
    )
    first = {seed: base[seed] + size * difference for seed, difference in zip(seeds, differences, strict=True)}
    return first, {seed: base[seed] for seed in reversed(seeds)}


@task("4.7")
def verdict(student: Any) -> str:
    """Wrong unless the student's interval is that of the pairs, and the word is what it says."""
    mistakes: dict[str, Function] = {
        "did you take each arm's spread apart? Two runs of one seed share weights and batches: take the difference "
        "seed by seed": _unpaired,
        "the second dict need not have its seeds in the order of the first: pair them by their seed": _by_place,
        "it is the other way round: first minus second": lambda first, second: _read(second, first),
        "one pair has no spread: its interval reaches from -inf to inf": _one_pair,
        "1.96 is for many seeds: with few, take `T` of one less than their number": _with(lambda n: 1.96),
        "`T` is looked up by the degrees of freedom, one less than the number of pairs": _with(lambda n: T[n]),
        "the half width is T × deviation / √n: did you leave out √n?": _with(lambda n: T[n - 1] * math.sqrt(n)),
        "the deviation of a sample divides by n - 1: take statistics.stdev, not pstdev": (
            _with(lambda n: T[n - 1] * math.sqrt((n - 1) / n))
        ),
        "that is the range from the smallest difference to the largest: an interval of the mean is asked for": (
            _smallest_and_largest
        ),
    }
    lost = _arms([-0.4, 0.1, -0.2, 0.5, 0.2, 0.3], [0, 1, 2, 3, 8, 9])
    del lost[0][1], lost[1][8], lost[1][9]
    alone, apart = _arms([1.5, 1.1], [4, 5]), _arms([1.5, 1.1], [4, 5])
    del alone[0][4], apart[0][4], apart[1][5]
    cases = [
        Case("five seeds that all gain", _arms([0.6, 0.7, 0.5, 0.8, 0.55])),
        Case("five seeds that all lose", _arms([-0.9, -0.7, -0.5, -0.8, -0.6])),
        Case("three seeds that all gain, by amounts that differ", _arms([0.2, 0.5, 0.8])),
        Case("two seeds that both gain", _arms([0.5, 0.6])),
        Case("three seeds and no difference at all", _arms([0.0, 0.0, 0.0])),
        Case("four seeds of both signs", _arms([-0.3, 0.4, 0.2, -0.1])),
        Case("arms of which some runs were lost", lost),
        Case("one seed that both arms have", alone),
        Case("no seed that both arms have", apart),
    ]

    def right(first: Arm, second: Arm) -> tuple[float, float, str]:
        low, high = _read(first, second)
        return low, high, _word(low, high)

    wrong = {why: converted(lambda *arms, read=read: (*read(*arms), ""), _ends) for why, read in mistakes.items()}
    ends = converted(right, _ends)
    near_ends = {why: near(mistake, ends, 2e-4) for why, mistake in wrong.items()}
    compare(near(converted(student, _ends), ends, 2e-4), ends, cases, near_ends)
    for case in cases:
        low, high, word = case.call(student)
        if word not in WORDS:
            raise Wrong(f"the word is one of {', '.join(map(repr, WORDS))}, yours is {shown(word)}")
        if word != _word(low, high):
            why = "it contains 0" if low <= 0 <= high else "all of it lies on one side of 0"
            raise Wrong(
                f"for {case.words} the interval is {low:.2f} to {high:.2f}, and you say {word!r}: {why}, so what can "
                "the runs tell?"
            )
    undecided = sum(_word(*_read(*case.arguments)) == "cannot tell" for case in cases)
    return f"{len(cases)} of {len(cases)} ablations, {undecided} of them undecided"
