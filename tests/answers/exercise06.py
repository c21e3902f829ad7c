"""Answers to exercise 06 as students write them: task, the text in the place of the solution, what check says."""

import json
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from q4lib.train import RECIPES, fit

GOOD = replace(RECIPES["digits"], bits=3, val=300, epochs=5, schedule_epochs=5, batch_size=32)


@cache
def good() -> Path:
    """A run that keeps the budget, trained once for all answers."""
    return fit(GOOD, Path(mkdtemp()) / "run", device="cpu", progress=False)


def begun(**changes) -> Path:
    """A run folder that says which recipe it was begun with, and nothing else."""
    folder = Path(mkdtemp())
    recipe = asdict(GOOD) | changes
    (folder / "log.jsonl").write_text(json.dumps({"run": {"recipe": recipe}}) + "\n")
    return folder


def edited(change, run: Path | None = None) -> Path:
    """A copy of the good run whose log's lines went through `change`."""
    folder = Path(mkdtemp()) / "run"
    shutil.copytree(run or good(), folder)
    first, *epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [first, *change(epochs)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def better(epochs):
    return [*epochs[:-1], epochs[-1] | {"val_acc": 100.0, "train_acc": 100.0}]


def worse(epochs):
    return [*epochs[:-1], epochs[-1] | {"val_acc": 80.0}]


def poor(epochs):
    return [line | {"val_acc": 80.0} for line in epochs]


def other_model() -> Path:
    """The good run with another run's model, trained a moment and at 4 bits."""
    folder = edited(list)
    short = replace(GOOD, bits=4, epochs=1, images=64)
    model = fit(short, Path(mkdtemp()) / "run", device="cpu", progress=False) / "model.safetensors"
    shutil.copy(model, folder)
    return folder


def without_model() -> Path:
    folder = edited(list)
    (folder / "model.safetensors").unlink()
    return folder


COSINE = "return first * (1 + math.cos(math.pi * {} / half_period)) / 2"
STEADY = COSINE.format("((epoch - 1) % half_period if restart else epoch - 1)")
HALF = "    return T[len(v) - 1] * statistics.stdev(v) / len(v) ** 0.5\n"
HALVES = "def half(v):\n    if len(v) < 2:\n        return math.inf\n" + HALF + "a, b = half(arm), half(full)\n"
MEAN = "mean = sum(arm) / len(arm) - sum(full) / len(full)\n"
MINE = "from answers import exercise06 as mine\n"
ARMS = """\
if "soft clip" in arm or "AdamW" in arm:
    recipe = replace(recipe, soft_clip=None)
if "gradient" in arm or "AdamW" in arm:
    recipe = replace(recipe, grad_clip=None)
if "scale" in arm:
    recipe = replace(recipe, fixed_scale=True)
return replace(recipe, seed=seed)
"""


def but(text, old, new):
    """An answer with a part of it otherwise."""
    assert old in text
    return text.replace(old, new)


ANSWERS = [
    ("6.1", COSINE.format("((epoch - 1) % half_period if restart else (epoch - 1))"), "✅"),
    ("6.1", "while restart and epoch > half_period:\n    epoch -= half_period\n" + COSINE.format("(epoch - 1)"), "✅"),
    (
        "6.1",
        "e = epoch - 1\nif restart:\n    e -= half_period * (e // half_period)\n"
        "return first * math.cos(math.pi * e / (2 * half_period)) ** 2",
        "✅",
    ),
    ("6.1", COSINE.format("(epoch % half_period if restart else epoch)"), "of the period, `epoch - 1` epochs have"),
    (
        "6.1",
        COSINE.format("(epoch % half_period if restart else epoch - 1)"),
        "with `restart`, too, epoch 1 has the full",
    ),
    ("6.1", COSINE.format("(epoch % half_period)"), "so count `epoch - 1`; and it always restarts"),
    ("6.1", COSINE.format("(epoch % half_period - 1 if restart else epoch - 1)"), "take 1 off first, and then"),
    ("6.1", "return 0.001" + STEADY[12:].replace("half_period", "100"), "use the names"),
    ("6.1", STEADY.replace("half_period", "100"), "use the names (`first` is right)"),
    ("6.1", "return 0.001" + STEADY[12:], "use the names (`half_period` is right)"),
    ("6.1", COSINE.format("((epoch - 1) % half_period)"), "it always restarts"),
    ("6.1", COSINE.format("(epoch - 1)"), "it never restarts"),
    (
        "6.1",
        "if restart and epoch > half_period:\n    epoch -= half_period\n" + COSINE.format("(epoch - 1)"),
        "it restarts once",
    ),
    (
        "6.1",
        COSINE.format("((epoch - 1) % (half_period + 1) if restart else (epoch - 1))"),
        "the restart comes an epoch late",
    ),
    (
        "6.1",
        "e = (epoch - 1) % half_period if restart else min(epoch - 1, half_period)\n" + COSINE.format("e"),
        "nothing stops at zero",
    ),
    ("6.1", "e = min(epoch - 1, half_period) if restart else epoch - 1\n" + COSINE.format("e"), "stays at zero"),
    (
        "6.1",
        but(COSINE.format("((epoch - 1) % half_period if restart else (epoch - 1))"), " / 2", ""),
        "the half is missing",
    ),
    (
        "6.1",
        but(COSINE.format("((epoch - 1) % half_period if restart else (epoch - 1))"), "first * ", ""),
        "that is the share",
    ),
    (
        "6.1",
        but(COSINE.format("((epoch - 1) % half_period if restart else (epoch - 1))"), "math.pi", "2 * math.pi"),
        "half a turn has gone by",
    ),
    (
        "6.1",
        but(COSINE.format("((epoch - 1) % half_period if restart else (epoch - 1))"), "math.pi", "180"),
        "takes radians",
    ),
    (
        "6.2",
        "best = epochs[-1]\nif best['val_acc'] is not None:\n    best = epochs[0]\n"
        "    for e in epochs:\n        if e['val_acc'] > best['val_acc']:\n            best = e\n"
        "return best['epoch'], best['test_acc']",
        "✅",
    ),
    (
        "6.2",
        "val = [e['val_acc'] for e in epochs]\n"
        "at = len(epochs) - 1 if None in val else val.index(max(val))\n"
        "return [at + 1, epochs[at]['test_acc']]",
        "✅",
    ),
    (
        "6.2",
        "epochs.sort(key=lambda e: -e['val_acc'] if e['val_acc'] else -e['epoch'])\n"
        "return epochs[0]['epoch'], epochs[0]['test_acc']",
        "✅",
    ),
    (
        "6.2",
        "e = max(epochs, key=lambda e: e['test_acc'])\nreturn e['epoch'], e['test_acc']",
        "the best epoch on the test set",
    ),
    (
        "6.2",
        "key = 'test_acc' if epochs[0]['val_acc'] is None else 'val_acc'\n"
        "e = max(epochs, key=lambda e: e[key])\nreturn e['epoch'], e['test_acc']",
        "without a validation split you choose by the test set",
    ),
    ("6.2", "epochs[-1]['epoch'], epochs[-1]['test_acc']", "the last epoch of every run"),
    ("6.2", "e = max(epochs, key=lambda e: e['train_acc'])\nreturn e['epoch'], e['test_acc']", "by heart"),
    (
        "6.2",
        "e = epochs[-1]\nif e['val_acc'] is None:\n    return e['epoch'], e['test_acc']\n"
        "e = max(epochs, key=lambda e: e['val_acc'])\nreturn e['epoch'], e['val_acc']",
        "the accuracy to report is the test accuracy",
    ),
    (
        "6.2",
        "val = [e['val_acc'] for e in epochs]\n"
        "at = len(epochs) - 1 if None in val else val.index(max(val))\nreturn at, epochs[at]['test_acc']",
        "epochs count from 1",
    ),
    (
        "6.2",
        "e = epochs[-1]\nif e['val_acc'] is not None:\n"
        "    e = max(epochs[::-1], key=lambda e: e['val_acc'])\nreturn e['epoch'], e['test_acc']",
        "two epochs are equally good",
    ),
    ("6.2", "epochs[-1]['test_acc']", "two numbers are asked for"),
    ("6.2", "e = max(epochs, key=lambda e: e['val_acc'])\nreturn e['epoch'], e['test_acc']", "TypeError"),
    ("6.3", HALVES + MEAN + "return mean, (a * a + b * b) ** 0.5", "✅"),
    (
        "6.3",
        "mean = statistics.mean(arm) - statistics.mean(full)\nif min(len(arm), len(full)) == 1:\n"
        "    return mean, float('inf')\n"
        "parts = [T[len(v) - 1] ** 2 * statistics.variance(v) / len(v) for v in (arm, full)]\n"
        "return mean, math.sqrt(sum(parts))",
        "✅",
    ),
    ("6.3", HALVES + MEAN + "return mean, a + b", "the two half widths are added"),
    ("6.3", HALVES + MEAN + "return mean, a * a + b * b", "take the root"),
    ("6.3", HALVES + MEAN + "return mean, max(a, math.inf if math.isinf(b) else 0)", "the interval of `arm` alone"),
    ("6.3", HALVES + MEAN + "return mean, (a + b) / 2", "the mean of the two half widths"),
    ("6.3", HALVES + MEAN + "return -mean, math.hypot(a, b)", "the other way round"),
    (
        "6.3",
        HALVES + MEAN + "pairs = [x - y for x, y in zip(arm, full)]\nreturn mean, half(pairs)",
        "do not pair them",
    ),
    ("6.3", but(HALVES, " / len(v) ** 0.5", "") + MEAN + "return mean, math.hypot(a, b)", "did you leave out √n"),
    ("6.3", but(HALVES, "T[len(v) - 1]", "1.96") + MEAN + "return mean, math.hypot(a, b)", "1.96 is for many"),
    ("6.3", but(HALVES, "T[len(v) - 1] * ", "") + MEAN + "return mean, math.hypot(a, b)", "T is missing"),
    ("6.3", but(HALVES, "T[len(v) - 1]", "T[len(v)]") + MEAN + "return mean, math.hypot(a, b)", "is looked up by"),
    ("6.3", but(HALVES, "stdev", "pstdev") + MEAN + "return mean, math.hypot(a, b)", "take statistics.stdev"),
    ("6.3", "statistics.mean(arm) - statistics.mean(full)", "two numbers are asked for"),
    ("6.4", MINE + "return str(mine.good())", "✅"),
    (
        "6.4",
        "changes = {'bits': 3, 'val': 300, 'epochs': 5, 'schedule_epochs': 5, 'batch_size': 16}\n"
        "return watch(replace(RECIPES['digits'], **changes, schedule='linear', warmup=0.2))",
        "✅",
    ),
    ("6.4", MINE + "mine.good()", "your function returns None: is a `return` missing"),
    ("6.4", "replace(RECIPES['digits'], bits=3)", "that is the recipe: train it with `watch(recipe)`"),
    ("6.4", "[97.5] * 99", "as `watch` returns it, yours is [97.5, 97.5, 97.5, 97.5, 97.5, 97.5, ...]"),
    ("6.4", "'runs/mine'", "is it the folder that `watch` returned"),
    ("6.4", MINE + "return mine.begun(bits=4)", "bits should be 3, that of this run is 4"),
    ("6.4", MINE + "return mine.begun(data='cifar10')", "data should be 'digits'"),
    ("6.4", MINE + "return mine.begun(epochs=20)", "the budget is 5 epochs, this run has 20"),
    ("6.4", MINE + "return mine.begun(val=0)", "set `val=300` in the recipe"),
    ("6.4", MINE + "return mine.begun(val=30)", "300 images are to be held out"),
    ("6.4", MINE + "return mine.begun(select='val')", "the last epoch counts"),
    ("6.4", MINE + "return mine.edited(lambda epochs: epochs[:3])", "it has 3 of 5 epochs: it is not finished"),
    ("6.4", MINE + "return mine.edited(lambda epochs: epochs[1:])", "epoch 1 is missing"),
    ("6.4", MINE + "return mine.edited(mine.worse)", "but the last one counts"),
    ("6.4", MINE + "return mine.edited(mine.poor)", "96 % are asked for"),
    (
        "6.4",
        MINE + "return mine.edited(lambda epochs: [line | {'val_acc': 99.5} for line in epochs])",
        "is no number of 300 images",
    ),
    (
        "6.4",
        MINE + "return mine.edited(lambda epochs: [line | {'lr': 0.005} for line in epochs])",
        "epoch 2 has the learning rate 0.005",
    ),
    (
        "6.4",
        MINE + "quick = replace(mine.GOOD, epochs=1, images=64)\nreturn mine.edited(mine.better, watch(quick))",
        "one of the two files does not belong to this run",
    ),
    ("6.4", MINE + "return mine.other_model()", "its model file has 4"),
    ("6.4", MINE + "return mine.without_model()", "run the cell that trains again"),
    ("6.5", ARMS, "✅"),
    (
        "6.5",
        "clips = {'soft_clip': None, 'grad_clip': None}\n"
        "if 'scale' in arm:\n    return replace(recipe, seed=seed, fixed_scale=True)\n"
        "if arm == 'standard AdamW':\n    return replace(recipe, seed=seed, **clips)\n"
        "named = {'without soft clip': 'soft_clip', 'without gradient clip': 'grad_clip'}.get(arm)\n"
        "return replace(recipe, seed=seed, **({named: None} if named else {}))",
        "✅",
    ),
    ("6.5", but(ARMS, "soft_clip=None", "soft_clip=0.0"), "None turns the soft clip off, not 0.0"),
    ("6.5", but(ARMS, "grad_clip=None", "grad_clip=float('inf')"), "and None turns it off"),
    ("6.5", but(ARMS, "fixed_scale", "per_channel"), "more than one a layer, not less"),
    ("6.5", but(ARMS, "fixed_scale=True", "fixed_scale=False"), "which field of Recipe gives all layers one step"),
    ("6.5", but(ARMS, "replace(recipe, seed=seed)", "recipe"), "it should be the one that is given"),
    (
        "6.5",
        but(ARMS, '"soft clip" in arm or "AdamW" in arm', '"without" in arm or "AdamW" in arm'),
        "has lost the soft clip, too",
    ),
    ("6.5", "recipe = RECIPES['digits']\n" + ARMS, "start from the recipe you are given"),
    ("6.5", "{'seed': seed}", "a Recipe is asked for"),
    ("6.6", "name = 'Grace Hopper'\nreturn [name, 99]", "✅"),
    ("6.6", "' ada  LOVELACE ', 12.5", "✅"),
    ("6.6", "97.5", "two things are asked for"),
    ("6.6", "97.5, 'Ada Lovelace'", "your name comes first, in quotes"),
    ("6.6", "'  ', 97.5", "your name comes first, in quotes"),
    ("6.6", "'Ada Lovelace', '97.5 %'", "a number without a sign behind it"),
    ("6.6", "'Ada Lovelace', 0.975", "is it a share"),
    ("6.6", "'Ada Lovelace', 110", "between 0 and 100"),
]

EQUIVALENT = {
    (
        "6.4",
        "recipe = replace(RECIPES['digits'], bits=BITS, val=HELD_OUT, epochs=EPOCHS, schedule_epochs=EPOCHS, "
        "batch_size=33)",
    ): "a batch that is nearly as small",
}
