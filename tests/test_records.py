"""Every number about a run that README shows is recomputed from its log."""

import json
import math
import statistics
from pathlib import Path

import pytest

from q4lib.data import load
from q4lib.kit import records
from q4lib.kit.plots import paper_run
from q4lib.pack import load_model
from q4lib.recipes import RECIPES, Recipe, run_name
from q4lib.train import evaluate, read_log

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "notebooks" / "results"


def table_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("| `")]


def test_the_lab_book_is_what_the_logs_and_files_say():
    """Every recorded run and shipped file, none left out: `python -m q4lib.kit.records` prints them."""
    assert table_lines(RESULTS / "README.md") == records.run_rows(RESULTS) + records.file_rows(RESULTS)


def test_readme_shows_recorded_runs():
    """The recipes that it names, and the FP32 twin; all the rest stands in the lab book."""
    rows = [line for line in table_lines(ROOT / "README.md") if "log.jsonl" in line]
    shown = ("digits-digits-b4", "fast-cifar10-b32", "fast-cifar10-b4", "paper.e7-cifar10-b4", "record-cifar10-b4")
    shown = tuple(f"| `{name}` " for name in shown)
    assert rows == [row for row in records.run_rows(RESULTS, "notebooks/results/") if row.startswith(shown)]


def test_the_lab_book_says_what_rounding_afterwards_gave():
    found = json.loads((RESULTS / "rounded-afterwards.json").read_text())["test_acc"]
    said = f"{found['8']:.2f} % at 8 bits, {found['4']:.2f} % at 4, {found['3']:.2f} % at 3 and {found['2']:.2f} % at 2"
    assert said in " ".join((RESULTS / "README.md").read_text().split())


def test_readme_says_what_fast_reaches_and_what_its_4_bits_cost():
    """Means of five seeds and the mean of their gaps, with t intervals; and of three seeds of its form before."""
    readme, book = (" ".join((root / "README.md").read_text().split()) for root in (ROOT, RESULTS))
    before = "fast.e10.schedule_epochs=10.warmup=0.15.dropout=0.1-cifar10"
    for name, seeds, quantile in (("fast-cifar10", 5, 2.7764), (before, 3, 4.3027)):
        fast, twin = (
            [read_log(RESULTS / f"{name}-b{bits}-s{seed}")[1][-1]["test_acc"] for seed in range(seeds)]
            for bits in (4, 32)
        )
        gaps = [full - ours for full, ours in zip(twin, fast, strict=True)]
        (mean, half), *both = (
            (statistics.mean(values), quantile * statistics.stdev(values) / seeds**0.5) for values in (gaps, fast, twin)
        )
        assert min(fast) >= 92.34
        assert f" cost {mean:.2f}{' points' * (seeds == 5)}, from {mean - half:.2f} to {mean + half:.2f}" in readme
        for mean, half in both:
            assert f"{mean:.2f} ± {half:.2f} %" in (readme if seeds == 5 else book)
    seven = [read_log(RESULTS / f"fast.e7.schedule_epochs=7-cifar10-b4-s{s}")[1][-1]["test_acc"] for s in range(3)]
    mean, half = statistics.mean(seven), 4.3027 * statistics.stdev(seven) / 3**0.5
    assert mean < 92.34 and all(f"{mean:.2f} ± {half:.2f} %" in said for said in (readme, book))
    said = readme
    assert "with each of five seeds" in said
    for log in RESULTS.glob("fast-cifar10-b*-s0"):
        run, epochs = read_log(log)
        assert f"{epochs[-1]['test_acc']:.2f} % at {run['recipe']['bits']}" in said


def test_readme_says_how_much_longer_the_paper_s_epochs_take():
    """110 epochs of 391 steps against eight of 98, from the recorded seconds of a step; and doctor's word is near."""
    found = json.loads((RESULTS / "step-times.json").read_text())
    fp32, bf16 = (found["seconds"][precision] for precision in ("fp32", "bf16"))
    one, two, mixed = (
        110 * 391 * paper / (8 * 98 * fast)
        for paper, fast in ((fp32["paper"], fp32["fast"]), (bf16["paper"], bf16["fast"]), (fp32["paper"], bf16["fast"]))
    )
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"take {one:.1f} times as long as those of eight of `fast`, both in fp32, and {two:.1f} times, both" in said
    assert min(one, two) >= 10 and f"`paper` in fp32 and `fast` in bf16, {mixed:.0f} times" in said
    runs = [read_log(RESULTS / f"fast-cifar10-b4-s{seed}")[1] for seed in range(5)]
    minutes = statistics.median(sum(line["seconds"] for line in run) for run in runs) / 60
    told = int(found["doctor"].removeprefix("fast: ").partition(" min")[0])
    assert f"{minutes:.0f} minutes a run. `q4 doctor` told {told}, on the machine" in said
    assert told == pytest.approx(minutes, rel=0.15)


