"""Backbones, what is frozen and what trains, kill-safety of a whole chain of runs, and weights from elsewhere."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from q4lib import mobilenet as mobilenets
from q4lib.data import DataError, load, normalize
from q4lib.files import FileError, load_tensors, locked
from q4lib.kit.cli import main
from q4lib.kit.study import memory_of, network
from q4lib.layers import QuantizedWeight, quantized, quantized_layers
from q4lib.memory import profile
from q4lib.mobilenet import mobilenet, pretrained, repnet
from q4lib.pack import load_model, save_model
from q4lib.pruning import channel_norms, hidden_layers
from q4lib.quant import fake_quantize
from q4lib.repnet import RepNet
from q4lib.train import RunError, evaluate, read_log, run_name
from q4lib.transfer import TRANSFERS, Transfer, transfer

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["q4lib.transfer", "sklearn.datasets"])


def small(recipe: Transfer) -> Transfer:
    """Of scanned digits and a quarter of the width: a second or two an epoch."""
    source = "digits-first5" if recipe.source else ""
    data = "digits-last5" if recipe.source else "digits-first5"
    return replace(
        recipe, data=data, source=source, width=0.25, images=160, epochs=2, schedule_epochs=2, batch_size=32, crop=2
    )


@pytest.fixture
def small_recipes(monkeypatch):
    for name, recipe in list(TRANSFERS.items()):
        monkeypatch.setitem(TRANSFERS, name, small(recipe))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run folder by arm, all in one home, each made by its recipe's name."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("Q4_HOME", str(home))
        for name, recipe in list(TRANSFERS.items()):
            patch.setitem(TRANSFERS, name, small(recipe))
        arms = ("whole", "random", "last-layer", "repnet", "repnet-random")
        folders = {name: transfer(TRANSFERS[name], device="cpu", progress=False) for name in arms}
        folders["four"] = transfer(replace(TRANSFERS["repnet-pruned"], bits=4), device="cpu", progress=False)
        folders |= {name: home / "runs" / f"{name}-digits-first5-b32-s0" for name in ("pretrain", "pruned")}
    return folders


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The network's tensors, by the names they have in the backbone alone."""
    model, _ = load_model(folder / "model.safetensors")
    return {name.replace(".block.", "."): value for name, value in model.state_dict().items()}


def frozen(folder: Path) -> dict[str, torch.Tensor]:
    return {name: v for name, v in weights(folder).items() if ".side." not in name and name.startswith("features")}


def test_backbones_go_on_from_pretrain_for_as_long(runs):
    digest = {read_log(runs[name])[0]["start_digest"] for name in ("whole", "pruned", "random")}
    assert len(digest) == 1
    facts = [read_log(runs[name])[0]["recipe"] for name in ("whole", "pruned", "random")]
    changed = {key for key in facts[0] if len({str(recipe[key]) for recipe in facts}) > 1}
    assert changed == {"name", "pruned"}
    assert "start_digest" not in read_log(runs["pretrain"])[0]


def test_pruned_and_random_are_of_one_shape_and_other_channels(runs):
    shapes = {
        name: {key: value.shape for key, value in weights(runs[name]).items()} for name in ("whole", "pruned", "random")
    }
    assert shapes["pruned"] == shapes["random"] != shapes["whole"]
    whole, pruned = (load_model(runs[name] / "model.safetensors")[0] for name in ("whole", "pruned"))
    peaks = [profile(RepNet(model), (3, 32, 32)).peak for model in (whole, pruned)]
    assert peaks[1] < 0.6 * peaks[0]
    assert {name for name, layers in hidden_layers(pruned).items() if layers[4].in_channels % 8} <= {
        "features.1", "features.2", "features.3", "features.4",
    }  # fmt: skip


def test_norms_choose_or_chance(runs, small_recipes, monkeypatch):
    """What stays, before it is trained again: the channels of greatest norm over real images, or any."""
    monkeypatch.setenv("Q4_HOME", str(runs["pretrain"].parents[1]))
    whole = load_model(runs["pretrain"] / "model.safetensors")[0]
    images = normalize(load("digits-first5").x_train[:1000], "digits-first5")
    norms = channel_norms(whole, images.split(250))["features.2"]
    full = hidden_layers(whole)["features.2"][0].weight
    for name, by_norm in (("pruned", True), ("random", False)):
        torch.manual_seed(0)
        kept = hidden_layers(TRANSFERS[name].network(5))["features.2"][0].weight
        strongest = full[norms.argsort(descending=True)[: len(kept)].sort().values]
        assert torch.equal(kept, strongest) == by_norm
        assert all((channel == full).flatten(1).all(1).any() for channel in kept)


