"""Lesson 04: its figures' numbers computed a second way, its checks, and what its prose says of figures and paper."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from inline_checks import InlineCheck
from safetensors.torch import load_file
from torch import nn

from q4lib import Conv4bit
from q4lib.kit import asset
from q4lib.kit.checks import clipping as checks
from q4lib.kit.checks import tasks
from q4lib.kit.figures.clipping import (
    compare,
    plot_arms,
    plot_clips,
    plot_decay,
    plot_outlier,
    plot_pulls,
    plot_scaled,
    plot_table,
)
from q4lib.train import RECIPES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks/04_tanh_clipping.ipynb").read_text())
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
PRINTED = {
    cell["id"]: "".join(text for output in cell.get("outputs", []) for text in output.get("text", []))
    for cell in NOTEBOOK["cells"]
}
LAYER = load_file(asset("conv2_2-weights.safetensors"))["weight"].float()
ARMS = {"soft clip": 3.0, "none": None}


def prose(cell: str) -> str:
    return " ".join(CELLS[cell].split())


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?", text)]


@pytest.fixture
def runs(tmp_path):
    """Three finished runs an arm, as `fit` leaves their logs: (largest weights, accuracy) by hand."""
    told = {
        "soft clip": [((0.3, 0.2), 90.0), ((0.25, 0.35), 92.0), ((0.3, 0.3), 94.0)],
        "none": [((0.5, 0.4), 89.0), ((0.6, 0.36), 93.0), ((0.9, 0.2), 88.0)],
    }
    folders = {}
    for arm, seeds in told.items():
        folders[arm] = [tmp_path / f"{arm} {seed}" for seed in range(len(seeds))]
        for folder, (largest, accuracy) in zip(folders[arm], seeds, strict=True):
            folder.mkdir()
            layers = {f"convs.{i}": {"amax": amax, "sqnr": -amax} for i, amax in enumerate(largest)}
            lines = [{"run": {}}, {"test_acc": 5.0, "layers": {}}, {"test_acc": accuracy, "layers": layers}]
            (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folders


class TestOutlier:
    @pytest.mark.parametrize(("outlier", "bits"), [(0.9, 4), (0.1, 4), (0.5, 2), (0.9, 7), (0.3, 8)])
    def test_numbers(self, outlier, bits):
        w = LAYER.double().flatten().numpy().copy()
        w[0] = outlier
        top = 2 ** (bits - 1) - 1
        step = np.abs(w).max() / top
        codes = np.rint(w / step)
        counts = sorted((int((codes == code).sum()) for code in range(-top, top + 1)), reverse=True)
        held, used = 0, 0
        while held < 0.99 * len(w):
            held, used = held + counts[used], used + 1
        noise = 10 * math.log10((w**2).sum() / ((w - codes * step) ** 2).sum())
        assert plot_outlier(LAYER, outlier, bits)[1] == (
            f"largest weight {np.abs(w).max():.2f} · scale {step:.4f} · SQNR {noise:.1f} dB\n"
            f"99 % of the weights share {used} of {2 * top + 1} levels · "
            f"{100 * (codes == 0).mean():.0f} % of them become 0"
        )

    def test_one_weight_is_overwritten(self):
        assert plot_outlier(torch.tensor([5.0, 0.1, 0.2]), 0.7)[1].startswith("largest weight 0.70 · scale 0.1000")

    def test_weights_are_kept(self):
        before = LAYER.clone()
        plot_outlier(LAYER, 0.9)
        assert torch.equal(LAYER, before)

    @pytest.mark.parametrize(("outlier", "named"), [(0.9, ["the outlier"]), (0.1, [])])
    def test_only_what_lies_far_out_is_called_so(self, outlier, named):
        assert [text.get_text() for text in plot_outlier(LAYER, outlier)[0].axes[0].texts] == named

    def test_prose(self):
        inside = 100 * (LAYER.abs() < 0.1).double().mean().item()
        assert PRINTED["outlier-layer"] == f"147,456 weights; {inside:.1f} % of them lie between -0.1 and 0.1\n"
        assert "leave three levels to nearly all" in prose("remember") and "share 3 of 15" in plot_outlier(LAYER)[1]
        assert "there for the outlier alone" in prose("outlier-explain") and LAYER.abs().max() < 1.5 * 0.9 / 7
        assert "no such outlier" in prose("small-explain") and RECIPES["fast"].soft_clip is None


class TestClips:
    @pytest.mark.parametrize("c", [0.5, 3.0, 5.0])
    def test_numbers(self, c):
        w = np.linspace(0.001, c, 200_001)
        at = w[np.argmax(1 - c * np.tanh(w / c) / w >= 0.01)]
        figure, text = plot_clips(c)
        first, second, third = text.splitlines()
        assert first == f"c = {c:g} · soft takes 1 % off at |w| = {at:.2f}, hard takes nothing off below {c:g}"
        off = 100 * (0.1 - c * math.tanh(0.1 / c)) / 0.1
        assert numbers(second) == [0.1, pytest.approx(off, rel=0.05)]
        delta = 1e-6
        slope = (math.tanh(1 + delta) - math.tanh(1 - delta)) / (2 * delta)
        assert third == f"slope at |w| = c: soft {slope:.2f}; hard falls from 1 to 0 there"

    def test_curves_are_torchs(self):
        left, right = plot_clips(2.0)[0].axes
        for clip, curve, slope in zip(
            (lambda w: w.clamp(-2, 2), lambda w: 2 * (w / 2).tanh()), left.lines, right.lines, strict=False
        ):
            w = torch.tensor(curve.get_xdata(), requires_grad=True)
            clipped = clip(w)
            clipped.sum().backward()
            assert curve.get_ydata() == pytest.approx(clipped.detach().numpy())
            off_the_corner = abs(w.detach().numpy() - 2) > 0.005
            assert slope.get_ydata()[off_the_corner] == pytest.approx(w.grad.numpy()[off_the_corner])

    def test_prose(self):
        assert "the outlier of 0.9 keeps 97 % of its size" in prose("clips-graph")
        assert round(100 * 3 * math.tanh(0.3) / 0.9) == 97

    def test_no_gradient_passes(self):
        assert "weight 2.00 -> 1.75" in PRINTED["clips-gradient"]
        assert "gradient 5.00 -> 5.00" in PRINTED["clips-gradient"]
        assert "part of the graph: False" in PRINTED["clips-gradient"]


class TestDecay:
    @pytest.mark.parametrize(("steps", "c"), [(1, 3.0), (1000, 1.0), (10_000, 3.0), (39_100, 10.0)])
    def test_numbers(self, steps, c):
        w = np.array([1.0, 0.1])
        for _ in range(steps):
            w = c * np.tanh(w / c)
        lines = plot_decay(steps, c)[1].splitlines()
        assert lines[0] == f"c = {c:g}, after {steps:,} {'step' if steps == 1 else 'steps'} of the soft clip alone"
        assert lines[1] == f"1.0 has become {w[0]:.4f} and 0.1 has become {w[1]:.4f}"
        assert lines[2] == f"the larger was 10 times the smaller; it is {w[0] / w[1]:.2f} times"

    def test_formula_lies_on_the_curves(self):
        curves = plot_decay()[0].axes[0].lines
        for curve, points in (curves[:2], curves[2:4]):
            there = np.interp(points.get_xdata(), curve.get_xdata(), curve.get_ydata())
            assert points.get_ydata() == pytest.approx(there, rel=0.03)
            assert points.get_ydata()[-1] == pytest.approx(curve.get_ydata()[-1], rel=0.001)

    def test_prose(self):
        taken = 0.1 - 3 * math.tanh(0.1 / 3)
        assert f"takes {taken:.7f} off a weight of 0.1. That is {1000 * taken:.3f} % of it" in prose("decay-predict")
        assert "39,100 are the paper's first hundred epochs" in prose("decay-move")
        assert 100 * math.ceil(50_000 / 128) == 39_100


class TestPulls:
    @pytest.mark.parametrize(("rate", "c"), [(1e-3, 3.0), (1e-4, 3.0), (1e-3, 10.0)])
    def test_numbers(self, rate, c):
        w = np.geomspace(1e-4, 2, 400_001)
        clip = w - c * np.tanh(w / c)
        equal = w[np.argmax(clip > rate * 5e-4 * w)]
        held = w[np.argmax(clip > rate)]
        times = (0.1 - c * math.tanh(0.1 / c)) / (0.1 * rate * 5e-4)
        first, second, third = plot_pulls(rate, c)[1].splitlines()
        assert numbers(first) == [rate, pytest.approx(equal, rel=0.05)]
        assert numbers(second) == [0.1, pytest.approx(times, rel=0.05)]
        assert third.endswith(f"at |w| = {held:.2f}")

    def test_prose(self):
        recipe = RECIPES["paper"]
        assert (recipe.lr, recipe.weight_decay, recipe.soft_clip) == (0.001, 0.0005, 3.0)
        assert "the other 0.0000005 w" in prose("decay-explain")
        assert "near 0.3." in prose("pulls-explain") and plot_pulls()[1].endswith("0.30")


class TestScaled:
    @pytest.fixture
    def parts(self):
        torch.manual_seed(0)
        return Conv4bit(16, 16, 3), nn.BatchNorm2d(16), torch.randn(8, 16, 8, 8)

    @pytest.mark.parametrize("factor", [0.01, 0.1, 1.0, 10.0, 100.0])
    def test_numbers(self, parts, factor):
        conv, norm, images = parts
        state = [value.clone() for part in (conv, norm) for value in part.state_dict().values()]
        figure, text = plot_scaled(conv, norm, images, factor)
        kept = [value for part in (conv, norm) for value in part.state_dict().values()]
        assert all(map(torch.equal, state, kept)), "the reader's layers are kept"
        before = nn.functional.batch_norm(conv(images), None, None, training=True)
        w = factor * conv.weight.detach()
        step = w.abs().max() / 7
        y = nn.functional.conv2d(images, (w / step).round() * step, factor * 0 + conv.bias)
        spread = (nn.functional.batch_norm(y, None, None, training=True).std() / before.std()).item()
        first, second = text.splitlines()
        assert first == f"weights × {factor:g}: after batch norm the output is × {spread:.2f}"
        taken = [100 * (1 - math.tanh(a / 3) / (a / 3)) for a in (w.abs().max().item(), conv.weight.abs().max().item())]
        assert numbers(second) == pytest.approx(taken, rel=0.06)

    def test_prose(self, parts):
        texts = {factor: plot_scaled(*parts, factor)[1] for factor in (0.01, 0.1, 1.0, 10.0, 100.0)}
        spreads = [numbers(text)[1] for text in texts.values()]
        assert spreads[1:] == [1, 1, 1, 1] and 0.9 < spreads[0] < 1
        taken = [numbers(text)[2] for text in texts.values()]
        assert "leaves one of them alone and takes most of another" in prose("scaled-explain")
        assert taken[0] < 0.0001 and taken[-1] > 90


def test_table():
    text = (ROOT / "notebooks/04_tanh_clipping.ipynb").read_text()
    assert (
        plot_table()[1] == "without the soft clip: 4.9 points lost\nby size, that is number 4 of the table's 4 losses"
    )
    bars = [bar.get_width() for bar in plot_table()[0].axes[0].patches]
    assert bars == pytest.approx([92.21 - 87.3, 92.21 - 84.1, 92.21 - 82.5, 92.21 - 79.2])
    assert "4.9 points" in text and "is the smallest of the four, not the largest" in prose("table-explain")


class TestArms:
    def test_largest_weights(self, runs):
        assert plot_arms(runs)[1] == (
            "3 seeds an arm\nlargest weight, soft clip against none: smaller in every layer in 2 of 3 seeds\n"
            "SQNR, layer by layer: higher in 5 of 6"
        )

    def test_accuracies(self, runs):
        """Differences 1, -1 and 6: mean 2, deviation sqrt(13), and Student's 4.303 for two degrees of freedom."""
        half = 4.3027 * math.sqrt(13 / 3)
        assert compare(runs).splitlines() == [
            "soft clip: 92.0 % (90.0 to 94.0)",
            "none: 90.0 % (88.0 to 93.0)",
            f"soft clip minus none: +2.0 points, 95 % interval {2 - half:.1f} to +{2 + half:.1f}",
        ]

    def test_guess_is_the_arm_without(self, runs):
        mark = next(line for line in plot_arms(runs, guess=3)[0].axes[1].lines if line.get_marker() == "D")
        assert list(mark.get_ydata()) == [92.0 - 3]

    def test_the_lesson_trains_both_arms(self):
        assert '{"soft clip": 3.0, "none": None}' in CELLS["arms-figure"]
        assert PRINTED["arms-figure"].startswith("digits, 2 epochs, batches of 16\n")
        assert "smaller in every layer in 3 of 3 seeds" in PRINTED["arms-figure"]
        assert "in every layer and with every seed" in prose("arms-explain")


