"""The reference answers of exercises 02 and 03 against torch's own quantizer and the files that are really written."""

import pytest
import solving
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from q4lib import Conv4bit, SimpleResNet4bit
from q4lib.layers import quantized_layers
from q4lib.pack import save_model
from q4lib.quant import statistics


@pytest.fixture(scope="module")
def answers():
    """What the solutions of exercises 02 and 03 define."""
    namespace = {}
    for path in solving.SOLUTIONS:
        if path.stem[:2] in ("02", "03"):
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
