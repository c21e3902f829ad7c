"""The layers against torch's own with the quantized weight put in, and the two networks against the paper's figures."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from q4lib import Conv4bit, Linear4bit, SimpleResNet4bit, VGG4bit
from q4lib.layers import FP32, QuantizedWeight, quantized_layers
from q4lib.quant import fake_quantize

MODELS = pytest.mark.parametrize("build", [VGG4bit, SimpleResNet4bit])
EVERY_BITS = (*range(2, 9), FP32)
VGG_LAYERS = ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "fc1", "fc2"]
RESNET_LAYERS = [*(f"convs.{i}" for i in range(6)), "fc"]
CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "bias": False},
    {"padding": "same", "dilation": 2},
    {"groups": 2, "padding": 1},
    {"groups": 4, "dilation": (1, 2), "padding": 2},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular", "stride": 2},
    {"padding": "same", "padding_mode": "replicate"},
]


def same_as_torch(ours, theirs, x, bits, per_channel):
    """Forward equals the torch layer's with the quantized weight; the weight gets the gradient of the quantized one."""
    ours.load_state_dict(theirs.state_dict())
    if bits != FP32:
        theirs.weight.data = fake_quantize(theirs.weight.data, bits, per_channel)
    y, expected = ours(x), theirs(x)
    assert torch.equal(y, expected)
    for output in (y, expected):
        output.square().sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("bits", EVERY_BITS)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_conv_is_torchs_with_a_quantized_weight(options, bits):
    torch.manual_seed(bits)
    for per_channel in (False, True):
        ours = Conv4bit(4, 8, 3, bits=bits, per_channel=per_channel, **options)
        same_as_torch(ours, nn.Conv2d(4, 8, 3, **options), torch.randn(2, 4, 9, 10), bits, per_channel)


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_linear_is_torchs_with_a_quantized_weight(bits):
    torch.manual_seed(bits)
    for per_channel in (False, True):
        for bias in (True, False):
            ours = Linear4bit(6, 5, bias, bits=bits, per_channel=per_channel)
            same_as_torch(ours, nn.Linear(6, 5, bias), torch.randn(2, 3, 6), bits, per_channel)


def test_conv_by_hand():
    layer = Conv4bit(3, 5, (3, 2), stride=2, padding=1)
    x, b = torch.randn(2, 3, 8, 8), torch.randn(5)
    layer.bias.data = b
    step = layer.weight.abs().max() / 7
    expected = F.conv2d(x, (layer.weight / step).round() * step, b, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_a_torch_layer_takes_our_state_dict():
    nn.Conv2d(3, 4, 3).load_state_dict(Conv4bit(3, 4, 3).state_dict())
    nn.Linear(3, 4).load_state_dict(Linear4bit(3, 4).state_dict())


def test_bits_default_to_4():
    for layer in (Conv4bit(3, 8, 3), Linear4bit(40, 8), *quantized_layers(VGG4bit()).values()):
        assert (layer.bits, layer.per_channel) == (4, False)


@pytest.mark.parametrize("bits", [1, 9, 16, 0, True, "4", None])
def test_bits_that_are_no_grid_are_errors(bits):
    for build, sizes in ((Conv4bit, (3, 4, 3)), (Linear4bit, (3, 4)), (VGG4bit, ()), (SimpleResNet4bit, ())):
        with pytest.raises(ValueError, match="bits must be"):
            build(*sizes, bits=bits)


@pytest.mark.parametrize("layer, variance", [
    (lambda: Conv4bit(64, 256, 3), 2 / (64 * 9)),
    (lambda: Conv4bit(32, 512, (1, 5)), 2 / (32 * 5)),
    (lambda: Conv4bit(64, 256, 3, groups=4), 2 / (16 * 9)),
    (lambda: Linear4bit(400, 300), 1 / 400),
    (lambda: Linear4bit(400, 300, bits=FP32), 1 / 400),
])  # fmt: skip
def test_initialization(layer, variance):
    """Normal (a uniform one has a kurtosis of 1.8, a cut one less than 3), with the paper's variance; biases are 0."""
    torch.manual_seed(0)
    layer = layer()
    w = layer.weight.detach().double().flatten()
    assert w.square().mean().item() == pytest.approx(variance, rel=0.03)
    assert abs(w.mean().item()) < 5 * math.sqrt(variance / len(w))
    assert (w.pow(4).mean() / w.square().mean().square()).item() == pytest.approx(3, abs=0.15)
    assert not layer.bias.any()


@MODELS
def test_starts_alike_at_any_bits(build):
    """A comparison of bits is one of bits only: same seed, same weights."""
    starts = []
    for bits in EVERY_BITS:
        torch.manual_seed(3)
        starts.append(build(bits=bits, per_channel=bits % 2 == 1).state_dict())
        assert all(torch.equal(starts[0][name], value) for name, value in starts[-1].items())
    torch.manual_seed(4)
    assert not torch.equal(next(build().parameters()), next(iter(starts[0].values())))


@pytest.mark.parametrize("build, num_classes, count", [
    (VGG4bit, 10, 3_251_018),
    (VGG4bit, 100, 3_297_188),
    (SimpleResNet4bit, 10, 73_178),
    (SimpleResNet4bit, 100, 79_028),
])  # fmt: skip
def test_parameter_count(build, num_classes, count):
    for bits in (4, FP32):
        assert sum(p.numel() for p in build(num_classes=num_classes, bits=bits).parameters()) == count


@pytest.mark.parametrize("build, names", [(VGG4bit, VGG_LAYERS), (SimpleResNet4bit, RESNET_LAYERS)])
@pytest.mark.parametrize("bits, per_channel", [(4, False), (7, True), (FP32, False)])
def test_every_conv_and_linear_layer_is_quantized(build, names, bits, per_channel):
    """The first and the last too. Nothing else has a weight but batch norm, and nothing has other bits."""
    model = build(bits=bits, per_channel=per_channel)
    assert list(quantized_layers(model)) == names
    for module in model.modules():
        if list(module.parameters(recurse=False)) and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert isinstance(module, QuantizedWeight)
            assert (module.bits, module.per_channel) == (bits, per_channel)


def vgg_forward(w, x, bn):
    for i, name in enumerate(("1_1", "1_2", "2_1", "2_2", "3_1", "3_2")):
        x = F.relu(bn(F.conv2d(x, w[f"conv{name}.weight"], w[f"conv{name}.bias"], padding=1), f"bn{name}"))
        x = F.max_pool2d(x, 2) if i % 2 else x
    x = F.relu(bn(F.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]), "bn_fc"))
    return F.linear(x, w["fc2.weight"], w["fc2.bias"])


