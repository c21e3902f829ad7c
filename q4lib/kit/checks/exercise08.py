"""Exercise 08, its numbers: the ratio that a target asks for, the norms of channels, and which of them stay."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import Wrong, task
from .compare import Case, compare, fresh
from .exercise07 import batch, size
from .plain import Function, converted, number


def unchanged(student: Any) -> Any:
    """`student` on copies of what it is given. Wrong if it changes a tensor, of a list or of a layer."""

    def function(*arguments: Any) -> Any:
        given = copy.deepcopy(arguments)
        result = student(*given)
        before, after = (_tensors(each) for each in (arguments, given))
        if len(before) != len(after) or not all(map(torch.equal, before, after)):
            raise Wrong("it changes what it is given: work on a copy, and do without methods whose name ends in `_`")
        return result

    return function if callable(student) else student


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, nn.Module):
        return list(value.state_dict().values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _fit(width: int, room: int, each: int) -> int:
    return max(0, min(width, room // each))


def _with(fit: Function, shown: Function = lambda k, width: 1 - k / width) -> Function:
    """A student's function for which `fit` channels stay, and which returns what is `shown` of that."""
    return lambda width, fixed, each, target: shown(fit(width, target - fixed, each), width)


def _between(count: Callable[[float], float]) -> Function:
    return _with(lambda width, room, each: max(0, min(width, count(room / each))))


