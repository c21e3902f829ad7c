"""Lesson 07: its figures' numbers by hand and from the paper, its checks, and what its prose says of both."""

import json
import re
from pathlib import Path

import pytest
import torch
from inline_checks import InlineCheck
from torch import nn

from q4lib.kit.checks import tasks
from q4lib.kit.figures import memory as figures
from q4lib.kit.figures.memory import PRUNED, SIZES, Taken

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks/07_training_memory.ipynb").read_text())
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
PRINTED = {
    cell["id"]: "".join(text for output in cell.get("outputs", []) for text in output.get("text", []))
    for cell in NOTEBOOK["cells"]
}
# VGG4bit by hand: each layer's weights, the numbers it reads and makes of an image, and what its pooling leaves.
LAYERS = {
    "conv1_1": (3 * 64 * 9, 3 * 32**2, 64 * 32**2, 0),
    "conv1_2": (64 * 64 * 9, 64 * 32**2, 64 * 32**2, 64 * 16**2),
    "conv2_1": (64 * 128 * 9, 64 * 16**2, 128 * 16**2, 0),
    "conv2_2": (128 * 128 * 9, 128 * 16**2, 128 * 16**2, 128 * 8**2),
    "conv3_1": (128 * 256 * 9, 128 * 8**2, 256 * 8**2, 0),
    "conv3_2": (256 * 256 * 9, 256 * 8**2, 256 * 8**2, 256 * 4**2),
    "fc1": (4096 * 512, 4096, 512, 0),
    "fc2": (512 * 10, 512, 10, 0),
}
WIDTHS = {"conv1_1": 64, "conv1_2": 64, "conv2_1": 128, "conv2_2": 128, "conv3_1": 256, "conv3_2": 256, "fc1": 512}
PARAMETERS = {name: layer[0] + 3 * WIDTHS.get(name, 10 / 3) for name, layer in LAYERS.items()}  # bias; batch norm's two


