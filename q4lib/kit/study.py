"""Both papers together: accuracy, training memory and file size of each arm of transfer: `python -m q4lib.kit.study`.

It measures the memory, which no log has, writes `notebooks/results/training-memory.json`, and prints tables. Seeds are
those of the transfer. The backbones have one seed, so that no interval here covers what another backbone would do.
"""

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import SOURCES
from ..files import write_whole
from ..lean import checkpointed, lean
from ..log import read_log, reported
from ..memory import measure
from ..pack import save_model
from ..pruning import hidden_layers, prune, solve_ratios
from ..recipes import run_name
from ..transfer import TRANSFERS, Transfer
from . import asset
from .records import mean_interval

NAME = "training-memory.json"
MB = 1e6
SEEDS = range(3)
BATCH, PIXELS = 8, 32

_LAST, _SIDE, _PRUNED = (TRANSFERS[name] for name in ("last-layer", "repnet", "repnet-pruned"))
ROUNDED: dict[str, dict[str, Any]] = {
    "4 bits": {},
    "4 bits a channel": {"per_channel": True},
    "trained on 4 bits": {"start_bits": 4},
}
ARMS: dict[str, Transfer] = {
    "last layer": _LAST,
    "last layer, rate 1.5e-3": replace(_LAST, head_lr=1.5e-3),
    "Rep-Net": _SIDE,
    "Rep-Net, pruned": _PRUNED,
    "Rep-Net, pruned at random": TRANSFERS["repnet-random"],
    **{f"Rep-Net, {how}": replace(_SIDE, bits=4, **change) for how, change in ROUNDED.items()},
    **{f"Rep-Net, pruned, {how}": replace(_PRUNED, bits=4, **change) for how, change in ROUNDED.items()},
}
# What is asked of the accuracies: how much the first has more than the second.
ASKED = [
    ("Rep-Net", "last layer"),
    ("Rep-Net", "last layer, rate 1.5e-3"),
    ("Rep-Net, pruned", "Rep-Net"),
    ("Rep-Net, pruned", "Rep-Net, pruned at random"),
    *((f"{whole}, {how}", whole) for whole in ("Rep-Net", "Rep-Net, pruned") for how in ROUNDED),
]
# How a step is taken, and how many images at a time. Batch norm cannot train on one image here: the side module at
# block 17 has one value a channel and image. With two it can, but normalizes by other numbers than with eight.
WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], int]] = {
    "eager": (copy.deepcopy, BATCH),
    "checkpointed": (checkpointed, BATCH),
    "lean": (lean, BATCH),
    "lean, micro-batches": (lean, 2),
}
HEAD_WAYS = {"eager": WAYS["eager"], "lean": WAYS["lean"], "lean, micro-batches": (lean, 1)}


def network(arm: Transfer) -> nn.Module:
    """A network of an arm's shape, untrained: bytes depend on nothing else, and no run need be there."""
    model = replace(arm, start="").network(SOURCES[arm.data].classes)
    if arm.start == _SIDE.start:
        return model
    ones = {name: torch.ones(layers[4].in_channels) for name, layers in hidden_layers(model).items()}
    return prune(model, solve_ratios(model, (3, PIXELS, PIXELS)), ones)


def take(model: nn.Module, images: int = BATCH, pixels: int = PIXELS) -> dict[str, int]:
    """Bytes of a training step of eight images, `images` at a time, each part's gradients added to those before.

    `held`: network and Adam's moments, which are there before the step. `peak` and `saved`: what it makes, gradients
    too, and what of that backward waits for. The optimizer's update takes less than the peak.
    """
    model.to(memory_format=torch.channels_last)
    x = torch.zeros(BATCH, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(BATCH, dtype=torch.long)

    def step() -> None:
        for part, labels in zip(x.split(images), y.split(images), strict=True):
            (F.cross_entropy(model(part), labels) * (len(part) / BATCH)).backward()

    found = measure(step)
    moments = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"images": images, "held": held + moments, "peak": found.peak, "saved": found.saved}