@task("8.1")
def ratio_for(student: Any) -> str:
    """The smallest pruning ratio that brings a block's peak down to a target."""
    mistakes: dict[str, Function] = {
        "that is the share that stays: the ratio is the share that goes": _with(_fit, lambda k, width: k / width),
        "that is how many channels stay: the share that goes is asked for": _with(_fit, lambda k, width: k),
        "that is how many channels go: their share is asked for, of `width`": _with(_fit, lambda k, width: width - k),
        "that is in percent: 0.3 and not 30": _with(_fit, lambda k, width: 100 * (1 - k / width)),
        "only whole channels can stay: round down how many fit": _between(lambda k: k),
        "so many channels do not quite fit: round down how many stay": _between(math.ceil),
        "round down how many stay, not to the nearest": _between(round),
        "the peak may be as large as the target: then one channel more stays": _with(
            lambda width, room, each: _fit(width, room - 1, each)
        ),
        "`fixed` is missing: those bytes are there in any case, and are no room for channels": (
            lambda width, fixed, each, target: 1 - _fit(width, target, each) / width
        ),
        "`fixed` is there once, not once a channel": (
            lambda width, fixed, each, target: 1 - _fit(width, target, each + fixed) / width
        ),
        "what is left for the channels is `target - fixed`": (
            lambda width, fixed, each, target: 1 - _fit(width, target + fixed, each) / width
        ),
        "less than nothing cannot go: where the whole block fits, the ratio is 0": _with(
            lambda width, room, each: max(0, room // each)
        ),
        "more than all cannot go: where not even one channel fits, the ratio is 1": _with(
            lambda width, room, each: min(width, room // each)
        ),
        "a ratio lies between 0 and 1: `max(0, ...)` and `min(width, ...)` hold the number of channels there": _with(
            lambda width, room, each: room // each
        ),
        "where not even one channel fits, 1 is asked for: the target cannot be met": _with(
            lambda width, room, each: max(1, _fit(width, room, each))
        ),
    }
    width, fixed, each, stay = 20 + size(), 90 * size(), 100 * size(), 5 + size()
    block = width, fixed, each
    cases = [
        Case("a target of a little more than so many channels", (*block, fixed + stay * each + 30)),
        Case("a target of a little less than so many channels", (*block, fixed + stay * each - 30)),
        Case("a target met to the byte", (*block, fixed + stay * each)),
        Case("a target that leaves one channel", (*block, fixed + each + 5)),
        Case("a target a byte too small for one channel", (*block, fixed + each - 1)),
        Case("a target below what is there in any case", (*block, fixed - 10)),
        Case("a target that the whole block meets to the byte", (*block, fixed + width * each)),
        Case("a target far above the whole block", (*block, fixed + 3 * width * each)),
        Case("a block of which nothing is fixed", (width, 0, each, 7 * each + 50)),
        Case("a block of which most is fixed", (width, 6 * each, each, 8 * each + 50)),
        Case("96 channels of 62,720 bytes", (96, 1000 * size(), 62_720, 2_000_000)),
    ]
    wrong = {why: converted(mistake, number) for why, mistake in mistakes.items()}
    return compare(converted(student, number), converted(_with(_fit), number), cases, wrong)


Batches = list[Tensor]


def _rows(x: Tensor) -> Tensor:
    """All numbers of a channel in a row: (C, N * H * W)."""
    return x.transpose(0, 1).flatten(1)


def _summed(each: Function, end: Function = lambda total, n: total) -> Function:
    """A student's function that adds up `each(rows)` of a batch, and makes `end(total, batches)` of it."""
    return lambda batches: end(sum(each(_rows(x)) for x in batches), batches)


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(1)


_norms = _summed(_squares, lambda total, batches: total.sqrt())


@task("8.2")
def norms(student: Any) -> str:
    """The l2 norm of each channel over all batches."""
    mistakes: dict[str, Function] = {
        "norms cannot be added: add up the squares, and take the root once, at the end": _summed(
            lambda rows: rows.norm(dim=1)
        ),
        "that is the mean of the batches' norms: add up the squares, and take the root once, at the end": _summed(
            lambda rows: rows.norm(dim=1), lambda total, batches: total / len(batches)
        ),
        "these are the squares: the root is missing": _summed(_squares),
        "these are means of squares, and their root: a norm is the root of the sum": _summed(
            _squares, lambda total, batches: (total / sum(x[:, 0].numel() for x in batches)).sqrt()
        ),
        "in a mean over the batches a small one counts as much as a large one, and a norm is no mean: add up all "
        "squares": _summed(lambda rows: rows.square().mean(1), lambda total, batches: (total / len(batches)).sqrt()),
        "these are means of squares of each batch, added up: a norm is the root of the sum of all squares": _summed(
            lambda rows: rows.square().mean(1), lambda total, batches: total.sqrt()
        ),
        "that is the l1 norm, of the absolute values: take the squares": _summed(lambda rows: rows.abs().sum(1)),
        "square first, then add up: otherwise positive and negative numbers cancel": _summed(
            lambda rows: rows.sum(1), lambda total, batches: total.abs()
        ),
        "that is the last batch alone: all of them count": lambda batches: _norms(batches[-1:]),
        "that is the first batch alone: all of them count": lambda batches: _norms(batches[:1]),
        "that is the sum of the norms of each image: add up the squares of all images": (
            lambda batches: sum(x.flatten(2).norm(dim=2).sum(0) for x in batches)
        ),
        "that is the largest number of each channel: all of them count": (
            lambda batches: torch.stack([_rows(x).abs().amax(1) for x in batches]).amax(0)
        ),
        "that is one norm for all channels: sum over the dimensions 0, 2 and 3, and leave 1": (
            lambda batches: sum(x.square().sum() for x in batches).sqrt()
        ),
        "dimension 0 are the images: channels are dimension 1": (
            lambda batches: torch.cat([x.square().sum((1, 2, 3)) for x in batches]).sqrt()
        ),
    }
    c, silent = size(), _eighths(3, 5, 4, 4)
    silent[:, 2] = 0
    cases = [
        Case(
            "three batches, the last a smaller one",
            ([_eighths(4, c, 3, 5), _eighths(4, c, 3, 5), _eighths(1, c, 3, 5)],),
        ),
        Case("one batch", ([_eighths(3, c + 1, 4, 4)],)),
        Case("a batch much louder than the other", ([_eighths(2, 3, 5, 5), 50 * _eighths(2, 3, 5, 5)],)),
        Case("a channel of zeros", ([silent, silent[:2]],)),
        Case("maps of one number, in float64", ([_eighths(6, c, 1, 1).double()] * 2,)),
    ]
    right = converted(_norms, _single)
    wrong = {why: converted(mistake, _single) for why, mistake in mistakes.items()}
    return compare(converted(unchanged(student), _single), right, cases, wrong)


def _eighths(*shape: int) -> Tensor:
    """Random numbers whose sums, and those of their squares, are exact in any order."""
    return (8 * batch(*shape)).round() / 8


def _single(result: Any) -> Any:
    return result.float() if isinstance(result, Tensor) else result


def _width(n: int, ratio: float) -> int:
    return math.floor(n * (1 - ratio) + 1e-9)


def _order(norms: Tensor) -> Tensor:
    return norms.argsort(descending=True, stable=True)


def _staying(norms: Tensor, ratio: float, width: Function = _width, order: Function = _order) -> Tensor:
    return order(norms)[: width(len(norms), ratio)].sort().values


def _places(result: Any) -> Tensor:
    """Whole numbers as a tensor of int64."""
    if isinstance(result, list | tuple | range):
        result = torch.tensor(list(result))
    if not isinstance(result, Tensor):
        raise Wrong(f"a tensor of channels' numbers is asked for, yours is of type {type(result).__name__}")
    whole = not result.is_floating_point() and result.dtype != torch.bool
    return result.long() if whole or not result.numel() else result


def _cut(below: bool) -> tuple[int, float]:
    """A number of channels and a ratio whose product rounds down one too low, or rounds up one too high."""
    found = []
    for n in range(10, 60):
        for ratio in (percent / 100 for percent in range(5, 95)):
            exact = n * (100 - round(100 * ratio)) // 100
            if (math.floor(n * (1 - ratio)) if below else n - math.ceil(n * ratio)) < exact:
                found.append((n, ratio))
    return found[int(torch.randint(len(found), (), generator=fresh()))]


@task("8.3")
def staying(student: Any) -> str:
    """The numbers of the channels that stay, in their old order."""

    def unsorted(norms: Tensor, ratio: float) -> Tensor:
        return _order(norms)[: _width(len(norms), ratio)]

    def all_alike(norms: Tensor, ratio: float) -> Tensor:
        kept = norms >= norms[unsorted(norms, ratio)[-1]]
        return kept.nonzero().flatten()

    mistakes: dict[str, Function] = {
        "these are the channels with the smallest norms: the loudest stay": partial(
            _staying, order=lambda norms: norms.argsort(stable=True)
        ),
        "these are the channels that go: those that stay are asked for": (
            lambda norms, ratio: _order(norms)[_width(len(norms), ratio) :].sort().values
        ),
        "the right ones stay, but in the order of their norms: sort their numbers": unsorted,
        "these are the first channels: do their norms not matter?": partial(
            _staying, order=lambda norms: torch.arange(len(norms))
        ),
        "that is how many go: `1 - ratio` is the share that stays": partial(
            _staying, width=lambda n, ratio: math.floor(n * ratio + 1e-9)
        ),
        "one too few stay where a product is not exact: 10 * (1 - 0.9) is 0.9999999999999998. Add 1e-9 before you "
        "round down": partial(_staying, width=lambda n, ratio: math.floor(n * (1 - ratio))),
        "one too few stay where a product is not exact: 100 * 0.07 is 7.000000000000001. Take off 1e-9 before you "
        "round up": partial(_staying, width=lambda n, ratio: n - math.ceil(n * ratio)),
        "round down how many stay, not to the nearest": partial(
            _staying, width=lambda n, ratio: round(n * (1 - ratio))
        ),
        "round down how many stay; where you round down how many go, one too many stays": partial(
            _staying, width=lambda n, ratio: n - math.floor(n * ratio + 1e-9)
        ),
        "round down how many stay; where you round them up, one too many stays": partial(
            _staying, width=lambda n, ratio: math.ceil(n * (1 - ratio))
        ),
        "of channels with the same norm the earlier ones stay, yours keeps the later": partial(
            _staying, order=lambda norms: norms.argsort(stable=True).flip(0)
        ),
        "too many stay where channels have the same norm: a threshold cannot tell them apart": all_alike,
        "of channels with the same norm `topk` takes any: argsort(descending=True, stable=True) keeps their order": (
            lambda norms, ratio: norms.topk(_width(len(norms), ratio)).indices.sort().values
        ),
        "of channels with the same norm `argsort` takes any, unless you give it stable=True": partial(
            _staying, order=lambda norms: norms.argsort(descending=True)
        ),
        "these are True and False: the channels' numbers are asked for, as `nonzero()` gives them": (
            lambda norms, ratio: torch.zeros(len(norms), dtype=torch.bool).index_fill(0, _staying(norms, ratio), True)
        ),
        "these are the norms of those that stay: their numbers are asked for": (
            lambda norms, ratio: norms[_staying(norms, ratio)]
        ),
    }

    def drawn(n: int) -> Tensor:
        return torch.rand(n, generator=fresh()) + 0.1

    few, high = _cut(below=True), _cut(below=False)
    many = torch.randint(1, 4, (60,), generator=fresh()).float()
    cases = [
        Case("the norms 5, 1, 9, 5 and the ratio 0.5", (torch.tensor([5.0, 1.0, 9.0, 5.0]), 0.5)),
        Case("12 channels and the ratio 0.46", (drawn(12), 0.46)),
        Case("11 channels and the ratio 0.3", (drawn(11), 0.3)),
        Case("7 channels and the ratio 0", (drawn(7), 0.0)),
        Case("10 channels and the ratio 0.9", (drawn(10), 0.9)),
        Case(f"{few[0]} channels and the ratio {few[1]}", (drawn(few[0]), few[1])),
        Case(f"{high[0]} channels and the ratio {high[1]}", (drawn(high[0]), high[1])),
        Case("60 channels of which many have the same norm, and the ratio 0.75", (many, 0.75)),
        Case("100 channels of one norm and the ratio 0.25", (torch.ones(100), 0.25)),
    ]
    return compare(converted(student, _places), _staying, cases, mistakes)
