"""Transfer learning: a backbone learns some classes and is frozen; a head or a Rep-Net learns others from few images.

A run that begins where another ended trains that one first, into a run folder of its own. The pruned backbone, its
random control and the whole one all go on from the same `pretrain`, for as long: V of the activation-memory paper.
"""

import hashlib
import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .data import home, load, nearest, normalize
from .files import BusyError, FileError
from .layers import FP32, QuantizedWeight, quantized
from .mobilenet import mobilenet, pretrained
from .pack import load_model
from .pruning import channel_norms, prune, solve_ratios
from .recipes import Recipe, run_name
from .repnet import RepNet
from .train import fit

IMAGENET = "imagenet"
LOOK_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Transfer(Recipe):
    """A recipe for MobileNetV2 on 32 by 32 pixels. `bits` is the backbone's: a frozen one is rounded, as it begins.

    `start` is the recipe of the run whose network this one begins with: `imagenet` for torchvision's weights, empty for
    none; that run had the data set `source`, this one's own if empty, and `start_bits`. `pruned` takes hidden channels
    away: none, those of least norm, or as many at random. `trains` is all, or over a frozen backbone side (Rep-Net) or
    head alone; the head's rate is `head_lr`. `width` multiplies the channels.
    """

    models: ClassVar[Collection[str]] = ("mobilenetv2",)

    model: str = "mobilenetv2"
    bits: int = FP32
    grad_clip: float | None = None
    soft_clip: float | None = None
    dropout: float = 0.0
    precision: str = "fp32"
    start: str = ""
    source: str = ""
    start_bits: int = FP32
    pruned: str = "none"
    trains: str = "all"
    head_lr: float = 3e-4
    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        known: tuple[tuple[str, Collection[str]], ...] = (
            ("optimizer", ("adamw",)),
            ("pruned", ("none", "norm", "random")),
            ("trains", ("all", "side", "head")),
        )
        for name, values in known:
            if (got := getattr(self, name)) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, got {got!r}{nearest(got, values)}")
        if self.start and self.dropout:
            raise ValueError(f"dropout belongs to a run that begins with nothing: this one starts from {self.start}")
        for name in ("head_lr", "width"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    def known(self) -> Recipe:
        return TRANSFERS.get(self.name, self)

    def first(self) -> "Transfer | None":
        """The recipe of the run that must be there before; None if this one begins with nothing or with ImageNet."""
        if self.start in ("", IMAGENET):
            return None
        if self.start not in TRANSFERS:
            near = nearest(self.start, TRANSFERS)
            raise ValueError(f"start must be {IMAGENET} or one of {', '.join(TRANSFERS)}, got {self.start!r}{near}")
        return replace(TRANSFERS[self.start], data=self.source or self.data, bits=self.start_bits, width=self.width)

    def origin(self) -> dict[str, Any]:
        first = self.first()
        return {"start_digest": hashlib.sha256(_model_file(first).read_bytes()).hexdigest()} if first else {}

    def network(self, num_classes: int) -> nn.Module:
        model = self._begin(num_classes)
        if self.pruned != "none":
            model = _pruned(model, self.data, at_random=self.pruned == "random")
        trained = model if self.trains == "all" else model.features
        for layer in list(trained.modules()):
            if isinstance(layer, QuantizedWeight) or (self.bits != FP32 and isinstance(layer, nn.Conv2d | nn.Linear)):
                quantized(layer, self.bits, self.per_channel)
        return model if self.trains == "all" else RepNet(model, num_classes, side=self.trains == "side")

    def _begin(self, num_classes: int) -> Any:
        if first := self.first():
            model: Any = load_model(_model_file(first))[0]
        elif self.start == IMAGENET:
            model = pretrained(stride=1)
        else:
            return mobilenet(num_classes, self.width, dropout=self.dropout)
        if model.classifier[1].out_features != num_classes:
            model.classifier[1] = nn.Linear(model.classifier[1].in_features, num_classes)
        return model

    def groups(self, model: nn.Module) -> Iterable[Any]:
        if self.trains == "all":
            return model.parameters()
        head: Any = model.head
        side = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head.")]
        return [{"params": list(head.parameters()), "lr": self.head_lr}, *([{"params": side}] if side else [])]


def _model_file(recipe: Transfer) -> Path:
    file = _folder(recipe) / "model.safetensors"
    if not file.exists():
        raise FileError(f"{file} does not exist: `q4 transfer {recipe.name}` makes it")
    return file


def _folder(recipe: Transfer) -> Path:
    return home() / "runs" / run_name(recipe)


@torch.no_grad()
def _pruned(model: nn.Module, data: str, at_random: bool) -> nn.Module:
    """Without as many hidden channels as bring the sensitive blocks under the others' peak, with a Rep-Net beside."""
    ratios = solve_ratios(RepNet(model), (3, 32, 32))
    images: Tensor = load(data).x_train[:NORM_IMAGES]
    norms = channel_norms(model, (normalize(part, data) for part in images.split(250)))
    return prune(model, ratios, {name: torch.rand(len(n)) for name, n in norms.items()} if at_random else norms)


NORM_IMAGES = 1_000

PRETRAIN = Transfer(
    "pretrain",
    data="cifar10-first5",
    epochs=8,
    schedule="linear",
    schedule_epochs=8,
    warmup=0.1,
    batch_size=64,
    lr=2e-3,
    weight_decay=0.05,
)
WHOLE = replace(PRETRAIN, name="whole", start="pretrain", epochs=7, schedule_epochs=7, lr=1e-3)
# Rates, schedule and batch of Rep-Net's code for CIFAR-10.
REPNET = Transfer(
    "repnet",
    data="cifar10-last5",
    images=3_000,
    epochs=5,
    schedule_epochs=5,
    batch_size=8,
    lr=1.5e-3,
    weight_decay=0.0,
    start="whole",
    source="cifar10-first5",
    trains="side",
)
# The same in seconds: from the digits 0 to 4 to the digits 5 to 9.
DIGITS = replace(
    PRETRAIN,
    name="digits-pretrain",
    data="digits-first5",
    width=0.25,
    epochs=4,
    schedule_epochs=4,
    batch_size=16,
    lr=5e-3,
    crop=2,
    flip=False,
)

TRANSFERS = {
    recipe.name: recipe
    for recipe in (
        PRETRAIN,
        WHOLE,
        replace(WHOLE, name="pruned", pruned="norm"),
        replace(WHOLE, name="random", pruned="random"),
        replace(REPNET, name="last-layer", trains="head"),
        REPNET,
        replace(REPNET, name="repnet-pruned", start="pruned"),
        replace(REPNET, name="repnet-random", start="random"),
        DIGITS,
        replace(
            DIGITS,
            name="digits-repnet",
            data="digits-last5",
            start="digits-pretrain",
            source="digits-first5",
            trains="side",
            epochs=3,
            schedule_epochs=3,
            head_lr=1e-3,
        ),
    )
}


def transfer(recipe: Transfer, folder: Path | None = None, *, progress: bool = True, **options: Any) -> Path:
    """`fit`, after the runs from which the recipe begins; the run folder.

    Several may begin at once: where another process is at a run from which this one begins, it waits for it.
    """
    if first := recipe.first():
        if progress:
            print(f"first, {first.name}: {_folder(first)}", flush=True)
        told = not progress
        while True:
            try:
                transfer(first, _folder(first), progress=progress, **options)
                break
            except BusyError:
                if not told:
                    print(f"another process is at {first.name}: waiting for it", flush=True)
                told = True
                time.sleep(LOOK_EVERY)
    return fit(recipe, folder, progress=progress, **options)
