"""The paper's table VII in small: figure, lesson and README say what the 25 recorded logs say, computed anew here."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from q4lib.kit.classroom import ARMS
from q4lib.kit.figures.ablation import INGREDIENTS, plot_ingredients, plot_small_table
from q4lib.recipes import RECIPES
from q4lib.train import read_log

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "full method": "miniature",
    "without soft clip": "miniature.soft_clip=None",
    "without per-layer scale": "miniature.fixed_scale=True",
    "without gradient clip": "miniature.grad_clip=None",
    "standard AdamW": "miniature.grad_clip=None.soft_clip=None",
}
IN_README = {"soft clip": 4.9, "per-layer scale": 8.1, "gradient clip": 9.7, "both clips: standard AdamW": 13.0}
T = {2: 4.3027, 4: 2.7764, 24: 2.0639}  # Student's, 97.5 %
FAST = {
    "fast as it was, 5 epochs": "fast.e5.schedule_epochs=5.warmup=0.15.dropout=0.1.val=10000",
    "AdamW alone at 0.002": "fast.e5.schedule_epochs=5.warmup=0.15.optimizer=adamw.lr=0.002.dropout=0.1.val=10000",
    "Muon on convolutions alone": "fast.e5.schedule_epochs=5.warmup=0.15.optimizer=muon.dropout=0.1.val=10000",
    "grid out to the largest weight": "fast.normal_range=False.e5.schedule_epochs=5.warmup=0.15.dropout=0.1.val=10000",
    "no label smoothing": "fast.e5.schedule_epochs=5.warmup=0.15.label_smoothing=0.0.dropout=0.1.val=10000",
    "no dropout": "fast.e5.schedule_epochs=5.warmup=0.15.val=10000",
    "no shift": "fast.e5.schedule_epochs=5.warmup=0.15.dropout=0.1.crop=0.val=10000",
    "no warm-up": "fast.e5.schedule_epochs=5.dropout=0.1.val=10000",
    "mirrored by a coin": "fast.e5.schedule_epochs=5.warmup=0.15.dropout=0.1.alternate=False.val=10000",
    "black border": "fast.e5.schedule_epochs=5.warmup=0.15.dropout=0.1.reflect=False.val=10000",
    "neither dropout nor warm-up": "fast.e5.schedule_epochs=5.val=10000",
    "with the paper's soft clip": "fast.e5.schedule_epochs=5.warmup=0.15.soft_clip=3.0.dropout=0.1.val=10000",
    "with a scale per channel": "fast.per_channel=True.e5.schedule_epochs=5.warmup=0.15.dropout=0.1.val=10000",
}


def log(arm: str, seed: int) -> list[dict]:
    path = ROOT / "notebooks/results" / f"{(RUNS | FAST)[arm]}-cifar10-b4-s{seed}" / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def accuracies(arm: str) -> list[float]:
    return [log(arm, seed)[-1]["test_acc"] for seed in range(5)]


def interval(values: list[float]) -> tuple[float, float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = T[len(values) - 1] * math.sqrt(variance / len(values))
    return mean, mean - half, mean + half


def lost(arm: str) -> tuple[float, float, float]:
    return interval([full - less for full, less in zip(accuracies("full method"), accuracies(arm), strict=True)])


@pytest.mark.parametrize("arm", RUNS)
def test_an_arm_departs_in_nothing_else(arm):
    first, *_ = log("full method", 0)
    for seed in range(5):
        facts, *epochs = log(arm, seed)
        assert len(epochs) == 6
        assert facts["run"]["recipe"] == {**first["run"]["recipe"], **ARMS[arm], "seed": seed}
        assert {key: facts["run"][key] for key in ("processor", "threads", "precision", "git_commit")} == {
            key: first["run"][key] for key in ("processor", "threads", "precision", "git_commit")
        }


def test_the_figure_prints_losses_with_intervals():
    mean, low, _ = interval(accuracies("full method"))
    lines = [f"full method: {mean:.1f} ± {mean - low:.1f} %, 5 seeds"]
    for arm in list(RUNS)[1:]:
        mean, low, high = lost(arm)
        said = "costs accuracy" if low > 0 else "gains accuracy" if high < 0 else "cannot tell"
        lines.append(f"{arm}: {mean:+.1f} points lost, {low:+.1f} to {high:+.1f}: {said}")
    assert plot_small_table()[1].splitlines() == lines


def test_the_lesson_s_words():
    cells = json.loads((ROOT / "notebooks/04_tanh_clipping.ipynb").read_text())["cells"]
    said = {cell["id"]: " ".join("".join(cell["source"]).split()) for cell in cells}
    assert "25 runs" in said["table-explain"] and "10,000 of its pictures" in said["table-explain"]
    assert log("full method", 0)[0]["run"]["recipe"]["images"] == 10_000
    assert "One part earns its place here, as in the paper: the scale for each layer" in said["small-explain"]
    costs = [arm for arm in list(RUNS)[1:] if lost(arm)[1] > 0]
    gains = sorted((arm for arm in RUNS if lost(arm)[2] < 0), key=lambda arm: lost(arm)[0])
    assert costs == ["without per-layer scale"]
    assert "most of all without both (the row `standard AdamW`), this network is *better*" in said["small-explain"]
    assert gains == ["standard AdamW", "without gradient clip", "without soft clip"]
    assert (
        "more than half of the pictures wrong" in said["small-explain"] and interval(accuracies("full method"))[2] < 50
    )


def test_the_lab_book_s_table_and_what_readme_says_of_it():
    readme, book = (
        " ".join((ROOT / name).read_text().split()) for name in ("README.md", "notebooks/results/README.md")
    )
    for (part, paper), arm in zip(IN_README.items(), list(RUNS)[1:], strict=True):
        mean, low, high = lost(arm)
        assert f"| {part} | {mean:+.1f}, from {low:+.1f} to {high:+.1f} | {paper} |" in book
    mean, low, high = lost("without per-layer scale")
    assert f"without it {mean:+.1f} points are lost, {low:+.1f} to {high:+.1f}. Without the soft clip or" in readme
    mean, low, _ = interval(accuracies("full method"))
    assert f"({mean:.1f} ± {mean - low:.1f} %)" in book


@pytest.mark.parametrize("arm", FAST)
def test_an_arm_of_fast_departs_in_nothing_else_and_reads_no_test_image(arm):
    first, *_ = log("fast as it was, 5 epochs", 0)
    for seed in range(3):
        facts, *epochs = log(arm, seed)
        assert len(epochs) == 5 and {line["test_acc"] for line in epochs} == {None}
        assert facts["run"]["recipe"] == {**first["run"]["recipe"], **INGREDIENTS.arms[arm], "seed": seed}
        assert {key: facts["run"][key] for key in ("processor", "threads", "precision", "git_commit")} == {
            key: first["run"][key] for key in ("processor", "threads", "precision", "git_commit")
        }


def pooled_half(found: list[list[float]]) -> float:
    """By least squares on a column for each seed and each arm but the first: t times the standard error of an arm's."""
    arms, seeds = len(found), len(found[0])
    design = np.array([np.r_[np.eye(seeds)[s], np.eye(arms)[a, 1:]] for a in range(arms) for s in range(seeds)])
    left = np.linalg.lstsq(design, np.ravel(found), rcond=None)[1][0]
    free = len(design) - design.shape[1]
    return T[free] * math.sqrt(left / free * np.linalg.inv(design.T @ design)[-1, -1])


