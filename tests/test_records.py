"""Every number about a run that README shows is recomputed from its log."""

import re
from pathlib import Path

import pytest

from q4lib.kit.plots import paper_run
from q4lib.train import read_log, reported

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
LINK = re.compile(r"notebooks/results/([^)/]+)/log\.jsonl")
ROWS = [line for line in README.splitlines() if line.startswith("|") and LINK.search(line)]


def test_readme_shows_recorded_runs():
    assert len(ROWS) >= 2
    recorded = {path.parent.name for path in (ROOT / "notebooks" / "results").glob("*/log.jsonl")}
    assert recorded == set(LINK.findall(README)), "README leaves out a recorded run, or shows one that is not there"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: LINK.search(row)[1])
def test_a_row_says_what_its_logs_say(row):
    """Recipe, bits, epochs, seeds, accuracies, precision, processor and minutes."""
    runs = [read_log(ROOT / "notebooks" / "results" / name) for name in LINK.findall(row)]
    run, epochs = runs[0]
    _, recipe, model, bits, count, seeds, accuracy, where, minutes, _, _ = (cell.strip() for cell in row.split("|"))
    assert (recipe, model) == (f"`{run['recipe']['name']}`, {run['recipe']['data']}", run["recipe"]["model"])
    assert (int(bits), int(count)) == (run["recipe"]["bits"], len(epochs))
    assert [int(seed) for seed in seeds.split(", ")] == [run["recipe"]["seed"] for run, _ in runs]
    found = [reported(epochs, run["recipe"]["select"])["test_acc"] for run, epochs in runs]
    assert accuracy.rstrip(" %").split(", ") == [f"{value:.2f}" for value in found]
    assert where == f"{run['processor']}, {run['threads']} threads, {run['precision']}"
    for key in ("processor", "threads", "precision", "git_commit", "versions", "data_digest"):
        assert all(other[key] == run[key] for other, _ in runs)
    took = [sum(line["seconds"] for line in epochs) / 60 for _, epochs in runs]
    assert float(minutes) == pytest.approx(sum(took) / len(took), abs=0.06)


def test_the_paper_s_first_seven_epochs_are_repeated():
    """Epoch 7 of the recorded run of the paper's recipe lies within two points of the paper's 82.22 %."""
    run, epochs = read_log(ROOT / "notebooks" / "results" / "paper.e7-cifar10-b4-s0")
    assert run["recipe"]["name"] == "paper" and len(epochs) == 7
    assert abs(epochs[-1]["test_acc"] - paper_run("cifar10", 7)[-1]["test_acc"]) < 2