def figures(runs):
    torch.manual_seed(0)
    parts = Conv4bit(16, 16, 3), nn.BatchNorm2d(16), torch.randn(8, 16, 8, 8)
    return {
        "outlier": lambda guess=None: plot_outlier(LAYER, guess=guess)[0],
        "clips": lambda guess=None: plot_clips(guess=guess)[0],
        "decay": lambda guess=None: plot_decay(guess=guess)[0],
        "pulls": lambda guess=None: plot_pulls(guess=guess)[0],
        "scaled": lambda guess=None: plot_scaled(*parts, guess=guess)[0],
        "table": lambda guess=None: plot_table(guess=guess)[0],
        "arms": lambda guess=None: plot_arms(runs, guess=guess)[0],
    }


NAMES = ["outlier", "clips", "decay", "pulls", "scaled", "table", "arms"]


@pytest.mark.parametrize("name", NAMES)
def test_words_of_a_figure(runs, name):
    """A guess is named where there is one; no text is smaller than 9 points, and none is cut off."""
    for guess, named in ((None, False), (2, True)):
        figure = figures(runs)[name](guess)
        figure.savefig(io.BytesIO())
        shown = [t for t in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if t.get_text() and t.get_visible()]
        assert any("your guess" in text.get_text() for text in shown) == named
        assert not [text.get_text() for text in shown if text.get_fontsize() < 9]
    assert tuple(figure.get_size_inches() * figure.dpi) == (750, 350)


