"""Layers whose weights pass through the grid: drop-in for torch's, with the paper's initialization (III-A to III-C)."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .quant import fake_quantize, qmax, scale

FP32 = 32


class QuantizedWeight(nn.Module):
    """What both layers share: `bits` (2..8, or 32 for the FP32 twin), `per_channel`, and the weight on its grid."""

    weight: Tensor
    bias: Any
    fan_in_gain = 1.0
    fixed_scale: Tensor | None = None
    normal_range = False

    def __init__(self, *args: Any, bits: int = 4, per_channel: bool = False, **kwargs: Any) -> None:
        if bits != FP32:
            qmax(bits)
        super().__init__(*args, **kwargs)
        self.bits, self.per_channel = bits, per_channel
        self.name = type(self).__name__

    def reset_parameters(self) -> None:
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=(self.fan_in_gain / fan_in) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def quantized_weight(self) -> Tensor:
        """The weight that the forward pass uses: `weight` on its grid, same shape. ValueError names the layer."""
        if self.bits == FP32:
            return self.weight
        return fake_quantize(self.weight, self.bits, step=self.scale())

    def scale(self) -> Tensor:
        """The grid's step: that of the weight as it is now, or `fixed_scale` if set. ValueError names the layer."""
        if self.fixed_scale is not None:
            return self.fixed_scale
        try:
            return scale(self.weight, self.bits, self.per_channel, self.normal_range)
        except ValueError as error:
            raise ValueError(f"layer {self.name}: {error}") from None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}" + (", per_channel=True" if self.per_channel else "")


class Conv4bit(QuantizedWeight, nn.Conv2d):
    """`nn.Conv2d` with its weight (out, in, kh, kw) on the grid; starts normal, variance 2 / (in * kh * kw)."""

    fan_in_gain = 2.0

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self._conv_forward(input, self.quantized_weight(), self.bias))


class Linear4bit(QuantizedWeight, nn.Linear):
    """`nn.Linear` with its weight (out, in) on the grid; starts normal, variance 1 / in."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.quantized_weight(), self.bias)


def quantized(layer: Any, bits: int = 4, per_channel: bool = False) -> QuantizedWeight:
    """A convolution or linear layer, changed in place into one of ours with the same weight."""
    if not isinstance(layer, QuantizedWeight):
        layer.__class__ = {nn.Conv2d: Conv4bit, nn.Linear: Linear4bit}[type(layer)]
        layer.name = type(layer).__name__
    layer.bits, layer.per_channel = bits, per_channel
    return cast(QuantizedWeight, layer)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedWeight]:
    """The model's quantized layers by their names, in forward order; each layer learns its name for its errors."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    for name, layer in layers.items():
        layer.name = name
    return layers
