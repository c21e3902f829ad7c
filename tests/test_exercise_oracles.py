"""Reference answers against torch's own quantizer, files that are really written, and steps that are really taken."""

import math
import random
from itertools import combinations

import pytest
import solving
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from q4lib import Conv4bit, SimpleResNet4bit
from q4lib.kit.checks import exercise07_saved
from q4lib.layers import quantized_layers
from q4lib.memory import measure, profile
from q4lib.pack import save_model
from q4lib.quant import statistics


@pytest.fixture(scope="module")
def answers():
    """What the solutions of exercises 02, 03 and 07 define."""
    namespace = {}
    for path in solving.SOLUTIONS:
        if path.stem[:2] in ("02", "03", "07"):
            for cell in solving.code(path):
                exec(cell, namespace)
    return namespace


def torch_rounded(w, step, bits):
    largest = 2 ** (bits - 1) - 1
    return torch.fake_quantize_per_tensor_affine(w, float(step), 0, -largest, largest)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_straight_through_is_torchs_own_inside_the_grid(answers, bits):
    w = torch.randn(50, 8, requires_grad=True)
    above, step = torch.randn(50, 8), torch.tensor(0.11)
    inside = (w / step).abs() < 2 ** (bits - 1) - 1
    theirs = torch_rounded(w, step, bits)
    ours = answers["on_grid"](w, step, bits)
    torch.testing.assert_close(ours, theirs)
    expected, got = (torch.autograd.grad((y * above).sum(), w)[0] for y in (theirs, ours))
    assert torch.equal(got[inside], expected[inside]) and torch.equal(got, above)


@pytest.mark.parametrize("options", [{}, {"padding": 1, "stride": 2}, {"groups": 2, "bias": False, "bits": 3}])
def test_convolution_is_torchs_own(answers, options):
    layer = answers["initialize"](answers["Conv"](4, 6, 3, **options))
    step = layer.weight.detach().abs().max() / (2 ** (layer.bits - 1) - 1)
    w, x = torch_rounded(layer.weight, step, layer.bits), torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, w, layer.bias, layer.stride, layer.padding, groups=layer.groups))


@pytest.mark.parametrize("bits", [2, 4, 5, 8, 32])
def test_counted_bytes_are_those_of_the_file(answers, bits, tmp_path):
    model = SimpleResNet4bit(7, bits=bits)
    save_model(tmp_path / "model.safetensors", model)
    parameters, size = answers["size"](model)
    assert size == sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert parameters == sum(p.numel() for p in model.parameters())


def test_usage_is_what_statistics_say(answers):
    model = torch.nn.Sequential(Conv4bit(3, 8, 3), Conv4bit(8, 4, 3, bits=3, per_channel=True))
    for name, layer in quantized_layers(model).items():
        used = statistics(layer.weight, layer.bits, layer.per_channel)
        assert answers["usage"](model)[name] == pytest.approx((used["levels"], used["entropy"]), abs=1e-5)


def small(frozen: int) -> nn.Sequential:
    """A network of each kind of layer, the first ones frozen."""
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * 9, 4)).eval()
    for layer in model[:frozen]:
        layer.requires_grad_(False)
    return model


@pytest.mark.parametrize("frozen", [0, 1, 2, 5])
def test_what_layers_keep_and_the_peak_are_as_profile_says(answers, frozen):
    model, x, trains, costs = small(frozen), torch.randn(1, 3, 12, 12), False, []
    found = profile(model, (3, 12, 12), corrected=True)
    for layer, cost in zip(model, found.layers, strict=True):
        # The first layer's input is the image, which is there anyway.
        costs.append(answers["kept"](layer, x, trains) if layer is not model[0] else 0)
        trains |= any(p.requires_grad for p in layer.parameters())
        x = layer(x)
        assert costs[-1] == cost.saved, cost.name
    layers = [(cost.name, cost.temporary, cost.saved) for cost in found.layers]
    highest, where = answers["peak"](layers)
    assert highest == found.peak == next(cost.peak for cost in found.layers if cost.name == where)


@pytest.mark.parametrize("batch", [8, 9, 64])
def test_pieces_fit_and_fewer_do_not(answers, batch):
    found = profile(small(2), (3, 12, 12), corrected=True)
    memory = int(found.total(6)) + 7
    n = answers["pieces"](batch, memory, found.peak, found.trainable, found.frozen)
    assert found.total(math.ceil(batch / n)) <= memory < found.total(math.ceil(batch / (n - 1)))


@pytest.mark.parametrize("frozen", [0, 2])
def test_counted_saved_bytes_are_those_measured(answers, frozen):
    model, x = small(frozen), torch.randn(4, 3, 12, 12)

    def step():
        return model(x).exp().sum()

    assert answers["saved_bytes"](step, [*model.state_dict().values(), x]) == measure(step).saved > 0


@pytest.mark.parametrize("begins", [[0], [0, 3, 6], [0, 2], [0, 5, 6], "planned"])
def test_a_plan_keeps_what_a_step_with_checkpoints_saves(answers, begins):
    """And the reference's plan the least of these."""
    widths = [40, 90, 30, 70, 20, 10, 60, 50]
    chain = [nn.Linear(a, b, bias=False) for a, b in zip(widths, [*widths[1:], 5], strict=True)]
    inputs, start = [4 * 16 * width for width in widths], torch.randn(16, widths[0], requires_grad=True)
    planned = answers["plan"](inputs)
    begins = planned if begins == "planned" else begins

    def most(begins):
        x = 2 * start
        for begin, end in zip(begins, [*begins[1:], len(chain)], strict=True):
            x = checkpoint(nn.Sequential(*chain[begin:end]), x, use_reentrant=True)
        x.sum().backward()

    def reckoned(begins):
        ends = [*begins[1:], len(inputs)]
        return max(
            sum(inputs[b] for b in begins if b < begin) + sum(inputs[begin:end])
            for begin, end in zip(begins, ends, strict=True)
        )

    measured = measure(lambda: most(begins)).saved
    assert measured == reckoned(begins) >= reckoned(planned)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_best_plan_that_is_named_is_the_best_of_all(n):
    inputs = [random.randint(1, 40) for _ in range(n)]
    plans = [[0, *cuts] for count in range(n) for cuts in combinations(range(1, n), count)]
    assert exercise07_saved._least(inputs) == min(exercise07_saved._most(inputs, begins) for begins in plans)