def prose(cell: str) -> str:
    return " ".join(CELLS[cell].split())


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def kept(name: str, first: bool = False) -> int:
    """Bytes of an image by the lesson's four rules; the first layer reads the image, which is there anyway."""
    _, reads, makes, pooled = LAYERS[name]
    masks = {"fc1": 2 * makes // 8, "fc2": 0}.get(name, makes // 8 + pooled)  # fc1 has dropout, fc2 has neither
    return (0 if first else 4 * reads) + (4 * makes if name != "fc2" else 0) + masks


@pytest.fixture(scope="module")
def found():
    return figures.profiles()


class TestFigures:
    @pytest.mark.parametrize("batch", [1, 32, 128])
    @pytest.mark.parametrize(("bits", "once"), [(4, 13.0), (32, 0.0)])
    def test_step(self, batch, bits, once):
        saved = {(4, 8): 29_000_000, (4, 32): 77_000_000, (32, 8): 16_000_000, (32, 32): 64_000_000}
        said = figures.plot_step(saved, 1_000_000, batch, bits)[1]
        kept = batch * 2.0 + once
        assert numbers(said) == [bits, batch, kept, 2.0 * batch, 16.0, round(100 * 2 * batch / (16 + kept))]

    @pytest.mark.parametrize("frozen", [0, 1, 2, 5, 7])
    def test_kept(self, frozen):
        names = list(LAYERS)
        assert figures.kept(frozen) == {
            # The first layer that trains keeps its input, unless that is the image.
            name: (PARAMETERS[name], kept(name, first=name == "conv1_1") if i >= frozen else 0)
            for i, name in enumerate(names)
        }
        after = sum(kept(name, first=i == 0) for i, name in enumerate(names) if i >= frozen)
        before = sum(kept(name, first=i == 0) for i, name in enumerate(names))
        share = 100 * sum(PARAMETERS[name] for name in names[:frozen]) / sum(PARAMETERS.values())
        expected = [frozen, round(share, 1), round(after / 1e6, 2), round(before / 1e6, 2)]
        assert numbers(figures.plot_kept(frozen)[1]) == [*expected, round(100 * (1 - after / before))]

    def test_blocks(self, found):
        """Block 2: the depthwise convolution's input and output whole, or by the paper the convolution before it."""
        said = figures.plot_blocks(found)[1]
        assert numbers(said)[2:6] == [1.65, round(4 * 96 * (112**2 + 56**2) / 1e6, 2), 2, 1] and "1, 2, 3, 4" in said
        paper = figures.plot_blocks(found, convention="paper")[1]
        assert "kept at the end 1.94 MB · peak 5.72 MB, block 2" in paper and paper.endswith("stem, 1, 2, 3, 4")
        assert "peak 2.02 MB" in figures.plot_blocks(found, PRUNED, convention="paper")[1]
        assert figures.plot_blocks(found, "everything")[1].endswith(": none")
        assert figures.plot_blocks(found, "last layer")[1].endswith(": 20 of 20")

    def test_bars_are_the_profile_s(self, found):
        figure, _ = figures.plot_blocks(found)
        blue, orange = figure.axes[0].collections[:2]
        heights = {int(x): y for bars in (blue, orange) for (x, _), (_, y) in bars.get_segments()}
        assert [heights[i] * 1e6 for i in range(20)] == pytest.approx(
            [block.temporary for block in found["side network", 224, "corrected"].blocks]
        )
        assert sorted(int(x) for (x, _), _ in orange.get_segments()) == [1, 2, 3, 4]

    @pytest.mark.parametrize(("batch", "size"), [(8, 224), (1, 64)])
    def test_total(self, found, batch, size):
        side, rest, head = 380_072, 2_223_872, 1280 * 10 + 10
        trained = {"everything": side + rest + head, "side network": side + head, "last layer": head}
        said = figures.plot_total(found, batch, size)[1]
        expected = [
            batch * found[part, size, "corrected"].peak + 16 * n + 4 * (side + rest + head - n)
            for part, n in trained.items()
        ]
        assert numbers(said)[3:] == pytest.approx([total / 1e6 for total in expected], abs=0.051)
        assert side + rest + head == sum(found["everything", 224, "paper"].__dict__[k] for k in ("trainable", "frozen"))

    def test_four_times_the_pixels(self, found):
        assert found["side network", 128, "corrected"].peak == 4 * found["side network", 64, "corrected"].peak
        assert {size for _, size, _ in found} == set(SIZES)

    def test_beside_the_paper(self, found):
        rows = [line[20:].split() for line in figures.beside_the_paper(found).splitlines()[1:]]
        for printed, ours, _ in rows[:4]:
            assert f"{float(ours):.{len(printed.partition('.')[2])}f}" == printed
        with_200_classes = float(rows[4][1]) + 4 * 190 * 1281 / 1e6
        assert (
            rows[4][0] == "51"
            and round(with_200_classes) == 51
            and f"it is {with_200_classes:.1f} MB" in prose("wall-paper-text")
        )

    def test_ways(self):
        taken = {("eager", 8): Taken(1, 400_000_000, 80_000_000), ("lean", 8): Taken(1, 50_000_000, 50_000_000)}
        taken |= {("eager", 1): Taken(1, 5, 5)}
        assert figures.plot_ways(taken, 6_000_000)[1].splitlines() == [
            "batch 8, analysis 48.0 MB",
            "eager         peak  400.0 MB, forward alone  80.0 MB",
            "lean          peak   50.0 MB, forward alone  50.0 MB",
        ]

    def test_take(self):
        """Two linear layers by hand; the second one's weight trains."""
        model = nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 100), nn.Linear(100, 10))
        model[2].requires_grad_(False)
        (found,) = figures.take({"tiny": model}, (2,)).values()
        # cross_entropy saves the log probabilities and a weight, the linear layer its input.
        assert found.saved == 4 * 2 * (100 + 10) + 4
        assert found.forward == 4 * 2 * (48 + 100)
        assert found.peak >= found.saved + 4 * (1000 + 10)

    def test_a_guess_is_marked(self, found):
        taken = {("eager", 8): Taken(1, 400, 80)}
        saved = {(4, 8): 29_000_000, (4, 32): 77_000_000}
        for draw in (
            lambda guess: figures.plot_step(saved, 1_000_000, guess=guess),
            lambda guess: figures.plot_kept(guess=guess),
            lambda guess: figures.plot_blocks(found, guess=guess),
            lambda guess: figures.plot_total(found, guess=guess),
            lambda guess: figures.plot_ways(taken, 6, guess=guess),
        ):
            for guess in (None, 0, 12):
                axes = draw(guess)[0].axes
                said = [t for a in axes for t in [*a.get_legend_handles_labels()[1], *(x.get_text() for x in a.texts)]]
                assert any("your guess" in text for text in said) == (guess is not None)