def test_the_ingredients_of_fast_in_lab_book_and_readme():
    """In points of validation accuracy; the spread is that of all arms together; what the study says of them, too."""
    readme, book = (
        " ".join((ROOT / name).read_text().split()) for name in ("README.md", "notebooks/results/README.md")
    )
    verdicts, by = INGREDIENTS.verdicts(), {"costs accuracy": [], "gains accuracy": [], "cannot tell": []}
    found = {arm: [log(arm, seed)[-1]["val_acc"] for seed in range(3)] for arm in FAST}
    whole, half = found["fast as it was, 5 epochs"], pooled_half(list(found.values()))
    mean, low, _ = interval(whole)
    assert f"it had {mean:.2f} ± {mean - low:.2f} % so" in book
    for arm, line in zip(list(FAST)[1:], verdicts[1:], strict=True):
        mean = sum(whole) / 3 - sum(found[arm]) / 3
        low, high = mean - half, mean + half
        assert f"| {arm} | {mean:+z.2f}, from {low:+z.2f} to {high:+z.2f} |" in book
        said = "costs accuracy" if low > 0 else "gains accuracy" if high < 0 else "cannot tell"
        assert line == f"{arm}: {mean:+z.2f} points lost, {low:+z.2f} to {high:+z.2f}: {said}"
        by[said].append(arm)
    assert plot_ingredients()[1].splitlines() == verdicts
    adamw, convolutions, grid, smoothing = by["costs accuracy"]
    assert (smoothing, by["gains accuracy"]) == (
        "no label smoothing", ["no dropout", "no warm-up", "neither dropout nor warm-up"],
    )  # fmt: skip
    adamw, convolutions, grid, both = (
        f"{abs(INGREDIENTS.lost(arm)[0]):.2f}" for arm in (adamw, convolutions, grid, "neither dropout nor warm-up")
    )
    assert f"AdamW in Muon's place loses {adamw} points, Muon on the convolutions alone {convolutions}" in readme
    assert f"out to the largest weight, {grid}." in readme and f"without them {both} are gained" in readme


