"""The command line as a stranger uses it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from q4lib.data import load
from q4lib.kit.cli import main
from q4lib.train import read_log


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """`q4 train`, as README says it, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command = [Path(sys.executable).parent / "q4", "train", "--out", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_default_run_reads_digits(digits_run):
    """At least 97 % of the held-out digits with 4-bit weights, at the last epoch; every file in its place."""
    folder, printed = digits_run
    run, epochs = read_log(folder)
    assert run["recipe"]["bits"] == 4 and len(epochs) == run["recipe"]["epochs"]
    assert epochs[-1]["test_acc"] >= 97
    assert all(layer["levels"] <= 15 for layer in epochs[-1]["layers"].values())
    made = {"recipe.json", "log.jsonl", "checkpoint.safetensors", "model.safetensors", "curve.png"}
    assert {path.name for path in folder.iterdir()} == made
    assert len(re.findall(r"^epoch \d+/20: train .* min left$", printed, re.MULTILINE)) == 20
    assert f"{epochs[-1]['test_acc']:.2f} % on the test images of digits at the last epoch" in printed
    with Image.open(folder / "curve.png") as curve:
        assert curve.size[0] > 600


def test_a_finished_run_started_again_says_so(digits_run, capsys):
    folder, _ = digits_run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["train", "--out", str(folder)]) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_eval_measures_what_the_log_says(digits_run, capsys):
    folder, _ = digits_run
    logged = read_log(folder)[1][-1]["test_acc"]
    for path in (folder, folder / "model.safetensors"):
        assert main(["eval", str(path)]) == 0
        assert f"{logged:.2f} % of 360 test images of digits" in capsys.readouterr().out


def test_predict_names_the_three_likeliest(digits_run, tmp_path, capsys):
    folder, _ = digits_run
    digits = load("digits")
    for i in range(3):
        Image.fromarray(digits.x_test[i].permute(1, 2, 0).numpy()).resize((300, 300)).save(tmp_path / f"{i}.png")
    assert main(["predict", str(folder / "model.safetensors"), *(str(tmp_path / f"{i}.png") for i in range(3))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines):
        assert re.search(rf": {digits.y_test[i]} [\d.]+ %, \d [\d.]+ %, \d [\d.]+ %$", line)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train papr", "no recipe is called 'papr' (did you mean 'paper'?)"),
        ("train --set lerning_rate=1", "--set takes key=value, got 'lerning_rate=1'"),
        ("train --set eppochs=1", "(did you mean 'epochs'?)"),
        ("train --set lr=fast", "--set lr takes a value of type float, got 'fast'"),
        ("train --set betas=0.9", "--set betas takes a value of type tuple"),
        ("train --set flip=maybe", "--set flip takes a value of type bool"),
        ("train --bits 1", "bits must be 2..8"),
        ("train --data mnist", "data must be one of digits, cifar10, cifar100"),
        ("train --val 5000", "val must leave images to train on: digits has 1437"),
        ("eval nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("predict nowhere.safetensors x.png", "nowhere.safetensors does not exist"),
        ("data get mnist", "no data set is called 'mnist'"),
        ("data check cifar10", "cifar10 is not here yet: `q4 data get cifar10` downloads it"),
    ],
)
def test_a_mistake_gets_one_sentence(command, words, capsys):
    assert main(command.split()) == 1
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.err.startswith("q4: ")


def test_settings_reach_the_recipe(tmp_path):
    settings = ["lr=0.01", "soft_clip=none", "betas=0.8,0.9", "flip=true", "batch_size=500", "grad_clip=1"]
    command = ["train", "--epochs", "1", "--seed", "7", "--out", str(tmp_path / "run")]
    assert main(command + [word for setting in settings for word in ("--set", setting)]) == 0
    recipe = read_log(tmp_path / "run")[0]["recipe"]
    expected = {"lr": 0.01, "soft_clip": None, "betas": [0.8, 0.9], "flip": True, "batch_size": 500, "seed": 7}
    assert expected.items() <= recipe.items() and recipe["grad_clip"] == 1.0


def test_data_is_found_and_checked(capsys, cifar10_pack):
    assert main(["data", "check", "digits", "cifar10"]) == 0
    printed = capsys.readouterr().out
    assert "digits: 1437 + 360 images, whole" in printed and "cifar10: 50000 + 10000 images, whole" in printed
    assert main(["data", "where"]) == 0
    assert str(cifar10_pack) in capsys.readouterr().out


def test_epochs_past_the_end_of_a_linear_schedule_are_pointed_out(capsys):
    settings = ["--epochs", "2", "--set", "schedule=linear", "--set", "schedule_epochs=1", "--set", "batch_size=700"]
    assert main(["train", *settings]) == 0
    assert "its rate is zero after epoch 1: --set schedule_epochs=2 would stretch it" in capsys.readouterr().out
    assert main(["train", *settings, "--epochs", "1"]) == 0
    assert "rate is zero" not in capsys.readouterr().out


def test_runs_go_home(q4_home):
    assert main(["train", "--epochs", "1", "--set", "batch_size=500"]) == 0
    assert (q4_home / "runs" / "digits.e1.batch_size=500-digits-b4-s0" / "model.safetensors").exists()