class TestProse:
    def test_what_a_step_saves(self):
        assert "of these 70.0 MB activations" in PRINTED["step-figure"]
        assert "For 32 images they are 70.0 MB" in prose("step-explain")
        each, weights = 2_187_304, 4 * sum(layer[0] for layer in LAYERS.values())
        assert [round((8 * each + weights) / 1e6, 1), round((32 * each + weights) / 1e6, 1)] == [30.5, 83.0]
        assert "saves 30.5 MB for 8 images, and 83.0 MB for 32" in prose("step-move")
        assert f"the rounded weights, {weights / 1e6:.1f} MB" in prose("step-explain")
        share = 128 * each / (128 * each + weights + 16 * sum(PARAMETERS.values()))
        assert f"they are {128 * each / 1e6:.0f} MB, {100 * share:.0f} % of all" in prose("step-explain")
        assert 0.78 < share < 0.82 and "Four fifths of the memory are activations" in CELLS["quiz-batch"]

    def test_few_weights(self):
        first = PARAMETERS["conv1_1"] + PARAMETERS["conv1_2"]
        assert f"have {100 * first / sum(PARAMETERS.values()):.1f} % of the parameters" in prose("kept-predict")
        assert 0.63 < PARAMETERS["fc1"] / sum(PARAMETERS.values()) < 0.68 and "two thirds" in prose("kept-explain")
        assert f"{12 * PARAMETERS['fc1'] / 1e6:.0f} MB" in CELLS["quiz-batch"]
        assert "measured: 1.01 MB of an image, 54 % less" in PRINTED["kept-measured"]

    def test_the_wall(self, found):
        everything, side, last = (found[part, 224, "corrected"] for part in figures.PARTS)
        told = numbers(prose("wall-text"))
        assert told[-5:] == [224, 224, *(round(n / 1e6, d) for n, d in ((everything.cumulative, 1),))] + [
            round(everything.peak / 1e6, 1), round(side.cumulative / 1e6, 2)]  # fmt: skip
        assert f"{side.trainable - 12_810:,} parameters" in prose("wall-text")
        assert last.peak == side.peak and "they are 6.02 MB" in prose("wall-explain")

    def test_what_fits(self, found):
        side, last = (found[part, 224, "corrected"].total(8) / 1e6 for part in ("side network", "last layer"))
        assert f"takes {side:.1f} MB down to {last:.1f}" in prose("total-explain")
        falls = [found[part, 224, "corrected"] for part in ("everything", "side network", "last layer")]
        falls = [one.total(8) / one.total(1) for one in falls]
        assert falls[0] == max(falls) and falls[1] == min(falls)
        told = f"`everything` takes {falls[0]:.1f} times less, `side network` {falls[1]:.1f} times"
        assert told in prose("total-explain")
        assert "15.2 MB for the parameters" in prose("total-move") and " 15.2 MB\n" in PRINTED["total-code"]

    def test_in_pytorch(self, found):
        peak = found["side network", 224, "corrected"].peak
        assert f"8 × 6.02 = {8 * peak / 1e6:.1f} MB" in prose("ways-text")
        assert "Why 54.6 MB, and not 48.2?" in prose("ways-move") and "= lean 54.6 MB" in PRINTED["ways-rest"]
        assert "to the byte" in PRINTED["ways-rest"] and "not to the byte" not in PRINTED["ways-rest"]
        assert 4 * 8 * 16 * 112**2 + 8 * peak == pytest.approx(54.6e6, rel=1e-3)
        eager = 4 * 8 * 112**2 * (16 + 96 + 96)  # the block's input, what batch norm reads, what it writes
        assert f"{eager / 1e6:.1f} MB: there batch norm" in prose("ways-move")
        assert f"eager         peak  400.4 MB, forward alone  {eager / 1e6:.1f} MB" in PRINTED["ways-figure"]


ANSWERS = {
    "07.a": (52.5 / 24, [
        (83 / 32, "all of the 83.0 MB"), (30.5 / 8, "all of the 30.5 MB"), (52.5, "what 24 images add"),
        (52.5 / 32, "24 more than 8"), (52.5 / 8, "over 8: divide by 24"), (83 / 30.5, "how many times"),
        (52.5e6 / 24, "in bytes"), (24 / 52.5, "upside down"), (3, "too large"), (0.1, "too small"),
    ]),
    "07.b": (4 * 64 * 32 * 32, [
        (65_536, "4 bytes"), (8192, "one bit a number"), (32_768, "4 bits a number"), (2_097_152, "in bits"),
        (8_388_608, "whole batch"), (524_288, "input alone"), (12_288, "conv1_1 reads"), (147_456, "its weights"),
        (1e9, "too large"), (260_000, "260,000 is too small"),
    ]),
    "07.c": (4.816896, [
        (6.02, "what it reads and writes"), (1.2, "what it writes"), (3.61, "nothing is to be taken away"),
        (0.803, "the layer before"), (0.0502, "one map"), (4.594, "these are MiB"),
        (4_816_896, "4,816,896: that is in bytes"), (38.54, "for 8 images"), (4.8, "4.8 is right as far as it goes"),
        (30, "too large"), (0, "too small"),
    ]),
    "07.d": (14, [
        (16.61, "15.2 MB are missing"), (16, "no room"), (17, "and it is rounded up"), (14.09, "a whole number"),
        (15, "105.5 MB"), (19, "taken away"), (4, "not once an image"), (8, "a larger one does"),
        (99, "too large"), (10, "10 is too small"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
class TestCheck(InlineCheck):
    def test_accepts_the_right_answer(self, line, name):
        right, _ = ANSWERS[name]
        for value in (right, torch.tensor(right), str(right)):
            assert line(name, value).startswith(f"✅ {name} ")
        assert "in Python a comma makes two of it" in line(name, (262, 144))

    def test_names_each_mistake_with_words_of_its_own(self, line, name):
        lines = [line(name, value) for value, _ in ANSWERS[name][1]]
        for said, (value, words) in zip(lines, ANSWERS[name][1], strict=True):
            assert said.startswith(f"❌ {name} ") and words in said, (value, said)
        assert len({said.split(":", 1)[-1] for said in lines}) >= len(lines) - 1, "large and small share their advice"


def test_every_check_has_answers():
    assert [name for name in tasks() if name.startswith("07.")] == list(ANSWERS)
