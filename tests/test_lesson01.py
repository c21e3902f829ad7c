"""Lesson 01: its figures' numbers against NumPy alone, its checks against what students answer."""

import io
import math
import re
import struct
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q4lib.kit.checks import Wrong
from q4lib.kit.checks import quantization as checks
from q4lib.kit.figures import quantization as figures

FIVE = [0.31, -0.84, 0.05, 0.58, -0.20]
some = settings(max_examples=15, deadline=None)
seeds, bit_widths, percents = st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(5, 100)


def layer(seed, channels=8):
    """A small layer with a bell of weights, and a few large ones."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.03, (channels, 4, 3, 3)) * np.where(rng.random((channels, 4, 3, 3)) < 0.05, 3, 1)
    return torch.from_numpy(w.astype(np.float32))


def by_hand(w, bits, percent=100):
    """amax, scale, codes and weights on the grid, in NumPy's double precision."""
    w = w.double().numpy()
    amax = np.abs(w).max() * percent / 100
    step = amax / (2 ** (bits - 1) - 1)
    codes = np.rint(np.clip(w, -amax, amax) / step)
    return w, amax, step, codes, codes * step


def decibels(w, wq):
    return 10 * np.log10((w**2).sum() / ((w - wq) ** 2).sum())


def found(pattern, text):
    match = re.search(pattern, text)
    assert match, f"no {pattern!r} in {text!r}"
    return [float(group) for group in match.groups()]


def near(printed, computed, digits):
    """Whether a printed number is the computed one, rounded; the last digit may differ by one."""
    return abs(printed - computed) <= 10**-digits


class TestNumbers:
    @some
    @given(seeds, bit_widths)
    def test_grid(self, seed, bits):
        w, _, step, codes, wq = by_hand(layer(seed), bits)
        _, text = figures.plot_grid(layer(seed), bits)
        printed_step, zeros = found(rf"{bits} bits: scale ([\d.]+) · ([\d.]+) % of the weights become 0", text)
        used, levels, sqnr = found(r"(\d+) of (\d+) levels in use · SQNR (-?[\d.]+) dB", text)
        assert near(printed_step, step, 4) and near(zeros, 100 * (codes == 0).mean(), 1)
        assert (used, levels) == (len(np.unique(codes)), 2**bits - 1)
        assert near(sqnr, decibels(w, wq), 1)

    @some
    @given(seeds, bit_widths, percents, percents)
    def test_range(self, seed, bits, percent, guess):
        w, amax, step, _, wq = by_hand(layer(seed), bits, percent)
        _, text = figures.plot_range(layer(seed), bits, percent, guess)
        printed_amax, printed_step = found(rf"amax ([\d.]+) = {percent} % of max\|w\| · scale ([\d.]+)", text)
        rounding, clipping, sqnr = found(r"rounding ([\de.-]+) % \+ clipping ([\de.-]+) % · SQNR (-?[\d.]+) dB", text)
        error, cut = (w - wq) ** 2, np.abs(w) > amax
        assert near(printed_amax, amax, 4) and near(printed_step, step, 4) and near(sqnr, decibels(w, wq), 1)
        for printed, part in ((rounding, error[~cut]), (clipping, error[cut])):
            assert math.isclose(printed, 100 * part.sum() / (w**2).sum(), rel_tol=0.06, abs_tol=1e-9)
        (guessed,) = found(rf"your guess, {guess} % of max\|w\|: SQNR (-?[\d.]+) dB", text)
        assert near(guessed, decibels(w, by_hand(layer(seed), bits, guess)[-1]), 1)

    @some
    @given(seeds, bit_widths, percents)
    def test_curve(self, seed, bits, guess):
        w = layer(seed).double().numpy()
        curve = {percent: decibels(w, by_hand(layer(seed), bits, percent)[-1]) for percent in range(4, 101)}
        _, text = figures.plot_curve(layer(seed), bits, guess)
        best, most = found(rf"{bits} bits: smallest error at (\d+) % of max\|w\|, SQNR (-?[\d.]+) dB", text)
        whole, lost = found(r"amax = max\|w\|: SQNR (-?[\d.]+) dB, (-?[\d.]+) dB less", text)
        guessed, _ = found(rf"your guess, {guess} %: SQNR (-?[\d.]+) dB, (-?[\d.]+) dB less", text)
        assert near(curve[best], max(curve.values()), 4) and near(most, max(curve.values()), 1)
        assert near(whole, curve[100], 1) and near(lost, max(curve.values()) - curve[100], 1)
        assert near(guessed, curve[guess], 1)

    @some
    @given(seeds, bit_widths)
    def test_channels(self, seed, bits):
        w = layer(seed)
        rows = [by_hand(row, bits)[-1] for row in w]
        _, text = figures.plot_channels(w, bits)
        one, many, gain = found(r"SQNR (-?[\d.]+) dB with one scale, (-?[\d.]+) dB with 8: ([+-][\d.]+) dB", text)
        truth = decibels(w.double().numpy(), by_hand(w, bits)[-1]), decibels(w.double().numpy(), np.stack(rows))
        assert near(one, truth[0], 1) and near(many, truth[1], 1) and near(gain, truth[1] - truth[0], 1)
        tops = w.abs().amax((1, 2, 3))
        assert near(*found(r"is (\d+) % of the largest's", text), 100 * (tops.min() / tops.max()).item(), 0)
        assert "7 more FP32 scales: 28 bytes" in text

    def test_what_the_reader_writes_into_the_layer_counts(self):
        w = layer(0)
        before = figures.plot_grid(w)[1], figures.plot_range(w)[1]
        w[0, 0, 0, 0] = 1
        assert figures.plot_grid(w)[1] == figures.plot_grid(w.clone())[1] != before[0]
        assert figures.plot_range(w)[1] == figures.plot_range(w.clone())[1] != before[1]

    def test_ruler(self):
        for bits, scale, codes in ((2, "0.8400", "0 -1 0 1 0"), (4, "0.1200", "3 -7 0 5 -2")):
            _, text = figures.plot_ruler(torch.tensor(FIVE), bits)
            assert text == f"{bits} bits: {2**bits - 1} levels · scale {scale} · codes {codes}"
        _, text = figures.plot_ruler(torch.tensor(FIVE), 4, guess=5)
        assert text.splitlines()[1] == "5 bits: 31 levels · scale 0.0560 · codes 6 -15 1 10 -4"

    def test_five_bits_are_the_first_that_keep_the_smallest(self):
        codes = {bits: figures.plot_ruler(torch.tensor(FIVE), bits)[1].split()[-3] for bits in range(2, 9)}
        assert [bits for bits, code in codes.items() if code == "0"] == [2, 3, 4]