def resnet_forward(w, x, bn):
    for i, stride in enumerate((1, 1, 2, 1, 2, 1)):
        y = bn(F.conv2d(x, w[f"convs.{i}.weight"], w[f"convs.{i}.bias"], stride=stride, padding=1), f"bns.{i}")
        x = F.relu(x + y) if i == 1 else F.relu(y)
    return F.linear(x.flatten(2).mean(2), w["fc.weight"], w["fc.bias"])


def unlike_the_start(model):
    """Biases and batch norm get values that a trained model has, so that leaving one out shows."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else tensor.normal_(std=0.3)
    return model


@pytest.mark.parametrize("build, forward", [(VGG4bit, vgg_forward), (SimpleResNet4bit, resnet_forward)])
@pytest.mark.parametrize("bits, per_channel", [(FP32, False), (4, False), (2, True), (8, True)])
@pytest.mark.parametrize("training", [False, True])
def test_network_written_out_in_plain_torch(build, forward, bits, per_channel, training):
    """At 32 bits the network is the plain one; at others it is the plain one with weights on their grids."""
    torch.manual_seed(0)
    model = unlike_the_start(build(bits=bits, per_channel=per_channel, dropout=0.0)).train(training)
    w = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in quantized_layers(model) if bits != FP32 else ():
        w[f"{name}.weight"] = fake_quantize(w[f"{name}.weight"], bits, per_channel)

    def bn(x, name):
        mean, var, weight, bias = (w[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, training=training)

    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), forward(w, x, bn))


@MODELS
@pytest.mark.parametrize("bits", [4, FP32])
def test_trains_and_evaluates_at_100_classes(build, bits):
    """In channels_last, as runs do. Gradients must lie as their weights do: a fused step reads raw memory."""
    torch.manual_seed(0)
    model = build(num_classes=100, bits=bits).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    logits = model(x)
    assert logits.shape == (4, 100)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.stride() == p.stride(), name
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


def test_dropout_is_the_papers_and_can_be_set():
    def rates(model):
        return [m.p for m in model.modules() if isinstance(m, nn.Dropout)]

    assert (rates(VGG4bit()), rates(SimpleResNet4bit())) == ([0.5], [0.0])
    assert rates(VGG4bit(dropout=0.1)) == rates(SimpleResNet4bit(dropout=0.1)) == [0.1]


@pytest.mark.parametrize("build, names", [(VGG4bit, VGG_LAYERS), (SimpleResNet4bit, RESNET_LAYERS)])
def test_nan_in_a_weight_names_the_layer(build, names):
    model, x = build().eval(), torch.zeros(1, 3, 32, 32)
    for name in names:
        weight = model.get_submodule(name).weight.data.view(-1)
        weight[1] = math.nan if name != names[0] else -math.inf
        with pytest.raises(ValueError, match=rf"^layer {name}: a weight is nan or infinite"):
            model(x)
        weight[1] = 0
    weight[1] = math.nan
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=rf"^layer {names[-1]}: "):
            twin(x)


def test_nan_in_a_layer_of_ones_own_network_names_it():
    net = nn.Sequential(Conv4bit(3, 4, 3), nn.Flatten(), Linear4bit(4, 2))
    net[2].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="layer Linear4bit: "):
        net(torch.zeros(1, 3, 3, 3))
    quantized_layers(net)
    with pytest.raises(ValueError, match="layer 2: "):
        net(torch.zeros(1, 3, 3, 3))


@MODELS
@pytest.mark.parametrize("bits, per_channel", [(4, False), (3, True), (FP32, False)])
def test_copies_predict_alike(build, bits, per_channel):
    torch.manual_seed(0)
    model = unlike_the_start(build(bits=bits, per_channel=per_channel)).eval()
    loaded = build(bits=bits, per_channel=per_channel).eval()
    loaded.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert torch.equal(twin(x), model(x))
            assert list(quantized_layers(twin)) == list(quantized_layers(model))


def test_widths_of_simple_resnet():
    convs = [m for m in SimpleResNet4bit().modules() if isinstance(m, Conv4bit)]
    assert [(c.in_channels, c.out_channels) for c in convs] == list(pairwise((3, 16, 16, 32, 32, 64, 64)))


def test_says_its_bits():
    assert repr(Linear4bit(3, 2, bits=5, per_channel=True)).endswith("bits=5, per_channel=True)")
    assert "bits=4" in repr(Conv4bit(3, 2, 3))
