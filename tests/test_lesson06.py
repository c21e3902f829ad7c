"""Lesson 06: its plans, its live run, its figures against the logs themselves, its record, its checks."""

import csv
import hashlib
import json
import math
import re
import signal
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from inline_checks import ListedAnswers

from q4lib.data import load
from q4lib.kit import confusion, live, records
from q4lib.kit.checks.training import MADE_ANEW, NEEDED
from q4lib.kit.figures import levels
from q4lib.kit.figures import run as figures
from q4lib.kit.figures.ablation import INGREDIENTS
from q4lib.pack import load_model
from q4lib.recipes import RECIPES
from q4lib.train import read_log

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks" / "results"
LESSON = nbformat.read(ROOT / "notebooks" / "06_train_cifar10.ipynb", 4)
PROSE = "\n".join(cell.source for cell in LESSON.cells if cell.cell_type == "markdown")
with (RESULTS / "paper-log-cifar10.csv").open() as file:
    PAPER = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
FASTS, TWINS = (
    [read_log(RESULTS / f"fast-cifar10-b{bits}-s{seed}")[1] for seed in range(5)] for bits in (4, 32)
)  # fmt: skip
FAST, FIRST = FASTS[0], read_log(RESULTS / records.FIRST)[1]
COUNTS = np.array(json.loads((RESULTS / confusion.NAME).read_text())["counts"])


def numbers_in(text):
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def seconds_for(fast, small, digits=None):
    return {"fast": fast, "small": small, "digits": digits or small}


def took(recipe, seconds):
    """Seconds by hand: each epoch trains on its images, and evaluates all test images at less than half the cost."""
    train, test = {"cifar10": (50_000, 10_000), "digits": (1_437, 360)}[recipe.data]
    return recipe.epochs * seconds[recipe.name] * ((recipe.images or train) + 0.4 * test)


class TestPlan:
    @pytest.mark.parametrize("minutes", [1, 5, 30])
    @pytest.mark.parametrize("each", [1e-5, 3e-4, 1e-3, 8e-3, 0.05, 0.5])
    def test_fits_and_ends_at_zero_on_any_machine(self, minutes, each):
        seconds = seconds_for(each, each / 10)
        recipe = live.plan(minutes, seconds)
        one = took(replace(recipe, epochs=1), seconds)
        assert took(recipe, seconds) <= max(0.8 * 60 * minutes, one)
        assert recipe.epochs <= RECIPES[recipe.name].epochs
        assert recipe.epochs >= 5 or recipe.data == "digits" and 6 * one > 0.8 * 60 * minutes
        assert recipe.schedule_epochs == recipe.epochs and recipe.rate(recipe.epochs + 1, 0.0) == pytest.approx(0)

    def test_fast_machine_gets_the_whole_recipe(self):
        assert live.plan(5, seconds_for(1e-5, 1e-6)) == RECIPES["fast"]

    def test_the_larger_network_first_then_more_epochs_then_more_images(self):
        plans = [live.plan(5, seconds_for(each, each / 8)) for each in (5e-4, 1e-3, 3e-3, 8e-3, 0.05)]
        assert [plan.name for plan in plans] == ["fast", "fast", "small", "small", "small"]
        assert [plan.epochs for plan in plans] == [8, 5, 10, 5, 5]
        assert [plan.images for plan in plans[:3]] == [None, 44_000, None]
        assert plans[3].images == 44_000 and plans[4].images == 3_600

    def test_slow_machine_gets_digits(self):
        recipe = live.plan(1, seconds_for(0.05, 5e-3))
        assert (recipe.name, recipe.data, recipe.images, recipe.epochs) == ("digits", "digits", None, 6)

    def test_no_time_at_all(self):
        assert live.plan(0.01, seconds_for(1, 0.1)).epochs == 1
        with pytest.raises(ValueError, match=r"MINUTES must be positive, got 0$"):
            live.plan(0, seconds_for(1, 0.1))


@pytest.mark.parametrize(
    ("name", "images", "expected"), [("fast", 64, 8e-3 + 1.5 / 512), ("digits", 64, 8e-3 + 1.5 / 64)]
)
def test_what_a_step_takes_besides_its_images_is_shared_by_the_batch(name, images, expected, monkeypatch):
    monkeypatch.setattr(live, "step_seconds", lambda recipe, precision, device, size, steps: 1.5 + 8e-3 * size)
    monkeypatch.setattr(live, "faster_precision", lambda recipe, device: "fp32")
    assert live._seconds(RECIPES[name], images) == pytest.approx(expected)