def test_the_picture_says_what_lies_beyond_it_and_marks_the_guess():
    figure, _ = plot_ingredients("no shift")
    (axes,) = figure.axes
    assert [text.get_text().strip() for text in axes.texts] == [f"{INGREDIENTS.lost('AdamW alone at 0.002')[0]:+.1f} ▸"]
    marked = [label.get_text() for label in axes.get_yticklabels() if label.get_fontweight() == "bold"]
    assert marked == ["no shift"]
    with pytest.raises(ValueError, match=r"guess must be one of .*, got 'no shifts' .did you mean 'no shift'\?"):
        plot_ingredients("no shifts")


def test_lesson_06_says_what_the_ingredients_bring():
    cells = json.loads((ROOT / "notebooks/06_train_cifar10.ipynb").read_text())["cells"]
    table, said = (
        next("".join(cell["source"]) for cell in cells if cell["id"] == f"ingredients-{part}")
        for part in ("predict", "explain")
    )
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == list(FAST)[1:]
    costs = [f"{INGREDIENTS.lost(arm)[0]:.1f}" for arm in list(FAST)[1:5]]
    assert costs == ["7.5", "0.8", "0.5", "0.4"]
    assert "7.5 points lower" in said and "brings 0.8 points" in said and "largest weights, with 0.5" in said
    low = INGREDIENTS.lost("no label smoothing")[0] - INGREDIENTS.lost("no label smoothing")[1]
    assert "labels bring 0.4, but their interval ends at zero" in said and 0 < low < 0.005
    assert "Three rows *gain*. Dropout and warm-up do harm" in said and len(FAST) - 1 == 12 and "are twelve" in said
    assert "from a weight of 0.2 the clip takes 0.15 %" in said
    before = "fast.e10.schedule_epochs=10.warmup=0.15.dropout=0.1-cifar10-b4"
    with_both, without = (
        sum(read_log(ROOT / "notebooks/results" / f"{name}-s{seed}")[1][-1]["test_acc"] for seed in range(n)) / n
        for name, n in ((before, 3), ("fast-cifar10-b4", 5))
    )
    assert f"ended at {with_both:.2f} % on average of three seeds" in said
    assert f"Without them it gets {without:.2f} % in eight" in said and RECIPES["fast"].epochs == 8
    assert 1 - 3 * math.tanh(0.2 / 3) / 0.2 == pytest.approx(0.0015, abs=5e-5)