@pytest.mark.parametrize(
    ("arm", "backbone"), [("last-layer", "whole"), ("repnet", "whole"), ("repnet-random", "random")]
)
def test_a_transfer_leaves_its_backbone_as_it_was(runs, arm, backbone):
    begun, ended = frozen(runs[backbone]), frozen(runs[arm])
    assert begun.keys() == ended.keys() and all(torch.equal(begun[name], ended[name]) for name in begun)
    side = {name for name in weights(runs[arm]) if ".side." in name}
    assert bool(side) == (arm != "last-layer")
    if side:
        assert weights(runs[arm])["features.17.side.bn2.weight"].abs().max() > 0, "the side modules learned"


def test_head_and_side_have_rates_of_their_own():
    recipe = TRANSFERS["repnet"]
    groups = recipe.groups(RepNet(mobilenet(5, width=0.25), 5))
    assert [group.get("lr", recipe.lr) for group in groups] == [3e-4, 1.5e-3]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    assert sizes[0] == 5 * 1281
    assert sum(sizes) == sum(p.numel() for p in RepNet(mobilenet(5, width=0.25), 5).parameters() if p.requires_grad)


def test_a_4_bit_backbone_is_its_own_rounded(runs):
    """Codes in the file, and the weights that they stand for in the network."""
    model, facts = load_model(runs["four"] / "model.safetensors")
    layers = [module for module in model.modules() if isinstance(module, QuantizedWeight)]
    assert len(layers) == 52 == len(facts["bits"])
    pruned, found = frozen(runs["pruned"]), frozen(runs["four"])
    for name, w in pruned.items():
        expected = fake_quantize(w, 4) if w.dim() == 4 else w
        assert torch.equal(found[name], expected), name
    sizes = [(runs[name] / "model.safetensors").stat().st_size for name in ("repnet", "four")]
    assert sizes[1] < 0.8 * sizes[0]
    line = read_log(runs["four"])[1][-1]
    assert len(line["layers"]) == 52 and line["layers"]["features.0.0"]["levels"] <= 15


@pytest.mark.parametrize("name", ["pretrain", "pruned", "repnet", "last-layer", "four"])
def test_the_file_is_the_network_that_was_tested(runs, name):
    model, facts = load_model(runs[name] / "model.safetensors")
    data, line = load(facts["data"]), read_log(runs[name])[1][-1]
    assert list(facts["classes"]) == list("01234" if name in ("pretrain", "pruned") else "56789")
    assert evaluate(model, data.x_test, data.y_test, facts["data"])[1] == pytest.approx(line["test_acc"], abs=0.7)


@pytest.mark.parametrize(("name", "arm"), [("last-layer", "last-layer"), ("repnet-random", "repnet-random")])
def test_the_study_measures_networks_of_the_runs_shapes(runs, small_recipes, name, arm):
    """`q4lib.kit.study` builds them without a run; its files differ from a run's by what is said of the run."""
    model, _ = load_model(runs[name] / "model.safetensors")
    built = network(TRANSFERS[arm])
    assert {key: value.shape for key, value in built.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    file = memory_of(TRANSFERS[arm])["file"]
    assert file == pytest.approx((runs[name] / "model.safetensors").stat().st_size, abs=100)


def test_the_log_says_what_was_run(runs):
    run, epochs = read_log(runs["repnet"])
    assert run["recipe"]["source"] == "digits-first5" and run["recipe"]["head_lr"] == 3e-4
    assert {"processor", "threads", "versions", "git_commit", "data_digest", "start_digest"} <= run.keys()
    assert len(epochs) == 2 and json.loads((runs["repnet"] / "recipe.json").read_text()) == run["recipe"]


def run_slowly_writing(home: Path) -> None:
    """What the killed process runs: 39 checkpoints in a chain of three runs, each held open a little by its fsync."""
    real = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.02), real(descriptor))[1]
    os.environ["Q4_HOME"] = str(home)
    torch.set_num_threads(1)
    TRANSFERS.update({name: small(recipe) for name, recipe in TRANSFERS.items()})
    transfer(TRANSFERS["repnet-pruned"], device="cpu", progress=False, save_every=0.0)


def start(home: Path) -> multiprocessing.Process:
    process = SPAWN.Process(target=run_slowly_writing, args=(home,))
    process.start()
    return process


def steps_of(home: Path) -> int:
    return sum(path.stat().st_mtime_ns for path in home.glob("runs/*/checkpoint.safetensors"))