# The right answer, then wrong ones, each with words from its own message.
W = torch.tensor([0.1, 0.9, -3.0, 30.0])
ANSWERS = {
    "04.a": (
        0.9 / 14,
        [
            (0.1286, "that is a whole step"),
            (0.06, "15 levels have 14 steps between them, not 15"),
            (0.12, "and only half a step rounds to 0"),
            (0.1125, "The largest code is 7; and only half"),
            (0.05625, "did you divide by 8? The largest code is 7"),
            (0.5, "too large: the step is 0.9 / 7"),
            (0.01, "too small: the step is 0.9 / 7"),
        ],
    ),
    "04.b": (
        3 * (W / 3).tanh(),
        [
            (W, "nothing happened"),
            (W.clamp(-3, 3), "that is the hard clip"),
            (W.tanh(), "tanh alone ends at 1"),
            ((W / 3).tanh(), "it ends at 1, not at c"),
            (3 * W.tanh(), "three times its size"),
            ((3 * W).tanh() / 3, "the factors are swapped"),
            ((W / 3).tanh() / 3, "where you divide"),
            (W[:2], "w has 4 numbers, yours has 2"),
            ("tanh", "a tensor of four numbers"),
            (3 * (W / 3).sigmoid(), "it should be 3 tanh("),
            (3 * (W / 3).tanh() + 0.01, "becomes 0.1"),
        ],
    ),
    "04.c": (
        0.052,
        [
            (0.52, "the place for c = 3"),
            (5.2, "a smaller c begins earlier"),
            (0.174, "the place for c = 1"),
            (0.3, "that is c itself"),
            (0.03, "that is c / 10"),
            (0.003, "that is 1 % of c"),
            (0.1, "too large: read two places"),
            (0.01, "too small: read two places"),
        ],
    ),
    "04.d": (
        4050,
        [
            (1350, "keeps the first step's amount"),
            (1871, "keeps the first step's share"),
            (300, "what 2n / 27 must reach"),
            (8100, "you took n / 27"),
            (5400, "1 / 0.1² was there"),
            (10_000, "too large: set the formula"),
            (2, "too small: set the formula"),
        ],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
class TestCheck(InlineCheck):
    def test_accepts_the_right_answer(self, line, name):
        right, _ = ANSWERS[name]
        values = (right, right.tolist(), right.double()) if name == "04.b" else (right, torch.tensor(right), str(right))
        for value in values:
            assert line(name, value).startswith(f"✅ {name} ")

    def test_names_each_mistake_with_words_of_its_own(self, line, name):
        lines = [line(name, value) for value, _ in ANSWERS[name][1]]
        for said, (_, words) in zip(lines, ANSWERS[name][1], strict=True):
            assert said.startswith(f"❌ {name} ") and words in said
        assert len({said.split(":", 1)[-1] for said in lines}) >= len(lines) - 1, "large and small share their advice"


def test_right_answers(monkeypatch):
    """By trying: rounding, halving, and looking where the share passes 1 %."""
    assert [name for name in tasks() if name.startswith("04.")] == list(ANSWERS)
    w = np.linspace(0, 0.9, 90_001)
    assert w[np.rint(w / (0.9 / 7)) == 0].max() == pytest.approx(ANSWERS["04.a"][0], rel=1e-3)
    assert ANSWERS["04.b"][0].tolist() == pytest.approx([3 * math.tanh(x / 3) for x in W.tolist()], rel=1e-6)
    w = np.linspace(1e-4, 0.3, 300_001)
    assert w[np.argmax(1 - 0.3 * np.tanh(w / 0.3) / w >= 0.01)] == pytest.approx(ANSWERS["04.c"][0], rel=0.01)
    weight, steps = 0.1, 0
    while weight > 0.05:
        weight, steps = 3 * math.tanh(weight / 3), steps + 1
    assert steps == pytest.approx(ANSWERS["04.d"][0], rel=1e-3)
    assert "ten epochs" in checks.halved(steps) and round(steps / 391) == 10


def test_every_likely_mistake_is_tested(monkeypatch):
    for name, function in {"04.a": checks.zero, "04.c": checks.one_percent, "04.d": checks.halved}.items():
        seen = []
        monkeypatch.setattr(checks, "_compare", lambda v, r, likely, *rest: seen.extend(likely))  # noqa: B023
        function(0)
        wrong = [value for value, _ in ANSWERS[name][1][:-2]]
        assert sorted(seen) == pytest.approx(sorted(wrong), rel=0.005), "the last two are no typical mistakes"
