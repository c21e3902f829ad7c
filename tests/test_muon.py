"""Muon against the singular value decomposition, and against torch's own on matrices."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from q4lib import QuantAwareAdamW, muon
from q4lib.muon import MuonAdamW, orthogonalize
from q4lib.recipes import RECIPES
from q4lib.step import build, train_step


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (32, 16, 3, 3), (64, 8, 1, 1)])
def test_orthogonalized_is_u_times_v_with_singular_values_near_one(shape, bf16):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = orthogonalize(g * 1e-3)
    u, _, vh = torch.linalg.svd(g.flatten(1), full_matrices=False)
    singular = torch.linalg.svdvals(found.flatten(1))
    assert found.shape == g.shape and singular.min() > 0.6 and singular.max() < 1.3
    same = (found.flatten(1) * (u @ vh)).sum() / found.norm() / (u @ vh).norm()
    assert same > 0.97
    assert not orthogonalize(torch.zeros(shape)).any()


def test_a_step_is_torch_s_own_muon_on_the_same_matrix():
    """torch's orthogonalizes in bf16 and averages its momentum: equal directions, to two digits."""
    g = torch.Generator().manual_seed(1)
    start = torch.randn(24, 40, generator=g)
    start *= 24**0.5 / start.norm()
    theirs = nn.Parameter(start.clone())
    ours = nn.Parameter(start.clone().view(24, 40, 1, 1))
    reference = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.0, momentum=0.6, adjust_lr_fn="original")
    optimizer = MuonAdamW([ours], lr=1.0, muon_lr=0.05, momentum=0.6, grad_clip=None, soft_clip=None)
    for _ in range(3):
        theirs.grad = torch.randn(24, 40, generator=g)
        ours.grad = theirs.grad.view(24, 40, 1, 1).clone()
        with torch.no_grad():  # ours scales a weight before its step, torch's does not
            theirs *= 24**0.5 / theirs.norm()
        reference.step()
        optimizer.step()
        torch.testing.assert_close(ours.view(24, 40), theirs, rtol=0, atol=5e-3)
    assert (ours.view(24, 40) - start).norm() > 0.3


def test_muon_hidden_takes_the_linear_layers_too_but_the_last():
    convolutions = [f"conv{i}_{j}.weight" for i in (1, 2, 3) for j in (1, 2)]
    for name, more in (("muon", []), ("muon_hidden", ["fc1.weight"])):
        model, optimizer = build(replace(RECIPES["fast"], optimizer=name), 10, "cpu")
        names = {id(p): name for name, p in model.named_parameters()}
        rest, muon = optimizer.param_groups
        assert [names[id(p)] for p in muon["params"]] == convolutions + more
        assert {names[id(p)] for p in rest["params"]} == set(names.values()) - {*convolutions, *more}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_multiplies_in_its_precision_and_keeps_weights_and_momenta_in_fp32(precision, monkeypatch):
    products = set()

    def watched(g):
        products.add((g.flatten(1) @ g.flatten(1).T).dtype)
        return orthogonalize(g)

    monkeypatch.setattr(muon, "orthogonalize", watched)
    model, optimizer = build(RECIPES["small"], 10, "cpu")
    train_step(model, optimizer, torch.randn(8, 3, 32, 32), torch.arange(8), precision)
    assert products == {torch.bfloat16 if precision == "bf16" else torch.float32}
    kept = [*model.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
    assert {t.dtype for t in kept} == {torch.float32}


def test_what_is_no_convolution_steps_as_quant_aware_adamw():
    g = torch.Generator().manual_seed(2)
    shapes = ((5, 4), (5,), (6, 4, 3, 3))
    ours, plain = (
        [nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(3))) for s in shapes] for _ in "ab"
    )
    settings = {"lr": 0.02, "weight_decay": 0.1, "grad_clip": None, "soft_clip": 1.0}
    optimizers = MuonAdamW(ours, **settings), QuantAwareAdamW(plain[:2], **settings)
    for _ in range(3):
        for a, b in zip(ours, plain, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b)
    assert ours[2].abs().max() < 1 and (ours[2] - plain[2]).abs().max() > 0.1