def test_readme_says_what_record_reaches():
    """In six views, in one, and what it loses to its FP32 twin there; with t intervals for one and three degrees."""

    def last(name, seeds):
        return [read_log(RESULTS / f"{name}-s{seed}")[1][-1] for seed in seeds]

    def interval(values, quantile):
        mean, half = statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5
        return mean, half

    said = " ".join((ROOT / "README.md").read_text().split())
    six, before = last("record-cifar10-b4", (2, 3)), last("record.six_views=False-cifar10-b4", (0, 1))
    one, two = (line["six_views_acc"] for line in six)
    mean, half = interval((one, two), 12.706)
    assert mean >= 94 and f"Two new seeds have {one:.2f} and {two:.2f} % so ({mean:.2f} ± {half:.2f} %)" in said
    one, mirrored = (statistics.mean(line[key] for line in before) for key in ("test_acc", "mirrored_acc"))
    assert mirrored < 94 and f"{mirrored:.2f} % with the answers to an image and its mirror image averaged" in said
    assert f"Its first two seeds did not: {one:.2f} % on average" in said
    single = [line["test_acc"] for line in before + six]
    mean, half = interval(single, 3.1824)
    first, second, third, fourth = (f"{value:.2f}" for value in single)
    assert max(single) < 94 and "in a single view `record` stays below 94 %" in said.lower()
    assert f"{first}, {second}, {third} and {fourth} % ({mean:.2f} ± {half:.2f} %, four seeds" in said
    twin = last("record.six_views=False-cifar10-b32", (0, 1))
    one, two = (line["test_acc"] for line in twin)
    assert f"its FP32 twin has {one:.2f} and {two:.2f} %" in said and (one + two) / 2 < 94
    gaps = [full["test_acc"] - ours["test_acc"] for full, ours in zip(twin, before, strict=True)]
    mean, half = interval(gaps, 12.706)
    cost = f"cost {gaps[0]:.2f} and {gaps[1]:.2f} points ({mean:.2f}, from {mean - half:.2f} to {mean + half:.2f})"
    assert cost in said
    assert {round(line["train_acc"]) for line in before + six} == {98} and {round(x["train_acc"]) for x in twin} == {99}
    book = " ".join((RESULTS / "README.md").read_text().split())
    (chosen,) = last("fast.e25.schedule_epochs=25.warmup=0.15.dropout=0.1.crop=4.val=5000-cifar10-b4", (0,))
    assert f"had {chosen['val_acc']:.2f} % so on 5,000 held-out images" in book
    assert f"an image and its mirror image ({mirrored:.2f} % on average)" in book


def test_a_run_that_tuned_shows_its_validation_split_and_says_so():
    name = "fast.e10.schedule_epochs=10.warmup=0.15.dropout=0.1.val=5000-cifar10-b4"
    last = json.loads((RESULTS / f"{name}-s0" / "log.jsonl").read_text().splitlines()[-1])
    rows = records.run_rows(RESULTS)
    (row,) = (row for row in rows if row.startswith(f"| `{name}` "))
    assert last["test_acc"] is None and f"| {last['val_acc']:.2f} % (validation) |" in row
    assert all(("(validation)" in row) == (".val=" in row) for row in rows)


def test_a_finished_run_is_recorded_whole():
    for runs in records.recorded(RESULTS).values():
        for name, facts, epochs in runs:
            assert [line["epoch"] for line in epochs] == list(range(1, facts["recipe"]["epochs"] + 1)), name
            assert not facts["git_commit"].endswith("-dirty") and facts["data_digest"], name


def test_a_run_s_name_tells_its_recipe():
    """A recipe that changes takes the name with it: runs of its older form say in which fields they depart."""
    for name, facts, _ in sum(records.recorded(RESULTS).values(), []):
        told = facts["recipe"]
        if told["name"] in RECIPES:
            assert run_name(Recipe(**told | {"betas": tuple(told["betas"])}), facts["device"]) == name


def test_the_interval_of_a_mean_is_student_s():
    """1, 2, 3: deviation 1, and t of two degrees of freedom is 4.303."""
    assert records.mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 4.303 / 3**0.5), abs=1e-3)
    assert records.mean_interval([5.0]) == (5, math.inf)


MODELS = sorted(path for path in RESULTS.rglob("*.safetensors") if (path.parent / "log.jsonl").exists())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_a_shipped_model_is_as_accurate_as_its_log_says(path, cifar10_pack):
    """Loaded whole (its SHA-256 is compared), it gets in fp32 what the data sheet says, within 0.05 points."""
    model, packed = load_model(path)
    images = load(packed["data"])
    accuracy = evaluate(model, images.x_test, images.y_test, packed["data"])[1]
    (row,) = (line for line in table_lines(RESULTS / "README.md") if line.startswith(f"| `{path.parent.name}/model."))
    told, _, precision = row.split(" | ")[3].partition(" % ")
    facts, _ = read_log(path.parent)
    assert packed["recipe"] == facts["recipe"]["name"] and (facts["precision"] == "fp32" or "in fp32 (" in precision)
    assert accuracy == pytest.approx(float(told.removesuffix(" %")), abs=0.05)


def test_the_paper_s_first_seven_epochs_are_repeated():
    """Epoch 7 of the recorded run of the paper's recipe lies within two points of the paper's 82.22 %."""
    run, epochs = read_log(RESULTS / "paper.e7-cifar10-b4-s0")
    assert run["recipe"]["name"] == "paper" and len(epochs) == 7
    assert abs(epochs[-1]["test_acc"] - paper_run("cifar10", 7)[-1]["test_acc"]) < 2
