"""QuantAwareAdamW against torch's own AdamW with the paper's other two parts written out around it."""

import copy
import io
import math
from itertools import product

import pytest
import torch
from torch import nn

from q4lib import QuantAwareAdamW
from q4lib.optim import soft_clip_

CHANNELS_LAST = torch.channels_last
# fused, which one must ask for, wants every tensor of a parameter to lie in memory alike
ANY_LAYOUT = pytest.mark.parametrize("how", [{}, {"foreach": False}], ids=str)
IMPLEMENTATIONS = pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
# A stronger decay and a higher rate than the paper's, so that leaving a part out shows within ten steps.
STRONG = {"lr": 0.02, "weight_decay": 0.1}


def tensors(seed, memory_format=torch.contiguous_format):
    """Weights or gradients of a conv, a linear layer, their biases and a scalar; every other draw is large."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((6, 5, 3, 3), (6,), (4, 7), (4,), ())
    drawn = [torch.randn(shape, generator=g) * (2 if seed % 2 == 0 else 0.01) for shape in shapes]
    return [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in drawn]


def parameters(memory_format=torch.contiguous_format):
    return [nn.Parameter(t) for t in tensors(0, memory_format)]


def take_steps(optimizer, params, seeds, memory_format=torch.contiguous_format):
    for seed in seeds:
        for p, grad in zip(params, tensors(seed, memory_format), strict=True):
            p.grad = grad
        optimizer.step()


@torch.no_grad()
def plain_steps(params, seeds, grad_clip, soft_clip, **adamw):
    """The same ten steps from torch's AdamW alone: the parts around it, in plain words."""
    optimizer = torch.optim.AdamW(params, foreach=False, **adamw)
    for seed in seeds:
        grads = tensors(seed)
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        factor = 1.0 if grad_clip is None else min(1.0, grad_clip / norm)
        for p, g in zip(params, grads, strict=True):
            p.grad = g * factor
        optimizer.step()
        for p in params:
            if soft_clip is not None and p.dim() >= 2:
                p.copy_(soft_clip * torch.tanh(p / soft_clip))


def assert_alike(params, expected):
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e.detach(), rtol=2e-5, atol=2e-6)


@IMPLEMENTATIONS
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=["contiguous", "channels_last"])
def test_is_torchs_adamw_between_the_parts(how, memory_format):
    for grad_clip, soft_clip, weight_decay in product((None, 0.5), (None, 3.0), (0.0, 0.1)):
        parts = {"grad_clip": grad_clip, "soft_clip": soft_clip, "weight_decay": weight_decay, "lr": 0.02}
        params, expected = parameters(memory_format), parameters()
        take_steps(QuantAwareAdamW(params, **parts, **how), params, range(1, 11), memory_format)
        plain_steps(expected, range(1, 11), **parts)
        assert_alike(params, expected)
        assert params[0].is_contiguous(memory_format=memory_format)


def test_every_part_shows():
    """That no two of these settings end alike: else the test above would compare nothing."""
    ends = []
    for grad_clip, soft_clip, weight_decay in product((None, 0.5), (None, 3.0), (0.0, 0.1)):
        ends.append(parameters())
        plain_steps(ends[-1], range(1, 11), grad_clip, soft_clip, weight_decay=weight_decay, lr=0.02)
    for i, j in product(range(8), range(8)):
        assert i == j or (ends[i][0] - ends[j][0]).abs().max() > 1e-3


def test_defaults_are_the_papers():
    params, expected = parameters(), parameters()
    take_steps(QuantAwareAdamW(params), params, range(1, 11))
    plain_steps(expected, range(1, 11), 0.5, 3.0, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=5e-4)
    assert_alike(params, expected)
    group = QuantAwareAdamW(params).param_groups[0]
    assert {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 5e-4}.items() <= group.items()