class TestFormats:
    def test_landing(self):
        _, text = figures.plot_formats(1.0)
        assert text.split("\n")[1:] == ["15 levels 1.000 · 16 levels 0.875 · zero point 1.000", "FP4 1.000 · NF4 1.000"]
        _, text = figures.plot_formats(-1.0)
        assert "15 levels -1.000 · 16 levels -1.000 · zero point -0.500" in text

    def test_a_half_goes_to_the_even_code(self):
        assert "15 levels 0.571" in figures.plot_formats(0.5)[1]
        assert "15 levels -0.571" in figures.plot_formats(-0.5)[1]

    @some
    @given(st.floats(-1, 1))
    def test_lands_on_the_nearest(self, x):
        for name, printed in re.findall(
            r"(15 levels|16 levels|zero point|FP4|NF4) (-?[\d.]+)", figures.plot_formats(x)[1]
        ):
            distance = np.abs(np.array(list(figures.FORMATS[name].values())) - x).min()
            assert near(abs(float(printed) - x), distance, 3)

    def test_fp4_is_what_its_bits_say(self):
        """Sign, two bits of exponent with bias 1, one of mantissa; exponent 0 is subnormal."""
        values = {(m / 2 if e == 0 else (1 + m / 2) * 2 ** (e - 1)) for e in range(4) for m in range(2)}
        assert {round(6 * v, 9) for v in figures.FORMATS["FP4"].values()} == values | {-v for v in values}
        assert len(set(figures.FORMATS["FP4"].values())) == 15

    def test_nf4_is_what_its_quantiles_say(self):
        """QLoRA's: eight positive and seven negative quantiles of a normal distribution, and 0, over the largest."""
        quantile, offset = NormalDist().inv_cdf, 0.9677083
        up = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
        down = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
        expected = sorted(v / max(up) for v in (*up, 0, *down))
        assert list(figures.FORMATS["NF4"].values()) == pytest.approx(expected, abs=1e-4)


