"""Rep-Net: a frozen MobileNetV2 that a small network beside it reprograms, six features at a time.

After Yang, Rakin and Fan, *Rep-Net: efficient on-device learning via feature reprogramming* (CVPR 2022).
"""

import copy
from collections import OrderedDict
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = (2, 4, 7, 11, 14, 17)


def standardize(weight: Tensor) -> Tensor:
    """`(w - mean) / (std + 1e-5)` over each output channel: shape of `weight` (out, in, kh, kw)."""
    mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
    return (weight - mean) / (std + 1e-5)


class StandardizedConv(nn.Conv2d):
    """`nn.Conv2d` that convolves with its standardized weight."""

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self._conv_forward(input, standardize(self.weight), self.bias))


class MeanPool(nn.AvgPool2d):
    """`nn.AvgPool2d` as a mean over a view: (N, C, H, W) to (N, C, H // k, W // k), and nothing kept for backward."""

    def forward(self, input: Tensor) -> Tensor:
        k, (h, w) = cast(int, self.kernel_size), (size // cast(int, self.kernel_size) for size in input.shape[2:])
        if not h or not w:
            raise ValueError(f"a feature map of {tuple(input.shape[2:])} has no {k} by {k} patch: use larger images")
        patches: Tensor = input[:, :, : h * k, : w * k].unflatten(3, (w, k)).unflatten(2, (h, k))
        return patches.mean((3, 5))


class Interpolate(nn.Module):
    """`x` brought to the size of `like`, bilinearly, where it has another."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, size=like.shape[2:], mode="bilinear")


class Side(nn.Sequential):
    """One reprogramming module: pool, wide convolution, 1 by 1 convolution; its last batch norm starts at zero."""

    def __init__(self, inputs: int, outputs: int, kernel: int, pool: int) -> None:
        width = -(-inputs // 8) * 8
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["pool"] = MeanPool(pool)
        layers["conv1"] = StandardizedConv(
            inputs, width, kernel, padding=kernel // 2, groups=1 if inputs % 2 else 2, bias=False
        )
        layers["bn1"] = nn.BatchNorm2d(width, eps=1e-3)
        layers["relu"] = nn.ReLU(inplace=True)
        layers["conv2"] = StandardizedConv(width, outputs, 1, bias=False)
        layers["bn2"] = nn.BatchNorm2d(outputs, eps=1e-3)
        nn.init.zeros_(layers["bn2"].weight)  # type: ignore[arg-type]
        super().__init__(layers)


class Reprogrammed(nn.Module):
    """A frozen block and the side module whose output is added to the block's."""

    def __init__(self, block: nn.Module, side: Side) -> None:
        super().__init__()
        self.block, self.side, self.fit = block, side, Interpolate()

    def forward(self, x: Tensor, side_input: Tensor) -> Tensor:
        y = self.block(x)
        return cast(Tensor, y + self.fit(self.side(side_input), y))


class RepNet(nn.Module):
    """A copy of torchvision's MobileNetV2, frozen, with six side modules and a linear head that train.

    Images (N, 3, H, W) to logits (N, num_classes). 380,072 side parameters; frozen batch norm stays in eval mode.
    The first side module reads the image, the others what their block reads; each works at half its block's input.
    Without `side` modules, only the head trains.
    """

    def __init__(self, backbone: nn.Module, num_classes: int = 10, side: bool = True) -> None:
        super().__init__()
        features: Any = copy.deepcopy(getattr(backbone, "features", None))
        try:
            features.requires_grad_(False)
            outputs = [0] + [block.out_channels for block in features[1 : BLOCKS[-1] + 1]]
            shrink, head_inputs = features[0][0].stride[0], features[BLOCKS[-1] + 1].out_channels
        except (AttributeError, IndexError, TypeError):
            raise ValueError(f"the backbone must be torchvision's MobileNetV2, got {type(backbone).__name__}") from None
        inputs = 3
        for i in BLOCKS if side else ():
            kernel, pool = 3 if i == BLOCKS[-1] else 5, 2 * shrink if i == BLOCKS[0] else 2
            features[i] = Reprogrammed(features[i], Side(inputs, outputs[i], kernel, pool))
            inputs = outputs[i]
        self.features: Any = features
        self.head = nn.Linear(head_inputs, num_classes)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i, block in enumerate(self.features):
            x = block(x, images if i == BLOCKS[0] else x) if isinstance(block, Reprogrammed) else block(x)
        return cast(Tensor, self.head(x.mean((2, 3))))

    def train(self, mode: bool = True) -> "RepNet":
        """Train or evaluate the side modules and the head; frozen batch norm keeps its running statistics."""
        super().train(mode)
        for block in self.features:
            (block.block if isinstance(block, Reprogrammed) else block).eval()
        return self
