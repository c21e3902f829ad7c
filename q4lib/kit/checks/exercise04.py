"""Exercise 04: clips and their slopes, the soft clip as a decay, a layer rescaled before batch norm."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import Conv4bit, Linear4bit
from . import Wrong, task
from .compare import Case, compare, fresh
from .plain import Function, converted, near, number


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=fresh(), dtype=torch.float64)


def _around(c: float, *shape: int) -> Tensor:
    """Six weights below and above c, of both signs; none lies at c, where the hard clip has no slope."""
    places = torch.tensor([-1.4, -0.8, -0.1, 0.3, 0.9, 1.2])
    return (c * places * (1 + 0.03 * _random(6))).view(shape)


def _part(result: Any, place: int) -> Tensor:
    pair = result if isinstance(result, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise Wrong("two tensors are asked for: `return clipped, slope`")
    return pair[place].detach().float()


@task("4.1")
def clips(student: Any) -> str:
    """The hard and the soft clip of weights, and the slope of each."""

    def soft_slope(bend: Function) -> Function:
        """A student's slope of the soft clip, `bend(w, c)`; the hard one's is right."""
        return lambda w, c, soft: bend(w, c).float() if soft else (w.abs() < c).float()

    def hard_slope(bend: Function) -> Function:
        return lambda w, c, soft: 1 - (w / c).tanh().float() ** 2 if soft else bend(w, c).float()

    def clip(hard: Function, soft: Function) -> Function:
        return lambda w, c, is_soft: (soft if is_soft else hard)(w, c).float()

    def clamp(w: Tensor, c: float) -> Tensor:
        return w.clamp(-c, c)

    def bend(w: Tensor, c: float) -> Tensor:
        return c * (w / c).tanh()

    values = {
        "both are the hard clip: look at `soft`": clip(clamp, clamp),
        "both are the soft clip: look at `soft`": clip(bend, bend),
        "hard and soft are swapped": clip(bend, clamp),
        "the hard clip has two ends, -c and c": clip(lambda w, c: w.clamp(max=c), bend),
        "the soft clip ends at 1, not at c: divide by c before the tanh, and multiply by c after it": (
            clip(clamp, lambda w, c: w.tanh())
        ),
        "the soft clip ends at 1, not at c: multiply by c after the tanh": clip(clamp, lambda w, c: (w / c).tanh()),
        "the soft clip must leave small weights nearly alone: divide by c before the tanh": (
            clip(clamp, lambda w, c: c * w.tanh())
        ),
        "the soft clip's factors are swapped: divide by c before the tanh, multiply by c after it": (
            clip(clamp, lambda w, c: (c * w).tanh() / c)
        ),
    }
    slopes = {
        "the soft clip's slope: inside of the tanh stands w / c, which brings a factor 1 / c, and it cancels the c in "
        "front": soft_slope(lambda w, c: (1 - (w / c).tanh() ** 2) / c),
        "the soft clip's slope: the c in front is cancelled by the 1 / c that w / c brings": (
            soft_slope(lambda w, c: c * (1 - (w / c).tanh() ** 2))
        ),
        "the soft clip's slope: did you square the clipped weight, c in front and all? Square the tanh alone": (
            soft_slope(lambda w, c: 1 - bend(w, c) ** 2)
        ),
        "the soft clip's slope is taken at w / c, not at w": soft_slope(lambda w, c: 1 - w.tanh() ** 2),
        "the soft clip's slope: square the tanh": soft_slope(lambda w, c: 1 - (w / c).tanh()),
        "the hard clip's slope is the other way round: 1 where it leaves the weight alone, 0 where it cuts": (
            hard_slope(lambda w, c: w.abs() > c)
        ),
        "the hard clip's slope is 0 where it cuts": hard_slope(lambda w, c: torch.ones_like(w)),
        "the hard clip cuts below -c, too: its slope is 0 there": hard_slope(lambda w, c: w < c),
        "both slopes are the hard clip's": lambda w, c, soft: (w.abs() < c).float(),
    }
    inputs = [
        ("six weights, c = 3, soft", (_around(3, 6), 3.0, True)),
        ("six weights, c = 3, hard", (_around(3, 6), 3.0, False)),
        ("weights of shape (2, 3), c = 0.3, soft", (_around(0.3, 2, 3).float(), 0.3, True)),
        ("weights of shape (3, 2), c = 0.3, hard", (_around(0.3, 3, 2).float(), 0.3, False)),
        ("weights that are all 0, soft", (torch.zeros(2), 1.0, True)),
        ("weights that require gradients, c = 2, soft", (_around(2, 6).requires_grad_(), 2.0, True)),
    ]

    def both(w: Tensor, c: float, soft: bool) -> tuple[Tensor, Tensor]:
        return (bend(w, c), 1 - (w / c).tanh() ** 2) if soft else (clamp(w, c), (w.abs() < c).float())

    for place, what, mistakes in ((0, "the clip of ", values), (1, "the slopes of ", slopes)):
        cases = [Case(what + words, arguments) for words, arguments in inputs]
        part = partial(_part, place=place)
        answer = compare(converted(student, part), converted(both, part), cases, mistakes)
    return answer


@task("4.3")
def like_weight_decay(student: Any) -> str:
    """The weight decay that takes as much as the soft clip: w² / (3 c² × learning rate)."""

    def right(w: Tensor, learning_rate: float, c: float) -> Tensor:
        return w**2 / (3 * c**2 * learning_rate)

    mistakes = {
        "that is w³ / (3c²), what the soft clip takes: which weight decay takes as much?": (
            lambda w, learning_rate, c: w**3 / (3 * c**2)
        ),
        "that is the share w² / (3c²) which a step takes: AdamW multiplies the decay by the learning rate": (
            lambda w, learning_rate, c: w**2 / (3 * c**2)
        ),
        "the learning rate is on the wrong side: the smaller it is, the larger the decay must be": (
            lambda w, learning_rate, c: w**2 / (3 * c**2) * learning_rate
        ),
        "AdamW takes learning rate × decay × w: divide by w, too": (
            lambda w, learning_rate, c: w**3 / (3 * c**2 * learning_rate)
        ),
        "it is right for c = 3 only: 27 is 3c² there": lambda w, learning_rate, c: w**2 / (27 * learning_rate),
        "square c: the soft clip takes w³ / (3c²)": lambda w, learning_rate, c: w**2 / (3 * c * learning_rate),
        "the 3 is missing: the soft clip takes w³ / (3c²)": lambda w, learning_rate, c: w**2 / (c**2 * learning_rate),
    }
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    cases = [
        Case("five weights, learning rate 0.001, c = 3", (signs * (0.02 + _random(5) / 10), 0.001, 3.0)),
        Case("a single weight, learning rate 0.00001, c = 1", (0.02 + _random(1) / 40, 0.00001, 1.0)),
        Case("weights of shape (2, 3), learning rate 0.1, c = 10", (0.1 + _random(2, 3) / 4, 0.1, 10.0)),
        Case("weights of type float32", ((0.05 + _random(4) / 20).float(), 0.002, 2.0)),
    ]
    return compare(near(student, right, 0.005), right, cases, mistakes)


def _steps(w: float, part: float, c: float, bend: Function = math.tanh, first: int = 0) -> int:
    now, steps = abs(w), first
    while now > part * abs(w):
        now, steps = c * bend(now / c), steps + 1
    return steps


def _formula(w: float, part: float, c: float) -> float:
    return (1 / (part * w) ** 2 - 1 / w**2) * 3 * c**2 / 2


def _start(c: float, ratio: float, part: float, bend: Callable[[float], int]) -> float:
    """A weight of about `ratio` times c whose last step is not decided by the last digit, nor hit by the formula."""
    while True:
        w = c * ratio * (0.9 + 0.2 * _random(1).item())
        steps = {_steps(w, part * (1 + off), c) for off in (-3e-5, 3e-5)}
        if len(steps) == 1 and bend(_formula(w, part, c)) not in steps:
            return w


@task("4.4")
def steps_until(student: Any) -> str:
    """How many soft clips until a weight is at most a part of itself."""

    def first_amount(w: float, part: float, c: float) -> int:
        return math.ceil((1 - part) * abs(w) / (abs(w) - c * math.tanh(abs(w) / c)))

    counted = "that is the formula of the lesson{}, nearly right: it comes from small steps. Count them in a loop"
    rounded = {"": float, ", rounded up": math.ceil, ", rounded": round, ", cut to an integer": int}
    mistakes: dict[str, Function] = {
        counted.format(how): lambda *arguments, bend=bend: bend(_formula(*arguments)) for how, bend in rounded.items()
    } | {
        "a step is counted that does not happen: begin at 0, and look at the weight before each step": (
            partial(_steps, first=1)
        ),
        "one step is missing: where none is needed the answer is 0, and the last one counts": (
            lambda *a: max(_steps(*a) - 1, 0)
        ),
        "each step takes less than the one before, because the weight has shrunk: clip the weight that is left": (
            first_amount
        ),
        "it is right for the half only: use `part`": lambda w, part, c: _steps(w, 0.5, c),
        "it is right for c = 3 only": lambda w, part, c: _steps(w, part, 3.0),
        "`part` is a share of the weight, not a size: go on while more than part * abs(w) is left": (
            lambda w, part, c: _steps(w, part / abs(w), c)
        ),
        "a weight may be negative, and then its size shrinks too: use abs(w)": (
            lambda w, part, c: 0 if w < 0 else _steps(w, part, c)
        ),
    }
    cases = [
        Case("a weight of about 1, a half, c = 3", (_start(3, 1 / 3, 0.5, math.ceil), 0.5, 3.0)),
        Case("a negative weight of about -0.5, a half, c = 3", (-_start(3, 1 / 6, 0.5, round), 0.5, 3.0)),
        Case("a weight of about 0.2, three tenths, c = 1", (_start(1, 0.2, 0.3, int), 0.3, 1.0)),
        Case("a weight of about 2, seven tenths, c = 10", (_start(10, 0.2, 0.7, math.ceil), 0.7, 10.0)),
        Case("part = 1, so that no step is needed", (0.3, 1.0, 3.0)),
    ]
    mistakes = {why: converted(mistake, number) for why, mistake in mistakes.items()}
    return compare(converted(student, number), converted(_steps, number), cases, mistakes)


def _measured(student: Any) -> Any:
    """A student's `rescaled` as a function of inputs: the new weight, or what the two layers compute in a mode."""
    if not callable(student):
        return student

    def function(inputs: Tensor, mode: str, layer: nn.Module, norm: nn.Module, factor: float) -> Tensor | None:
        given = copy.deepcopy((layer, norm))
        result = student(*given, factor)
        if result is None:
            return None
        pair = result if isinstance(result, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(part, nn.Module) for part in pair):
            raise Wrong("two layers are asked for: `return layer, norm`")
        before, after = ([*a.state_dict().values(), *b.state_dict().values()] for a, b in ((layer, norm), given))
        if not all(map(torch.equal, before, after)):
            raise Wrong("it changes the layers it is given: make copies first, with copy.deepcopy")
        with torch.no_grad():
            new = nn.Sequential(*pair)
            return (pair[0].weight if mode == "weight" else new.train(mode == "train")(inputs)).float()

    return function


