"""Lesson 05: its figures' numbers against torch's AdamW and plain formulas, and its checks against likely mistakes."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from inline_checks import ListedAnswers
from torch import nn

from q4lib import Linear4bit
from q4lib.data import load, normalize
from q4lib.kit.figures.step import (
    RATES,
    Run,
    adam_updates,
    plot_adam,
    plot_clip,
    plot_codes,
    plot_gradients,
    plot_masters,
    record_gradients,
    run_steps,
)


@pytest.fixture(scope="module")
def images():
    return normalize(load("digits").x_train, "digits")[:, 0, ::4, ::4].flatten(1)


@pytest.fixture(scope="module")
def labels():
    return load("digits").y_train


@pytest.fixture(scope="module")
def step(images, labels):
    """The lesson's network and its 64 images and labels, as keywords."""
    torch.manual_seed(0)
    model = nn.Sequential(Linear4bit(64, 32), nn.ReLU(), Linear4bit(32, 10))
    return {"model": model, "x": images[:64], "y": labels[:64]}


@pytest.fixture(scope="module")
def spoiled(step, images, labels):
    return record_gradients(step["model"], images, labels, spoiled=8)


def numbers_in(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-\d+)?", text)]


def on_grid(w, bits=4):
    step = w.abs().max() / (2 ** (bits - 1) - 1)
    return (w / step).round() * step


def code(w):
    return (7 * w / w.abs().max()).round()


def plain_gradients(parameters, x, y, bits=4):
    """The loss and the gradients at the grid, with neither q4lib nor a straight-through estimator; 32: no grid."""
    at = [on_grid(p, bits) if p.dim() > 1 and bits < 32 else p.clone() for p in parameters]
    at = [p.detach().requires_grad_() for p in at]
    loss = F.cross_entropy(F.relu(x @ at[0].T + at[1]) @ at[2].T + at[3], y)
    loss.backward()
    return loss.item(), [p.grad for p in at]


def plain_training(model, batches, lr=0.001, masters=True):
    """Torch's AdamW between the paper's parts: yields each step's loss, unclipped gradient and the weights after it."""
    parameters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=5e-4, foreach=False)
    for x, y in batches:
        if not masters:
            for p in (parameters[0], parameters[2]):
                p.data = on_grid(p.data)
        loss, gradients = plain_gradients(parameters, x, y)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        for p in (parameters[0], parameters[2]):
            p.data = 3 * torch.tanh(p.data / 3)
        yield loss, torch.cat([g.flatten() for g in gradients]), [p.detach().clone() for p in parameters]


def changed(before, after):
    pairs = [(before[0], after[0]), (before[2], after[2])]
    return 100 * torch.cat([(code(a) != code(b)).flatten() for a, b in pairs]).double().mean().item()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_at_the_grid_and_at_the_masters(step, bits):
    parameters = list(step["model"].parameters())
    loss, grid = plain_gradients(parameters, step["x"], step["y"], bits)
    loss_there, masters = plain_gradients(parameters, step["x"], step["y"], 32)
    grid, masters = (torch.cat([g.flatten() for g in gradients]).double() for gradients in (grid, masters))
    kept = 100 * (grid.sign() == masters.sign()).double().mean().item()
    cosine = (grid @ masters / grid.norm() / masters.norm()).item()
    shown = numbers_in(plot_gradients(**step, bits=bits)[1])
    assert shown == pytest.approx([bits, kept, cosine, loss, loss_there], abs=0.51) and shown[0] == bits
    assert shown[2:] == pytest.approx([cosine, loss, loss_there], abs=0.0051)


def test_recorded_gradients_are_those_of_plain_training(step, images, labels, spoiled):
    batches = [(x, y) for x, y in zip(images.split(64)[:10], labels.split(64), strict=False)]
    batches[7] = (10 * batches[7][0], batches[7][1])
    for recorded, (_, gradient, _) in zip(spoiled, plain_training(step["model"], batches), strict=False):
        torch.testing.assert_close(recorded, gradient, rtol=1e-3, atol=1e-5)
    plain = record_gradients(step["model"], images, labels)
    assert plain.shape == (22, 2410)
    assert torch.equal(plain[:7], spoiled[:7]) and not torch.equal(plain[7], spoiled[7])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adam_updates_are_torchs(spoiled, clip):
    w = nn.Parameter(torch.zeros(2410, dtype=torch.float64))
    optimizer = torch.optim.AdamW([w], lr=1.0, weight_decay=0.0, foreach=False)
    for g, update in zip(spoiled.double(), adam_updates(spoiled.double(), clip), strict=True):
        before, w.grad = w.detach().clone(), g.clone()
        if clip:
            nn.utils.clip_grad_norm_([w], clip)
        optimizer.step()
        torch.testing.assert_close(before - w.detach(), update, rtol=1e-4, atol=1e-6)