@pytest.fixture
def headless(monkeypatch):
    monkeypatch.setenv("Q4_WIDGETS", "0")


class TestPrepare:
    def test_full_says_its_hours(self, monkeypatch, capsys):
        monkeypatch.setattr(live, "_seconds", lambda recipe: 9e-3)
        recipe, folder = live.prepare("full", 5)
        assert recipe == RECIPES["fast"] and folder is None
        said = "full: recipe fast, VGG4bit on 50,000 images of cifar10, 8 epochs, about 1.1 h here\n"
        assert capsys.readouterr().out == said

    def test_class_keeps_its_plan_though_the_machine_is_timed_anew(self, monkeypatch, capsys):
        monkeypatch.setattr(live, "_have_cifar10", lambda: True)
        monkeypatch.setattr(live, "_seconds", lambda recipe: {"fast": 8e-3, "small": 1e-3}[recipe.name])
        recipe, folder = live.prepare("class", 5)
        assert "44,000 of 50,000 images of cifar10, 5 epochs, about 4.0 min of 5 min here" in capsys.readouterr().out
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
        monkeypatch.setattr(live, "_seconds", lambda recipe: 1e-5)
        assert live.prepare("class", 5) == (recipe, folder) and "as planned before" in capsys.readouterr().out
        assert live.prepare("class", 6)[1] != folder

    def test_the_large_network_is_not_timed_where_it_cannot_fit(self, monkeypatch):
        monkeypatch.setattr(live, "_have_cifar10", lambda: True)
        monkeypatch.setattr(live, "_seconds", lambda recipe: {"small": 1e-3}[recipe.name])
        assert live.prepare("class", 1)[0].name == "small"

    def test_without_cifar10_class_takes_digits_and_says_so(self, monkeypatch, capsys):
        def fail(name):
            raise live.DownloadError("no mirror gave it:\n  one: refused")

        monkeypatch.setattr(live, "load", fail)
        monkeypatch.setattr(live, "_seconds", lambda recipe: 1e-3)
        recipe, folder = live.prepare("class", 5)
        out = capsys.readouterr().out
        assert "scanned digits take its place: no mirror gave it\nclass: recipe digits" in out
        assert recipe.data == "digits" and recipe.epochs == 20 and "digits" in folder.name


