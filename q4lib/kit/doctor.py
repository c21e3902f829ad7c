"""What this machine can do, and how long each recipe takes on it."""

import os
import platform
import shutil
import time
from itertools import product

import torch

from ..data import SOURCES, home, where
from ..machine import processor
from ..models import MODELS, VGG4bit
from ..optim import QuantAwareAdamW
from ..recipes import RECIPES, Recipe
from ..step import faster_precision, step_seconds, train_step
from ..train import evaluate
from .bench import matmul_seconds

IMAGES = 8  # few, because bf16 can be 40 times slower
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Print processor, memory, speeds, every recipe's time, disk and data sets; about a minute on two cores."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"machine: {processor()}, {_cores()} cores, threads: {torch.get_num_threads()}, memory: {_memory()}")
    print(f"software: Python {platform.python_version()}, torch {torch.__version__}")
    print(f"CUDA: {torch.cuda.get_device_name() if device == 'cuda' else 'none'}")
    n = 1024
    rates = {name: 2 * n**3 / matmul_seconds(n, dtype) / 1e9 for name, dtype in DTYPES.items()}
    print(f"matrix product on the processor: {', '.join(f'{name} {rate:.0f} GFLOP/s' for name, rate in rates.items())}")
    with torch.random.fork_rng(devices=[]):
        precision = _compare_steps()
        print("recipes:")
        for recipe in RECIPES.values():
            print(f"  {recipe_line(recipe, precision, device)}", flush=True)
    folder = home()
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    print(f"Q4_HOME: {folder}, {shutil.disk_usage(there).free / 1e9:.0f} GB free")
    print("data:")
    for name, source in SOURCES.items():
        if source.whole:
            continue
        print(f"  {name}: {where(name) or f'not here; q4 data get {name} downloads {source.size / 1e6:.0f} MB'}")


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _compare_steps() -> str:
    """Print a training step's time in both precisions and memory formats; the precision that `train` takes for auto."""
    seconds = {way: _step_seconds(*way) for way in product(DTYPES, FORMATS)}
    print(f"training step of VGG4bit on the processor, {IMAGES} images:")
    for (precision, layout), took in seconds.items():
        print(f"  {precision} {layout}: {1000 * took:.0f} ms")
    best = {name: min((seconds[name, layout], layout) for layout in FORMATS) for name in DTYPES}
    faster, slower = sorted(DTYPES, key=lambda name: best[name])
    times = best[slower][0] / best[faster][0]
    print(f"  fastest: {faster} {best[faster][1]}; {slower} is {times:.1f} times slower")
    return min(DTYPES, key=lambda name: seconds[name, "channels_last"])


def _step_seconds(precision: str, layout: str, steps: int = 3) -> float:
    """The fastest step but the first, which warms up; where a step is very slow, the first will do."""
    model = VGG4bit().to(memory_format=FORMATS[layout])
    optimizer = QuantAwareAdamW(model.parameters())
    x = torch.randn(IMAGES, 3, 32, 32).contiguous(memory_format=FORMATS[layout])
    y = torch.zeros(IMAGES, dtype=torch.long)
    seconds: list[float] = []
    while len(seconds) <= steps and sum(seconds) < 2:
        start = time.perf_counter()
        train_step(model, optimizer, x, y, precision)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)


def recipe_line(recipe: Recipe, faster: str, device: str) -> str:
    """How long training and evaluation take, told from a few steps; the data set is not loaded."""
    precision = recipe.precision
    if precision == "auto":
        precision = faster if device == "cpu" else faster_precision(recipe, device)
    source = SOURCES[recipe.data]
    steps = recipe.steps(recipe.images or source.train - recipe.val)
    step = step_seconds(recipe, precision, device)
    image = _image_seconds(recipe, precision, device)
    tuning = recipe.val and recipe.select == "last"  # it never reads the test set
    held_out = recipe.val if tuning else source.test
    evaluation = image * ((1 + 2 * recipe.mirror) * held_out + (0 if tuning else recipe.val))
    total = recipe.epochs * (steps * step + evaluation) + image * 6 * recipe.six_views * held_out
    return (
        f"{recipe.name}: {_clock(total)}: {recipe.epochs} epochs of {steps} steps, {1000 * step:.0f} ms each, "
        f"and {evaluation:.1f} s of evaluation ({recipe.model} on {recipe.data}, {precision}, {device})"
    )


def _image_seconds(recipe: Recipe, precision: str, device: str, images: int = 250) -> float:
    model = MODELS[recipe.model](SOURCES[recipe.data].classes, recipe.bits, recipe.per_channel)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros(images, 3, 32, 32, dtype=torch.uint8, device=device)
    y = torch.zeros(images, dtype=torch.long, device=device)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        evaluate(model, x, y, recipe.data, precision)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / images


def _clock(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