@cache
def memory_of(arm: Transfer) -> dict[str, Any]:
    """Parameters of an arm that train and that are frozen, its file's bytes, and by way what its step takes."""
    model = network(arm)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    facts = {"recipe": arm.name, "data": arm.data, "classes": (), "epoch": arm.epochs, "test_acc": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        save_model(file := Path(folder, "model.safetensors"), model, **facts)
        bytes_of_file = file.stat().st_size
    return {
        "trainable": sum(n for n, trains in sizes if trains),
        "frozen": sum(n for n, trains in sizes if not trains),
        "file": bytes_of_file,
        "steps": {
            way: take(change(model), images)
            for way, (change, images) in (HEAD_WAYS if arm.trains == "head" else WAYS).items()
        },
    }


def measure_arms() -> dict[str, Any]:
    """The record: `memory_of` each arm. Where only training differs, the bytes are those of one measurement."""
    arms = {}
    for name, arm in ARMS.items():
        like = arm if arm.start == _SIDE.start else _PRUNED
        same = replace(arm, name=like.name, start=like.start, head_lr=_SIDE.head_lr, start_bits=_SIDE.start_bits)
        arms[name] = memory_of(same)
    return {"batch": BATCH, "pixels": PIXELS, "arms": arms}


@cache
def memory() -> dict[str, Any]:
    """The recorded memory by arm, as `memory_of` measured it."""
    arms: dict[str, Any] = json.loads(asset(NAME).read_text())["arms"]
    return arms


@cache
def accuracies(name: str) -> dict[int, float]:
    """Test accuracy in percent of an arm at its last epoch, by seed; seeds without a log are not there."""
    found = {}
    for seed in SEEDS:
        try:
            folder = asset(run_name(replace(ARMS[name], seed=seed)))
        except FileNotFoundError:
            continue
        found[seed] = reported(read_log(folder)[1], "last")["test_acc"]
    return found


def missing() -> list[str]:
    """The arms of which logs are missing, with the seeds."""
    absent = {name: [str(seed) for seed in SEEDS if seed not in accuracies(name)] for name in ARMS}
    return [f"{name} (seed {', '.join(seeds)})" for name, seeds in absent.items() if seeds]


def said(name: str) -> str:
    """An arm's mean accuracy with its 95 % interval, in words."""
    found = list(accuracies(name).values())
    if len(found) < 2:
        return f"{found[0]:.2f} %, one run, no spread" if found else "not recorded"
    mean, half = mean_interval(found)
    return f"{mean:.2f} ± {half:.2f} %, {len(found)} seeds"


HEAD = (
    "| arm | test accuracy | trains | frozen | file, kB | held | eager | checkpointed | lean | lean, micro-batches |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def rows() -> list[str]:
    """A row an arm. Memory in MB: held by an eager step, then by way the peak, and in brackets saved an image."""
    lines = []
    for name, found in memory().items():
        cells = [
            f"{step['peak'] / MB:.2f} ({step['saved'] / step['images'] / MB:.3f})" if step else "-"
            for step in (found["steps"].get(way) for way in WAYS)
        ]
        start = f"{found['trainable']:,} | {found['frozen']:,} | {found['file'] / 1000:,.0f}"
        held = f"{found['steps']['eager']['held'] / MB:.2f}"
        lines.append(f"| {' | '.join([name, said(name), start, held, *cells])} |")
    return lines


def difference(more: str, less: str) -> str:
    """Points of accuracy that an arm has more than another, pairs of a seed; empty without two seeds in common."""
    ours, theirs = accuracies(more), accuracies(less)
    points = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(points) < 2:
        return ""
    mean, half = mean_interval(points)
    verdict = "better" if mean > half else "worse" if mean < -half else "cannot tell"
    return f"{mean:+.1f} points, {mean - half:+.1f} to {mean + half:+.1f}: {verdict}"


def differences() -> list[str]:
    """A line a question of `ASKED`, where both arms have two seeds in common."""
    return [f"{more} against {less}: {found}" for more, less in ASKED if (found := difference(more, less))]


def main() -> None:
    """Measure, write what was found to `notebooks/results`, and print it beside the recorded accuracies."""
    file = Path(__file__).parents[2] / "notebooks" / "results" / NAME
    write_whole(file, (json.dumps(measure_arms(), indent=1) + "\n").encode())
    print("\n".join([HEAD, *rows(), "", *(f"- {line}" for line in differences())]))
    if absent := missing():
        print(f"no log: {'; '.join(absent)}")


if __name__ == "__main__":
    main()
