"""Channel pruning of a MobileNetV2's inverted residual blocks: which blocks, which channels, and smaller tensors.

What goes is a hidden channel: one output of the convolution that expands, with its depthwise filter and its input to
the projection; a block keeps the widths of its own input and output. The first block has no expansion: its hidden
channels are the output of the stem, unless it adds that to its own. After V of the activation-memory paper (see
`memory`).
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .memory import Profile, profile

STEM, FIRST = "features.0", "features.1"


def sensitive_blocks(found: Profile) -> list[str]:
    """Blocks whose temporary memory is above the overall cumulative gradient memory (V, step 1)."""
    return [block.name for block in found.blocks if block.temporary > found.cumulative]


def hidden_layers(model: nn.Module) -> dict[str, tuple[Any, Any, Any, Any, Any]]:
    """By block: the convolution that makes the hidden channels, its batch norm, depthwise, its batch norm, projection.

    Blocks are called as `profile` calls them. ValueError if the model is no MobileNetV2 of torchvision's.
    """
    from torchvision.models.mobilenetv2 import InvertedResidual

    blocks: dict[str, tuple[Any, Any, Any, Any, Any]] = {}
    before: Any = None
    for name, module in model.named_modules():
        if isinstance(module, InvertedResidual):
            *expansion, depthwise, projection, _ = module.conv
            # Narrow networks' first block adds the stem's output to its own: these channels must stay.
            before = None if module.use_res_connect else before
            if maker := expansion[0] if expansion else before:
                blocks[".".join(name.split(".")[:2])] = (maker[0], maker[1], depthwise[0], depthwise[1], projection)
            before = None
        elif name == STEM:
            before = module
    if not blocks:
        raise ValueError(f"pruning knows the blocks of torchvision's MobileNetV2, and {type(model).__name__} has none")
    return blocks


@torch.no_grad()
def channel_norms(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """By block, the l2 norm of each hidden channel over batches of images, as the projection reads it: (hidden,)."""
    model = copy.deepcopy(model).eval()
    squares: defaultdict[str, Any] = defaultdict(float)

    def add(name: str, channels: Tensor) -> None:
        squares[name] = squares[name] + channels.double().square().sum((0, 2, 3))

    for name, (*_, projection) in hidden_layers(model).items():
        projection.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
    for images in batches:
        model(images)
    return {name: total.sqrt() for name, total in squares.items()}


def prune(model: nn.Module, ratios: Mapping[str, float], norms: Mapping[str, Tensor]) -> nn.Module:
    """A copy without the share `ratios[block]` of each block's hidden channels, those of least norm; smaller tensors.

    `floor(width * (1 - ratio))` channels stay. ValueError for a ratio outside [0, 1), or that leaves none.
    """
    model = copy.deepcopy(model)
    layers = hidden_layers(model)
    for name, ratio in ratios.items():
        if name not in layers:
            raise ValueError(f"{name!r} has no channels to prune, the blocks that have are {', '.join(layers)}")
        maker, maker_norm, depthwise, depthwise_norm, projection = layers[name]
        width = kept_width(name, projection.in_channels, ratio)
        if (given := len(norms.get(name, ()))) != projection.in_channels:
            raise ValueError(
                f"{name} has {projection.in_channels} hidden channels, and norms has {given} numbers for it"
            )
        keep = norms[name].argsort(descending=True, stable=True)[:width].sort().values
        for layer in (maker, maker_norm, depthwise, depthwise_norm):
            _select(layer, keep, 0)
        _select(projection, keep, 1)
        maker.out_channels = projection.in_channels = width
        maker_norm.num_features = depthwise_norm.num_features = width
        depthwise.in_channels = depthwise.out_channels = depthwise.groups = width
    return model


def kept_width(name: str, width: int, ratio: float) -> int:
    """Channels that stay of `width`: `floor(width * (1 - ratio))`, whatever the last bit of the product is."""
    if not 0 <= ratio < 1:
        raise ValueError(f"the pruning ratio of {name} must be in [0, 1), got {ratio}")
    if not (kept := math.floor(width * (1 - ratio) + 1e-9)):
        raise ValueError(f"a pruning ratio of {ratio} leaves {name} none of its {width} channels: take a smaller one")
    return kept


def _select(layer: nn.Module, keep: Tensor, dim: int) -> None:
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.dim() > dim:
            smaller = tensor.detach().index_select(dim, keep.to(tensor.device))
            parameter = isinstance(tensor, nn.Parameter)
            setattr(layer, name, nn.Parameter(smaller, tensor.requires_grad) if parameter else smaller)


def solve_ratios(model: nn.Module, input_shape: tuple[int, ...], target: float | None = None) -> dict[str, float]:
    """By sensitive block, the smallest pruning ratio at which its peak is at most `target` bytes a sample (V, step 2).

    Without a target: at most the peak of the blocks that are not pruned. ValueError if a block can't reach the target.
    """
    layers = hidden_layers(model)
    first = FIRST if FIRST in layers else ""
    whole = profile(model, input_shape)
    sensitive = {first if name == STEM else name for name in sensitive_blocks(whole)}
    full = {name: layers[name][4].in_channels for name in layers if name in sensitive}
    anything = {name: torch.ones(width) for name, width in full.items()}
    halved = profile(prune(model, dict.fromkeys(full, 0.5), anything), input_shape)

    def peaks(widths: dict[str, int]) -> dict[str, float]:
        """The peak of each pruned block, and under "" that of the others. A layer's bytes are linear in the width."""
        found, cumulative = dict.fromkeys([*full, ""], 0.0), 0.0
        for layer, smaller in zip(whole.layers, halved.layers, strict=True):
            block = first if layer.block == STEM else layer.block
            block = block if block in full else ""
            pruned = (full[block] - widths[block]) / (full[block] - full[block] // 2) if block else 0.0
            temporary, saved = (
                getattr(layer, kind) + pruned * (getattr(smaller, kind) - getattr(layer, kind))
                for kind in ("temporary", "saved")
            )
            found[block] = max(found[block], cumulative + temporary)
            cumulative += saved
        return found

    def widths_under(goal: float) -> dict[str, int]:
        widths = dict(full)
        for name in full:
            while (peak := peaks(widths)[name]) > goal:
                widths[name] -= 1
                if not widths[name]:
                    raise ValueError(
                        f"{name} with one channel needs {peak:,.0f} bytes: the target {goal:,.0f} is too low"
                    )
        return widths

    goal = math.inf if target is None else target
    widths = widths_under(goal)
    while (floor := peaks(widths)[""]) < goal and target is None:
        goal = floor
        widths = widths_under(goal)
    if floor > goal:
        raise ValueError(f"the blocks that are not pruned need {floor:,.0f} bytes: the target {goal:,.0f} is too low")
    return {name: 1 - widths[name] / width for name, width in full.items()}