def test_a_killed_chain_ends_where_an_undisturbed_one_ends(tmp_path):
    """Killed in each of its three runs, most often while it writes."""
    killed_in = set()
    for home, kills in ((tmp_path / "undisturbed", 0), (tmp_path / "killed", 8)):
        for _ in range(kills):
            process = start(home)
            for _ in range(4):
                before = steps_of(home)
                while steps_of(home) == before and process.is_alive():
                    time.sleep(0.001)
            assert process.is_alive(), "the run ended before it could be killed"
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed_in.add(len([*home.glob("runs/*/checkpoint.safetensors")]))
        process = start(home)
        process.join()
        assert process.exitcode == 0
    assert killed_in == {1, 2, 3}
    theirs = sorted((tmp_path / "undisturbed" / "runs").iterdir())
    assert [folder.name.partition("-digits")[0] for folder in theirs] == ["pretrain", "pruned", "repnet-pruned"]
    for folder in theirs:
        ours = tmp_path / "killed" / "runs" / folder.name
        assert (ours / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        states = [load_tensors(run / "checkpoint.safetensors", "checkpoint")[0] for run in (ours, folder)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_two_that_begin_with_one_run_wait_for_each_other(runs, small_recipes, monkeypatch, capsys):
    """Begun at once, one met the other's lock on a run that both only needed, and ended there."""
    monkeypatch.setenv("Q4_HOME", str(runs["pretrain"].parent.parent))
    monkeypatch.setattr("q4lib.transfer.LOOK_EVERY", 0.1)
    begun = threading.Event()

    def be_at_work():
        with locked(runs["pretrain"]):
            begun.set()
            time.sleep(2)

    other = threading.Thread(target=be_at_work)
    other.start()
    begun.wait()
    assert transfer(TRANSFERS["random"], device="cpu") == runs["random"]
    other.join()
    assert capsys.readouterr().out.count("another process is at pretrain: waiting for it") == 1


def test_a_run_is_refused_when_its_backbone_is_another(small_recipes, q4_home):
    arm = replace(TRANSFERS["last-layer"], images=None, start="pretrain", epochs=1)
    folder = transfer(arm, device="cpu", progress=False)
    backbone = next(q4_home.glob("runs/pretrain*/model.safetensors"))
    model, facts = load_model(backbone)
    nn.init.zeros_(model.classifier[1].bias)
    save_model(backbone, model, **{key: facts[key] for key in ("recipe", "data", "classes")}, epoch=1, test_acc=0.0)
    with pytest.raises(RunError, match="another recipe .start_digest .* -> "):
        transfer(arm, folder, device="cpu", progress=False)


def test_a_run_without_its_backbone_names_the_command(small_recipes):
    from q4lib.train import fit

    with pytest.raises(FileError, match="model.safetensors does not exist: `q4 transfer whole` makes it"):
        fit(TRANSFERS["repnet"], device="cpu", progress=False)


def test_the_command(small_recipes, q4_home, capsys):
    command = ["transfer", "last-layer", "--seed", "3", "--set", "start=pretrain", "--bits", "4"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "first, pretrain: " in printed and "one seed (3)" in printed and "4-bit weights" in printed
    (folder,) = q4_home.glob("runs/last-layer.*-digits-last5-b4-s3")
    assert (folder / "curve.png").exists()
    assert main(["eval", str(folder)]) == 0
    assert main(command) == 0
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("transfer repne", "no recipe is called 'repne' (did you mean 'repnet'?)"),
        ("transfer repnet --set trains=sides", "trains must be one of all, side, head, got 'sides' (did"),
        ("transfer repnet --set start=hole", "start must be imagenet or one of pretrain, whole,"),
        ("transfer repnet --set optimizer=muon", "optimizer must be one of adamw, got 'muon'"),
        ("transfer repnet --set head_lr=0", "head_lr must be positive and finite, got 0.0"),
        ("transfer repnet --set pruned=l1", "pruned must be one of none, norm, random, got 'l1'"),
        ("transfer repnet --set dropout=0.2", "dropout belongs to a run that begins with nothing: this one"),
        ("transfer repnet --set model=vgg4bit", "model must be one of mobilenetv2, got 'vgg4bit'"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence(command, words, capsys):
    assert main(command.split()) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_run_before_has_bits_of_its_own_and_the_same_width():
    changed = replace(TRANSFERS["repnet"], bits=8, start_bits=4, width=0.5)
    first = changed.first()
    assert (first.bits, first.width, first.name) == (4, 0.5, "whole")
    assert (first.first().bits, first.first().width, first.first().first()) == (32, 0.5, None)
    network = replace(first.first(), dropout=0.3).network(5)
    assert network.classifier[0].p == 0.3 and network.classifier[1].in_features == 1280


def test_what_begins_on_4_bits_is_trained_at_the_bits_asked_for(q4_home):
    """At 32 it went on rounding to 4, under the name of 32."""
    arm = replace(small(TRANSFERS["whole"]), start_bits=4)
    first = arm.first()
    file = q4_home / "runs" / run_name(first) / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_model(file, first.network(5), recipe="pretrain", data=first.data, classes=list("01234"), epoch=1, test_acc=0.0)
    for bits in (2, 32):
        assert {layer.bits for layer in quantized_layers(replace(arm, bits=bits).network(5)).values()} == {bits}


def test_a_run_is_named_by_its_departures():
    assert run_name(TRANSFERS["repnet"]) == "repnet-cifar10-last5-b32-s0"
    changed = replace(TRANSFERS["repnet"], data="cifar10", source="cifar100", bits=4, seed=2)
    assert run_name(changed) == "repnet.source=cifar100-cifar10-b4-s2"
    assert run_name(changed.first()) == "whole-cifar100-b32-s0"
    assert run_name(changed.first().first()) == "pretrain-cifar100-b32-s0"


@pytest.mark.parametrize("half", ["first5", "last5"])
def test_halves_of_the_classes(half):
    whole, part = load("digits"), load(f"digits-{half}")
    kept = whole.y_train < 5 if half == "first5" else whole.y_train >= 5
    assert torch.equal(part.x_train, whole.x_train[kept])
    assert torch.equal(part.y_train, whole.y_train[kept] - (0 if half == "first5" else 5))
    assert (len(part.y_train), len(part.y_test)) == ((708, 193) if half == "first5" else (729, 167))
    assert part.classes == tuple("01234" if half == "first5" else "56789")
    assert len({whole.digest, part.digest, load("digits-first5").digest}) == (2 if half == "first5" else 3)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_pruned_repnets_survive_packing(tmp_path, bits):
    model = repnet(7, width=0.35, stride=2, hidden={"features.1": 5, "features.3": 9})
    if bits != 32:
        for conv in [module for module in model.features[3].modules() if type(module) is nn.Conv2d]:
            quantized(conv, bits, per_channel=True)
    save_model(tmp_path / "model.safetensors", model)
    loaded, facts = load_model(tmp_path / "model.safetensors")
    assert facts["shape"]["hidden"]["features.3"] == 9 and facts["shape"]["side"]
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(loaded(images), model.eval()(images), atol=1e-6)


class TestPretrained:
    @pytest.fixture
    def file(self, tmp_path) -> Path:
        torch.manual_seed(0)
        torch.save(mobilenet_v2().state_dict(), tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    def test_a_local_file(self, file, monkeypatch):
        torch.manual_seed(0)
        theirs, images = mobilenet_v2().eval(), torch.randn(1, 3, 64, 64)
        assert torch.equal(pretrained(file)(images), theirs(images))
        name = mobilenets.imagenet_url().rpartition("/")[2]
        file.rename(file.with_name(name))
        monkeypatch.setenv("Q4_DATA", str(file.parent))
        assert torch.equal(pretrained()(images), theirs(images))
        model = replace(TRANSFERS["repnet"], start="imagenet").network(5)
        assert torch.equal(model.features[0][0].weight, theirs.features[0][0].weight) and model(images).shape == (1, 5)
        assert model.features[0][0].stride == (1, 1), "for 32 pixels"

    def test_the_grid_of_what_trains_and_of_what_is_frozen(self, file, monkeypatch):
        """All 53 layers of a backbone that trains; of a frozen one what is not replaced, with a scale a channel too."""
        file.rename(file.with_name(mobilenets.imagenet_url().rpartition("/")[2]))
        monkeypatch.setenv("Q4_DATA", str(file.parent))
        whole = replace(TRANSFERS["whole"], start="imagenet", bits=4).network(5)
        assert len(quantized_layers(whole)) == 53 and whole.classifier[1].out_features == 5
        side = quantized_layers(replace(TRANSFERS["repnet"], start="imagenet", bits=4, per_channel=True).network(5))
        assert len(side) == 52 and side["features.0.0"].scale().numel() == 32
        assert {layer.bits for layer in side.values()} == {4}

    def test_what_cannot_be_read_is_named(self, file, tmp_path, monkeypatch):
        with pytest.raises(DataError, match=r"none.pth does not exist: give the file of https://"):
            pretrained(tmp_path / "none.pth")
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(DataError, match=r"cannot be read from .*weights.pth \(.*\): put the file of https://"):
            pretrained(file)
        torch.save(nn.Linear(1, 1), file)
        with pytest.raises(DataError, match=r"cannot be read from .*weights.pth"):
            pretrained(file)
        for other in (resnet18(), mobilenet_v2(width_mult=0.5)):
            torch.save(other.state_dict(), file)
            with pytest.raises(DataError, match=r"weights.pth does not hold torchvision's MobileNetV2 of width 1.0 \("):
                pretrained(file)

    def test_without_a_network(self, monkeypatch):
        monkeypatch.setattr(mobilenets, "imagenet_url", lambda: "http://127.0.0.1:9/mobilenet_v2-b0353104.pth")
        with pytest.raises(DataError, match=r"cannot be read from .*cache/mobilenet_v2-b0353104.pth \(.*refused"):
            pretrained()
