"""The paper's two networks (III-E). Every convolution and linear layer is on the grid, the first and the last too."""

from collections import OrderedDict
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conv4bit, Linear4bit, quantized_layers


class VGG4bit(nn.Sequential):
    """Six convolutions and two linear layers: images (N, 3, 32, 32) to logits (N, num_classes).

    3,251,018 parameters at 10 classes. `bits=32` is the FP32 twin: the same start from the same seed, no quantizer.
    """

    def __init__(self, num_classes: int = 10, bits: int = 4, per_channel: bool = False, dropout: float = 0.5) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for block, width in enumerate((64, 128, 256), start=1):
            for i in (1, 2):
                layers[f"conv{block}_{i}"] = Conv4bit(channels, width, 3, padding=1, bits=bits, per_channel=per_channel)
                layers[f"bn{block}_{i}"] = nn.BatchNorm2d(width)
                layers[f"relu{block}_{i}"] = nn.ReLU(inplace=True)
                channels = width
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = Linear4bit(channels * 4 * 4, 512, bits=bits, per_channel=per_channel)
        layers["bn_fc"] = nn.BatchNorm1d(512)
        layers["relu_fc"] = nn.ReLU(inplace=True)
        layers["dropout"] = nn.Dropout(dropout)
        layers["fc2"] = Linear4bit(512, num_classes, bits=bits, per_channel=per_channel)
        super().__init__(layers)
        quantized_layers(self)


class SimpleResNet4bit(nn.Module):
    """Six convolutions of widths 16-16-32-32-64-64, one identity shortcut, one linear layer: about 73 K parameters.

    Images (N, 3, 32, 32) to logits (N, num_classes); the third and the fifth convolution halve the image.
    """

    def __init__(self, num_classes: int = 10, bits: int = 4, per_channel: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        widths = (3, 16, 16, 32, 32, 64, 64)
        self.convs = nn.ModuleList(
            Conv4bit(cin, cout, 3, stride=2 if i in (2, 4) else 1, padding=1, bits=bits, per_channel=per_channel)
            for i, (cin, cout) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.dropout = nn.Dropout(dropout)
        self.fc = Linear4bit(widths[-1], num_classes, bits=bits, per_channel=per_channel)
        quantized_layers(self)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = bn(conv(x))
            x = F.relu(y + x if i == 1 else y)
        return cast(Tensor, self.fc(self.dropout(x.mean((2, 3)))))


MODELS: dict[str, type[VGG4bit] | type[SimpleResNet4bit]] = {
    model.__name__.lower(): model for model in (VGG4bit, SimpleResNet4bit)
}
