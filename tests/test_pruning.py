"""Which blocks and channels, how many, and the pruned network against torch-pruning's."""

import copy
import math

import pytest
import torch
import torch_pruning
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from q4lib.memory import profile
from q4lib.mobilenet import mobilenet
from q4lib.pruning import channel_norms, hidden_layers, kept_width, prune, sensitive_blocks, solve_ratios
from q4lib.repnet import RepNet

IMAGE = (3, 96, 96)
RATIOS = {"features.1": 0.3, "features.2": 0.78, "features.3": 0.46, "features.4": 0.46}
PARAMETERS = 3_491_627


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mobilenet_v2()


@pytest.fixture(scope="module")
def norms(model):
    return channel_norms(model, [torch.randn(2, 3, 64, 64)])


@pytest.fixture(scope="module")
def whole(model):
    return profile(RepNet(model), (3, 224, 224))


def widths(model):
    return {name: layers[4].in_channels for name, layers in hidden_layers(model).items()}


def test_sensitive_blocks_are_the_papers(whole):
    assert sensitive_blocks(whole) == ["features.0", *RATIOS]


def test_norms_are_those_of_all_batches(model):
    images, seen = torch.randn(3, 3, 64, 64), {}
    module = model.features[3].conv[1]
    hook = module.register_forward_hook(lambda _, x, y: seen.update(y=y))
    before = copy.deepcopy(model.state_dict())
    found = channel_norms(model, images.split(2))
    hook.remove()
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(found) == [f"features.{i}" for i in range(1, 18)]
    evaluated = copy.deepcopy(model).eval()
    hidden = evaluated.features[3].conv[:2](evaluated.features[:3](images))
    expected = hidden.transpose(0, 1).flatten(1).norm(dim=1)
    assert torch.allclose(found["features.3"].float(), expected, rtol=1e-5)


def test_prunes_as_torch_pruning_does(model, norms):
    """Their dependency graph finds by itself which tensors a channel runs through."""
    ours, theirs = prune(model, RATIOS, norms), copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, torch.randn(1, 3, 64, 64))
    for name, ratio in RATIOS.items():
        maker = hidden_layers(theirs)[name][0]
        weakest = norms[name].argsort()[: math.ceil(len(norms[name]) * ratio - 1e-9)].tolist()
        graph.get_pruning_group(maker, torch_pruning.prune_conv_out_channels, weakest).prune()
    assert widths(ours) == widths(theirs) == widths(model) | dict(zip(RATIOS, (22, 21, 77, 77), strict=True))
    expected = dict(theirs.named_parameters())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in expected.values()) == PARAMETERS
    assert all(torch.equal(p, expected[name]) for name, p in ours.named_parameters())
    images = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        assert torch.equal(ours.train(mode).features(images), theirs.train(mode).features(images))
    assert sum(p.numel() for p in model.parameters()) == 3_504_872, "the caller's model is whole"


def test_what_goes_is_what_a_mask_would_silence(model, norms):
    """The pruned network is the whole one with the weakest channels silent where the projection reads them."""
    masked = copy.deepcopy(model).eval()
    for name in RATIOS:
        weakest = norms[name].argsort()[: len(norms[name]) - widths(prune(model, RATIOS, norms))[name]]
        nn.init.zeros_(hidden_layers(masked)[name][4].weight[:, weakest])
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(prune(model, RATIOS, norms).eval()(images), masked(images), atol=1e-5)


def test_pruned_networks_train_and_keep_what_was_frozen(model, norms):
    pruned = prune(RepNet(model), RATIOS, norms)
    pruned(torch.randn(2, 3, 64, 64)).sum().backward()
    backbone = [p for name, p in pruned.named_parameters() if ".side." not in name and not name.startswith("head")]
    assert not any(p.requires_grad for p in backbone)
    assert sum(p.numel() for p in backbone) == PARAMETERS - 1280 * 1000 - 1000
    whole = prune(model, RATIOS, norms)
    whole(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad.shape == p.shape for p in whole.parameters())


def with_widths(model, chosen):
    full = widths(model)
    ratios = {name: 1 - width / full[name] for name, width in chosen.items()}
    return profile(prune(model, ratios, {name: torch.arange(full[name]) for name in chosen}), IMAGE)


