"""Rep-Net's shape and start; lean layers against PyTorch's own, and their saving against the analysis."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from q4lib import Conv4bit
from q4lib.lean import FrozenConv, LeanReLU, checkpointed, lean, pack_bits, standardize_backward, unpack_bits
from q4lib.memory import Measured, measure, profile
from q4lib.repnet import MeanPool, RepNet, standardize


@pytest.fixture(scope="module")
def backbone():
    """A MobileNetV2 whose batch norm is not the identity, as after pretraining."""
    torch.manual_seed(0)
    model = mobilenet_v2()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def awake(model):
    """The side modules' last gammas, which are zero at the start and would hide every gradient before them."""
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):
            nn.init.uniform_(parameter, -1, 1)
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_trains(backbone):
    model = RepNet(backbone, 10)
    side = {name: p.numel() for name, p in trained(model).items() if not name.startswith("head")}
    assert sum(side.values()) == 380_072
    blocks = sorted({int(name.split(".")[1]) for name in side})
    assert blocks == [2, 4, 7, 11, 14, 17]
    assert sum(side[name] for name in side if name.startswith("features.2.")) == 3 * 8 * 25 + 8 * 24 + 2 * (8 + 24)
    assert set(trained(model)) - set(side) == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in backbone.parameters()), "the caller's model is not frozen"


def test_starts_as_its_backbone(backbone):
    model, images = RepNet(backbone, 10), torch.randn(2, 3, 64, 64)
    features = copy.deepcopy(backbone).eval().features(images)
    assert torch.allclose(model(images), model.head(features.mean((2, 3))), atol=1e-6)


def test_frozen_batch_norm_does_not_move(backbone):
    model = RepNet(backbone, 10)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "side" not in name}
    moving = model.state_dict()["features.17.side.bn1.running_mean"].clone()
    model.eval().train()(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())
    assert not torch.equal(model.state_dict()["features.17.side.bn1.running_mean"], moving)
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("size", "stride"), [(64, 2), (32, 1), (75, 2), (224, 2)])
def test_sizes(backbone, size, stride):
    """Where a map has an odd side, pooling rounds it down and the block up."""
    small_stem = copy.deepcopy(backbone)
    small_stem.features[0][0].stride = (stride, stride)
    model = awake(RepNet(small_stem, 10))
    pooled = {}
    for i in (2, 17):
        model.features[i].side.pool.register_forward_hook(lambda _, x, y, i=i: pooled.update({i: y.shape[2:]}))
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)
    assert pooled[2] == (size // stride // 2,) * 2
    assert pooled[17] == (-(-size // stride // 16) // 2,) * 2


def test_too_small_and_wrong_backbones(backbone):
    with pytest.raises(ValueError, match=r"a feature map of \(1, 1\) has no 2 by 2 patch: use larger images"):
        RepNet(backbone)(torch.randn(2, 3, 32, 32))
    for wrong in (resnet18(), nn.Linear(2, 2), nn.Sequential()):
        with pytest.raises(ValueError, match=f"must be torchvision's MobileNetV2, got {type(wrong).__name__}"):
            RepNet(wrong)


def test_mean_pool_is_torchs():
    x = torch.randn(2, 3, 7, 9)
    assert torch.allclose(MeanPool(2)(x), F.avg_pool2d(x, 2), atol=1e-6)
    assert torch.allclose(MeanPool(4)(x), F.avg_pool2d(x, 4), atol=1e-6)


def test_standardized_weights():
    w = standardize(torch.randn(6, 4, 3, 3) * 5 + 2)
    assert torch.allclose(w.mean((1, 2, 3)), torch.zeros(6), atol=1e-6)
    assert torch.allclose(w.std((1, 2, 3)), torch.ones(6), atol=1e-4)
    raw, grad = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    raw.requires_grad_()
    (expected,) = torch.autograd.grad(standardize(raw), raw, grad)
    assert torch.allclose(standardize_backward(raw.detach(), grad), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 4, 4)])
def test_bits_survive_packing(shape):
    mask = torch.rand(shape) < 0.5
    bits = pack_bits(mask)
    assert (bits.dtype, bits.shape) == (torch.uint8, (-(-mask.numel() // 8),))
    assert torch.equal(unpack_bits(bits, mask.shape), mask)
    assert pack_bits(torch.tensor([True] + [False] * 8 + [True])).tolist() == [1, 2]


@pytest.mark.parametrize(("ours", "theirs"), [(LeanReLU(6.0), nn.ReLU6()), (LeanReLU(), nn.ReLU())])
def test_lean_relu(ours, theirs):
    x = torch.tensor([[-1.0, 0.0, 1e-9, 5.9], [6.0, 6.1, torch.inf, 3.0]], requires_grad=True)
    grad = torch.randn(2, 4)
    expected = torch.autograd.grad(theirs(x), x, grad)
    assert torch.equal(theirs(x), ours(x.clone()))
    assert torch.equal(torch.autograd.grad(ours(x.clone()), x, grad)[0], expected[0])
    assert measure(lambda: ours(x.clone())).saved == 1
    assert measure(lambda: ours(x.detach().clone())) == Measured(peak=4 * 8, saved=0), "no mask without a gradient"


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv4bit])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "bias": False}, {"groups": 4, "dilation": 2}])
def test_frozen_conv_with_its_norm(kind, options):
    torch.manual_seed(0)
    conv, norm = kind(4, 8, 3, **options).double(), nn.BatchNorm2d(8).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    eager = nn.Sequential(conv, norm).eval().requires_grad_(False)
    ours = lean(eager)
    assert [type(module) for module in ours] == [FrozenConv, nn.Identity]
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    y = eager(x)
    assert torch.allclose(ours(x), y, rtol=1e-10)
    grad = torch.randn_like(y)
    expected, found = (torch.autograd.grad(model(x), x, grad)[0] for model in (eager, ours))
    assert torch.allclose(found, expected, rtol=1e-10)
    assert measure(lambda: ours(x)).saved == 0


