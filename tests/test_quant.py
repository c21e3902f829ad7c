"""The grid against its definition, and against writings of it that are not ours: torch's and Brevitas'."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from q4lib.quant import amax, dequantize, fake_quantize, normal_amax, qmax, quantize, scale, statistics

BITS = range(2, 9)
HALF = (torch.float16, torch.bfloat16)
some = settings(max_examples=60, deadline=None)


@st.composite
def weights(draw):
    """One to four dimensions of any float type, 1e-30 to 1e30, channels of unlike size, with zeros and ties in them."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64, *HALF]))
    shape = draw(hnp.array_shapes(max_dims=4, max_side=7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    unit = rng.normal(0, draw(st.floats(0.01, 0.6)), shape).clip(-1, 1).round(3)
    unit = np.where(rng.random(shape) < draw(st.floats(0, 0.5)), rng.integers(-14, 15, shape) / 14, unit)
    channels = (shape[0], *[1] * (len(shape) - 1))
    powers = st.floats(-3, 4) if dtype == torch.float16 else st.floats(-30, 30)
    power = draw(powers | hnp.arrays(np.float64, channels, elements=powers))
    return torch.from_numpy(unit * 10.0**power).to(dtype)


grids = given(w=weights(), bits=st.integers(2, 8), per_channel=st.booleans())


def channels(w, per_channel):
    """The parts of `w` that have a grid each."""
    return list(w) if per_channel and w.dim() > 1 else [w]


def ulp(a):
    info = torch.finfo(a.dtype)
    return a.double().clamp_min(info.smallest_normal).log2().floor().exp2() * info.eps


class TestProperties:
    @some
    @grids
    def test_idempotent(self, w, bits, per_channel):
        wq = fake_quantize(w, bits, per_channel)
        assert torch.equal(fake_quantize(wq, bits, per_channel), wq)

    @some
    @grids
    def test_odd(self, w, bits, per_channel):
        assert torch.equal(fake_quantize(-w, bits, per_channel), -fake_quantize(w, bits, per_channel))

    @some
    @grids
    def test_monotone(self, w, bits, per_channel):
        wq = fake_quantize(w, bits, per_channel)
        for x, xq in zip(channels(w, per_channel), channels(wq, per_channel), strict=True):
            assert (xq.flatten()[x.flatten().argsort()].diff() >= 0).all()

    @some
    @grids
    def test_error_is_at_most_half_a_step_and_an_ulp(self, w, bits, per_channel):
        wq = fake_quantize(w, bits, per_channel)
        for x, xq in zip(channels(w, per_channel), channels(wq, per_channel), strict=True):
            a = x.abs().max()
            step = a.double() / (2 ** (bits - 1) - 1)
            assert ((x.double() - xq.double()).abs() <= step / 2 + ulp(a)).all()

    @some
    @grids
    def test_few_levels_of_the_same_shape_and_type(self, w, bits, per_channel):
        wq = fake_quantize(w, bits, per_channel)
        assert (wq.shape, wq.dtype) == (w.shape, w.dtype)
        assert all(len(xq.unique()) <= 2**bits - 1 for xq in channels(wq, per_channel))

    @some
    @grids
    def test_per_channel_is_per_tensor_on_each_channel(self, w, bits, per_channel):
        if w.dim() > 1:
            each = torch.stack([fake_quantize(channel, bits) for channel in w])
            assert torch.equal(fake_quantize(w, bits, per_channel=True), each)

    @some
    @grids
    def test_the_range_for_normal_weights(self, w, bits, per_channel):
        """NumPy's own root mean square, in fp64; never wider than the largest weight."""
        steps = scale(w, bits, per_channel, normal_range=True)
        assert steps.shape == scale(w, bits, per_channel).shape
        for x, step in zip(channels(w, per_channel), steps.flatten(), strict=True):
            x = x.double().numpy()
            span = min(np.abs(x).max(), normal_amax(bits) * np.sqrt(np.mean(x**2)))
            assert step.item() * (2 ** (bits - 1) - 1) == pytest.approx(span, rel=1e-6, abs=1e-37)


@pytest.mark.parametrize("bits", range(2, 6))
def test_the_range_for_normal_weights_is_the_best(bits):
    """SciPy integrates the squared error and finds its minimum; J. Max, 1960, has steps 1.224, 0.651, 0.353, 0.193."""
    q = 2 ** (bits - 1) - 1

    def error(span):
        def squared(x):
            return (x - np.clip(np.rint(x * q / span), -q, q) * span / q) ** 2 * norm.pdf(x)

        edges = [(code + 0.5) * span / q for code in range(q)]
        return quad(squared, 0, 9, points=edges, limit=200)[0]

    best = minimize_scalar(error, bounds=(1, 5), method="bounded").x
    assert normal_amax(bits) == pytest.approx(best, rel=0.003)


@pytest.mark.parametrize("bits", BITS)
def test_every_fp32_maximum_gives_its_own_scale_back(bits):
    """All 2**23 mantissas: a packed weight, quantized again by the layer that loads it, must not move by an ulp."""
    a = torch.arange(2**23, 2**24, dtype=torch.int32).float().view(-1, 1)
    s = scale(a, bits, per_channel=True)
    assert torch.equal(scale(qmax(bits) * s, bits, per_channel=True), s)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_half_precision_is_quantized_in_fp32(bits, per_channel, dtype):
    """bf16 has 8 bits of mantissa: a scale or a quotient kept in it would round to a wrong code now and then."""
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(bits)).to(dtype)
    codes = quantize(w, scale(w, bits, per_channel), bits)
    assert torch.equal(codes, quantize(w.float(), scale(w.float(), bits, per_channel), bits))
    assert torch.equal(fake_quantize(w, bits, per_channel), fake_quantize(w.float(), bits, per_channel).to(dtype))


@pytest.mark.parametrize("bits", BITS)
def test_every_level_is_reached_and_its_borders_lie_halfway(bits):
    q = 2 ** (bits - 1) - 1
    w = torch.arange(-2 * q, 2 * q + 1) / 2
    codes = quantize(w, scale(w, bits), bits)
    assert codes.dtype == torch.int8
    assert codes.tolist() == [round(x) for x in w.tolist()], "ties go to the even code, as Python's round does"
    assert (qmax(bits), codes.min(), codes.max(), len(codes.unique())) == (q, -q, q, 2**bits - 1)


def test_equations_by_hand():
    """max |w| = 0.9, so a step is 0.9 / 7: the paper divides by 7, not by 8 or 7.5."""
    w = torch.tensor([[0.9, -0.45, 0.0, 0.1], [-0.2, 0.06, 0.07, 0.3]])
    assert amax(w) == torch.tensor(0.9)
    assert scale(w).item() == pytest.approx(0.9 / 7)
    codes = quantize(w, scale(w))
    assert codes.tolist() == [[7, -4, 0, 1], [-2, 0, 1, 2]]
    torch.testing.assert_close(dequantize(codes, scale(w)), codes * 0.9 / 7)
    assert torch.equal(fake_quantize(w), dequantize(codes, scale(w)))
    assert scale(w, per_channel=True).shape == (2, 1)
    assert quantize(w, scale(w, per_channel=True)).tolist() == [[7, -4, 0, 1], [-5, 1, 2, 7]]


def test_quantize_clamps_to_a_range_that_is_given():
    """A lesson moves the range inwards and cuts the outliers."""
    w = torch.tensor([-5.0, -0.3, 0.1, 80.0, 1e30])
    assert quantize(w, torch.tensor(0.1)).tolist() == [-7, -3, 1, 7, 7]
    assert quantize(w, torch.tensor(0.0)).tolist() == [0, 0, 0, 0, 0]


class TestAgainstOthers:
    SHAPES = ((16, 8, 3, 3), (32, 65), (7, 1), (1, 1))

    @staticmethod
    def samples():
        for seed, shape in enumerate(TestAgainstOthers.SHAPES):
            for size in (1e-3, 1.0, 300.0):
                w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
                w.view(-1)[::9] = w.view(-1)[0]
                w.view(-1)[::7] = 0
                yield w

    @staticmethod
    def check(theirs, w, bits, per_channel):
        """Codes are equal, except within 1e-5 of a tie, where they may differ by one."""
        s = scale(w, bits, per_channel)
        away = (quantize(w, s, bits).int() - theirs.int()).abs()
        ratio = w.double() / s.double().masked_fill(s == 0, 1)
        tie = (ratio - ratio.floor() - 0.5).abs() < 1e-5
        assert (away <= tie.int()).all()
        assert tie.double().mean() < 0.05 or w.numel() < 10, "hardly anything was compared"

    @pytest.mark.parametrize("bits", BITS)
    def test_torch_fake_quantize_per_tensor(self, bits):
        q = 2 ** (bits - 1) - 1
        for w in self.samples():
            s = (w.abs().max() / q).item()
            theirs = torch.fake_quantize_per_tensor_affine(w, s or 1.0, 0, -q, q)
            self.check((theirs / (s or 1.0)).round(), w, bits, per_channel=False)

    @pytest.mark.parametrize("bits", BITS)
    def test_torch_fake_quantize_per_channel(self, bits):
        q = 2 ** (bits - 1) - 1
        for w in self.samples():
            s = w.flatten(1).abs().amax(1) / q
            s[s == 0] = 1
            theirs = torch.fake_quantize_per_channel_affine(w, s, torch.zeros(len(w), dtype=torch.int32), 0, -q, q)
            self.check((theirs / s.view(-1, *[1] * (w.dim() - 1))).round(), w, bits, per_channel=True)

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
    @pytest.mark.parametrize("bits", BITS)
    def test_torch_integers(self, bits):
        for w in self.samples():
            s = (w.abs().max() / (2 ** (bits - 1) - 1)).item() or 1.0
            self.check(torch.quantize_per_tensor(w, s, 0, torch.qint8).int_repr(), w, bits, per_channel=False)

    @pytest.mark.parametrize("bits", BITS)
    def test_numpys_division_to_the_last_tie(self, bits):
        """At ties of any scale the codes are those of a true division: a reciprocal would round some the other way."""
        q = 2 ** (bits - 1) - 1
        for s in torch.linspace(0.01, 1, 100):
            w = torch.arange(-2 * q, 2 * q + 1) / 2 * s
            assert quantize(w, s, bits).tolist() == np.rint(w.numpy() / s.numpy()).tolist()

    @pytest.mark.parametrize("per_channel", [False, True])
    @pytest.mark.parametrize("bits", BITS)
    def test_brevitas_narrow_range_weights(self, bits, per_channel):
        from brevitas import quant
        from brevitas.nn import QuantConv2d

        theirs = quant.Int8WeightPerChannelFloat if per_channel else quant.Int8WeightPerTensorFloat
        layer = QuantConv2d(8, 16, 3, weight_quant=theirs.let(bit_width=bits))
        assert layer.weight_quant.is_narrow_range and layer.weight_quant.is_signed
        for w in [w for w in self.samples() if w.shape == layer.weight.shape]:
            layer.weight.data.copy_(w)
            quantized = layer.quant_weight()
            torch.testing.assert_close(scale(w, bits, per_channel), quantized.scale.detach())
            self.check(quantized.int(), w, bits, per_channel)


class TestGradient:
    @pytest.mark.parametrize("per_channel", [False, True])
    @pytest.mark.parametrize("bits", BITS)
    def test_is_exactly_that_of_the_quantized_weight(self, bits, per_channel):
        torch.manual_seed(bits)
        w = torch.randn(6, 4, 3, 3).mul_(3).requires_grad_()
        x = torch.randn(2, 4, 5, 5)
        wq = fake_quantize(w, bits, per_channel)
        leaf = wq.detach().clone().requires_grad_()
        for weight in (wq, leaf):
            torch.nn.functional.conv2d(x, weight).sin().square().sum().backward()
        assert torch.equal(w.grad, leaf.grad)
        assert w.grad.abs().max() > 0

    @pytest.mark.parametrize("per_channel", [False, True])
    @pytest.mark.parametrize("bits", BITS)
    def test_is_equation_8(self, bits, per_channel):
        """`w + (wq - w).detach()`: the difference is exact, for wq is 0 or between w / 2 and 2 w."""
        for dtype in (torch.float32, torch.float64):
            w = torch.randn(64, 99, dtype=dtype, requires_grad=True)
            wq = fake_quantize(w, bits, per_channel)
            assert torch.equal(w + (wq - w).detach(), wq)

    def test_is_one_at_the_largest_weight_at_zero_and_in_an_all_zero_tensor(self):
        for w in (torch.tensor([0.0, -3.0, 3.0, 1e-9, 1.5]), torch.zeros(5)):
            w.requires_grad_()
            fake_quantize(w).sum().backward()
            assert torch.equal(w.grad, torch.ones(5))

    def test_weight_is_not_changed(self):
        w = torch.randn(5, 5)
        w[0, 0] = 7.0  # a scale of 1: dividing by it may return the tensor itself
        before = w.clone()
        fake_quantize(w.requires_grad_()).sum().backward()
        statistics(w)
        assert torch.equal(w, before)


class TestEdges:
    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("per_channel", [False, True])
    def test_zeros_stay_zeros(self, bits, per_channel):
        for shape in ((3, 4), (5,), (1, 1, 1, 1), ()):
            assert torch.equal(fake_quantize(torch.zeros(shape), bits, per_channel), torch.zeros(shape))

    def test_one_channel_of_zeros(self):
        w = torch.tensor([[0.0, 0.0], [1.0, -3.0]])
        wq = fake_quantize(w, per_channel=True)
        assert wq[0].tolist() == [0, 0]
        assert torch.equal(wq[1], fake_quantize(w[1]))

    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1)])
    def test_one_weight_is_its_own_maximum(self, bits, shape):
        for value in (0.3, -1e-30, 7.0, -1e30):
            w = torch.full(shape, value)
            torch.testing.assert_close(fake_quantize(w, bits, bool(shape)), w, rtol=1.2e-7, atol=0)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
    def test_nan_and_infinity_are_errors(self, value, dtype):
        w = torch.ones(3, 4, dtype=dtype)
        w[1, 2] = value
        for use in (amax, scale, fake_quantize, statistics):
            for per_channel in (False, True):
                with pytest.raises(ValueError, match="nan or infinite"):
                    use(w, per_channel=per_channel)

    @pytest.mark.parametrize("bits", [1, 9, 0, -4, 32, 4.0, True, "4", None])
    def test_bits_that_are_not_2_to_8_are_errors(self, bits):
        w = torch.ones(3)
        for use in (qmax, lambda b: scale(w, b), lambda b: quantize(w, torch.tensor(1.0), b),
                    lambda b: fake_quantize(w, b), lambda b: statistics(w, b)):  # fmt: skip
            with pytest.raises(ValueError, match=r"bits must be 2\.\.8, got " + repr(bits)):
                use(bits)

    def test_memory_format_is_kept(self):
        w = torch.randn(4, 5, 3, 3).contiguous(memory_format=torch.channels_last)
        assert fake_quantize(w).is_contiguous(memory_format=torch.channels_last)


