"""Lessons 06 and 08: what to train in the time there is, and the run with a curve that grows after every epoch."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import SOURCES, DataError, home, load
from ..download import DownloadError
from ..mobilenet import pretrained
from ..models import MODELS
from ..recipes import RECIPES, Recipe
from ..step import faster_precision, step_seconds
from ..train import fit
from ..transfer import IMAGENET, TRANSFERS, Transfer, transfer
from .bench import memory_pairs
from .figures.run import plot_curve, so_far
from .widgets import Picture, headless

SMOKE = replace(RECIPES["digits"], epochs=4, schedule_epochs=4)
# The largest network first, each with the fewest images that are worth its while.
LEAST = {"fast": 25_000, "small": 2_000, "digits": SOURCES["digits"].train}
EPOCHS = 5  # fewer make no curve
SHARE = 0.8  # of the time; the rest is for data, pictures, and a machine that is slower than just now
TRANSFER_EPOCHS, TRANSFER_LEAST = 3, 500  # with fewer images than these, digits teach more
FORWARD = 0.4  # of a training step's time: a third by its FLOPs, and some overhead


class Stopped(KeyboardInterrupt):
    """Ctrl-C or the stop button during a run, told in one sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def estimate(recipe: Recipe, seconds: float) -> float:
    """How many seconds a run takes where one image takes `seconds` in a training step."""
    source = SOURCES[recipe.data]
    return recipe.epochs * seconds * ((recipe.images or source.train) + FORWARD * source.test)