def test_a_first_block_that_adds_its_input_keeps_it():
    """At a quarter of the width the stem gives as many channels as block 1; pruned, they could not be added."""
    narrow = mobilenet(5, width=0.25)
    widths = {name: layers[4].in_channels for name, layers in hidden_layers(narrow).items()}
    assert "features.1" not in widths and len(widths) == 16
    smaller = prune(narrow, dict.fromkeys(widths, 0.5), {name: torch.rand(width) for name, width in widths.items()})
    assert smaller(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    ratios = solve_ratios(RepNet(narrow), (3, 32, 32))
    assert ratios and "features.1" not in ratios and all(0 < ratio < 1 for ratio in ratios.values())
    with pytest.raises(ValueError, match="'features.1' has no channels to prune"):
        prune(narrow, {"features.1": 0.1}, {})


def test_solved_ratios_are_the_smallest(model):
    """Every block is at or under the peak of the blocks left alone; one channel more in any block, and it is not."""
    repnet = RepNet(model)
    ratios = solve_ratios(repnet, IMAGE)
    assert list(ratios) == list(RATIOS)
    chosen = {name: kept_width(name, widths(model)[name], ratio) for name, ratio in ratios.items()}
    found = with_widths(repnet, chosen)
    assert found.peak == max(block.peak for block in found.blocks[5:])
    assert 0.6 < 1 - found.peak / profile(repnet, IMAGE).peak < 0.7
    for name in chosen:
        wider = with_widths(repnet, chosen | {name: chosen[name] + 1})
        assert wider.peak > max(block.peak for block in wider.blocks[5:])


def test_a_target_is_reached(model):
    repnet = RepNet(model)
    ratios = solve_ratios(repnet, IMAGE, 450_000)
    chosen = {name: kept_width(name, widths(model)[name], ratio) for name, ratio in ratios.items()}
    assert 440_000 < with_widths(repnet, chosen).peak <= 450_000
    with pytest.raises(ValueError, match=r"the blocks that are not pruned need 3.*,.* the target 250,000 is too low"):
        solve_ratios(repnet, IMAGE, 250_000)
    with pytest.raises(ValueError, match=r"features.1 with one channel needs .* bytes: the target 1,000 is too low"):
        solve_ratios(repnet, IMAGE, 1e3)


def test_nothing_to_prune_where_everything_trains(model):
    """A trained network saves more than any block needs to run: no block is sensitive."""
    assert solve_ratios(model, (3, 64, 64)) == {}
    with pytest.raises(ValueError, match="the blocks that are not pruned need .* the target 1,000 is too low"):
        solve_ratios(model, (3, 64, 64), 1000)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"features.2": 1.0}, r"the pruning ratio of features.2 must be in \[0, 1\), got 1.0"),
        ({"features.2": -0.1}, r"must be in \[0, 1\), got -0.1"),
        ({"features.2": math.nan}, r"must be in \[0, 1\), got nan"),
        ({"features.2": 0.995}, "0.995 leaves features.2 none of its 96 channels: take a smaller one"),
        ({"features.0": 0.5}, "'features.0' has no channels to prune, the blocks that have are features.1, "),
    ],
)
def test_bad_ratios(model, norms, ratios, message):
    with pytest.raises(ValueError, match=message):
        prune(model, ratios, norms)


def test_other_norms_and_networks(model, norms):
    with pytest.raises(ValueError, match="features.2 has 96 hidden channels, and norms has 95 numbers for it"):
        prune(model, RATIOS, norms | {"features.2": norms["features.2"][1:]})
    with pytest.raises(ValueError, match="features.1 has 32 hidden channels, and norms has 0 numbers for it"):
        prune(model, RATIOS, {})
    with pytest.raises(ValueError, match="pruning knows the blocks of torchvision's MobileNetV2, and ResNet has none"):
        prune(resnet18(), RATIOS, norms)


@pytest.mark.parametrize("width", [1, 7, 32, 96, 100, 144])
def test_a_width_survives_its_ratio(width):
    assert [kept_width("block", width, 1 - kept / width) for kept in range(1, width + 1)] == [*range(1, width + 1)]