class TestStatistics:
    @some
    @grids
    def test_equal_plain_sums(self, w, bits, per_channel):
        got = statistics(w, bits, per_channel)
        exact, wq = w.double().numpy(), fake_quantize(w, bits, per_channel).double().numpy()
        grid = quantize(w, scale(w, bits, per_channel), bits).flatten().tolist()
        share = [count / len(grid) for count in Counter(grid).values()]
        assert got["levels"] == len(share)
        assert got["entropy"] == pytest.approx(-sum(p * math.log2(p) for p in share), abs=1e-6)
        assert got["zeros"] == pytest.approx(grid.count(0) / len(grid))
        assert got["amax"] == abs(exact).max()
        signal, noise = (exact**2).sum(), ((exact - wq) ** 2).sum()
        expected = 10 * math.log10(signal / noise) if noise and signal else math.inf
        assert got["sqnr"] == pytest.approx(expected, abs=1e-3)

    def test_by_hand(self):
        """Codes 7, -7, 4, 0 of a step of 1: four levels of a quarter each; the only error is 0.25."""
        got = statistics(torch.tensor([7.0, -7.0, 4.25, 0.0]))
        sqnr = 10 * math.log10((49 + 49 + 4.25**2) / 0.25**2)
        assert got == {"levels": 4, "entropy": 2.0, "zeros": 0.25, "sqnr": pytest.approx(sqnr), "amax": 7.0}

    def test_one_level_has_no_entropy(self):
        got = statistics(torch.zeros(9))
        assert got == {"levels": 1, "entropy": 0.0, "zeros": 1.0, "sqnr": math.inf, "amax": 0.0}
        assert math.copysign(1, got["entropy"]) == 1, "-0.0 would be shown in a lesson"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
    def test_weights_already_on_the_grid_have_no_error(self, dtype):
        torch.manual_seed(0)
        for per_channel in (False, True):
            wq = fake_quantize(torch.randn(50, 20).to(dtype), per_channel=per_channel)
            assert statistics(wq, per_channel=per_channel)["sqnr"] == math.inf

    def test_every_level_in_use(self):
        assert statistics(torch.linspace(-1, 1, 10_001))["levels"] == 15
        assert statistics(torch.linspace(-1, 1, 10_001), bits=8)["levels"] == 255
        assert statistics(torch.linspace(-1, 1, 10_001))["entropy"] == pytest.approx(math.log2(14) + 1 / 14, abs=1e-2)
