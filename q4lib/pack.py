"""Real 4-bit storage: two codes a byte, so that a model's file is as small as its weights are coarse (V-F)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import FileError, load_tensors, save_tensors
from .layers import FP32, quantized, quantized_layers
from .models import MODELS
from .quant import dequantize, quantize

KIND = "packed model, version 1"


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """int8 codes to a flat uint8 tensor: two a byte up to 4 bits (two's complement, low nibble first), else one."""
    flat = codes.flatten().view(torch.uint8)
    if bits > 4:
        return flat
    low, high = torch.cat([flat, flat.new_zeros(flat.numel() % 2)]).view(-1, 2).bitwise_and(0xF).unbind(1)
    return low | high << 4


def unpack_codes(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """The int8 codes that `pack_codes` packed, in their `shape`. ValueError if there are too few or too many."""
    count = torch.Size(shape).numel()
    if packed.numel() != (count if bits > 4 else (count + 1) // 2):
        raise ValueError(f"{packed.numel()} bytes do not hold {count} codes of {bits} bits")
    if bits > 4:
        return packed.view(torch.int8).reshape(shape)
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=1).flatten()[:count].view(torch.int8)
    return ((nibbles ^ 8) - 8).reshape(shape)


def save_model(path: Path, model: nn.Module, **facts: Any) -> None:
    """Write a network of ours packed: codes and FP32 scales of layers on a grid, all else as it is. FileError."""
    kind = type(model).__name__
    if type(model) in MODELS.values():
        shape: dict[str, Any] = {}
    elif hasattr(getattr(model, "features", None), "width"):
        from .mobilenet import shape_of

        shape = {"shape": shape_of(model)}
    else:
        known = ", ".join(m.__name__ for m in MODELS.values())
        raise ValueError(f"only {known} and what q4lib.mobilenet builds can be packed, got {kind}")
    layers = quantized_layers(model)
    tensors = dict(model.state_dict())
    for name, layer in layers.items():
        if layer.bits != FP32:
            step = tensors[f"{name}.scale"] = layer.scale()
            codes = quantize(tensors.pop(f"{name}.weight"), step, layer.bits)
            tensors[f"{name}.codes"] = pack_codes(codes, layer.bits)
    facts |= {
        "model": kind.lower(),
        "num_classes": [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1].out_features,
        **shape,
        "bits": {name: layer.bits for name, layer in layers.items()},
        "per_channel": {name: layer.per_channel for name, layer in layers.items()},
        "fixed_scale": [name for name, layer in layers.items() if layer.fixed_scale is not None],
    }
    save_tensors(path, tensors, KIND, facts)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model, ready to predict, its weights on the grid, and its facts. FileError names a file it cannot trust."""
    tensors, facts = load_tensors(path, KIND)
    try:
        with torch.device("meta"):  # every weight comes from the file: none is drawn
            model = _builder(facts["model"])(facts["num_classes"], **facts.get("shape", {}))
        for name, bits in facts["bits"].items():
            layer = quantized(model.get_submodule(name), bits, facts["per_channel"][name])
            if layer.bits != FP32:
                codes = unpack_codes(tensors.pop(f"{name}.codes"), tuple(layer.weight.shape), layer.bits)
                step = tensors.pop(f"{name}.scale")
                tensors[f"{name}.weight"] = dequantize(codes, step)
                layer.fixed_scale = step if name in facts.get("fixed_scale", ()) else None
        quantized_layers(model)
        model.load_state_dict(tensors, assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FileError(f"{path} does not fit this version's models ({reason})") from error
    return model.eval(), facts


def _builder(model: str) -> Callable[..., nn.Module]:
    if model in MODELS:
        return MODELS[model]
    from .mobilenet import BUILDERS

    return BUILDERS[model]
