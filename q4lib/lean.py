"""Layers that keep for backward what the analysis says they need, and no more.

PyTorch saves the inputs of a frozen convolution and of a frozen batch norm, which no gradient needs, and a ReLU's whole
output, of which one bit an element is enough.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils.checkpoint import checkpoint

from .layers import QuantizedWeight
from .repnet import StandardizedConv, standardize


def lean(model: nn.Module) -> nn.Module:
    """A copy of `model` with the same outputs and gradients that saves less: see `LeanConv`, `LeanReLU`, `FrozenConv`.

    In an `nn.Sequential` a frozen convolution takes in the frozen batch norm in eval mode that follows it. Only a ReLU
    that is in place is replaced: the input of another may be needed.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        names = list(parent._modules)
        for name, after in zip(names, [*names[1:], ""], strict=False):
            child = parent._modules[name]
            if isinstance(child, StandardizedConv):
                child.__class__ = LeanConv
            elif isinstance(child, nn.ReLU | nn.ReLU6) and child.inplace:
                setattr(parent, name, LeanReLU(6.0 if isinstance(child, nn.ReLU6) else None))
            elif isinstance(child, nn.Conv2d) and _is_frozen(child) and _pads_with_zeros(child):
                norm = _foldable(parent._modules.get(after)) if isinstance(parent, nn.Sequential) else None
                setattr(parent, name, FrozenConv(child, norm))
                if norm:
                    setattr(parent, after, nn.Identity())
    return model


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def _pads_with_zeros(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _foldable(module: nn.Module | None) -> nn.BatchNorm2d | None:
    fixed = isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats and not module.training
    return cast(nn.BatchNorm2d, module) if fixed and _is_frozen(cast(nn.Module, module)) else None


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = x.shape, options
        return F.conv2d(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, grads[0], *ctx.options), *[None] * 6


class FrozenConv(nn.Conv2d):
    """A convolution that cannot train, the batch norm after it folded in; it saves nothing of its input."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        same: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        super().__init__(conv.in_channels, conv.out_channels, groups=conv.groups, device="meta", **same)
        weight = conv.quantized_weight() if isinstance(conv, QuantizedWeight) else conv.weight
        bias = conv.bias
        if norm is not None:
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            gain = norm.weight / (variance + norm.eps).sqrt()
            weight = weight * gain[:, None, None, None]
            bias = norm.bias + gain * ((0 if bias is None else bias) - mean)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        options = self.stride, self.padding, self.dilation, self.groups
        return _FrozenConv.apply(input, self.weight, self.bias, *options)  # type: ignore[no-any-return]


class _LeanReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float | None) -> Tensor:
        ctx.save_for_backward(pack_bits((x > 0) if limit is None else (x > 0).logical_and_(x < limit)))
        ctx.mark_dirty(x)
        return x.clamp_(0, limit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return grads[0] * unpack_bits(bits, grads[0].shape), None


class LeanReLU(nn.ReLU):
    """ReLU in place, or ReLU6 with `limit=6`: it saves one bit an element, and only where a gradient passes."""

    def __init__(self, limit: float | None = None) -> None:
        super().__init__(inplace=True)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            return _LeanReLU.apply(input, self.limit)  # type: ignore[no-any-return]
        return input.clamp_(0, self.limit)


def pack_bits(mask: Tensor) -> Tensor:
    """Eight truth values a byte, the first in the lowest bit: uint8, ceil(n / 8) of them."""
    if mask.dtype != torch.bool:
        raise TypeError(f"pack_bits packs truth values, got {mask.dtype}: give it a comparison, such as x > 0")
    flat = F.pad(mask.flatten().view(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    packed = flat[:, 0].clone()
    for place in range(1, 8):
        packed |= flat[:, place] << place
    return packed


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """The truth values that `pack_bits` packed, in their `shape`."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] >> places & 1).view(torch.bool).flatten()[: shape.numel()].view(shape)


class _LeanConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return F.conv2d(x, standardize(weight), None, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = conv2d_input(x.shape, standardize(weight), grads[0], *ctx.options)
        to_weight = standardize_backward(weight, conv2d_weight(x, weight.shape, grads[0], *ctx.options))
        return to_x, to_weight, *[None] * 4


def standardize_backward(weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the raw weight, from that of the standardized one."""
    axes, n = (1, 2, 3), weight[0].numel()
    centred, std = weight - weight.mean(axes, keepdim=True), weight.std(axes, keepdim=True)
    along = (grad * centred).sum(axes, keepdim=True) / ((n - 1) * std * (std + 1e-5))
    return (grad - grad.mean(axes, keepdim=True) - centred * along) / (std + 1e-5)


class LeanConv(StandardizedConv):
    """`StandardizedConv` that saves its input and its raw weight, and standardizes that again in backward."""

    def forward(self, input: Tensor) -> Tensor:
        options = self.stride, self.padding, self.dilation, self.groups
        return _LeanConv.apply(input, self.weight, *options)  # type: ignore[no-any-return]


class _Again(nn.Module):
    """A module that keeps its input alone, and runs once more in backward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(self.module, input, use_reentrant=False))


def checkpointed(model: nn.Module) -> nn.Module:
    """A copy of `model` whose frozen parts keep their inputs alone and run again in backward: gradient checkpointing.

    Parts that train stay as they are: batch norm in training mode would count each batch twice.
    """
    model = copy.deepcopy(model)
    parents = [model]
    for parent in parents:
        for name, child in parent.named_children():
            # A plain sequence may be walked part by part, as Rep-Net walks its features: each part is wrapped instead.
            whole = type(child) is not nn.Sequential and next(child.parameters(), None) is not None
            if whole and _is_frozen(child):
                setattr(parent, name, _Again(child))
            else:
                parents.append(child)
    return model