def test_clip_changes_nothing_until_norms_differ(spoiled):
    norms = spoiled.norm(dim=1).tolist()
    for at in (1, 7, 8, 22):
        *_, norm, to, clipped, free = numbers_in(plot_clip(spoiled, 0.5, at)[1])
        updates = [adam_updates(spoiled, clip)[at - 1] for clip in (0.5, None)]
        expected = [math.sqrt((u * u).double().mean()) for u in updates]
        assert [norm, clipped, free] == pytest.approx([norms[at - 1], *expected], abs=0.0051)
        assert to == 0.5
        assert abs(clipped - free) < 0.02 if at < 8 else clipped > free + 0.05
    for clip in (0.05, 0.5, 50):
        assert numbers_in(plot_clip(spoiled, clip, 1)[1])[-2:] == [1, 1]
    assert len({plot_clip(spoiled, clip, 22)[1].splitlines()[1] for clip in (0.05, 0.1, 0.5)}) == 1
    *_, clipped, free = numbers_in(plot_clip(spoiled, 50, 22)[1])
    assert clipped == free and "not clipped" in plot_clip(spoiled, 50, 22)[1]


def test_adams_first_step_is_the_sign(step, images, labels, spoiled):
    assert numbers_in(plot_adam(spoiled)[1])[-2:] == [1, 1]
    assert numbers_in(plot_adam(spoiled, 1, bias_correction=False)[1])[-2:] == [3.16, 3.16]
    assert numbers_in(plot_adam(spoiled, 5, bias_correction=False)[1])[-1] > 3.16, "the next steps are longer still"
    *_, low, high = numbers_in(plot_adam(record_gradients(step["model"], images, labels), 22)[1])
    assert low < 0.2 and high < 1, "in later steps most weights move less than one learning rate"
    gradients = torch.tensor([[0.1, -0.001, 0.0], [-0.1, 0.002, 0.0]])
    m, v = 0.9 * 0.1 * gradients[0] + 0.1 * gradients[1], 0.999 * 0.001 * gradients[0] ** 2 + 0.001 * gradients[1] ** 2
    torch.testing.assert_close(adam_updates(gradients, None, False)[1], m / (v.sqrt() + 1e-8))


@pytest.mark.parametrize("rate", RATES)
def test_codes_that_one_step_changes(step, rate):
    parameters = list(step["model"].parameters())
    *_, (_, _, after) = plain_training(step["model"], [(step["x"], step["y"])], rate)
    text = plot_codes(**step, learning_rate=rate)[1]
    width = parameters[0].abs().max().item() / 7
    shown = numbers_in(text)
    assert shown[:3] == pytest.approx([rate, 100 * rate / width, width], abs=0.051)
    assert shown[3:] == pytest.approx([changed(parameters, after), 2368], abs=0.051)


@pytest.mark.parametrize("rate, masters", [(0.0001, True), (0.03, True), (0.03, False)])
def test_a_run_is_plain_training(step, rate, masters):
    run = run_steps(**step, learning_rate=rate, masters=masters, steps=6)
    plain = list(plain_training(step["model"], [(step["x"], step["y"])] * 6, rate, masters))
    assert run.loss == pytest.approx([loss for loss, _, _ in plain], rel=1e-3)
    start = list(step["model"].parameters())
    assert run.changed == pytest.approx([changed(start, after) for _, _, after in plain], abs=0.2)


def test_what_the_prose_says_holds(step):
    """Numbers and comparisons that the lesson's sentences make."""
    share = {rate: numbers_in(plot_codes(**step, learning_rate=rate)[1]) for rate in RATES}
    assert share[0.001][3] < 2 and share[0.1][3] > 95 and 9 < share[0.01][3] < 15
    for rate in (0.003, 0.01, 0.03):
        assert share[rate][3] == pytest.approx(share[rate][1], rel=0.1), "about the learning rate over the grid step"
    assert share[0.0001][3] > 5 * share[0.0001][1], "the soft clip moves the grid"
    half = share[0.001][2] / 2
    alone = {rate: run_steps(**step, learning_rate=rate, masters=False) for rate in (0.001, 0.01, 0.03)}
    assert max(alone[0.001].changed) == 0 and max(alone[0.01].changed) < 1 and alone[0.03].changed[-1] > 20
    assert 0.03 < half < 0.04, "the codes alone begin to move near half a grid step"
    assert 2.1 < alone[0.001].loss[-1] < alone[0.001].loss[0]
    assert run_steps(**step, learning_rate=0.001, masters=True).loss[-1] < 0.5
    assert run_steps(**step, learning_rate=0.1, masters=False).loss[-1] < 0.1

    _, grid = plain_gradients(list(step["model"].parameters()), step["x"], step["y"])
    _, there = plain_gradients(list(step["model"].parameters()), step["x"], step["y"], 32)
    grid, there = (torch.cat([g.flatten() for g in gradients]) for gradients in (grid, there))
    turned = grid.sign() != there.sign()
    assert there[turned].abs().median() < there[~turned].abs().median() / 3, "mostly small gradients turn"
    assert grid.norm() > 1, "the clip makes every gradient less than half as long"


