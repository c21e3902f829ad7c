"""Exercise 06: a finished run within a budget, the arms of an ablation, a prediction before the student's own run."""

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ...data import SOURCES, load
from ...files import FileError
from ...log import RunError, read_log
from ...pack import load_model
from ...recipes import RECIPES, Recipe
from ...train import evaluate
from ..classroom import ARMS, class_recipe, class_run, draw, finished, noted, predicted
from . import NotYet, ToDo, Wrong, shown, task
from .compare import fresh

BUDGET = {"bits": 3, "epochs": 5, "val": 300}
TARGET = 96.0
APART = 1.0  # points between a log and its model, measured again: another processor may turn an image or two


@task("6.4")
def within_budget(value: Any) -> str:
    """A finished run on the digits at 3 bits: five epochs, 300 images held out, 96 % of these at the end."""
    folder = _folder(value)
    try:
        facts, epochs = read_log(folder)
    except RunError as error:
        raise Wrong(f"{error}: is it the folder that `watch` returned?") from None
    asked = dict(facts.get("recipe", {}))
    _in_budget(asked)
    recipe = _finished(facts, epochs, folder)
    reached = [line["val_acc"] for line in epochs]
    if reached[-1] < TARGET <= max(reached):
        raise Wrong(
            f"{reached[-1]:.2f} % at the last epoch: epoch {reached.index(max(reached)) + 1} had {max(reached):.2f} %, "
            "but the last one counts. Does your learning rate fall to zero where the run ends?"
        )
    if reached[-1] < TARGET:
        raise Wrong(
            f"{reached[-1]:.2f} % at the last epoch, {TARGET:g} % are asked for: does the schedule end with the run? "
            "And how many steps does the run take?"
        )
    _same_as_its_model(folder, recipe, reached[-1])
    steps = recipe.steps(recipe.images or SOURCES[recipe.data].train - recipe.val) * recipe.epochs
    return f"{reached[-1]:.2f} % of the held-out images after {steps} steps, and its model says the same"


def _folder(value: Any) -> Path:
    if callable(value):  # the cell gives the function where that gave None
        raise NotYet("your function returns None")
    if isinstance(value, Recipe):
        raise Wrong("that is the recipe: train it with `watch(recipe)`, and return what that gives")
    if not isinstance(value, str | PathLike):
        raise Wrong(f"the folder of a run is asked for, as `watch` returns it, yours is {shown(value)}")
    return Path(value)


def _in_budget(asked: dict[str, Any]) -> None:
    """Wrong if a run's recipe is not what the task asks for, whether or not it has been trained to its end."""
    for key, wanted in {"data": "digits", "model": "simpleresnet4bit", "bits": BUDGET["bits"]}.items():
        if asked.get(key) != wanted:
            raise Wrong(f"{key} should be {wanted!r}, that of this run is {asked.get(key)!r}")
    if asked["epochs"] > BUDGET["epochs"]:
        raise Wrong(f"the budget is {BUDGET['epochs']} epochs, this run has {asked['epochs']}")
    if not asked["val"]:
        raise Wrong(
            f"this run holds no images out, so only the test set could say which of your recipes is the best: set "
            f"`val={BUDGET['val']}` in the recipe"
        )
    if asked["val"] != BUDGET["val"]:
        raise Wrong(f"{BUDGET['val']} images are to be held out, this run holds out {asked['val']}")
    if asked["select"] != "last":
        raise Wrong("the last epoch counts: leave `select` as it is, and then the test set is not even read")


def _finished(facts: dict[str, Any], epochs: list[dict[str, Any]], folder: Path) -> Recipe:
    try:
        return finished(facts, epochs)
    except RunError as error:
        first = "" if "not finished" in str(error) else f"delete {folder}, and "
        raise Wrong(f"{error}: {first}run the cell that trains again") from None