@ANY_LAYOUT
@pytest.mark.parametrize("weight, grad", [("contiguous", "channels_last"), ("channels_last", "contiguous")])
def test_a_gradient_may_lie_in_memory_unlike_its_weight(how, weight, grad):
    """torch's fused CPU step reads raw memory without looking at strides."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": CHANNELS_LAST}
    params, expected = parameters(formats[weight]), parameters()
    take_steps(QuantAwareAdamW(params, **STRONG, **how), params, range(1, 4), formats[grad])
    plain_steps(expected, range(1, 4), 0.5, 3.0, **STRONG)
    assert_alike(params, expected)


@ANY_LAYOUT
def test_a_model_may_change_its_memory_format_mid_run(how):
    params, expected = parameters(), parameters()
    optimizer = QuantAwareAdamW(params, **STRONG, **how)
    take_steps(optimizer, params, range(1, 4))
    params[0].data = params[0].data.contiguous(memory_format=CHANNELS_LAST)
    take_steps(optimizer, params, range(4, 7), CHANNELS_LAST)
    plain_steps(expected, range(1, 7), 0.5, 3.0, **STRONG)
    assert_alike(params, expected)


@IMPLEMENTATIONS
def test_several_groups(how):
    """Each has its own rate, decay and soft clip; the gradient's norm is one over all of them."""
    params, expected = parameters(), parameters()
    second = {"lr": 0.05, "weight_decay": 0.2, "soft_clip": None}
    optimizer = QuantAwareAdamW([{"params": params[:2]}], **STRONG, **how)
    optimizer.add_param_group({"params": params[2:], **second})
    take_steps(optimizer, params, range(1, 6))

    plain = torch.optim.AdamW(
        [{"params": expected[:2]}, {"params": expected[2:], "lr": 0.05, "weight_decay": 0.2}], foreach=False, **STRONG
    )
    for seed in range(1, 6):
        for p, grad in zip(expected, tensors(seed), strict=True):
            p.grad = grad
        nn.utils.clip_grad_norm_(expected, 0.5)
        plain.step()
        expected[0].data = 3 * torch.tanh(expected[0].data / 3)
    assert_alike(params, expected)

    again = QuantAwareAdamW([{"params": params[:2]}, {"params": params[2:], **second}])
    assert [group["soft_clip"] for group in again.param_groups] == [3.0, None]


def test_closure_is_called_once_with_gradients_on():
    params, calls = parameters(), []
    optimizer = QuantAwareAdamW(params, **STRONG)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    before = sum(p.square().sum() for p in params)
    assert optimizer.step(closure) == before
    assert calls == [True]
    assert sum(p.square().sum() for p in params) < before
    assert optimizer.step() is None


def test_gradients_are_left_clipped():
    """To norm 0.5 when they are longer, untouched when they are shorter."""
    for seed, long in ((2, True), (1, False)):
        params = parameters()
        take_steps(QuantAwareAdamW(params), params, [seed])
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in params))
        before = math.sqrt(sum(g.square().sum().item() for g in tensors(seed)))
        assert (before > 0.5) == long
        assert norm == pytest.approx(0.5 if long else before, rel=1e-5)


def test_a_parameter_without_a_gradient_is_left_alone():
    frozen, free = parameters(), parameters()
    start = copy.deepcopy(frozen)
    optimizer = QuantAwareAdamW([*frozen, *free], **STRONG)
    take_steps(optimizer, free, range(1, 4))
    assert all(torch.equal(p, q) for p, q in zip(frozen, start, strict=True))
    assert not torch.equal(free[0], start[0])


def through_torch_save(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()))


def laid_out_plainly(state):
    """As safetensors keeps it: every tensor contiguous."""
    moments = {i: {key: t.clone(memory_format=torch.contiguous_format) for key, t in s.items()}
               for i, s in state["state"].items()}  # fmt: skip
    return {"state": moments, "param_groups": state["param_groups"]}


@ANY_LAYOUT
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("keep", [copy.deepcopy, through_torch_save, laid_out_plainly])
def test_state_dict_goes_on_bit_for_bit(how, memory_format, keep):
    whole = parameters(memory_format)
    optimizer = QuantAwareAdamW(whole, grad_clip=0.3, soft_clip=2.0, **STRONG, **how)
    take_steps(optimizer, whole, range(1, 6), memory_format)
    state, resumed = keep(optimizer.state_dict()), copy.deepcopy(whole)
    take_steps(optimizer, whole, range(6, 11), memory_format)

    optimizer = QuantAwareAdamW(resumed, **how)
    optimizer.load_state_dict(state)
    assert {"grad_clip": 0.3, "soft_clip": 2.0, **STRONG}.items() <= optimizer.param_groups[0].items()
    take_steps(optimizer, resumed, range(6, 11), memory_format)
    assert all(torch.equal(p, q) for p, q in zip(resumed, whole, strict=True))