def test_printed_numbers_survive_another_processors_rounding(step, images, labels):
    """Weights a few units in the last place off, as another processor's arithmetic might leave them."""
    seen = set()
    for seed in range(3):
        near = copy.deepcopy(step["model"])
        g = torch.Generator().manual_seed(seed)
        for p in near.parameters():
            p.data *= 1 + 2e-7 * seed * torch.randn(p.shape, generator=g)
        moved = {**step, "model": near}
        texts = [plot_gradients(**moved)[1], plot_codes(**moved)[1]]
        texts += [plot_clip(record_gradients(near, images, labels, spoiled=8))[1]]
        texts += [plot_adam(record_gradients(near, images, labels))[1]]
        runs = {0.001: tuple(run_steps(**moved, learning_rate=0.001, masters=masters) for masters in (True, False))}
        seen.add("\n".join([*texts, plot_masters(runs)[1]]))
    assert len(seen) == 1, "\n\n".join(seen)


def test_masters_figure():
    runs = {0.001: (Run([2.0, 1.234], [10.0, 60.4]), Run([2.0, 1.9], [0.0, 0.4]))}
    assert plot_masters(runs)[1].splitlines() == [
        "with masters: loss 1.23, 60 % of the codes changed (half of them by step 2)",
        "codes only:   loss 1.90, 0 % of the codes changed",
    ]
    runs = {0.001: (Run([2.0], [49.0]), Run([2.0], [0.0]))}
    assert "half" not in plot_masters(runs)[1]


def test_a_guess_is_marked(step, spoiled):
    runs = {0.001: (Run([2.0], [60.0]), Run([2.0], [0.0]))}
    for draw in (
        lambda guess: plot_gradients(**step, guess=guess),
        lambda guess: plot_clip(spoiled, guess=guess),
        lambda guess: plot_adam(spoiled, guess=guess),
        lambda guess: plot_codes(**step, guess=guess),
        lambda guess: plot_masters(runs, guess=guess),
    ):
        for guess in (None, 0, 40):
            figure = draw(guess)[0]
            labels = [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
            assert any("your guess" in label for label in labels) == (guess is not None)


def two_steps(optimizer, w=2.0, gradients=(0.3, -0.1)):
    w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimizer = optimizer([w])
    for g in gradients:
        w.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    return w.item()


ADAMW = {"lr": 0.1, "weight_decay": 0.5}
FIRST = 2 * 0.95 - 0.1
M, V = 0.9 * 0.03 + 0.1 * -0.1, 0.999 * 0.00009 + 0.001 * 0.01

RIGHT = {
    "05.a": [0.5 / 13, 0.0385, torch.tensor(0.5 / 13)],
    "05.b": [two_steps(lambda p: torch.optim.AdamW(p, **ADAMW)), torch.tensor(1.67), "1.67"],
    "05.c": [3 * math.tanh(two_steps(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), 2.0, [-0.5]) / 3)],
    "05.d": [16, 16.0, 4 * 4],
}
WRONG = {
    "05.a": {
        0.5 / 3: "first tensor on its own", 0.5 / 4: "second tensor on its own", 0.5 / 12: "third tensor on its own",
        0.5 / (3 + 4 + 12): "norms do not add", 0.5 / 13**2: "squared norm", 13: "global norm", 26: "upside down",
        0.5: "length afterwards", 0.3: "too large", 0.001: "too small", "half": "one number is asked for",
    },
    "05.b": {
        two_steps(lambda p: torch.optim.Adam(p, **ADAMW)): "decoupled",
        two_steps(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0)): "weight decay is missing",
        (2 * 0.95 - 0.1 * 0.03 / 0.00009**0.5) * 0.95 - 0.1 * M / V**0.5: "bias correction is missing",
        FIRST * 0.95 - 0.1 * (M / 0.1) / (V / 0.001) ** 0.5: "of step 2",
        ((2 - 0.1) * 0.95 - 0.1 * (M / 0.19) / (V / 0.001999) ** 0.5) * 0.95: "before the update",
        (2 * 0.95 - 0.1 * 0.3 / 0.09) * 0.95 - 0.1 * (M / 0.19) / (V / 0.001999): "its root",
        (2 * 0.95 + 0.1) * 0.95 + 0.1 * (M / 0.19) / (V / 0.001999) ** 0.5: "uphill",
        FIRST: "after the first step", 5.0: "too large", 0.5: "too small", (1, 2): "one number is asked for",
    },
    "05.c": {
        3 * math.tanh(2 / 3) * 0.99 + 0.1: "before the step", 2.08: "soft clip is missing",
        3 * math.tanh(1.88 / 3): "must grow", 3 * math.tanh(2.03 / 3): "the clipped gradient",
        3 * math.tanh(2.38 / 3): "by the gradient", 3 * math.tanh(2.1 / 3): "decay is missing",
        3 * math.tanh(2.1 * 0.99 / 3): "before the update", 3 * math.tanh(2 / 3): "soft clip alone",
        9.0: "too large", 0.0: "too small",
    },
    "05.d": {
        12.5: "its code", 4: "alone", 0.5: "packed file", 2: "all four are FP32", 8: "two numbers",
        12: "one of the four", 16.5: "not kept", 20: "made anew", 128: "bits", 100: "too large", 1: "too small",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
class TestCheck(ListedAnswers):
    right, wrong = RIGHT, {name: mistakes.items() for name, mistakes in WRONG.items()}
