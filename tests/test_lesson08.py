"""Lesson 08: its figures against the library and the logs, its plans, its checks, and what its prose says."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from inline_checks import ListedAnswers
from torchvision.models import mobilenet_v2

from q4lib.data import load
from q4lib.kit import live, study
from q4lib.kit.checks import tasks
from q4lib.kit.figures import pruning as figures
from q4lib.kit.figures import together
from q4lib.kit.figures.memory import RATIOS
from q4lib.memory import profile
from q4lib.mobilenet import mobilenet
from q4lib.pruning import hidden_layers, kept_width, prune
from q4lib.recipes import run_name
from q4lib.repnet import RepNet
from q4lib.transfer import TRANSFERS

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "notebooks/08_prune_and_reprogram.ipynb").read_text())
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
PRINTED = {
    cell["id"]: "".join(text for output in cell.get("outputs", []) for text in output.get("text", []))
    for cell in NOTEBOOK["cells"]
}
PAPER = tuple(RATIOS.values())


def prose(cell: str) -> str:
    return " ".join(CELLS[cell].split())


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def mean(name: str) -> float:
    found = study.accuracies(name)
    return sum(found.values()) / len(found)


def step(name: str, way: str = "eager") -> float:
    found = study.memory()[name]["steps"][way]
    return (found["held"] + found["peak"]) / 1e6


class TestPruned:
    @pytest.mark.parametrize("convention", ["corrected", "paper"])
    @pytest.mark.parametrize("ratios", [(0.0,) * 4, PAPER, (0.9, 0.1, 0.62, 0.0)])
    def test_is_what_profile_finds(self, ratios, convention):
        model = RepNet(mobilenet_v2())
        full = {name: of[4].in_channels for name, of in hidden_layers(model).items() if name in RATIOS}
        chosen = dict(zip(RATIOS, ratios, strict=True))
        smaller = prune(model, chosen, {name: torch.ones(width) for name, width in full.items()})
        widths = {name: kept_width(name, full[name], ratio) for name, ratio in chosen.items()}
        found = figures.pruned(widths, convention)
        assert found == profile(smaller, (3, 224, 224), corrected=convention == "corrected")

    def test_figure(self):
        figure, said = figures.plot_pruned(*PAPER, convention="paper")
        assert "22 of 32, 21 of 96, 77 of 144, 77 of 144" in said
        assert "peak 2.02 MB an image, block 13; not pruned 5.72 MB" in said
        pale = figure.axes[0].collections[2].get_segments()
        bars = {int(x): y for bars in figure.axes[0].collections[:2] for (x, _), (_, y) in bars.get_segments()}
        assert [int(x) for (x, _), _ in pale] == [0, 1, 2, 3, 4]
        assert all(y > bars[int(x)] for (x, _), (_, y) in pale)


class TestFigures:
    def test_thinned(self, monkeypatch):
        monkeypatch.setattr(figures, "SHARES", [0.0, 0.5])
        torch.manual_seed(0)
        model, data = mobilenet(5, width=0.5), load("digits-first5")
        norms = {"features.3": torch.arange(hidden_layers(model)["features.3"][4].in_channels).float()}
        asked = []

        def evaluate(pruned, x, y, name):
            asked.append((hidden_layers(pruned)["features.3"][0].weight.detach(), len(x), name))
            return 0.0, float(len(asked))

        monkeypatch.setattr(figures, "evaluate", evaluate)
        found = figures.thinned(model, data, norms)
        assert found == {"least norm first": [[1.0, 2.0]], "at random": [[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]}
        whole, half = asked[0][0], len(asked[0][0]) // 2
        assert torch.equal(asked[1][0], whole[half:]) and asked[1][1:] == (193, "digits-first5")
        assert len(asked[3][0]) == half and not torch.equal(asked[3][0], asked[5][0])

    def test_plot_thinned(self):
        found = {"least norm first": [[90.0] * 9], "at random": [[80.0 - i] * 9 for i in range(3)]}
        said = figures.plot_thinned(found, 0.3)[1]
        assert said.endswith("least norm first: 90 % right\nat random: 80, 79, 78 % right") and "0.3" in said

    def test_retrained_is_the_logs(self):
        for name, words in figures.RETRAINED.items():
            log = ROOT / "notebooks/results" / run_name(TRANSFERS[name]) / "log.jsonl"
            lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
            assert figures.retrained()[words] == [line["test_acc"] for line in lines] and len(lines) == 7
        assert "ahead of at random: 3.44 points" in figures.plot_retrained(1)[1]

    def test_learned(self, tmp_path):
        for name, accuracies in (("a", [50.0, 70.0]), ("b", [40.0, 45.5])):
            (tmp_path / name).mkdir()
            lines = [{"run": {}}, *({"epoch": i, "test_acc": acc} for i, acc in enumerate(accuracies, 1))]
            (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = figures.plot_learned({"Rep-Net": tmp_path / "a", "last layer": tmp_path / "b"}, guess=60)[1]
        assert said == "Rep-Net: 70.0 % after epoch 2\nlast layer: 45.5 % after epoch 2"

    @pytest.mark.parametrize("way", study.WAYS)
    def test_cost(self, way):
        figure, said = together.plot_cost(way)
        for name, line in zip(together.ARMS, said.splitlines(), strict=True):
            size = f"{step(name, way):.1f} MB" if way in study.memory()[name]["steps"] else "-"
            assert line.startswith(name) and study.said(name) in line and line.endswith(f"{way}: {size}")
        (low, _), (high, _) = figure.axes[0].collections[0].get_segments()[2]
        assert study.said("Rep-Net").startswith(f"{(low + high) / 2:.2f} ± {(high - low) / 2:.2f} %")
        seeds = figure.axes[0].lines[0].get_xdata()
        assert sorted(seeds) == sorted(acc for name in together.ARMS for acc in study.accuracies(name).values())

    def test_compared(self):
        head, pair, line = together.compared([("Rep-Net, pruned", "Rep-Net")]).splitlines()
        assert head.split()[-3:] == ["eager", "lean", "file"] and pair == "Rep-Net, pruned against Rep-Net"
        points, changes = line[:52], [float(change) for change in line[52:].split()]
        assert points.strip() == study.difference("Rep-Net, pruned", "Rep-Net")
        assert float(points.split()[0]) == pytest.approx(mean("Rep-Net, pruned") - mean("Rep-Net"), abs=0.051)
        less = [step("Rep-Net, pruned", way) - step("Rep-Net", way) for way in ("eager", "lean")]
        assert changes == pytest.approx([*less, (10_570_584 - 10_624_764) / 1e6], abs=0.051)

    def test_a_guess_is_marked(self):
        found = {"least norm first": [[90.0] * 9], "at random": [[80.0] * 9] * 3}
        for draw in (
            lambda guess: figures.plot_pruned(guess=guess),
            lambda guess: figures.plot_thinned(found, guess=guess),
            lambda guess: figures.plot_retrained(guess=guess),
            lambda guess: together.plot_cost(guess=guess),
            lambda guess: together.plot_together(guess=guess),
        ):
            for guess in (None, 0, 3):
                labels = [text for axes in draw(guess)[0].axes for text in axes.get_legend_handles_labels()[1]]
                assert any("your guess" in text for text in labels) == (guess is not None)


class TestPlans:
    def test_smoke_is_the_same_but_for_what_trains(self, capsys):
        (side, _), (head, _) = live.prepare_transfer("smoke", 5).values()
        assert side == TRANSFERS["digits-repnet"] and head == replace(side, trains="head")
        assert run_name(side) != run_name(head) and "729 images of digits-last5" in capsys.readouterr().out

    def test_full_is_the_study_and_says_its_hours(self, monkeypatch, capsys):
        monkeypatch.setattr(live, "_seconds", lambda recipe, images: 0.01)
        plans = live.prepare_transfer("full", 5)
        assert [recipe for recipe, _ in plans.values()] == [TRANSFERS["repnet"], TRANSFERS["last-layer"]]
        backbones = (8 + 7) * (25_000 + 0.4 * 5_000)
        hours = 0.01 * (backbones + 2 * 5 * (3_000 + 0.4 * 5_000)) / 3600
        assert f"about {hours:.1f} h here" in capsys.readouterr().out

    @pytest.mark.parametrize(("minutes", "each"), [(1, 1e-4), (1, 8e-3), (5, 2e-3), (5, 8e-3), (5, 0.03), (30, 0.5)])
    def test_class_fits(self, minutes, each):
        recipe = live.plan_transfer(minutes, each)
        took = 2 * 3 * each * ((recipe.images if recipe else 500) + 0.4 * 5_000)
        assert (took <= 0.8 * 60 * minutes) == bool(recipe)
        assert not recipe or (recipe.start, recipe.epochs, recipe.schedule_epochs) == ("imagenet", 3, 3)
        assert not recipe or 500 <= recipe.images <= 3_000
        with pytest.raises(ValueError, match=r"MINUTES must be positive, got 0$"):
            live.plan_transfer(0, each)

    def test_class_keeps_its_plan(self, monkeypatch, capsys):
        monkeypatch.setattr(live, "_have_cifar10", lambda: True)
        monkeypatch.setattr(live, "_have_imagenet", lambda: True)
        monkeypatch.setattr(live, "_seconds", lambda recipe, images: 8e-3)
        plans = live.prepare_transfer("class", 5)
        recipe, folder = plans["Rep-Net"]
        assert "3,000 of 25,000 images of cifar10-last5, 3 epochs" in capsys.readouterr().out
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
        monkeypatch.setattr(live, "_seconds", lambda recipe, images: 1.0)
        assert live.prepare_transfer("class", 5) == plans and "as planned before" in capsys.readouterr().out
        assert plans["last layer"] == (replace(recipe, trains="head"), folder.parent / "head")

    def test_without_imagenet_class_takes_digits_and_says_so(self, monkeypatch, capsys):
        def missing():
            raise live.DataError("the ImageNet weights cannot be read: no network")

        monkeypatch.setattr(live, "_have_cifar10", lambda: True)
        monkeypatch.setattr(live, "pretrained", missing)
        plans = live.prepare_transfer("class", 5)
        said = capsys.readouterr().out
        assert "digits take their place: the ImageNet weights cannot be read: no network\nclass: recipe digits" in said
        assert plans["Rep-Net"] == (TRANSFERS["digits-repnet"], None)


def test_a_watched_transfer_trains_its_backbone_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("Q4_HOME", str(tmp_path))
    monkeypatch.setenv("Q4_WIDGETS", "0")
    short = {"epochs": 1, "schedule_epochs": 1, "images": 32}
    monkeypatch.setitem(TRANSFERS, "digits-pretrain", replace(TRANSFERS["digits-pretrain"], **short))
    run = live.watch(replace(TRANSFERS["digits-repnet"], **short))
    assert len(list(tmp_path.glob("runs/*/model.safetensors"))) == 2 and run.parent == tmp_path / "runs"
    assert capsys.readouterr().out.count("epoch 1 of 1") == 3  # a line a run, and the picture's


class TestProse:
    def test_a_slider_a_block(self):
        whole = figures.pruned(dict(zip(RATIOS, (32, 96, 144, 144), strict=True)), "corrected")
        assert f"is {whole.peak / 1e6:.2f} MB an image" in prose("ratios-text")
        assert "with all four at 0.9, block 13 holds the peak at 2.27 MB" in prose("ratios-explain")
        assert "peak 2.27 MB an image, block 13" in figures.plot_pruned(0.9, 0.9, 0.9, 0.9)[1]
        assert "the peak is 2.02 MB by its own count, which is what it reports (5.72 before)" in prose("ratios-explain")
        assert "By the corrected count it is 2.81 (6.02 before)" in prose("ratios-explain")
        assert "peak 2.81 MB an image, block 3; not pruned 6.02 MB" in figures.plot_pruned(*PAPER)[1]
        narrow, wide = 24 * 56**2 * 4, 77 * 56**2 * 4
        pruned = figures.pruned(dict(zip(RATIOS, (22, 21, 77, 77), strict=True)), "corrected")
        assert pruned.blocks[3].temporary == narrow + 2 * wide
        assert pruned.peak < whole.peak / 2 and "more than half of the wall is gone" in prose("ratios-explain")

    def test_which_channels(self):
        runs = figures.retrained()
        pairs = (("pruned by norm", "pruned at random"), ("not pruned", "pruned by norm"))
        leads = [runs[more][i] - runs[less][i] for more, less in pairs for i in (0, 6)]
        assert numbers(prose("retrain-explain"))[1:5] == pytest.approx(leads, abs=0.0051)

    def test_what_it_cost(self):
        text, pairs = prose("cost-explain"), PRINTED["cost-pairs"]
        assert "22.3 points over the last layer" in text and "+22.3 points" in pairs
        assert "ahead of pruning at random by 1.5 points" in text and "+1.5 points, +1.1 to +1.9: better" in pairs
        assert "it is 1.1 points less. The interval just reaches 0" in text
        assert "-1.1 points, -2.3 to +0.0: cannot tell" in pairs
        assert f"Rep-Net gets {mean('Rep-Net'):.1f} %" in prose("cost-text")
        whole, small = step("Rep-Net"), step("Rep-Net, pruned")
        assert f"pruning takes {whole - small:.1f} of {whole:.1f} MB" in text
        bare, thin = step("Rep-Net", "lean"), step("Rep-Net, pruned", "lean")
        assert f"The lean layers take {whole - bare:.1f}," in text
        assert f"After them, pruning takes {bare - thin:.1f} of {bare:.1f} MB" in text
        assert f"come down to {step('Rep-Net', 'lean, micro-batches'):.1f} MB" in text
        held = study.memory()["Rep-Net"]["steps"]["lean"]["held"] / 1e6
        assert 0.7 < held / bare < 0.78 and "three quarters are held" in text

    def test_at_224(self):
        at_once, one_by_one, pruned, _ = numbers(PRINTED["large-measure"])
        assert f"at once it makes {at_once} MB" in prose("cost-explain")
        assert f"makes {one_by_one} MB" in prose("large-explain") and one_by_one < pruned / 3
        assert 0.5 < pruned / at_once < 0.55 and "nearly half of what the step makes" in prose("large-explain")

    def test_both_papers(self):
        text, table = prose("both-explain"), PRINTED["both-pairs"]
        name = "Rep-Net, 4 bits a channel"
        files = {arm: found["file"] / 1e6 for arm, found in study.memory().items()}
        assert f"The file loses {files['Rep-Net'] - files['Rep-Net, 4 bits']:.1f} MB" in text
        assert f"it even grows, by {step(name) - step('Rep-Net'):.1f} MB" in text
        assert step(name, "lean") == step("Rep-Net", "lean") and "neither more nor less" in text
        assert f"That costs {files[name] - files['Rep-Net, 4 bits']:.2f} MB of file" in text
        trained = study.difference("Rep-Net, trained on 4 bits", "Rep-Net")
        assert trained.endswith("cannot tell") and "three seeds cannot tell it from FP32 either" in text
        assert f"a step of {step(name, 'lean'):.1f} MB, a file of {files[name]:.1f} MB" in text
        verdicts = dict(zip(table.splitlines()[1::2], table.splitlines()[2::2], strict=True))
        assert ": worse" in verdicts["Rep-Net, 4 bits against Rep-Net"]
        assert ": cannot tell" in verdicts[f"{name} against Rep-Net"]
        pruned = "Rep-Net, pruned, 4 bits a channel"
        assert ": worse" in verdicts[f"{pruned} against Rep-Net"]
        less = step(name, "lean") - step(pruned, "lean")
        assert (
            f"takes {less:.1f} MB less, and the accuracy is {mean('Rep-Net') - mean(pruned):.1f} points below" in text
        )
        assert numbers(prose("both-predict")) == [round(mean(arm), 1) for arm in ("Rep-Net", "Rep-Net, pruned")]
        assert f"{files[name]:.1f} MB in place of {files['Rep-Net']:.1f}" in CELLS["quiz-file"]


ANSWERS = {
    "08.a": (24, [
        (24.26, "round down"), (25, "rounded up"), (40, "the 16 maps that it reads"), (72, "the channels that go"),
        (0.75, "the pruning ratio"), (0.25, "the share that stays"), (32, "its second convolution"),
        (145, "has 4 bytes"), (56, "instead of adding"), (2.5, "how many maps fit"), (21, "paper's ratio"),
        (90, "too large"), (5, "too small"),
    ]),
    "08.b": (13, [
        (169, "its root"), (15.65, "adds the images' norms"), (7.82, "the mean of the images' norms"),
        (19, "adds the numbers themselves"), (12, "largest number"), (12.65, "second image alone"),
        (3, "first image alone"), (6.5, "root of how many"), (9.19, "a mean over the images"), (4.75, "the mean: add"),
        (4.36, "square each number"), (99, "too large"), (0, "too small"),
    ]),
    "08.c": (2.18976 * 3.5, [
        (1.09, "what the codes take"), (8.76, "took in FP32"), (61.3, "millions of bits"), (6.57, "share a byte"),
        (7_664_160, "in bytes"), (7.31, "MiB"), (3.5, "of one weight"), (8, "how many times"), (2.19, "counts weights"),
        (500, "too large"), (0.1, "too small"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
class TestCheck(ListedAnswers):
    right = {name: (right, torch.tensor(right), str(right)) for name, (right, _) in ANSWERS.items()}
    wrong = {name: wrong for name, (_, wrong) in ANSWERS.items()}


def test_every_check_has_answers():
    assert [name for name in tasks() if name.startswith("08.") and not name[3:].isdigit()] == list(ANSWERS)
