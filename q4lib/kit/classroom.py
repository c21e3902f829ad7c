"""The class as the cluster: each student trains one arm with one seed, both drawn from the name."""

import json
import math
import unicodedata
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..data import SOURCES, home
from ..files import write_whole
from ..log import RunError, read_log
from ..recipes import RECIPES, Recipe, run_name
from .checks import shown

# The rows of the paper's table VII. Plain AdamW still rounds, each layer with a scale of its own.
ARMS: dict[str, dict[str, Any]] = {
    "full method": {},
    "without soft clip": {"soft_clip": None},
    "without per-layer scale": {"fixed_scale": True},
    "without gradient clip": {"grad_clip": None},
    "standard AdamW": {"soft_clip": None, "grad_clip": None},
}
EPOCHS = 10
SEEDS = 100_000


def draw(name: str) -> tuple[str, int]:
    """The arm and the seed of a student: the same for one name, however it is spaced and capitalized."""
    words = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    number = int.from_bytes(sha256(words.encode()).digest()[:8], "big")
    # Every difference is one to the full method, which therefore wants more runs than another arm.
    arms = [*ARMS, "full method"]
    return arms[number % len(arms)], number // len(arms) % SEEDS


def class_recipe(arm: str, seed: int) -> Recipe:
    """What the class trains: the digits in ten epochs, all parts of the method but those that the arm leaves out."""
    return replace(RECIPES["digits"], epochs=EPOCHS, schedule_epochs=EPOCHS, seed=seed, **ARMS[arm])


def class_run(name: str) -> Path:
    """The run folder of a student on this machine."""
    return home() / "runs" / run_name(class_recipe(*draw(name)))


def predicted(told: Any) -> tuple[str, float]:
    """The name and the accuracy in percent that a student gives. ValueError says what is wrong with them."""
    try:
        name, accuracy = told
    except (TypeError, ValueError):
        raise ValueError(f"two things are asked for, `return name, accuracy`, yours is {shown(told)}") from None
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f'your name comes first, in quotes, as in `return "Ada Lovelace", 50`, yours is {shown(name)}')
    try:
        accuracy = float(accuracy)
    except (TypeError, ValueError):
        raise ValueError(f"the accuracy is a number without a sign behind it, yours is {shown(accuracy)}") from None
    if 0 < accuracy < 1:
        raise ValueError(f"the accuracy is asked for in percent, and {accuracy:g} % is less than 1: is it a share?")
    if not 0 <= accuracy <= 100:
        raise ValueError(f"an accuracy lies between 0 and 100 %, yours is {accuracy:g}")
    return name, accuracy


def noted(run: Path) -> dict[str, Any] | None:
    """The prediction that was written down beside a run before it began, None if there is none."""
    try:
        note = json.loads(_note(run).read_text())
        return {"accuracy": float(note["accuracy"]), "written": str(note["written"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(run: Path) -> Path:
    return run.with_name(f"{run.name}.prediction.json")


def take_part(told: tuple[str, float] | None) -> Path | None:
    """Write a prediction down, then train, or go on with, the arm and seed of that name; the run folder.

    The first prediction counts. Without one nothing is trained.
    """
    if told is None:
        print("nothing is trained before you have predicted: fill in the cell above, and run it")
        return None
    try:
        name, accuracy = predicted(told)
    except ValueError as error:
        print(error)
        return None
    arm, seed = draw(name)
    folder = class_run(name)
    if not noted(folder):
        if (folder / "log.jsonl").exists():
            print(f"{folder} was begun before a prediction was written down: delete it, and run this cell again")
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        written = datetime.now().astimezone().isoformat(" ", "seconds")
        write_whole(_note(folder), json.dumps({"accuracy": accuracy, "written": written}).encode())
    note = noted(folder) or {}
    print(f"{name.strip()}: {arm}, seed {seed}")
    later = f"; {accuracy:g} % came later and does not count" if accuracy != note["accuracy"] else ""
    print(f"predicted: {note['accuracy']:g} %, written down {note['written']}{later}", flush=True)
    return _trained(class_recipe(arm, seed), folder, note["accuracy"])


def _trained(recipe: Recipe, folder: Path, guess: float) -> Path:
    from .live import watch  # matplotlib, which no check waits for

    watch(recipe, folder, guess=guess)
    print("\nepoch  training    test")
    for line in read_log(folder)[1]:
        print(f"{line['epoch']:5}  {line['train_acc']:6.2f} %  {line['test_acc']:6.2f} %")
    print(f"\nhand in {folder / 'log.jsonl'}")
    return folder


def finished(facts: dict[str, Any], epochs: list[dict[str, Any]]) -> Recipe:
    """The recipe of a run whose log is whole, finished, and as its recipe has it. RunError says what is not."""
    try:
        given = dict(facts["recipe"])
        recipe = Recipe(**given | {"betas": tuple(given.get("betas", (0.9, 0.999)))})
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"its recipe is none that this q4lib knows ({error})") from None
    digest = SOURCES[recipe.data].digest
    if digest and facts.get("data_digest") != digest:
        raise RunError(f"its images are not those of {recipe.data}")
    try:
        for number, line in enumerate(epochs, 1):
            _agrees(line, number, recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"a line of its log is damaged ({type(error).__name__}: {error})") from None
    if len(epochs) != recipe.epochs:
        raise RunError(f"it has {len(epochs)} of {recipe.epochs} epochs: it is not finished")
    return recipe


def _agrees(line: dict[str, Any], number: int, recipe: Recipe) -> None:
    """RunError unless an epoch's line follows the one before it, and has the rate and the images of the recipe."""
    if line["epoch"] != number:
        raise RunError(f"epoch {number} is missing in its log, or stands in another place")
    if not math.isclose(line["lr"], recipe.learning_rate(number), rel_tol=1e-6, abs_tol=1e-12):
        rates = f"{line['lr']:g}, where its recipe gives {recipe.learning_rate(number):g}"
        raise RunError(f"epoch {number} has the learning rate {rates}")
    unread = {"val_acc": not recipe.val, "test_acc": recipe.val > 0 and recipe.select == "last"}
    for key, images in (("test_acc", SOURCES[recipe.data].test), ("val_acc", recipe.val)):
        if (line[key] is None) != unread[key]:
            raise RunError(f"its {key} in epoch {number} is {line[key]}, which is not as its recipe has it")
        if line[key] is None:
            continue
        right = line[key] * images / 100
        if not 0 <= right <= images or abs(right - round(right)) > 1e-6:
            raise RunError(f"its {key} in epoch {number}, {line[key]:g} %, is no number of {images} images")