def _rescaled(layer: Any, norm: Any, factor: float, but: str = "") -> tuple[nn.Module, nn.Module]:
    """A layer with its weights times `factor` and the batch norm that undoes it; `but` names a mistake."""
    layer, norm = copy.deepcopy((layer, norm))
    with torch.no_grad():
        layer.weight *= factor
        layer.bias *= 1 if "bias" in but else factor
        norm.running_mean *= 1 if "mean" in but else factor
        norm.running_var *= 1 if "variance" in but else factor if "deviation" in but else factor**2
        norm.weight *= 1 / factor if "gain undone" in but else factor if "gain" in but else 1
    return layer, norm


@task("4.5")
def rescaled(student: Any) -> str:
    """A layer whose weights are multiplied, and a batch norm with which it computes what it did."""
    evaluation = "in training it is right. In eval mode batch norm does not measure: it uses "
    mistakes = {
        evaluation + "running_mean and running_var, and the layer's output has grown": "mean, variance, bias",
        evaluation + "running_mean and running_var, and they are still those of the old output": "mean, variance",
        evaluation + "running_mean, which you have left, and running_var": "mean",
        evaluation + "running_var, too, and you have left that": "variance",
        evaluation + "running_var, and a variance grows with the square of the factor": "deviation",
        evaluation + "the running mean of an output to which the bias belongs: multiply the bias, too": "bias",
        evaluation + "running_var, which grows with the square, and the bias belongs to the output": "deviation, bias",
        "batch norm's weight must stay: in training, batch norm divides by what it measures, and the factor is gone": (
            "mean, variance, gain undone"
        ),
        "batch norm's weight must stay: batch norm divides by what it measures, and with it the factor is gone": (
            "mean, variance, bias, gain undone"
        ),
        "batch norm's weight must stay: it multiplies what has been normalized already": "mean, variance, gain",
    }
    layers: list[tuple[str, nn.Module, nn.Module, Tensor, float]] = [
        ("a Conv4bit and a factor of 10", Conv4bit(2, 3, 3), nn.BatchNorm2d(3), _random(4, 2, 5, 5), 10.0),
        ("a Linear4bit and a factor of 0.5", Linear4bit(5, 4), nn.BatchNorm1d(4), _random(8, 5), 0.5),
        ("an nn.Conv2d and a factor of 3", nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), _random(3, 3, 4, 4), 3.0),
    ]
    for _, layer, norm, inputs, _ in layers:
        inputs.sub_(0.5).mul_(8)  # batch norm's eps then leaves a trace only
        state = norm.double().state_dict() | {"bias of the layer": layer.double().state_dict()["bias"]}
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.copy_(0.4 + _random(*tensor.shape))
    modes = {
        "weight": "the new weights of ",
        "train": "the outputs in training of ",
        "eval": "the outputs in eval mode of ",
    }
    cases = [
        Case(what + words, (inputs, mode, layer, norm, factor))
        for mode, what in modes.items()
        for words, layer, norm, inputs, factor in layers
    ]
    right = _measured(_rescaled)
    wrong = {why: near(_measured(partial(_rescaled, but=but)), right, 1e-3) for why, but in mistakes.items()}
    wrong["nothing has changed: multiply the layer's weights by the factor"] = near(
        _measured(lambda layer, norm, factor: copy.deepcopy((layer, norm))), right, 1e-3
    )
    return compare(near(_measured(student), right, 1e-3), right, cases, wrong)