def test_a_watched_run_is_stopped_in_a_sentence_and_goes_on(headless, monkeypatch, tmp_path, capsys):
    recipe, real = replace(RECIPES["digits"], epochs=2, schedule_epochs=2, images=128), live.fit

    def interrupted(*args, **kwargs):
        return real(*args, **kwargs | {"on_epoch": lambda run: signal.raise_signal(signal.SIGINT)})

    monkeypatch.setattr(live, "fit", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest -n ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            live.watch(recipe, tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value._render_traceback_() == [str(stopped.value)] and "goes on" in str(stopped.value)
    assert len(read_log(tmp_path / "run")[1]) == 1
    monkeypatch.setattr(live, "fit", real)
    assert live.watch(recipe, tmp_path / "run", guess=50) == tmp_path / "run"
    line = read_log(tmp_path / "run")[1][-1]
    printed = capsys.readouterr().out.splitlines()
    said = f"training {line['train_acc']:.2f} % · test {line['test_acc']:.2f} % · {line['seconds']:.1f} s"
    # Outside of a kernel the picture is printed, too.
    assert [printed[-4], *printed[-2:]] == [
        f"epoch 2 of 2 · {said}",
        "digits, 4-bit weights, digits",
        f"epoch 2 of 2 · {said}",
    ]


class TestFigures:
    @pytest.mark.parametrize("last", [7, 8, 100])
    def test_recorded_runs(self, last):
        lines = figures.plot_recorded(last)[1].splitlines()
        paper = PAPER[last - 1]["test_acc"]
        assert numbers_in(lines[0]) == [last, paper] and numbers_in(lines[1])[1] == 81.72
        for line, runs in ((lines[2], FASTS), (lines[3], TWINS)):
            assert line.endswith(", ".join(f"{run[min(last, 8) - 1]['test_acc']:.2f}" for run in runs) + " %")
        gaps = [twin[-1]["test_acc"] - fast[-1]["test_acc"] for twin, fast in zip(TWINS, FASTS, strict=True)]
        half = 2.7764 * statistics.stdev(gaps) / 5**0.5  # Student's t of four degrees of freedom
        mean = statistics.mean(gaps)
        assert lines[4].endswith(", ".join(f"{gap:+.2f}" for gap in gaps) + " points")
        assert numbers_in(lines[5]) == pytest.approx([mean, 95, mean - half, mean + half], abs=0.0051)

    @pytest.mark.parametrize("epoch", [1, 100, 114, 150])
    def test_cosine(self, epoch):
        rate = 0.001 * (1 + math.cos(math.pi * (epoch - 1) / 100)) / 2
        assert round(rate, 6) == PAPER[epoch - 1]["lr"], "the paper's own log"
        shown = numbers_in(figures.plot_cosine(epoch)[1])
        assert shown == pytest.approx([epoch, rate, 1e5 * rate, PAPER[epoch - 1]["test_acc"]], abs=0.0051)
        again = 0.001 * (1 + math.cos(math.pi * ((epoch - 1) % 100) / 100)) / 2
        assert f"after epoch 100 the rate would be {again:.7f}" in figures.plot_cosine(epoch, restart=True)[1]

    def test_linear(self):
        assert figures.plot_linear()[1] == "highest 100 % after 0.0 epochs · last step 0.1 %"
        assert "highest 100 % after 1.2 epochs" in figures.plot_linear(warmup=0.15)[1]
        said = figures.plot_linear(schedule=6)[1]
        assert "last step 0.0 % · the last 196 of 784 steps have rate 0" in said
        assert "last step 50.0 %" in figures.plot_linear(schedule=16)[1]

    def test_confusion(self):
        text = figures.plot_confusion("dog", guess=("dog", "cat"))[1]
        assert text.splitlines() == [
            f"dog: {COUNTS[5, 5]} of 1,000 right · most often taken for cat, {COUNTS[5, 3]} times",
            f"called dog, but something else: {COUNTS[:, 5].sum() - COUNTS[5, 5]} · all classes: "
            f"{COUNTS.trace() / 100:.2f} % right",
            f"your guess, dog and cat: {COUNTS[3, 5] + COUNTS[5, 3]} mistakes, number 1 of 45 pairs",
        ]

    @pytest.mark.parametrize("guess", [("cats", "dog"), ("cat", "cat"), "cat and dog"])
    def test_a_guess_of_two_classes_is_asked_for(self, guess):
        with pytest.raises(ValueError, match="guess must be two of airplane, .*, such as"):
            figures.plot_confusion("dog", guess=guess)
        assert "number 1 of 45" in figures.plot_confusion("dog", guess=["dog", "cat"])[1], "a list will do"

    def test_surest(self):
        model = load_model(RESULTS / "fast-cifar10-b4-s0" / "model.safetensors")[0]
        said = [numbers_in(figures.plot_surest(model, least)[1]) for least in (0, 40, 45, 95)]
        assert [(answered, right) for _, answered, _, right in said] == [(20, 19), (20, 19), (19, 19), (3, 3)]

    @pytest.mark.parametrize(("recipe", "run"), [("fast", FAST), ("fast, max|w|", FIRST)])
    @pytest.mark.parametrize("layer", ["conv1_1", "fc2"])
    def test_layers(self, recipe, run, layer):
        first, last = run[0]["layers"][layer], run[-1]["layers"][layer]
        expected = [first["levels"], last["levels"], round(first["entropy"], 2), round(last["entropy"], 2)]
        assert numbers_in(levels.plot_layers(recipe, layer)[1].partition(f"epoch 1 to {len(run)}")[2]) == expected

    def test_memory(self):
        pairs = [(120 * 2**20, 100 * 2**20), (101 * 2**20, 100 * 2**20), (90 * 2**20, 100 * 2**20)]
        said = "4 bits 101 MiB, FP32 100 MiB: 1.01 times as much\nbetween 0.9 and 1.1 times: yes"
        assert figures.plot_memory(pairs)[1] == said
        assert figures.plot_memory(pairs[:1])[1].endswith("no")
        assert "only Linux" in figures.plot_memory([])[1]

    def test_a_guess_is_marked(self):
        for draw in (
            lambda guess: figures.plot_curve(RESULTS / "fast-cifar10-b4-s0", guess),
            lambda guess: figures.plot_recorded(8, guess),
            lambda guess: figures.plot_cosine(guess=guess),
            lambda guess: levels.plot_layers(guess=guess),
        ):
            for guess in (None, 0, 12):
                labels = [t for axes in draw(guess)[0].axes for t in axes.get_legend_handles_labels()[1]]
                assert ("your guess" in labels) == (guess is not None)


def test_what_the_prose_says_of_the_logs():
    accuracy = [row["test_acc"] for row in PAPER]
    assert "up to epoch 114, and not after" in PROSE
    assert all(91.95 <= value < 92.35 for value in accuracy[99:114]) and not any(v >= 91.95 for v in accuracy[114:])
    assert "the first layer uses 14 of its 15 levels after epoch 1" in PROSE
    first = [line["layers"]["conv1_1"] for line in FIRST]
    assert first[0]["levels"] == 14 and first[-1]["levels"] < 14 and first[-1]["entropy"] < first[0]["entropy"]
    assert FIRST[-1]["test_acc"] > FIRST[0]["test_acc"] and f"({FIRST[-1]['test_acc']:.1f} %)" in PROSE
    ours = read_log(RESULTS / "paper.e7-cifar10-b4-s0")[1][-1]
    bits = [round(line["layers"]["conv1_1"]["entropy"], 1) for line in (FIRST[-1], ours, FAST[-1])]
    assert bits == [2.1, 3.3, 3.4] and "carry 2.1 bits at the end, those of the paper's first layer 3.3" in PROSE
    assert "all eight layers use all 15 levels after each epoch, and the first layer's codes carry 3.4 bits" in PROSE
    assert {layer["levels"] for line in FAST for layer in line["layers"].values()} == {15}
    gaps = [twin[-1]["test_acc"] - fast[-1]["test_acc"] for twin, fast in zip(TWINS, FASTS, strict=True)]
    mean, half = records.mean_interval(gaps)
    *others, last = (f"{gap:+.2f}" for gap in gaps)
    assert f"The gaps are {', '.join(others)} and {last} points: once the twin is behind (seed 0, the thick" in PROSE
    assert [gap > 0 for gap in gaps] == [False] + 4 * [True] and f"Their mean is {mean:.2f}" in PROSE
    assert max(run[-1]["test_acc"] for run in FASTS) == FAST[-1]["test_acc"] and "chance the best of the five" in PROSE
    assert f"goes from {mean - half:.2f} to {mean + half:.2f} points. Zero lies in it" in PROSE and mean < half
    before = "fast.e10.schedule_epochs=10.warmup=0.15.dropout=0.1-cifar10"
    pairs = [[read_log(RESULTS / f"{before}-b{b}-s{s}")[1][-1]["test_acc"] for b in (32, 4)] for s in range(3)]
    mean, half = records.mean_interval([twin - fast for twin, fast in pairs])
    assert f"three pairs gave {mean:.2f} points, from {mean - half:.2f} to {mean + half:.2f}" in PROSE
    lost, half = INGREDIENTS.lost("grid out to the largest weight")
    assert f"lost {lost:.2f} points, from {lost - half:.2f} to {lost + half:.2f}" in PROSE
    longer = [read_log(log)[1][-1] for log in sorted(RESULTS.glob("record*-b4-s?"))]
    found = [line["test_acc"] for line in longer]
    assert f"four seeds ended between {min(found):.2f} and {max(found):.2f} %: two thirds of a point more" in PROSE
    assert sum(found) / 4 - sum(fast[-1]["test_acc"] for fast in FASTS) / 5 == pytest.approx(2 / 3, abs=0.02)
    one, two = (line["six_views_acc"] for line in longer if "six_views_acc" in line)
    assert f"{one:.2f} and {two:.2f} %. That is another measure" in PROSE
    assert "In epoch 80 it has 91.7 %, and 92.2 % in epoch 100" in PROSE
    assert [round(accuracy[epoch - 1], 1) for epoch in (80, 100)] == [91.7, 92.2]
    assert "Automobiles are found best, cats worst" in PROSE and "75 times against 74" in PROSE
    assert (COUNTS.diagonal().argmax(), COUNTS.diagonal().argmin()) == (1, 3)
    assert (COUNTS[3, 5], COUNTS[5, 3], COUNTS[2, 4], COUNTS[4, 2]) == (75, 74, 28, 10)
    assert "a bird is called a deer 28 times, and a deer a bird 10 times" in PROSE
    assert COUNTS.trace() - round(100 * FAST[-1]["test_acc"]) == 1 and "one more of the ten thousand is right" in PROSE
    assert "at 45 % the one wrong answer is gone, and all 19 right ones" in PROSE and "At 95 % only 3 are left" in PROSE
    assert f"{100 * math.sqrt(2 * 0.92 * 0.08 / 10_000):.2f} points, if they had nothing in common" in PROSE
    shown = "".join(out.get("text", "") for cell in LESSON.cells if cell.id == "code-09" for out in cell.outputs)
    _, second, third, fourth = (round(float(value)) for value in re.findall(r"test (\S+) % · ", shown)[:4])
    assert f"as from {second} to {third} and up to {fourth} % in our run" in PROSE.replace("\n", " ")
    smoothing = RECIPES["fast"].label_smoothing
    assert f"{1 - 0.9 * smoothing:.2f} for the true class and {smoothing / 10:.2f} for each other" in PROSE


def test_the_recorded_confusion_is_this_file_s():
    record = json.loads((RESULTS / confusion.NAME).read_text())
    assert record["sha256"] == hashlib.sha256((RESULTS / record["file"]).read_bytes()).hexdigest()
    assert (COUNTS.sum(1) == 1000).all()
    assert COUNTS.trace() / 100 == pytest.approx(FAST[-1]["test_acc"], abs=0.05)


def test_the_record_is_measured_again(cifar10_pack):
    data, record = load("cifar10"), json.loads((RESULTS / confusion.NAME).read_text())
    assert record["data_digest"] == data.digest and tuple(record["classes"]) == data.classes
    again = np.array(confusion.measure(RESULTS / record["file"])["counts"])
    assert np.abs(again - COUNTS).sum() <= 10, "five pictures at most, which another processor may see otherwise"


def test_training_takes_as_much_memory_at_4_bits():
    pairs = live.training_memory(runs=1)
    assert 0.8 < pairs[0][0] / pairs[0][1] < 1.25


RECALL, PRECISION = COUNTS[2, 2] / 1000, COUNTS[2, 2] / COUNTS[:, 2].sum()
RIGHT = {
    "06.a": [set(NEEDED), list(NEEDED)],
    "06.b": [100 * math.sqrt(0.92 * 0.08 / 10_000), 0.27, "0.2713"],
    "06.c": [0.001 * (1 + math.cos(1.49 * math.pi)) / 2, 0.000484, torch.tensor(0.000484)],
    "06.d": [PRECISION, torch.tensor(COUNTS)[2, 2] / torch.tensor(COUNTS)[:, 2].sum()],
}
WRONG = {
    "06.a": [
        *[(NEEDED.keys() - {part}, why) for part, why in NEEDED.items()],
        *[(NEEDED.keys() | {part}, f"{part}: {why}") for part, why in MADE_ANEW.items()],
        ("codes", "a set of words"), (7, "a set of words"), ({"weights"}, "'weights' is none of the eight"),
    ],
    "06.b": [
        (0.0027, "for points"), (27.13, "one picture"), (100 * 0.92 * 0.08 / 10_000, "root"), (0.96, "factor 1 - p"),
        (0.121, "training images"), (0.01, "and 100 for points"), (1, "factor p (1 - p)"), (5, "too large"),
    ],
    "06.c": [
        (0.0005, "149 epochs"), (0.000516, "a restart"), (1.1e-7, "half period stays 100"), (0.0009686, "half is"),
        (0, "climbs again"), (0.4842946, "that is the share"), (0.0000714, "degrees"), (0.1, "too large"),
    ],
    "06.d": [
        (RECALL, "its recall"), (100 * PRECISION, "in percent"), (100 * RECALL, "that it finds: divide"),
        (1 - PRECISION, "no birds"), (COUNTS[:, 2].sum() / 1000, "how many there are"),
        (2 / (1 / PRECISION + 1 / RECALL), "mixes"), (COUNTS.trace() / 10_000, "over all classes"),
        (COUNTS[:, 2].sum(), "are birds?"), (0.5, "counts[2, 2] over the sum of column 2"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
class TestCheck(ListedAnswers):
    right, wrong = RIGHT, WRONG
