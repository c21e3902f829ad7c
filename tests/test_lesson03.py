"""Lesson 03: its figures' numbers counted a second way, its checks, and what its prose says of a run."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from inline_checks import InlineCheck
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from q4lib import SimpleResNet4bit, VGG4bit
from q4lib.data import load, normalize
from q4lib.files import load_tensors
from q4lib.kit.checks import network as checks
from q4lib.kit.checks import tasks
from q4lib.kit.figures.network import file_size, plot_levels, plot_rescaled, plot_shapes, plot_work, vgg_layers
from q4lib.pack import KIND, save_model

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks/results"
RUN = RESULTS / "paper.e7-cifar10-b4-s0"
NOTEBOOK = json.loads((ROOT / "notebooks/03_layers_and_model.ipynb").read_text())
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
EPOCHS = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()[1:]]
# in, out, side of the picture that comes out; of each layer of VGG4bit, by hand
CONVOLUTIONS = {
    "conv1_1": (3, 64, 32),
    "conv1_2": (64, 64, 32),
    "conv2_1": (64, 128, 16),
    "conv2_2": (128, 128, 16),
    "conv3_1": (128, 256, 8),
    "conv3_2": (256, 256, 8),
}


def prose(cell: str) -> str:
    return " ".join(CELLS[cell].split())


def texts(figure) -> list[str]:
    figure.savefig(io.BytesIO())
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def integers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


class TestShapes:
    @pytest.mark.parametrize("name", CONVOLUTIONS)
    def test_convolution(self, name):
        cin, cout, side = CONVOLUTIONS[name]
        parameters = cout * cin * 9 + cout
        figure, numbers = plot_shapes(name)
        shapes, weight, rest = numbers.splitlines()
        assert shapes == f"{name} takes {cin} × {side} × {side} and gives {cout} × {side} × {side}"
        assert weight == f"weight {cout} × {cin} × 3 × 3, bias {cout}: {parameters:,} parameters"
        assert integers(rest) == [4 * parameters, 32, 2, cout, 32]
        assert {f"{cout}×{side}×{side}", f"{parameters:,}"} <= set(texts(figure))

    def test_linear(self):
        assert plot_shapes("fc1")[1].splitlines()[:2] == [
            "fc1 takes 4096 and gives 512",
            "weight 512 × 4096, bias 512: 2,097,664 parameters",
        ]
        assert plot_shapes("fc2")[1].endswith("20,520 bytes in FP32 · no batch norm after it")

    def test_bytes_are_those_in_the_file(self, tmp_path):
        save_model(tmp_path / "model", VGG4bit())
        tensors, _ = load_tensors(tmp_path / "model", KIND)
        for name, layer in vgg_layers().items():
            parts = [tensors[f"{name}.{part}"] for part in ("codes", "scale", "bias")]
            assert layer.packed == sum(part.numel() * part.element_size() for part in parts), name

    def test_marks_one_layer(self):
        for name in vgg_layers():
            boxes = [patch.get_facecolor() for patch in plot_shapes(name)[0].axes[0].patches]
            assert [boxes.count(box) for box in boxes].index(1) == 1 + list(vgg_layers()).index(name)

    def test_no_words_overlap(self):
        figure, _ = plot_shapes()
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert all(box.x0 >= 0 and box.x1 <= 750 and box.y0 >= 0 and box.y1 <= 350 for box in boxes)


@pytest.mark.parametrize(("classes", "parameters"), [(10, 3_251_018), (100, 3_297_188)])
def test_work(classes, parameters):
    model = VGG4bit(classes).eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == parameters
    work = flops.get_total_flops() / 2
    fc1 = 4096 * 512
    assert plot_work(classes)[1] == (
        f"{classes} classes: {parameters:,} parameters, {work / 1e6:.1f} million multiply-adds an image\n"
        f"fc1 has {100 * (fc1 + 512) / parameters:.1f} % of the parameters and does {100 * fc1 / work:.1f} % "
        "of the multiply-adds"
    )


@pytest.fixture(scope="module")
def images():
    return normalize(load("digits").x_test[:4], "digits")


class TestRescaled:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return SimpleResNet4bit()

    @pytest.mark.parametrize("layer", [*(f"convs.{i}" for i in range(6)), "fc"])
    def test_only_the_layer_without_batch_norm_changes_the_outputs(self, model, images, layer):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        figure, numbers = plot_rescaled(model, images, layer, 10)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model is kept"
        change = "900.0" if layer == "fc" else "0.0"
        norm = "no batch norm follows" if layer == "fc" else "after batch norm × 1"
        assert numbers.splitlines() == [
            f"{layer}: weight × 10, scale × 10, output × 10",
            norm,
            f"the network's outputs change by {change} % of the largest",
        ]

    def test_outputs_are_the_networks(self, model, images):
        theirs = SimpleResNet4bit().train()
        theirs.load_state_dict(model.state_dict())
        theirs.convs[1].weight.data *= 10
        expected = theirs(images)[0].tolist()
        before, after, guess = plot_rescaled(model, images, guess=3)[0].axes[0].lines
        assert after.get_ydata() == pytest.approx(expected, abs=1e-4)
        assert guess.get_ydata() == pytest.approx(3 * before.get_ydata())

    def test_trace_of_what_batch_norm_adds(self, model, images):
        assert plot_rescaled(model, images, "convs.0", 0.1)[1].endswith("0.1 % of the largest")
        assert "It adds 0.00001 to the variance" in prose("norm-explain")
        assert nn.BatchNorm2d(1).eps == 0.00001

    def test_eval_would_not_stay(self, model, images):
        theirs = SimpleResNet4bit().eval()
        theirs.load_state_dict(model.state_dict())
        before = theirs(images)
        theirs.convs[1].weight.data *= 10
        assert not torch.allclose(theirs(images), before, rtol=0.1)


class TestLevels:
    @pytest.mark.parametrize("line", EPOCHS, ids=lambda line: str(line["epoch"]))
    def test_numbers_are_the_logs(self, line):
        figure, numbers = plot_levels(RUN, line["epoch"])
        layers = list(line["layers"].values())
        weights = [cin * cout * 9 for cin, cout, _ in CONVOLUTIONS.values()] + [4096 * 512, 5120]
        mean = sum(n * layer["entropy"] for n, layer in zip(weights, layers, strict=True)) / sum(weights)
        assert numbers.splitlines() == [
            f"epoch {line['epoch']}, conv1_1 to fc2 · levels in use: "
            + " ".join(str(layer["levels"]) for layer in layers),
            "entropy in bits: " + " ".join(f"{layer['entropy']:.2f}" for layer in layers),
            f"mean over all weights: {mean:.2f} bits of 4",
        ]
        assert list(line["layers"]) == list(vgg_layers())
        assert {f"{layer['entropy']:.2f}" for layer in layers} <= set(texts(figure))


def test_guesses_are_marked():
    for figure, guess in ((plot_work(guess=95)[0], 95), (plot_levels(RUN, guess=4)[0], 4)):
        marks = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "D"]
        axes = marks[0].axes
        assert guess in (*marks[0].get_xdata(), *marks[0].get_ydata())
        assert axes.get_ylim()[1] >= guess or axes.get_xlim()[1] >= guess
    for figure, _ in (plot_work(), plot_levels(RUN)):
        assert not [line for axes in figure.axes for line in axes.lines if line.get_marker() == "D"]


def test_no_small_print():
    for figure, _ in (plot_shapes(), plot_work(), plot_levels(RUN)):
        figure.canvas.draw()
        small = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if t.get_fontsize() < 9]
        assert not [text for text in small if text]


# The right answer, then wrong ones, each with words from its own message.
ANSWERS = {
    "03.a": (
        73_856,
        {
            73_728: "forget the bias",
            8_320: "you forgot the kernel's area",
            8_192: "both are missing",
            24_704: "9 numbers, not 3",
            73_792: "not to those that go in",
            81_920: "not one a kernel",
            74_112: "batch norm is a layer of its own",
            73_856 * 256: "its size does not count",
            70_000: "too few: it is channels out",
        },
    ),
    "03.b": (
        2_097_664,
        {
            2_097_152: "forget the bias",
            131_584: "256 × 4 × 4 inputs, not 256",
            8_389_120: "one more pooling",
            2_101_248: "not to the 4,096 inputs",
            18_874_880: "no kernel",
            2_098_688: "batch norm is a layer of its own",
            3_000_000: "too many: it is outputs",
        },
    ),
    "03.c": (
        3_251_018,
        {
            3_248_202: "the seven batch norms are missing",
            3_249_610: "you counted one",
            3_249_994: "the one after fc1",
            3_249_226: "six batch norms are missing",
            3_251_038: "no batch norm follows fc2",
            3_246_784: "the weights only",
            3_249_600: "all biases are missing",
            3_253_834: "running mean and variance are buffers",
            3_253_841: "take model.parameters()",
            3_297_188: "100 classes",
            3_251_017: "too few: add the eight layers",
        },
    ),
    "03.d": (
        1_050_628,
        {
            1_048_576: "the codes are right",
            1_050_624: "without its scale",
            1_048_580: "the 512 biases stay in FP32, 4 bytes each",
            1_048_832: "and there is a scale",
            1_048_836: "only the weights have 4 bits: the 512 biases stay in FP32",
            1_049_089: "worth more than one each",
            2_099_204: "two of them share one",
            8_390_656: "that is the layer in FP32",
            8_390_660: "4 bits, not 4 bytes",
            8_405_024: "these are bits",
            1_052_672: "one scale serves the whole layer",
            1.05: "too few: codes at half a byte",
        },
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
class TestCheck(InlineCheck):
    def test_accepts_the_right_answer(self, line, name):
        right, _ = ANSWERS[name]
        for value in (right, float(right), torch.tensor(right)):
            assert line(name, value).startswith(f"✅ {name} ")

    def test_names_each_mistake_with_words_of_its_own(self, line, name):
        lines = {value: line(name, value) for value in ANSWERS[name][1]}
        for value, words in ANSWERS[name][1].items():
            assert lines[value].startswith(f"❌ {name} ") and words in lines[value]
        assert len({line.split(":", 1)[1] for line in lines.values()}) == len(lines)

    def test_asks_for_a_number(self, line, name):
        assert "a number is asked for, yours is 'many'" in line(name, "many")
        assert "yours is (73, 728): in Python a comma makes two of it" in line(name, (73, 728))


def test_every_likely_mistake_is_tested(monkeypatch):
    functions = {"03.a": checks.convolution, "03.b": checks.linear, "03.c": checks.network, "03.d": checks.packed}
    assert [name for name in tasks() if name.startswith("03.")] == list(ANSWERS) == list(functions)
    for name, function in functions.items():
        seen = {}
        monkeypatch.setattr(checks, "_compare", lambda value, right, likely, nearby: seen.update(likely))  # noqa: B023
        function(0)
        assert set(seen) == set(list(ANSWERS[name][1])[:-1]), "the last is no typical mistake"


def test_right_answers_are_the_models():
    model = VGG4bit()
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.conv2_1, model.fc1, model)]
    assert counts == [ANSWERS[name][0] for name in ("03.a", "03.b", "03.c")]
    assert ANSWERS["03.d"][0] == vgg_layers()["fc1"].packed


def test_file_sizes():
    sizes = {bits: file_size(VGG4bit(bits=bits)) for bits in (32, 4, 3, 2)}
    small = {bits: file_size(SimpleResNet4bit(bits=bits)) for bits in (32, 4)}
    assert "the file is 7.9 times smaller" in prose("remember") and f"{sizes[32] / sizes[4]:.1f}" == "7.9"
    assert abs(sizes[2] - sizes[4]) < 100 and abs(sizes[3] - sizes[4]) < 100
    assert small[32] / small[4] < 7
    output = "".join(next(cell for cell in NOTEBOOK["cells"] if cell["id"] == "file-sizes")["outputs"][0]["text"])
    assert [line.split()[-3] for line in output.splitlines()] == ["1.0", "4.0", "7.9", "7.9", "7.9"]


class TestProse:
    def test_never_15_levels_in_all_layers(self):
        assert "There is none among these 7." in prose("bits-explain") and len(EPOCHS) == 7
        assert all(min(layer["levels"] for layer in line["layers"].values()) < 15 for line in EPOCHS)

    def test_papers_own_log(self):
        """The prose gives the least and the most levels of a layer in all 150 epochs."""
        low, high = map(int, re.search(r"a layer has (\d+) to (\d+)", prose("bits-explain")).groups())
        with (RESULTS / "paper-log-cifar10.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert low == min(int(row["levels_min"]) for row in rows) and len(rows) == 150
        assert high == max(int(row["levels_max"]) for row in rows)

    def test_fc1_carries_least_and_has_the_widest_step(self):
        assert "`fc1` has the lowest in every epoch" in prose("bits-explain")
        for line in EPOCHS:
            for key in ("entropy", "sqnr"):  # noise is step**2 / 12, so the lowest ratio is the widest step
                assert min(line["layers"], key=lambda name: line["layers"][name][key]) == "fc1"
            assert line["layers"]["fc1"]["levels"] >= 14

    def test_about_3_bits(self):
        assert "about 3 of 4 bits" in prose("remember")
        assert plot_levels(RUN)[1].endswith("2.95 bits of 4")

    def test_fc1_holds_two_thirds(self):
        assert "`fc1` alone holds nearly two thirds" in prose("count-explain")
        assert 0.6 < ANSWERS["03.b"][0] / ANSWERS["03.c"][0] < 2 / 3
        assert "of its two million weights" in prose("bits-explain")

    def test_paper_and_its_log_on_100_classes(self):
        assert "The paper gives 3,301,468" in prose("work-explain")
        assert integers(plot_work(100)[1])[1] == 3_297_188
        assert "prints 3,297,188 for 100 classes" in prose("work-explain")

    def test_rounded_weights(self):
        """The first section's printed 14 is what its explanation speaks of."""
        assert "with these weights one stays empty" in prose("conv-explain")
        torch.manual_seed(0)
        torch.randn(1, 3, 32, 32)
        w = torch.randn(64, 3, 3, 3)
        codes = (w / (w.abs().max() / 7)).round().unique()
        assert len(codes) == 14 and w.unique().numel() == 1728