def test_goes_on_from_the_state_of_torchs_adamw():
    """Its state knows no clips: those given when this one was made hold."""
    params = parameters()
    before = torch.optim.AdamW(params, **STRONG)
    take_steps(before, params, [1])
    optimizer = QuantAwareAdamW(params, grad_clip=0.3, soft_clip=None)
    optimizer.load_state_dict(before.state_dict())
    take_steps(optimizer, params, [2])
    assert (optimizer.param_groups[0]["grad_clip"], optimizer.param_groups[0]["soft_clip"]) == (0.3, None)


def test_a_scheduler_sets_the_rate():
    params = parameters()
    optimizer = QuantAwareAdamW(params, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    take_steps(optimizer, params, [1])
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    schedule.step()
    before = copy.deepcopy(params)
    take_steps(optimizer, params, [2])
    assert torch.equal(params[1], before[1]), "a rate of 0 moves no bias"
    assert not torch.equal(params[0], before[0]), "the soft clip acts at any rate"


@pytest.mark.parametrize("bad", [
    {"grad_clip": 0}, {"grad_clip": -0.5}, {"grad_clip": math.nan}, {"soft_clip": 0.0}, {"soft_clip": -3},
    {"soft_clip": math.nan}, {"soft_clip": math.inf}, {"lr": -1.0}, {"weight_decay": -1.0}, {"eps": -1.0},
    {"betas": (1.5, 0.9)},
], ids=str)  # fmt: skip
def test_bad_options_are_errors(bad):
    params = parameters()
    with pytest.raises(ValueError, match=next(iter(bad)).replace("lr", "learning rate").replace("betas", "beta")):
        QuantAwareAdamW(params, **bad)
    if "clip" in next(iter(bad)):
        with pytest.raises(ValueError, match="clip must be"):
            QuantAwareAdamW([{"params": params, **bad}])


class TestSoftClip:
    def test_is_3_tanh_of_a_third(self):
        w = torch.linspace(-20, 20, 1001, dtype=torch.float64)
        expected = [3 * math.tanh(x / 3) for x in w.tolist()]
        soft_clip_([w])
        assert w.tolist() == pytest.approx(expected)

    @pytest.mark.parametrize("c", [0.5, 1.0, 3.0])
    def test_takes_w_cubed_off_a_small_weight(self, c):
        """`w**3 / (3 c**2)`: w**3 / 27 at the paper's c = 3."""
        w = torch.tensor([0.01, -0.02, 0.05], dtype=torch.float64) * c
        before = w.clone()
        soft_clip_([w], c)
        torch.testing.assert_close(before - w, before**3 / (3 * c**2), rtol=2e-3, atol=0)

    @pytest.mark.parametrize("c", [0.5, 3.0])
    def test_is_bounded_odd_and_monotone(self, c):
        w = torch.cat([torch.linspace(-30, 30, 999), torch.tensor([-1e30, 1e30, 0.0])])
        clipped, negative = w.clone(), -w
        soft_clip_([clipped, negative], c)
        assert clipped.abs().max() <= c
        assert torch.equal(negative, -clipped)
        assert (clipped[w.argsort()].diff() >= 0).all()
        assert (clipped.abs() <= w.abs() * (1 + 3e-7)).all()

    def test_works_in_place_whatever_the_layout_and_without_gradients(self):
        p = nn.Parameter(torch.randn(3, 4, 2, 2).contiguous(memory_format=CHANNELS_LAST))
        expected, where = 3 * torch.tanh(p.detach() / 3), p.data_ptr()
        soft_clip_(iter([p]))
        torch.testing.assert_close(p.detach(), expected)
        assert p.data_ptr() == where and p.is_contiguous(memory_format=CHANNELS_LAST) and p.is_leaf