def plan(minutes: float, seconds: Mapping[str, float]) -> Recipe:
    """The first recipe of `seconds` that fits `minutes`: in five epochs or more, on some or all images, ending at zero.

    `seconds` are an image's in a training step. Where none fits, the last one gets as few epochs as it takes, at least
    one. ValueError if `minutes` is not positive.
    """
    if not minutes > 0:
        raise ValueError(f"MINUTES must be positive, got {minutes:g}")
    budget = SHARE * 60 * minutes
    for name, each in seconds.items():
        recipe, source = RECIPES[name], SOURCES[RECIPES[name].data]
        whole = estimate(replace(recipe, epochs=1), each)
        epochs = max(EPOCHS, min(recipe.epochs, int(budget / whole)))
        images = min(source.train, int(budget / epochs / each - FORWARD * source.test) // 100 * 100)
        if budget >= epochs * whole:
            return replace(recipe, epochs=epochs, schedule_epochs=epochs)
        if images >= LEAST[name]:
            return replace(recipe, epochs=epochs, schedule_epochs=epochs, images=images)
    epochs = max(1, int(budget / whole))
    return replace(recipe, epochs=epochs, schedule_epochs=epochs)


def prepare(preset: str, minutes: float) -> tuple[Recipe, Path | None]:
    """What a preset trains, and in which folder (None: the recipe's own); says so, and how long it will take here."""
    if preset == "smoke":
        print(f"smoke: {_what(SMOKE)}, seconds")
        return SMOKE, None
    if preset == "full":
        recipe = RECIPES["fast"]
        print(f"full: {_what(recipe)}, about {_time(estimate(recipe, _seconds(recipe)))} here", flush=True)
        return recipe, None
    data = "cifar10" if _have_cifar10() else "digits"
    folder = home() / "runs" / f"lesson06-{data}-{minutes:g}min"
    # Timed again, the machine would give another plan, and what was begun would not go on.
    if (folder / "recipe.json").exists():
        read = json.loads((folder / "recipe.json").read_text())
        recipe = Recipe(**read | {"betas": tuple(read["betas"])})
        print(f"class: {_what(recipe)}, as planned before; without {folder} it is planned anew")
    else:
        seconds = _timed(minutes, data)
        recipe = plan(minutes, seconds)
        print(f"class: {_what(recipe)}, about {_time(estimate(recipe, seconds[recipe.name]))} of {minutes:g} min here")
    return recipe, folder


def _timed(minutes: float, data: str) -> dict[str, float]:
    """What `plan` needs. VGG4bit is timed only where it may fit: on a slow machine that alone would take minutes."""
    small = _seconds(RECIPES["small"])
    seconds = {"small": small, "digits": small} if data == "cifar10" else {"digits": small}
    least = replace(RECIPES["fast"], epochs=EPOCHS, images=LEAST["fast"])
    if data == "cifar10" and estimate(least, 2 * small) < SHARE * 60 * minutes:
        seconds = {"fast": _seconds(RECIPES["fast"])} | seconds
    return seconds


def _what(recipe: Recipe) -> str:
    source = SOURCES[recipe.data]
    images = f"{recipe.images:,} of {source.train:,}" if recipe.images else f"{source.train:,}"
    model = MODELS[recipe.model].__name__ if recipe.model in MODELS else "MobileNetV2"
    return f"recipe {recipe.name}, {model} on {images} images of {recipe.data}, {recipe.epochs} epochs"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _seconds(recipe: Recipe, images: int = 64) -> float:
    """Seconds that an image takes in a training step here, the fastest of three.

    Steps of few images stand for a larger batch: what a step takes besides its images, Muon above all, is told from a
    step of two, and shared by the batch.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = faster_precision(recipe, device)

    def step(size: int) -> float:
        return step_seconds(recipe, precision, device, size, steps=3)

    if images >= recipe.batch_size:
        return step(images) / images
    two = step(2)
    each = max(0.0, step(images) - two) / (images - 2)
    return each + (two - 2 * each) / recipe.batch_size


def _have_cifar10() -> bool:
    try:
        load("cifar10")
    except (DataError, DownloadError) as error:
        why = str(error).splitlines()[0].rstrip(":")
        print(f"CIFAR-10 is not to be had, so scanned digits take its place: {why}")
        return False
    return True


Transfers = dict[str, tuple[Transfer, Path | None]]


def prepare_transfer(preset: str, minutes: float) -> Transfers:
    """What a preset transfers by Rep-Net and by the last layer alone, and in which folder (None: the recipe's own)."""
    side, head = TRANSFERS["repnet"], TRANSFERS["last-layer"]
    if preset == "full":
        chain: list[Transfer] = [side]
        while first := chain[-1].first():
            chain.append(first)
        seconds = sum(estimate(one, _seconds(replace(one, start=""), one.batch_size)) for one in [*chain, head])
        print(f"full: {_what(side)}, with the backbones before it and the last layer alone:", flush=True)
        print(f"      about {_time(seconds)} here", flush=True)
        return {"Rep-Net": (side, None), "last layer": (head, None)}
    folder = None
    if preset == "smoke" or not (planned := _planned(minutes)):
        side = TRANSFERS["digits-repnet"]
        print(f"{preset}: {_what(side)}, seconds")
    else:
        side, folder = planned
    return {
        "Rep-Net": (side, folder and folder / "side"),
        "last layer": (replace(side, trains="head"), folder and folder / "head"),
    }


def _planned(minutes: float) -> tuple[Transfer, Path] | None:
    """From ImageNet to CIFAR-10 in these minutes; None where that cannot be had, or not in time."""
    folder = home() / "runs" / f"lesson08-{minutes:g}min"
    # Timed again, the machine would give another plan, and what was begun would not go on.
    if (plan := folder / "side" / "recipe.json").exists():
        read = json.loads(plan.read_text())
        recipe = Transfer(**read | {"betas": tuple(read["betas"])})
        print(f"class: {_what(recipe)}, as planned before; without {folder} it is planned anew")
        return recipe, folder
    if not (_have_cifar10() and _have_imagenet()):
        return None
    side = TRANSFERS["repnet"]
    found = plan_transfer(minutes, _seconds(replace(side, start=""), side.batch_size))
    if found is None:
        print(f"{minutes:g} min are too few for CIFAR-10 here, so scanned digits take its place")
        return None
    print(f"class: from ImageNet, {_what(found)}; with the last layer's run at most {minutes:g} min")
    return found, folder


def plan_transfer(minutes: float, seconds: float) -> Transfer | None:
    """From ImageNet, on as many images as fit `minutes` with the last layer's run; None if these are too few.

    `seconds` are an image's in a training step. ValueError if `minutes` is not positive.
    """
    if not minutes > 0:
        raise ValueError(f"MINUTES must be positive, got {minutes:g}")
    recipe = replace(
        TRANSFERS["repnet"], start=IMAGENET, source="", epochs=TRANSFER_EPOCHS, schedule_epochs=TRANSFER_EPOCHS
    )
    each = SHARE * 60 * minutes / 2 / recipe.epochs / seconds  # the last layer takes no longer than the Rep-Net
    images = min(recipe.images or 0, int(each - FORWARD * SOURCES[recipe.data].test) // 100 * 100)
    return replace(recipe, images=images) if images >= TRANSFER_LEAST else None


def _have_imagenet() -> bool:
    try:
        pretrained()
    except DataError as error:
        print(f"ImageNet's weights are not to be had, so scanned digits take their place: {error}")
        return False
    return True


def watch(recipe: Recipe, folder: Path | None = None, guess: float | None = None) -> Path:
    """Train, or go on where a run was stopped, in a curve drawn anew after every epoch; return the run's folder.

    With Q4_WIDGETS=0 each epoch is a line, and the picture comes at the end. Stopped if it is interrupted.
    """
    page: Any = None
    if not headless():
        import ipywidgets
        from IPython.display import display

        page = ipywidgets.HTML("The curve is drawn after every epoch.")
        display(ipywidgets.VBox([page]))

    def picture(run: Path) -> Picture:
        return Picture.of(plot_curve, {"run": run, "guess": guess})

    def draw(run: Path) -> None:
        if page:
            page.value = picture(run).page()
        else:
            print(so_far(run), flush=True)

    try:
        told: dict[str, Any] = {"progress": bool(page), "on_epoch": draw}
        folder = transfer(recipe, folder, **told) if isinstance(recipe, Transfer) else fit(recipe, folder, **told)
    except KeyboardInterrupt:
        raise Stopped("Stopped, and saved. Run this cell again: it goes on with the next step.") from None
    if page:
        draw(folder)
    else:
        picture(folder).show()
    return folder


def training_memory(runs: int) -> list[tuple[float, float]]:
    """Peak memory of three steps of VGG4bit at 4 bits and in FP32, in bytes, `runs` times; empty where none is told."""
    try:
        return memory_pairs(batch=32, model="vgg4bit", runs=runs)
    except (OSError, StopIteration):
        return []
