"""Lesson 06's inline checks: what a checkpoint holds, how sure an accuracy is, a learning rate, a precision."""

from collections.abc import Iterable
from math import cos, pi, sqrt
from typing import Any

from ..confusion import confusion
from . import Wrong, task
from .step import compare_number

NEEDED = {
    "master weights": "the forward pass makes the codes from them, and the next step goes on from them",
    "m and v": "without Adam's memory the next step is a first step again, one learning rate for every weight",
    "running statistics": "batch norm has gathered mean and deviation over many steps; evaluation needs them",
    "random generator": "dropout would draw other units to silence",
    "place in the run": "the run would repeat images, and take the rate of another epoch",
}
MADE_ANEW = {
    "codes": "each forward pass rounds the master weights anew",
    "gradients": "each backward pass makes them anew",
    "activations": "each forward pass makes them anew",
}


@task("06.a")
def checkpoint(value: Any) -> str:
    """The parts of a run's state from which it goes on to the same last bit, as a set of words."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise Wrong('a set of words is asked for, such as {"gradients", "codes"}')
    chosen = set(value)
    for unknown in sorted(map(str, chosen - NEEDED.keys() - MADE_ANEW.keys())):
        raise Wrong(f"{unknown!r} is none of the eight: copy the words from the cell")
    for part, why in MADE_ANEW.items():
        if part in chosen:
            raise Wrong(f"{part}: {why}")
    for part, why in NEEDED.items():
        if part not in chosen:
            raise Wrong(f"a part is missing: {why}")
    return "these five, and the images and the recipe, which lie elsewhere"


@task("06.b")
def standard_error(value: Any) -> str:
    """The standard error, in points, of an accuracy of 92 % on 10,000 images."""
    variance = 0.92 * 0.08
    likely = {
        sqrt(variance / 10_000): "that is a share: times 100, for points",
        100 * sqrt(variance): "that is the deviation of one picture: divide by the root of 10,000",
        100 * variance / 10_000: "take the root of p (1 - p) / n",
        100 * sqrt(0.92 / 10_000): "the factor 1 - p is missing",
        100 * sqrt(variance / 50_000): "these are the training images: accuracy is measured on the 10,000 test images",
        1 / sqrt(10_000): "the factor p (1 - p) is missing, and 100 for points",
        100 / sqrt(10_000): "the factor p (1 - p) is missing",
    }
    compare_number(value, 100 * sqrt(variance / 10_000), likely, "100 times the root of 0.92 × 0.08 / 10,000", 0.0015)
    return "100 times the root of p (1 - p) / n"


@task("06.c")
def rate_at_the_end(value: Any) -> str:
    """The paper's learning rate in epoch 150: a cosine of 100 epochs from 0.001, stepped each epoch, run on."""

    def cosine(epochs: int) -> float:
        return 0.001 * (1 + cos(pi * epochs / 100)) / 2

    likely = {
        cosine(150): "epoch 1 has the full rate: so the cosine has gone 149 epochs, not 150",
        cosine(49): "that is a restart after epoch 100: the formula has none",
        2 * cosine(149): "the half is missing",
        0.0: "the half period stays 100 epochs, and the formula goes on after them: the cosine climbs again",
        1000 * cosine(149): "that is the share: times the first rate, 0.001",
        0.001 * (1 + cos(pi * 149 / 180)) / 2: "that takes degrees: pi × 149 / 100 is in radians",
    }
    compare_number(value, cosine(149), likely, "put e = 150 into the formula; `math.cos` takes radians", 1e-6)
    return "about half of the first rate, after it had fallen to almost nothing"


@task("06.d")
def precision(value: Any) -> str:
    """Of the pictures that the network calls bird, the share that are birds."""
    counts, classes = confusion()
    bird = classes.index("bird")
    right, row, column = (n.item() for n in (counts[bird, bird], counts[bird].sum(), counts[:, bird].sum()))
    likely = {
        right / row: "that is the share of the birds that it finds, its recall: divide by the column's sum",
        100 * right / column: "that is in percent: give the share",
        100 * right / row: "that is the share of the birds that it finds: divide by the column's sum",
        1 - right / column: "that is the share that are no birds",
        column / row: "that compares how many it calls bird with how many there are",
        2 * right / (row + column): "that mixes both shares: divide by the column's sum alone",
        counts.trace().item() / counts.sum().item(): "that is the accuracy over all classes",
        column: "that is how many it calls bird: how many of these are birds?",
    }
    compare_number(value, right / column, likely, "counts[2, 2] over the sum of column 2", 5e-4)
    return f"{right} of {column}: its precision for birds"
