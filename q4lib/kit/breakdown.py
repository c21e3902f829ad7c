"""Where the time of a recipe's training step goes, and how near it comes to this machine's matrix product."""

import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..data import SOURCES, batches, normalize
from ..files import write_whole
from ..layers import quantized_layers
from ..machine import describe
from ..recipes import RECIPES, Recipe
from ..step import build, faster_precision, step_seconds
from .bench import SIZES, matmul_seconds
from .doctor import recipe_line

NAME = "step-times.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("data", "forward", "quantizer", "backward", "optimizer")


def step_parts(recipe: Recipe, precision: str, size: int, steps: int) -> dict[str, float]:
    """Medians of the seconds that the parts of a step on `size` images take, their sum `step`, and the share `idle`.

    The quantizer runs within `forward`, and is timed again by itself. `idle` is the share of the threads' time in which
    no processor worked for this process.
    """
    model, optimizer = build(recipe, SOURCES[recipe.data].classes, "cpu")
    layers = quantized_layers(model).values()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (size * (steps + 1), 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.randint(SOURCES[recipe.data].classes, (len(x),), generator=generator)
    drawn = batches(x, y, size, seed=0, epoch=1, crop=recipe.crop, reflect=recipe.reflect, flip=recipe.flip)
    found: dict[str, list[float]] = {part: [] for part in (*PARTS, "step", "idle")}
    for _ in tqdm(range(steps + 1), desc=f"breakdown, {precision}", unit="step", leave=False, disable=None):
        at = {"start": time.perf_counter()}
        worked = time.process_time()
        images, labels = next(drawn)
        images = normalize(images, recipe.data).contiguous(memory_format=torch.channels_last)
        at["data"] = time.perf_counter()
        optimizer.zero_grad()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with autocast:
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
        at["forward"] = time.perf_counter()
        loss.backward()
        at["backward"] = time.perf_counter()
        with autocast:
            optimizer.step()
        at["optimizer"] = time.perf_counter()
        worked = time.process_time() - worked
        for layer in layers:
            layer.quantized_weight()
        at["quantizer"] = time.perf_counter()
        step = at["optimizer"] - at["start"]
        order = list(at)
        for part, before in zip(order[1:], order, strict=False):
            found[part].append(at[part] - at[before])
        found["step"].append(step)
        found["idle"].append(max(0.0, 1 - worked / (step * torch.get_num_threads())))
    return {part: statistics.median(values[1:]) for part, values in found.items()}


def fastest_steps(precision: str, rounds: int) -> dict[str, float]:
    """Seconds of a step of `paper` and of `fast`, the fastest of some rounds, turn and turn about."""
    names = ("paper", "fast")
    found = [[step_seconds(RECIPES[name], precision, steps=1) for name in names] for _ in range(rounds)]
    return dict(zip(names, map(min, zip(*found, strict=True)), strict=True))


def times_paper(of_paper: float, of_fast: float) -> float:
    """How many times as long 110 epochs of `paper` take as all of `fast`, from the seconds of a step of each.

    110 is the epoch of the paper's best accuracy, 92.34 %; evaluation is not counted.
    """
    paper, fast = RECIPES["paper"], RECIPES["fast"]
    images = SOURCES["cifar10"].train
    return 110 * paper.steps(images) * of_paper / (fast.epochs * fast.steps(images) * of_fast)


def main(name: str = "fast", steps: int = 5, size: int = 0) -> None:
    """Print a table: in each precision the step's share of GEMM's FLOP/s, and each part's share of it; `times_paper`.

    The precision that the recipe chooses here is measured on its own batch (or `size` images), the other on a 16th.
    """
    recipe = RECIPES[name]
    chosen = faster_precision(recipe)
    size = size or recipe.batch_size
    print("| training step | share of GEMM's FLOP/s | time | where it goes | GEMM |\n|---|---|---|---|---|", flush=True)
    for precision in sorted(DTYPES, key=lambda precision: precision != chosen):
        images = size if precision == chosen else max(2, size // 16)
        parts = step_parts(recipe, precision, images, steps if precision == chosen else 1)
        model, _ = build(recipe, SOURCES[recipe.data].classes, "cpu")
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, 3, 32, 32)).sum().backward()
        flops = counter.get_total_flops() / 2 * images
        sizes = SIZES if precision == chosen else SIZES[:1]
        gemm = max(2 * n**3 / matmul_seconds(n, DTYPES[precision]) for n in sizes)
        share = {part: f"{100 * parts[part] / parts['step']:.1f} %" for part in PARTS}
        where = ", ".join(f"{part} {share[part]}" for part in ("data", "forward", "backward", "optimizer"))
        print(
            f"| `{name}`, {images} images, {precision}{' (chosen)' if precision == chosen else ''} "
            f"| {flops / parts['step'] / gemm:.2f} | {1000 * parts['step']:,.0f} ms | {where}; the quantizer's part of "
            f"forward: {share['quantizer']}; idle: {100 * parts['idle']:.0f} % | {gemm / 1e9:,.0f} GFLOP/s |",
            flush=True,
        )
    times = times_paper(*fastest_steps(chosen, rounds=3).values())
    print(f"\n110 epochs of `paper` take {times:.1f} times as long as all of `fast`, both in {chosen}.")


def record(rounds: int = 9) -> None:
    """Write the seconds of a step of both in each precision, and what `q4 doctor` tells, to `notebooks/results`."""
    seconds = {precision: fastest_steps(precision, rounds) for precision in DTYPES}
    told = recipe_line(RECIPES["fast"], faster_precision(RECIPES["fast"]), "cpu")
    file = Path(__file__).parents[2] / "notebooks" / "results" / NAME
    text = json.dumps({"seconds": seconds, "rounds": rounds, "doctor": told, **describe("cpu")}, indent=1)
    write_whole(file, (text + "\n").encode())


if __name__ == "__main__":
    record()
