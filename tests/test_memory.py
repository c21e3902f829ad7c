"""The analysis against the paper's figures and against what a step really takes; and that against other counts."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from q4lib import SimpleResNet4bit, VGG4bit
from q4lib.memory import measure, profile
from q4lib.pruning import hidden_layers, prune
from q4lib.repnet import RepNet

IMAGE = (3, 224, 224)
RATIOS = {"features.1": 0.3, "features.2": 0.78, "features.3": 0.46, "features.4": 0.46}
CUB = 200


@pytest.fixture(scope="module")
def profiles():
    """The paper's Rep-Net, whole and pruned, in both conventions: {(pruned, corrected): profile}."""
    whole = RepNet(mobilenet_v2(), CUB)
    norms = {name: torch.rand(layers[4].in_channels) for name, layers in hidden_layers(whole).items()}
    models = {False: whole, True: prune(whole, RATIOS, norms)}
    return {
        (pruned, corrected): profile(models[pruned], IMAGE, corrected=corrected)
        for pruned in models
        for corrected in (False, True)
    }


def block(found, name):
    return next(block for block in found.blocks if block.name == name)


# what, paper's MB, ours in MB, from the whole profile, from the pruned one
PAPER = [
    ("block 2 temporary", 5.6, 5.6197, lambda whole, pruned: block(whole, "features.2").temporary),
    ("peak", 5.72, 5.7201, lambda whole, pruned: whole.peak),
    ("overall cumulative gradient", 1.9, 1.9398, lambda whole, pruned: whole.cumulative),
    ("peak, pruned", 2.02, 2.0197, lambda whole, pruned: pruned.peak),
    ("total at batch 8", 51, 50.53, lambda whole, pruned: whole.total(8)),
    ("total at batch 8, pruned", 21, 20.91, lambda whole, pruned: pruned.total(8)),
]


@pytest.mark.parametrize(("paper", "ours", "value"), [row[1:] for row in PAPER], ids=[row[0] for row in PAPER])
def test_the_papers_numbers(profiles, paper, ours, value):
    mb = value(profiles[False, False], profiles[True, False]) / 1e6
    assert mb == pytest.approx(ours, abs=0.0051 if ours > 10 else 0.00006)
    digits = len(str(paper).partition(".")[2])
    assert abs(mb - paper) <= 10**-digits * 0.5


def test_the_papers_reductions(profiles):
    whole, pruned = profiles[False, False], profiles[True, False]
    assert round(100 * (1 - pruned.peak / whole.peak)) == 65
    assert round(100 * (1 - pruned.total(8) / whole.total(8))) == 59


def test_corrected_numbers(profiles):
    """No masks where no gradient passes: none in the stem and blocks 1 and 2, so pruning them saves nothing there."""
    whole, pruned = profiles[False, True], profiles[True, True]
    assert (whole.cumulative / 1e6, pruned.cumulative / 1e6) == pytest.approx((1.651, 1.566), abs=0.0005)
    assert block(whole, "features.1").cumulative == 0
    assert block(whole, "features.2").temporary == 4 * 96 * (112**2 + 56**2)
    side, head = 380_072, 1280 * CUB + CUB
    frozen = sum(p.numel() for p in mobilenet_v2().features.parameters())
    assert (whole.trainable, whole.frozen) == (side + head, frozen)
    assert whole.total(8) == 8 * whole.peak + 16 * (side + head) + 4 * frozen
    assert whole.total(8, frozen_bytes=0.5) == whole.total(8) - 3.5 * frozen


@pytest.mark.parametrize("corrected", [False, True])
def test_blocks_sum_up_their_layers(profiles, corrected):
    found = profiles[False, corrected]
    saved = list(accumulate(layer.saved for layer in found.layers))
    assert [layer.cumulative for layer in found.layers] == [0, *saved[:-1]]
    assert [b.name for b in found.blocks] == [f"features.{i}" for i in range(19)] + ["head"]
    for b in found.blocks:
        own = [layer for layer in found.layers if layer.block == b.name]
        assert b.temporary == max(layer.temporary for layer in own)
        assert b.peak == max(layer.temporary + layer.cumulative for layer in own)
        assert b.cumulative == own[-1].cumulative + own[-1].saved
    assert found.peak == max(layer.peak for layer in found.layers)