def test_lean_replaces_only_what_it_may():
    def block(norm_trains=False, inplace=True):
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace)).requires_grad_(False)
        layers[1].requires_grad_(norm_trains)
        return layers

    def kinds(model):
        return [type(module).__name__ for module in lean(model)]

    assert kinds(block().eval()) == ["FrozenConv", "Identity", "LeanReLU"]
    assert kinds(block()) == ["FrozenConv", "BatchNorm2d", "LeanReLU"], "batch statistics cannot be folded"
    assert kinds(block(norm_trains=True).eval()) == ["FrozenConv", "BatchNorm2d", "LeanReLU"]
    assert kinds(block(inplace=False).eval()) == ["FrozenConv", "Identity", "ReLU"]
    assert kinds(nn.Sequential(nn.Conv2d(3, 4, 3))) == ["Conv2d"]
    for odd in ({"padding": "same"}, {"padding_mode": "reflect", "padding": 1}):
        assert kinds(nn.Sequential(nn.Conv2d(3, 4, 3, **odd).requires_grad_(False))) == ["Conv2d"]


def test_lean_gradients_are_eagers(backbone):
    """In double precision: in single, rounding flips a ReLU6 here and there, in either model."""
    eager = awake(RepNet(backbone, 10)).double()
    state = torch.get_rng_state()
    ours = lean(eager)
    assert torch.equal(torch.get_rng_state(), state)
    images, labels = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.arange(4)
    losses = [F.cross_entropy(model(images), labels) for model in (eager, ours)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    for loss in losses:
        loss.backward()
    expected, found = trained(eager), trained(ours)
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert parameter.grad.norm() > 0
        error = (found[name].grad - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-6, f"{name}: {error}"


def test_lean_saves_what_the_analysis_says(backbone):
    eager = RepNet(backbone, 10)
    ours = lean(eager)
    corrected = profile(eager, (3, 64, 64), corrected=True)
    images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 10

    def step(model, n):
        return lambda: F.cross_entropy(model(images[:n]), labels[:n]).backward()

    saved = {n: measure(step(ours, n)).saved for n in (8, 16)}
    channels = sum(m.num_features for m in ours.modules() if isinstance(m, nn.BatchNorm2d))
    # Batch norm keeps each channel's mean and deviation, cross_entropy the log probabilities and one weight.
    assert saved[16] == pytest.approx(16 * (corrected.cumulative + 4 * 10) + 8 * channels, abs=16)
    assert saved[16] / 16 == pytest.approx(corrected.cumulative, rel=0.01)
    assert saved[16] - saved[8] == 8 * (corrected.cumulative + 4 * 10)
    assert measure(step(eager, 8)).saved > 20 * saved[8]
    assert measure(step(eager, 8)).peak > 4 * measure(step(ours, 8)).peak
    assert profile(ours, (3, 64, 64), corrected=True).cumulative == corrected.cumulative


def test_checkpointed_gradients_are_eagers(backbone):
    """Equal but for rounding, also where batch norm counts; and what it keeps is less."""
    eager = awake(RepNet(backbone, 10))
    ours = checkpointed(eager)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    for model in (eager, ours):
        F.cross_entropy(model(images), labels).backward()
    found = {name.replace(".module", ""): parameter.grad for name, parameter in trained(ours).items()}
    assert found.keys() == trained(eager).keys()
    for name, parameter in trained(eager).items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    states = [{name.replace(".module", ""): value for name, value in m.state_dict().items()} for m in (eager, ours)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items()), "running statistics"
    peaks = [measure(lambda m=m: F.cross_entropy(m(images), labels).backward()).peak for m in (eager, ours)]
    assert peaks[1] < 0.5 * peaks[0]


def test_a_head_alone_is_checkpointed_too(backbone):
    eager = RepNet(backbone, 10, ())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(checkpointed(eager)(images), eager(images))