def _same_as_its_model(folder: Path, recipe: Recipe, accuracy: float) -> None:
    """Wrong unless the run's packed model has so many percent of the held-out, or the test images right."""
    try:
        model, facts = load_model(folder / "model.safetensors")
    except FileError as error:
        raise Wrong(f"{error}: run the cell that trains again") from None
    bits = set(facts["bits"].values())
    if bits != {recipe.bits}:
        raise Wrong(f"its log says {recipe.bits} bits, its model file has {', '.join(map(str, sorted(bits)))}")
    images = load(recipe.data)
    x, y = images.x_test, images.y_test
    if recipe.val:
        x, y = images.x_train[-recipe.val :], images.y_train[-recipe.val :]
    _, measured = evaluate(model, x, y, recipe.data)
    if abs(measured - accuracy) > APART:
        raise Wrong(
            f"its log says {accuracy:.2f} %, and its model, measured again on the same images, has {measured:.2f} %: "
            f"one of the two files does not belong to this run. Delete {folder}, and train again"
        )


PARTS = {"soft_clip": "the soft clip", "grad_clip": "the gradient clip", "fixed_scale": "each layer's own scale"}


@task("6.5")
def arm_recipe(student: Any) -> str:
    """For each arm the recipe that leaves out its parts and nothing else, with the seed that is asked for."""
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")
    bases = [RECIPES["digits"], RECIPES["miniature"]]
    seeds = (1 + torch.randperm(9_999, generator=fresh())[: 2 * len(ARMS)]).tolist()
    for base in bases:
        for arm, changes in ARMS.items():
            seed = seeds.pop()
            got = student(base, arm, seed)
            if got is None and base is bases[0] and arm == "full method":
                raise NotYet("your function returns None")
            if not isinstance(got, Recipe):
                raise Wrong(f"for {arm!r} a Recipe is asked for, as `replace(...)` returns it, yours is {shown(got)}")
            _same_recipe(asdict(got), asdict(base) | changes | {"seed": seed}, arm, changes)
    return f"{len(ARMS)} of {len(ARMS)} arms"


def _same_recipe(got: dict[str, Any], wanted: dict[str, Any], arm: str, changes: Mapping[str, Any]) -> None:
    if got["seed"] != wanted["seed"]:
        raise Wrong(f"for {arm!r} the seed is {got['seed']}, it should be the one that is given, {wanted['seed']}")
    if got["per_channel"]:
        raise Wrong(f"{arm!r}: `per_channel` gives each channel a scale, that is more than one a layer, not less")
    for key in PARTS:
        if got[key] == wanted[key]:
            continue
        if key in changes and got[key] and key != "fixed_scale":
            raise Wrong(f"{arm!r} still has {PARTS[key]}: {key} is {got[key]}, and None turns it off")
        if key in changes and key != "fixed_scale":
            raise Wrong(f"{arm!r}: None turns {PARTS[key]} off, not {got[key]!r}")
        if key in changes:
            raise Wrong(f"{arm!r} still has {PARTS[key]}: which field of Recipe gives all layers one step?")
        raise Wrong(f"{arm!r} has lost {PARTS[key]}, too: leave out its own part alone")
    for key, value in wanted.items():
        if got[key] != value:
            raise Wrong(
                f"for {arm!r}, {key} is {got[key]}, it should stay {value}: start from the recipe you are given"
            )


@task("6.6")
def prediction(student: Any) -> str:
    """A prediction written down before the student's own run, and the finished run; how far off it was."""
    if not callable(student):
        raise Wrong(f"a function is asked for, yours is {shown(student)}: give its name, without brackets after it")
    told = student()
    if told is None:
        raise NotYet("your function returns None")
    try:
        name, _ = predicted(told)
    except ValueError as error:
        raise Wrong(str(error)) from None
    folder, (arm, seed) = class_run(name), draw(name)
    note = noted(folder)
    if note is None:
        raise ToDo("your prediction is well formed; now run the cell that writes it down and trains")
    try:
        facts, epochs = read_log(folder)
    except RunError as error:
        raise Wrong(f"{error}: delete {folder} if it is there, and run the cell that trains again") from None
    if _finished(facts, epochs, folder) != class_recipe(arm, seed):
        raise Wrong(f"{folder} is not the run that was drawn from this name: delete it, and run the cell above again")
    accuracy = epochs[-1]["test_acc"]
    _same_as_its_model(folder, class_recipe(arm, seed), accuracy)
    off = abs(accuracy - note["accuracy"])
    return (
        f"{arm}, seed {seed}: you predicted {note['accuracy']:g} % ({note['written']}), the run has {accuracy:.2f} %, "
        f"{off:.2f} points from it; a prediction is neither right nor wrong here"
    )
