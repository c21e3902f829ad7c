"""Lesson 02: its figures' numbers computed another way, its checks' answers to right and wrong, its prose."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from q4lib import Linear4bit, SimpleResNet4bit
from q4lib.kit import check
from q4lib.kit.figures.straight_through import hops, plot_descent, plot_edge, plot_hops, plot_runs, plot_slope
from q4lib.quant import scale

LESSON = Path(__file__).resolve().parents[1] / "notebooks" / "02_straight_through.ipynb"


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", text)]


def texts(figure) -> str:
    """Every title and legend entry of a figure."""
    legends = [axes.get_legend() for axes in figure.axes] + figure.legends
    entries = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    return " ".join(entries + [axes.get_title() for axes in figure.axes])


def level(w: float) -> float:
    return float(np.rint(w / 0.2)) * 0.2


def walk(rate: float, steps: int, start: float, target: float) -> list[float]:
    """Weights under torch's own descent, the gradient by autograd through eq 8."""
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer, path = torch.optim.SGD([w], lr=rate), [start]
    for _ in range(steps):
        optimizer.zero_grad()
        rounded = 0.2 * torch.round(w.detach() / 0.2)
        ((w + (rounded - w).detach() - target) ** 2).backward()
        optimizer.step()
        path.append(w.item())
    return path


@pytest.mark.parametrize("weight", [-0.58, 0.13, 0.42])
@pytest.mark.parametrize("nudge", [0.02, 0.18])
def test_slope_of_the_staircase(weight, nudge):
    text = plot_slope(weight, nudge)[1]
    before, after = (level(w) for w in (weight, weight + nudge))
    loss = [(q - 0.4) ** 2 for q in (before, after)]
    expected = [weight, before, loss[0], weight + nudge, after, loss[1], (loss[1] - loss[0]) / nudge]
    assert numbers(text) == pytest.approx(expected, abs=0.0051)
    assert "-0.00" not in text and "-0.0," not in text


def test_the_edge_is_one_place_however_it_is_reached():
    """0.13 + 0.17 is a last bit beyond 0.3: one way showed it on the next level, the other did not."""
    levels = [plot_slope(weight, nudge)[1].splitlines()[1] for weight, nudge in ((0.13, 0.17), (0.29, 0.01))]
    assert levels[0] == levels[1] and levels[0].startswith("w + nudge 0.30: level 0.2")


def test_the_slope_is_zero_on_a_tread_and_not_across_an_edge():
    assert plot_slope(0.13, 0.02)[1].endswith("nudge: 0.00")
    assert numbers(plot_slope(0.29, 0.02)[1])[-1] < -1


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.1, 0.5, 0.93])
def test_descent_is_that_of_autograd(rate):
    path = walk(rate, 60, -1.0, 0.4)
    lines = plot_descent(rate)[1].split("\n")
    assert numbers(lines[1]) == [-1, -1, 1.96]
    w, q, loss = numbers(lines[2])[:3]
    assert (w, q) == pytest.approx((path[-1], level(path[-1])), abs=0.0051)
    assert loss == pytest.approx((level(path[-1]) - 0.4) ** 2, abs=0.0051)
    still = next(i for i in range(61) if all(w == path[-1] for w in path[i:]))
    assert lines[2].endswith("still moving" if still == 60 else f"at rest after step {still}")


def test_a_weight_that_ends_where_it_began_is_not_called_at_rest():
    assert plot_descent(1.0)[1].endswith("w -1.00, level -1.0, loss 1.96; still moving")


@pytest.mark.parametrize("target", [0.42, 0.45, 0.56])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_flips_at_the_edge(target, rate):
    path = walk(rate, 300, target, target)
    levels = [level(w) for w in path]
    flips, mean, _, low, high, last = numbers(plot_edge(target, rate)[1].replace("last 200", ""))
    assert flips == sum(a != b for a, b in zip(levels[100:], levels[101:], strict=False))
    assert mean == pytest.approx(np.mean(levels[100:300]), abs=5.1e-4)
    assert mean == pytest.approx(target, abs=5e-3)
    assert (low, high) == pytest.approx((min(path[101:]), max(path[101:])), abs=5.1e-4)
    assert last == pytest.approx(levels[-1])


