"""Reference answers against torch's own quantizer and fusion, q4lib's pruner, files and steps that are real."""

import math
import random
import re
from copy import deepcopy
from itertools import combinations

import nbformat
import pytest
import solving
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint
from torchvision.models import mobilenet_v2

from q4lib import Conv4bit, SimpleResNet4bit
from q4lib.kit.checks import exercise07_saved
from q4lib.layers import quantized_layers
from q4lib.memory import measure, profile
from q4lib.pack import save_model
from q4lib.pruning import channel_norms, kept_width, prune, solve_ratios
from q4lib.quant import statistics
from q4lib.repnet import RepNet, Reprogrammed


@pytest.fixture(scope="module")
def answers():
    """What the solutions of exercises 02, 03, 07 and 08 define."""
    namespace = {}
    for path in solving.SOLUTIONS:
        if path.stem[:2] in ("02", "03", "07", "08"):
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


@pytest.fixture(scope="module")
def mobilenet():
    """A MobileNetV2 whose batch norms have seen something, in eval mode."""
    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=5)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64))
    return model.eval()


def test_the_ratio_for_a_target_is_the_solvers(answers):
    """Block 2's hungriest layer, with this target too, is its first: it reads 16 maps and makes the hidden ones."""
    model, target, each = RepNet(mobilenet_v2()), 700_000, 4 * 48**2
    hungriest = max((cost for cost in profile(model, (3, 96, 96)).layers), key=lambda cost: cost.peak)
    assert hungriest.name == "features.2.block.conv.0.0"
    ratio = answers["ratio_for"](96, hungriest.peak - 96 * each, each, target)
    assert 0 < ratio == pytest.approx(solve_ratios(model, (3, 96, 96), target)["features.2"])


@torch.no_grad()
def test_norms_and_who_stays_are_as_the_library_has_them(answers, mobilenet):
    images, read = torch.randn(5, 3, 64, 64), []
    hook = mobilenet.features[2].conv[2].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for part in images.split(2):
        mobilenet(part)
    hook.remove()
    theirs = channel_norms(mobilenet, images.split(2))["features.2"]
    torch.testing.assert_close(answers["norms"](read), theirs.float())
    for ratio in (percent / 100 for percent in range(99)):
        stay = answers["staying"](torch.rand(100), ratio)
        assert len(stay) == kept_width("block", 100, ratio) and stay.equal(stay.sort().values)


@torch.no_grad()
def test_a_pruned_block_is_the_librarys(answers, mobilenet):
    """Block 3 has the exercise's form, but for its shortcut."""
    whole = mobilenet.features[3]
    (expand, norm1, relu1), (deep, norm2, relu2), project, norm3 = whole.conv
    block = nn.Sequential(expand, norm1, relu1, deep, norm2, relu2, project, norm3)
    norms, x = torch.rand(144), torch.randn(2, 24, 8, 8)
    smaller = prune(mobilenet, {"features.3": 0.46}, {"features.3": norms}).features[3]
    ours = answers["pruned"](block, answers["staying"](norms, 0.46)).eval()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in smaller.parameters()]
    torch.testing.assert_close(x + ours(x), smaller(x))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"bias": False, "stride": 2}, {"groups": 4, "padding": 1}])
def test_a_folded_batch_norm_is_as_torch_folds_it(answers, options):
    conv, norm = nn.Conv2d(4, 8, 3, **options).eval(), nn.BatchNorm2d(8, eps=1e-2)
    nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
    norm(torch.randn(9, 8, 5, 5) * 3 + 1)
    ours, theirs = answers["folded"](conv, norm.eval()), fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close((ours.weight, ours.bias), (theirs.weight, theirs.bias))


def test_the_connection_computes_what_a_rep_net_does(answers, mobilenet):
    """Block 3 of a MobileNetV2, and a side network at its size, so that nothing has to be fitted."""
    frozen, side = mobilenet.features[3], nn.Sequential(nn.Conv2d(24, 24, 1), nn.BatchNorm2d(24))
    theirs, ours = Reprogrammed(deepcopy(frozen), deepcopy(side)), answers["beside"](deepcopy(frozen), side)
    theirs.block.eval()
    with torch.no_grad():
        ours.side[-1].weight.fill_(0.7), theirs.side[-1].weight.fill_(0.7)
    x = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x, x))
    assert not any(p.requires_grad for p in ours.block.parameters())


def test_the_answer_for_a_device_has_the_studys_numbers(capsys):
    """Those of the teacher's sample, and of the rubric, are printed by the cells above them."""
    cells = nbformat.read(solving.ROOT / "solutions/08_prune_and_reprogram.ipynb", 4).cells
    for cell in cells:
        if cell.metadata.get("tags") == ["demo"] and "q4lib.kit" in cell.source:
            exec(cell.source, {})
    printed = capsys.readouterr().out
    [text] = [cell.source for cell in cells if cell.id == "task-8-7"]
    numbers = re.findall(r"[-+]?\d+\.\d+", text)
    assert len(numbers) > 12 and not [number for number in numbers if number not in printed]
    device = re.search(r"has (\d+) MB for network and step, (\d+) MB for the file", text).groups()
    assert [line.split()[-2] for line in printed.splitlines()[:2]] == list(device)