def small():
    """A grouped convolution and a residual, on 4 by 4 images of 8 channels."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 8, 1)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc((x + self.conv2(F.relu(self.norm(self.conv1(x))))).mean((2, 3)))

    return Small()


# in floats: a layer's input, then its output's share; 2 * 128 floats are the residual and conv2's own output
SMALL = {
    False: {
        "conv1": 128 + 256 // 4,
        "norm": 256,
        "relu": 256,
        "conv2": 256 + 128,
        "add": 128,
        "mean": 128,
        "fc": 8 + 5,
    },
    True: {"conv1": 256, "norm": 512, "relu": 256, "conv2": 256 + 128, "add": 256, "mean": 128 + 8, "fc": 8 + 5},
}


@pytest.mark.parametrize("corrected", [False, True])
def test_small_by_hand(corrected):
    found = profile(small(), (8, 4, 4), corrected=corrected)
    assert {layer.name: layer.temporary // 4 for layer in found.layers} == SMALL[corrected]
    image = 0 if corrected else 4 * 128
    saved = {"conv1": image, "norm": 4 * 256, "relu": 256 // 8, "conv2": 4 * 256, "fc": 4 * 8}
    assert {layer.name: layer.saved for layer in found.layers if layer.saved} == {k: v for k, v in saved.items() if v}


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x) + self.fc3(x)


def test_what_two_layers_save_counts_once():
    found = profile(Fork(), (4,), corrected=True)
    assert [layer.saved // 4 for layer in found.layers] == [0, 16, 0, 0]
    assert [layer.temporary // 4 for layer in found.layers] == [16, 16 + 8, 8 + 8, 3 * 8]


def test_what_trains():
    head = profile(small(), (8, 4, 4), trainable=["fc"])
    assert (head.cumulative, head.trainable) == (256 // 8 + 4 * 8, 45)
    assert profile(small(), (8, 4, 4), trainable=["fc"], corrected=True).cumulative == 4 * 8
    biases = profile(small(), (8, 4, 4), trainable=["norm.bias", "conv2.bias", "fc.bias"], corrected=True)
    assert (biases.cumulative, biases.trainable) == (256 // 8, 16 + 8 + 5)
    frozen = small().requires_grad_(False)
    frozen.fc.requires_grad_(True)
    assert profile(frozen, (8, 4, 4)) == head


def test_profile_leaves_the_model_alone():
    model = SimpleResNet4bit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile(model, (3, 32, 32), trainable=["fc"])
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "shape", "trainable", "message"),
    [
        (Branches, (4,), None, r"Branches cannot be traced on one sample of shape \(4,\): .* not branch"),
        (small, (8, 0, 4), None, r"all positive; got \(8, 0, 4\)"),
        (small, (), None, r"all positive; got \(\)"),
        (small, (3, 4, 4), None, r"Small cannot be traced on one sample of shape \(3, 4, 4\)"),
        (small, (8, 4, 4), [], "no parameter of this model trains: unfreeze some"),
        (lambda: small().requires_grad_(False), (8, 4, 4), None, "no parameter of this model trains: unfreeze some"),
        (small, (8, 4, 4), ["conv"], "trainable names 'conv', and no module"),
        (nn.ReLU, (4,), None, "no parameter of this model trains"),
    ],
)
def test_bad_input(model, shape, trainable, message):
    with pytest.raises(ValueError, match=message):
        profile(model(), shape, trainable)


def backward(model, shape, batch):
    """A step whose gradients exist already: its loss is that of a forward and a backward pass."""
    x, y = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
    F.cross_entropy(model(x), y).backward()
    return lambda: F.cross_entropy(model(x), y).backward()


def saved_a_sample(model, shape):
    """Slope, so that what a batch of any size saves once (statistics, quantized weights) is not counted."""
    few, many = (measure(backward(model, shape, batch)).saved for batch in (2, 6))
    assert (many - few) % 4 == 0
    return (many - few) // 4


# What eager saves beside the corrected model's bytes, and what it does without. ReLU keeps its output, not a mask: more
# bytes only where no convolution reads it; max pooling keeps 8-byte indices; cross_entropy the log probabilities.
VGG_RELUS = [64 * 32 * 32] * 2 + [128 * 16 * 16] * 2 + [256 * 8 * 8] * 2 + [512]
RESNET18_RELUS = [64 * 32 * 32] + [64 * 16 * 16] * 4 + [128 * 8 * 8] * 4 + [256 * 4 * 4] * 4 + [512 * 2 * 2] * 4
EAGER = {
    "VGG4bit": (
        lambda: VGG4bit(bits=32),
        (3, 32, 32),
        4 * sum(VGG_RELUS[1::2]) + 7 * sum(VGG_RELUS[1::2]) // 4 - sum(VGG_RELUS) // 8
        + 4 * 512 + 4 * 512 - 512 // 8 + 4 * 10,  # fc's ReLU; dropout's noise in floats, not bits
    ),
    "SimpleResNet4bit": (
        SimpleResNet4bit,
        (3, 32, 32),
        4 * 64 * 8 * 8 - 2 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8) // 8 - 64 // 8 + 4 * 10,
    ),
    "ResNet-18": (
        resnet18,
        (3, 64, 64),
        4 * 64 * 32 * 32 + 7 * 64 * 16 * 16 + 4 * 512 * 2 * 2 - sum(RESNET18_RELUS) // 8 + 4 * 1000,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "more"), EAGER.values(), ids=EAGER)
def test_analysis_and_eager_agree_to_the_byte(build, shape, more):
    model = build()
    assert saved_a_sample(model, shape) == profile(model, shape, corrected=True).cumulative + more


def test_measure_by_hand():
    layer, x = nn.Linear(1000, 10), torch.randn(3, 1000)

    def step():
        hidden = x.clone()  # 12,000 bytes
        y = layer(hidden).relu()  # 120 and 120; the linear layer's output goes at once
        del hidden
        return y.sum().backward()  # 4, and gradients of 120, 40,000 and 40 bytes and more

    found = measure(step)
    assert found.saved == 12_000 + 120
    layer.zero_grad(set_to_none=True)
    assert 12_000 + 40_000 + 40 <= found.peak <= 12_000 + 40_000 + 40 + 6 * 120


def test_measure_frees_what_is_freed():
    x = torch.randn(1000)

    def chain():
        y = x
        for _ in range(10):
            y = y + 1
        return y

    assert measure(chain).peak == 2 * 4000
    assert measure(lambda: x.view(10, 100).t().add_(0)).peak == 0


def profilers_peak(step):
    """The same from torch's profiler, which hears every allocation and every release."""
    with torch.profiler.profile(profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = list(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    return max(live)


def test_measure_agrees_with_the_profiler():
    """To the byte where kernels need no scratch memory; that of convolutions is a few percent."""
    perceptron = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100), nn.Sigmoid(), nn.Linear(100, 10))
    step = backward(perceptron, (300,), 50)
    assert measure(step).peak == profilers_peak(step)
    step = backward(SimpleResNet4bit(), (3, 64, 64), 4)
    assert 1 <= profilers_peak(step) / measure(step).peak < 1.03