def test_a_falling_rate_ends_at_zero():
    low, high = numbers(plot_edge(falling_rate=True)[1])[-3:-1]
    assert high - low < 0.75 * np.subtract(*numbers(plot_edge()[1])[-2:-4:-1])
    (w,) = [line for line in plot_edge(falling_rate=True)[0].axes[0].lines if line.get_label() == "w"]
    assert np.ptp(w.get_ydata()[-10:]) < np.ptp(w.get_ydata()[:10]) / 4


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(6)
    layer = Linear4bit(6, 4, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    return layer, torch.randn(50, 6, dtype=torch.float64), torch.randint(0, 4, (50,))


def moved_by_hand(layer, images, labels, way):
    """For each weight: the change promised by a difference quotient at its level, and the loss measured anew."""
    s, w = scale(layer.weight).item(), layer.weight.detach()

    def loss(weight):
        return F.cross_entropy(images @ weight.T + layer.bias.detach(), labels).item()

    rounded = torch.round(w / s) * s
    promised, true, everything = torch.zeros_like(w), torch.zeros_like(w), rounded.clone()
    for at in np.ndindex(*w.shape):
        up, down, alone = rounded.clone(), rounded.clone(), rounded.clone()
        up[at] += 1e-5
        down[at] -= 1e-5
        slope = (loss(up) - loss(down)) / 2e-5
        alone[at] = everything[at] = np.rint((w[at].item() - way * s * np.sign(slope)) / s) * s
        promised[at], true[at] = -way * s * abs(slope), loss(alone) - loss(rounded)
    return promised, true, loss(rounded), loss(everything)


@pytest.mark.parametrize("way", [0.05, 0.6, 4])
def test_hops_are_true_changes_of_the_loss(classifier, way):
    found, expected = hops(*classifier, way), moved_by_hand(*classifier, way)
    torch.testing.assert_close(found.promised, expected[0], atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(found.true, expected[1], atol=1e-12, rtol=1e-8)
    assert (found.before, found.after) == pytest.approx(expected[2:])


@pytest.mark.parametrize("way", [0.6, 4])
def test_the_hops_figure_counts_them(classifier, way):
    layer, images, labels = classifier
    promised, true, before, after = moved_by_hand(*classifier, way)
    figure, text = plot_hops({7: layer}, images, labels, trained=7, way=way, guess=12)
    moved = true != 0
    wrong = 100 * (true[moved] > 0).double().mean().item()
    assert 0 < wrong < 100 and (moved.all() or way < 1)
    ratio = (true.sum() / promised.sum()).item()
    expected = [7, way, 100 * moved.double().mean().item(), wrong, ratio, before, after]
    assert numbers(text.replace("->", "")) == pytest.approx(expected, rel=0, abs=0.51)
    assert numbers(text.replace("->", ""))[-3:] == pytest.approx(expected[-3:], abs=0.051)
    assert f"rose for {wrong:.0f} %\n(guessed for 0 steps, 0.05: 12 %)" in texts(figure)


def test_where_no_weight_changes_level_none_is_wrong(classifier):
    layer, images, labels = classifier
    assert hops(layer, images, labels, 1e-9).wrong == 0
    assert "0 % of the weights change level" in plot_hops({0: layer}, images, labels, way=1e-9)[1]


@pytest.mark.parametrize("last, without, answers", [(96.1, 15.0, "yes no yes"), (60.0, 31.0, "no yes no")])
def test_two_runs(tmp_path, last, without, answers):
    runs = {}
    for name, accuracies in {"with": [40.0, last], "without": [12.0, without]}.items():
        runs[name] = tmp_path / name
        runs[name].mkdir()
        losses = [2.3, 2.2 if last > 90 else 2.4]
        epochs = enumerate(zip(accuracies, losses, strict=True), 1)
        lines = [{"run": {}}, *({"epoch": i, "test_acc": acc, "train_loss": loss} for i, (acc, loss) in epochs)]
        (runs[name] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure, text = plot_runs(runs, guess=50)
    assert " ".join(re.findall("yes|no", text)) == answers
    assert f"with: {last} %" in texts(figure) and f"without: {without} %" in texts(figure)


@pytest.mark.parametrize("function, fixed", [(plot_slope, {}), (plot_descent, {}), (plot_edge, {})])
def test_a_guess_is_shown_and_changes_no_number(function, fixed):
    (plain, text), (marked, same) = function(**fixed), function(**fixed, guess=0.25)
    assert text == same
    assert "your" in texts(marked) and "your" not in texts(plain)


RIGHT = {
    "02.a": [lambda w, wq: w + (wq - w).detach(), lambda w, wq: wq + w - w.detach()],
    "02.b": [-0.4, torch.tensor(-0.4), 2 * (0.2 - 0.4)],
    "02.c": [sum(p.numel() for p in SimpleResNet4bit().parameters() if p.dim() == 1), 682.0],
}
WRONG = {
    "02.a": {
        "Did you forget detach?": lambda w, wq: w + (wq - w),
        "you detached w, and - w is left": lambda w, wq: w.detach() + (wq - w),
        "you detached wq alone": lambda w, wq: w + (wq.detach() - w),
        "everything is detached": lambda w, wq: (w + (wq - w)).detach(),
        "wrong way round": lambda w, wq: w + (w - wq).detach(),
        "nothing is rounded": lambda w, wq: w,
        "added up": lambda w, wq: w + wq.detach(),
        "the difference alone": lambda w, wq: (wq - w).detach(),
        "the gradient is 2": lambda w, wq: 2 * w + (wq - 2 * w).detach(),
        "start from w": lambda w, wq: 3 * w,
        "a tensor shaped like w": lambda w, wq: 0.4,
        "write it as a function": torch.tensor([0.2, -0.6, 1.0]),
    },
    "02.b": {
        "the staircase's own gradient": 0,
        "you put w into the loss; the forward": 2 * (0.13 - 0.4),
        "you put w into the loss, and": 0.13 - 0.4,
        "nearly: the square's factor 2 is missing": 0.2 - 0.4,
        "the sign: q(w)": 0.4,
        "the sign, and the square's": 0.2,
        "that is the loss": (0.2 - 0.4) ** 2,
        "one step at a rate of 0.1": -0.04,
        "is not it": 7,
        "a number is asked for": "minus",
    },
    "02.c": {
        "not everything goes through round()": 0,
        "these are all": sum(p.numel() for p in SimpleResNet4bit().parameters()),
        "the ones that do not learn": sum(p.numel() for p in SimpleResNet4bit().parameters() if p.dim() > 1),
        "batch norm alone": sum(p.numel() for p in SimpleResNet4bit().bns.parameters()),
        "batch norm has parameters too": 16 + 16 + 32 + 32 + 64 + 64 + 10,
        "so many tensors": 19,
        "without batch norm": sum(p.numel() for n, p in SimpleResNet4bit().named_parameters() if "bns" not in n),
        "too few": 681,
        "too many": 683,
        "a number is asked for": "many",
    },
}


def said(capsys, name: str, value) -> str:
    check(name, value)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", RIGHT)
def test_checks_accept_what_is_right(capsys, name):
    assert said(capsys, name, None) == f"⏳ {name} not attempted yet"
    for value in RIGHT[name]:
        assert said(capsys, name, value).startswith(f"✅ {name} ")


@pytest.mark.parametrize("name, why", [(name, why) for name, wrong in WRONG.items() for why in wrong])
def test_checks_say_what_is_wrong(capsys, name, why):
    line = said(capsys, name, WRONG[name][why])
    assert line.startswith(f"❌ {name} ") and why in line
    others = [other for other in WRONG[name] if other != why and other in line]
    assert not others, f"{why!r} is told as {others}"


def test_what_learns_without_straight_through_is_what_gets_a_gradient(monkeypatch):
    def plain_rounding(layer):
        step = scale(layer.weight)
        return step * torch.round(layer.weight / step)

    monkeypatch.setattr("q4lib.layers.QuantizedWeight.quantized_weight", plain_rounding)
    torch.manual_seed(0)
    model = SimpleResNet4bit()
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    learning = [p for p in model.parameters() if p.grad.any()]
    # Batch norm takes away the mean, and with it every convolution's bias: its gradient is rounding error.
    assert {p.dim() for p in learning} == {1}
    assert sum(p.numel() for p in learning) == RIGHT["02.c"][0]


def test_numbers_in_the_prose():
    cells = json.loads(LESSON.read_text())["cells"]
    prose = {cell["id"]: " ".join("".join(cell["source"]).split()) for cell in cells if cell["cell_type"] == "markdown"}
    printed = {
        cell["id"]: "".join("".join(out.get("text", "")) for out in cell["outputs"])
        for cell in cells
        if cell["cell_type"] == "code"
    }
    assert "stops at 0.32, not at 0.40" in prose["descent-explain"]
    assert "with: w 0.32, level 0.4" in plot_descent(0.1)[1]
    assert "needs a single step" in prose["descent-explain"] and plot_descent(0.5)[1].endswith("after step 1")
    assert "at 0.05 levels, 95 % of the weights stay" in prose["hops-explain"]
    assert "way 0.05: 5 % of the weights change level" in printed["hops-figure"]
    assert "the level flips 100 times in 200 steps" in prose["edge-predict"]
    assert plot_edge()[1].startswith("flips in the last 200 steps: 100 ")
    assert "Half the rate halves its swing, not its flips" in prose["edge-explain"]
    for rate, swing in ((0.1, 0.03), (0.05, 0.015)):
        flips, *_, low, high, _ = numbers(plot_edge(rate=rate)[1].replace("last 200", ""))
        assert (flips, high - low) == (100, pytest.approx(swing))