FIGURES = {
    "ruler": lambda: figures.plot_ruler(torch.tensor(FIVE), 8, guess=4),
    "formats": lambda: figures.plot_formats(1.0, guess=0.9),
    "grid": lambda: figures.plot_grid(layer(0), 8, guess=30),
    "range": lambda: figures.plot_range(layer(0), 2, 5, guess=40),
    "curve": lambda: figures.plot_curve(layer(0), 4, guess=70),
    "channels": lambda: figures.plot_channels(layer(0), guess=2),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_can_be_read(name):
    """7.5 x 3.5 inches, no text under 9 pt, at most three lines of numbers, and the guess is marked."""
    figure, text = FIGURES[name]()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi)
    assert struct.unpack(">II", content.getvalue()[16:24]) == (750, 350)
    texts = [t for t in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if t.get_text()]
    assert texts and min(t.get_fontsize() for t in texts) >= 9
    assert 1 <= len(text.splitlines()) <= 3
    assert any("your guess" in t.get_text() for t in texts)


def student(step=0.63 / 7, bend=torch.round, low=-7, high=7):
    return bend(torch.tensor(FIVE) / step).clamp(low, high) * step


RIGHT = [
    ("01.a", 0.12), ("01.a", torch.tensor(FIVE).abs().max() / 7), ("01.a", "0.12"),
    ("01.b", [3, -7, 0, 5, -2]), ("01.b", torch.tensor([3, -7, 0, 5, -2], dtype=torch.int8)),
    ("01.d", student()), ("01.d", [0.27, -0.63, 0.09, 0.54, -0.18]),
    ("01.c", 73_728), ("01.c", 147_456 / 2), ("01.c", 73_732),
]  # fmt: skip

WRONG = {
    "01.a": {
        "divide by 8": 0.84 / 8, "by 15": 0.84 / 15, "15 levels have 14 steps": 1.68 / 15,
        "the sign does not count": 0.58 / 7, "is symmetric": (0.58 + 0.84) / 14, "whole range": 0.84,
        "other way round": 7 / 0.84, "a number is asked for": "a", "the scale is max": 0.5,
    },
    "01.b": {
        "divide max|w| by 8": [3, -8, 0, 6, -2], "`floor`": (torch.tensor(FIVE) / 0.12).floor(),
        "`int` or `trunc`": [int(x / 0.12) for x in FIVE], "have signs": [3, 7, 0, 5, 2],
        "after rounding": [0.36, -0.84, 0, 0.60, -0.24], "codes are integers": [2.58, -7, 0.42, 4.83, -1.67],
        "the sign of -0.2": [3, -7, 0, 5, 2], "the sign of 0.31": [-3, -7, 0, 5, -2],
        "no code": [3, -9, 0, 5, -2], "look at 0.58 again": [3, -7, 0, 4, -2], "are asked for": [3, -7],
    },
    "01.d": {
        "forgot to clamp": student(low=-99, high=99), "by 8? The": student(0.63 / 8),
        "let -8 in": student(0.63 / 8, low=-8), "`floor`": student(bend=torch.floor),
        "`int` or `trunc`": student(bend=torch.trunc), "these are the codes": student() / 0.09,
        "not max|w|": student(0.12), "but not rounded": torch.tensor(FIVE).clamp(-0.63, 0.63),
        "clamp to -8": student(low=-8), "nothing has been quantized": FIVE,
        "should become": [0, 0, 0, 0, 0], "are asked for": 0.27,
    },
    "01.c": {
        "one byte a weight": 147_456, "4 bytes": 147_456 * 4, "not four": 147_456 / 4, "half a byte": 147_456 / 8,
        "kB": 73.728, "KiB": 72, "8 bits a byte": 10, "a number is asked for": [1, 2],
    },
}  # fmt: skip
TASKS = {"01.a": checks.scale_by_hand, "01.b": checks.codes_by_hand, "01.d": checks.five_through_the_grid,
         "01.c": checks.bytes_of_a_layer}  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_check_accepts(name, answer):
    assert TASKS[name](answer)


@pytest.mark.parametrize(("name", "why"), [(name, why) for name, likely in WRONG.items() for why in likely])
def test_check_rejects_and_says_why(name, why):
    with pytest.raises(Wrong) as wrong:
        TASKS[name](WRONG[name][why])
    assert why in str(wrong.value)
    assert [w for w in WRONG[name] if w in str(wrong.value)] == [why]
