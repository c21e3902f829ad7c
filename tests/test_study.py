"""The memory study: measured bytes against the record, recorded accuracies, and the picture of both."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from test_records import RESULTS, ROOT

from q4lib.kit import study
from q4lib.kit.figures.pruning import retrained
from q4lib.kit.figures.together import plot_together
from q4lib.lean import lean
from q4lib.memory import measure, profile
from q4lib.optim import QuantAwareAdamW
from q4lib.recipes import run_name
from q4lib.repnet import RepNet


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """`logs(arm=[accuracies])` records runs, a seed each; no other run is recorded."""
    real = study.asset

    def asset(name):
        if name != study.NAME and not (tmp_path / name).exists():
            raise FileNotFoundError(name)
        return real(name) if name == study.NAME else tmp_path / name

    def record(**arms):
        for name, accuracies in arms.items():
            for seed, accuracy in enumerate(accuracies):
                recipe = replace(study.ARMS[name], seed=seed)
                folder = tmp_path / run_name(recipe)
                folder.mkdir()
                epochs = [{"epoch": epoch, "test_acc": acc} for epoch, acc in ((1, 99.0), (2, accuracy))]
                lines = [{"run": {"recipe": asdict(recipe)}}, *epochs]
                (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(study, "asset", asset)
    study.accuracies.cache_clear()
    yield record
    study.accuracies.cache_clear()


def test_the_record_is_what_is_measured():
    """Every byte of every arm: `python -m q4lib.kit.study` writes it anew."""
    recorded = json.loads((RESULTS / study.NAME).read_text())
    measured = study.measure_arms()
    assert recorded.keys() == measured.keys() and recorded["arms"].keys() == measured["arms"].keys()
    for arm, found in measured["arms"].items():
        assert recorded["arms"][arm] == found, arm


def test_bytes_against_a_count_by_hand():
    """A head of 5 x 1281 and the side network's 380,072; a batch norm's channel has 16 bytes, and 8 count its steps."""
    found = study.memory()["Rep-Net"]
    assert found["trainable"] == 5 * 1281 + 380_072
    model = study.network(study.ARMS["Rep-Net"])
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    buffers = sum(8 * norm.num_features + 8 for norm in norms)
    assert found["steps"]["eager"]["held"] == 4 * (found["frozen"] + 3 * found["trainable"]) + buffers
    for name in ("Rep-Net", "Rep-Net, pruned", "Rep-Net, pruned, 4 bits a channel"):
        lean_step = study.memory()[name]["steps"]["lean"]
        analysis = profile(study.network(study.ARMS[name]), (3, 32, 32), corrected=True).cumulative
        assert lean_step["saved"] / 8 == pytest.approx(analysis, rel=0.01), name


def test_codes_make_the_file_smaller_by_what_they_save():
    """2,189,760 weights of convolutions lose 3.5 bytes each; scales and their names come on top."""
    sizes = {name: found["file"] for name, found in study.memory().items()}
    model = study.network(study.ARMS["Rep-Net"])
    weights = sum(layer.weight.numel() for layer in model.modules() if type(layer) is torch.nn.Conv2d)
    assert weights == 2_189_760
    assert sizes["Rep-Net"] - sizes["Rep-Net, 4 bits"] == pytest.approx(3.5 * weights, abs=10_000)
    assert sizes["Rep-Net, 4 bits"] < sizes["Rep-Net, 4 bits a channel"] < 1.03 * sizes["Rep-Net, 4 bits"]


def test_the_optimizer_s_update_does_not_raise_the_peak():
    arm = study.ARMS["Rep-Net, pruned"]
    model = lean(study.network(arm))
    found = study.take(model)
    optimizer = QuantAwareAdamW(arm.groups(model), lr=arm.lr, grad_clip=arm.grad_clip, soft_clip=arm.soft_clip)
    x, y = torch.zeros(8, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.zeros(8, dtype=torch.long)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    assert abs(measure(step).peak - found["peak"]) < 64


def test_batch_norm_cannot_train_on_micro_batches_of_one():
    model = lean(study.network(study.ARMS["Rep-Net"]))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        study.take(model, 1)
    assert isinstance(model, RepNet) and study.WAYS["lean, micro-batches"][1] == 2


def test_accuracies_are_those_of_the_last_epoch(logs):
    logs(**{"Rep-Net": [80.0, 81.0, 82.0], "last layer": [61.0, 61.5, 61.8], "Rep-Net, pruned": [79.0, 81.5]})
    assert study.accuracies("Rep-Net") == {0: 80, 1: 81, 2: 82}
    table = {line.split(" | ")[0]: line for line in study.rows()}
    assert len(table) == len(study.ARMS) == 11
    assert "| 81.00 ± 2.48 %, 3 seeds | 386,477 |" in table["| Rep-Net"]
    assert "| not recorded |" in table["| Rep-Net, 4 bits"]
    absent = study.missing()
    assert "Rep-Net, pruned (seed 2)" in absent and "Rep-Net, 4 bits (seed 0, 1, 2)" in absent
    assert len(absent) == 9 and not any(line.startswith(("Rep-Net (", "last layer (")) for line in absent)
    assert study.differences() == [
        "Rep-Net against last layer: +19.6 points, +18.1 to +21.1: better",
        "Rep-Net, pruned against Rep-Net: -0.2 points, -9.8 to +9.3: cannot tell",
    ]


def test_one_run_has_no_spread(logs):
    logs(**{"Rep-Net": [80.0], "last layer": [61.0]})
    assert study.said("Rep-Net") == "80.00 %, one run, no spread" and study.differences() == []
    assert "one run, no spread · 18." in plot_together()[1]


def test_every_arm_is_a_run_of_its_own():
    assert len({run_name(arm) for arm in study.ARMS.values()}) == len(study.ARMS)
    assert run_name(study.ARMS["last layer, rate 1.5e-3"]) == "last-layer.head_lr=0.0015-cifar10-last5-b32-s0"
    assert run_name(study.ARMS["Rep-Net, trained on 4 bits"]) == "repnet.start_bits=4-cifar10-last5-b4-s0"


def test_the_lab_book_shows_the_study_and_readme_its_ends():
    lines = (ROOT / "notebooks" / "results" / "README.md").read_text().splitlines()
    shown = [line for line in lines if line.startswith(("| last ", "| Rep-N"))]
    assert shown == (study.rows() if any(map(study.accuracies, study.ARMS)) else [])
    pairs = [line for line in lines if line.startswith("- ") and " against " in line]
    assert pairs == [f"- {line}" for line in study.differences()]
    ends = [f"{values[-1]:.2f}" for values in retrained().values()]
    assert f"by norm or at random ({', '.join(ends)} %: one run each, no spread)" in " ".join(lines)
    side, last = (study.said(arm).removesuffix(", 3 seeds") for arm in ("Rep-Net", "last layer"))
    eager, lean = (study.memory()["Rep-Net"]["steps"][way]["peak"] / 1e6 for way in ("eager", "lean"))
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"learns five new classes to {side}, the last layer alone to {last} (three seeds" in readme
    assert f"makes {eager:.2f} MB beside network and Adam, with `q4lib.lean` {lean:.2f} MB" in readme


def points(figure) -> dict[str, tuple[float, float]]:
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    return {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in lines}


class TestPlotTogether:
    def test_a_point_an_arm(self, logs):
        logs(**{name: [70.0 + i, 71.0 + i, 72.0 + i] for i, name in enumerate(study.ARMS)})
        for way in study.WAYS:
            for rounded in study.ROUNDED:
                figure, numbers = plot_together(way, rounded, guess=60.0)
                found = points(figure)
                assert len(found) == 5 + 1
                assert numbers.count("3 seeds") == 5 and "no log" not in numbers
                both = next(
                    place for name, place in found.items() if name.startswith(f"Rep-Net, pruned, {rounded}, 3.")
                )
                assert found["your guess of both together"] == (both[0], 60)
                step = study.memory()[f"Rep-Net, pruned, {rounded}"]["steps"][way]
                assert both[0] == pytest.approx((step["held"] + step["peak"]) / 1e6, rel=0.05)
        assert both[1] == 71 + list(study.ARMS).index(f"Rep-Net, pruned, {rounded}")
        assert len({x for x, _ in found.values()}) == 5, "points of equal memory stand side by side"

    def test_arms_without_a_log_are_named(self, logs):
        logs(**{"Rep-Net": [80.0, 81.0, 82.0]})
        figure, numbers = plot_together("eager", "4 bits")
        assert list(points(figure)) == ["Rep-Net, 10.6 MB"]
        assert "Rep-Net: 81.00 ± 2.48 %, 3 seeds · 50.1 MB, 13.7 held and 36.5 made · file 10.6 MB" in numbers
        assert "no log: Rep-Net, pruned, 4 bits (seed 0, 1, 2)" in numbers
        assert "a channel" not in numbers

    def test_no_log_at_all(self, logs):
        figure, numbers = plot_together()
        assert points(figure) == {} and numbers.count("no log") == 5
