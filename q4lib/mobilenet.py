"""torchvision's MobileNetV2, for small images and large: built, pruned, with a Rep-Net beside it, and pretrained."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data import DataError, folders, home
from .pruning import hidden_layers, prune
from .repnet import RepNet, Reprogrammed


def mobilenet(
    num_classes: int = 10,
    width: float = 1.0,
    stride: int = 1,
    dropout: float = 0.0,
    hidden: Mapping[str, int] | None = None,
) -> nn.Module:
    """MobileNetV2: images (N, 3, H, W) to logits (N, num_classes). A stem of stride 1 suits 32 pixels, 2 suits 224.

    `width` multiplies every number of channels; `hidden` are the hidden channels a block, where some were pruned.
    """
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(num_classes=num_classes, width_mult=width, dropout=dropout)
    model.features.width = width
    model.features[0][0].stride = (stride, stride)
    full = {name: layers[4].in_channels for name, layers in hidden_layers(model).items()}
    ratios = {name: 1 - kept / full[name] for name, kept in (hidden or {}).items() if kept != full[name]}
    return prune(model, ratios, {name: torch.ones(full[name]) for name in ratios}) if ratios else model


def repnet(num_classes: int = 10, side: bool = True, **shape: Any) -> RepNet:
    """A Rep-Net on a MobileNetV2 of this shape, both untrained."""
    return RepNet(mobilenet(num_classes, **shape), num_classes, side)


BUILDERS: dict[str, Callable[..., nn.Module]] = {"mobilenetv2": mobilenet, "repnet": repnet}


def shape_of(model: nn.Module) -> dict[str, Any]:
    """What `mobilenet` or `repnet` must be given, beside the number of classes, for the same tensors as `model`'s."""
    features: Any = model.features
    shape = {
        "width": features.width,
        "stride": features[0][0].stride[0],
        "hidden": {name: layers[4].in_channels for name, layers in hidden_layers(model).items()},
    }
    if isinstance(model, RepNet):
        shape["side"] = any(isinstance(block, Reprogrammed) for block in features)
    return shape


def imagenet_url() -> str:
    """Where torchvision has its weights of MobileNetV2."""
    from torchvision.models import MobileNet_V2_Weights

    return str(MobileNet_V2_Weights.IMAGENET1K_V1.url)


def pretrained(path: Path | None = None, stride: int = 2) -> nn.Module:
    """MobileNetV2 with torchvision's ImageNet weights (71.9 %): from `path`, else Q4_DATA, the cache or the net.

    DataError if they cannot be had or do not fit.
    """
    url = imagenet_url()
    name = url.rpartition("/")[2]
    path = path or next((root / name for root in folders() if (root / name).exists()), None)
    try:
        if path is None:
            path = home() / "cache" / name
            torch.hub.load_state_dict_from_url(url, str(path.parent), check_hash=True, weights_only=True)
        state = torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give the file of {url}, or none to download it") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).partition("\n")[0]
        advice = f"put the file of {url} there, or into the folder that Q4_DATA names"
        raise DataError(f"the ImageNet weights cannot be read from {path} ({why}): {advice}") from None
    model = mobilenet(1000, stride=stride)
    try:
        model.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        why = (str(error).splitlines() or [""])[-1].strip()
        raise DataError(f"{path} does not hold torchvision's MobileNetV2 of width 1.0 ({why})") from None
    return model.eval()
