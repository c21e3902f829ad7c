"""One training step: a recipe's network and optimizer, the step itself, and how long it takes here."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import SOURCES
from .layers import FP32, quantized_layers
from .machine import keep_memory
from .muon import MuonAdamW
from .optim import QuantAwareAdamW
from .recipes import Recipe


def build(recipe: Recipe, num_classes: int, device: str) -> tuple[nn.Module, QuantAwareAdamW]:
    """The recipe's network, started from its seed, and the optimizer; each group keeps its full rate, `initial_lr`."""
    keep_memory()
    torch.manual_seed(recipe.seed)
    model = recipe.network(num_classes)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = quantized_layers(model).values()
    for layer in layers:
        layer.normal_range = recipe.normal_range
    if recipe.fixed_scale and recipe.bits != FP32:
        widest = torch.stack([layer.scale() for layer in layers]).max()
        for layer in layers:
            layer.fixed_scale = widest.clone()
    chosen = {key: getattr(recipe, key) for key in ("lr", "betas", "eps", "weight_decay", "grad_clip", "soft_clip")}
    if recipe.optimizer.startswith("muon"):
        chosen |= {"muon_lr": recipe.muon_lr, "hidden": recipe.optimizer == "muon_hidden"}
        optimizer: QuantAwareAdamW = MuonAdamW(recipe.groups(model), **chosen)
    else:
        optimizer = QuantAwareAdamW(recipe.groups(model), **chosen)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return model, optimizer


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    precision: str = "fp32",
    label_smoothing: float = 0.0,
) -> tuple[float, int]:
    """One step on normalized images: the mean loss and how many of the batch were right.

    In bf16 Muon's matrix products run in bf16, too; everything that lasts, weights and momenta, stays FP32.
    """
    optimizer.zero_grad()
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
    with autocast:
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    loss.backward()
    with autocast:
        optimizer.step()
    return loss.item(), int((logits.argmax(1) == y).sum())


def step_seconds(recipe: Recipe, precision: str, device: str = "cpu", size: int = 0, steps: int = 3) -> float:
    """Seconds of the fastest of a few training steps on `size` random images (the recipe's batch by default)."""
    with torch.random.fork_rng():
        model, optimizer = build(recipe, SOURCES[recipe.data].classes, device)
        size = size or recipe.batch_size
        x = torch.randn(size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        y = torch.zeros(size, dtype=torch.long, device=device)
        seconds = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            train_step(model, optimizer, x, y, precision)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def faster_precision(recipe: Recipe, device: str = "cpu") -> str:
    """The recipe's precision; for auto, the faster of fp32 and bf16 on 16 images (bf16 can be 40 times slower)."""
    if recipe.precision != "auto":
        return recipe.precision
    return min(("fp32", "bf16"), key=lambda precision: step_seconds(recipe, precision, device, size=16))
