"""A run can be killed, resumed, refused and trusted."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from q4lib.data import load, normalize
from q4lib.files import FileError, load_tensors, save_tensors
from q4lib.kit.cli import _summary
from q4lib.kit.plots import paper_run
from q4lib.pack import load_model
from q4lib.train import (
    RECIPES,
    Recipe,
    RunError,
    _interrupt_held_back,
    _Run,
    evaluate,
    faster_precision,
    fit,
    read_log,
    reported,
    run_name,
)

TINY = replace(
    RECIPES["digits"], epochs=3, batch_size=32, dropout=0.3, val=200, select="val", optimizer="muon",
    schedule="linear", schedule_epochs=3, warmup=0.2, label_smoothing=0.1, reflect=True, alternate=True,
)  # fmt: skip
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["q4lib.train", "sklearn.datasets"])


def train_slowly_writing(folder: Path, fsync_seconds: float = 0.0) -> None:
    """What the killed process runs: one thread, a checkpoint after every step, each held open a little by its fsync."""
    torch.set_num_threads(1)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        time.sleep(fsync_seconds)
        real(descriptor)

    os.fsync = fsync
    fit(TINY, folder, device="cpu", progress=False, save_every=0.0)


def start(folder: Path, fsync_seconds: float = 0.0) -> multiprocessing.Process:
    process = SPAWN.Process(target=train_slowly_writing, args=(folder, fsync_seconds))
    process.start()
    return process


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def finish(folder: Path) -> None:
    process = start(folder)
    process.join()
    assert process.exitcode == 0


def without_times(folder: Path) -> list[dict]:
    run, epochs = read_log(folder)
    return [run, *({**line, "seconds": 0} for line in epochs)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that nobody killed."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(folder)
    return folder


def test_twenty_kills_change_no_bit(undisturbed, tmp_path):
    """kill -9 at random moments, several while a checkpoint is half written, ends where the undisturbed run ends."""
    folder, rng = tmp_path / "killed", random.Random(0)
    checkpoint, part = folder / "checkpoint.safetensors", folder / ".checkpoint.safetensors.part"
    while_writing = 0
    for kill in range(20):
        process = start(folder, fsync_seconds=0.02)
        for _ in range(rng.randint(1, 3) if kill > 3 else 0):  # the first kills come before there is a checkpoint
            before = written(checkpoint)
            wait_until(lambda was=before: written(checkpoint) != was)
        if kill % 2:
            wait_until(part.exists)
        else:
            time.sleep(rng.uniform(0, 0.3))
        assert process.is_alive(), "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while_writing += part.exists()
    assert while_writing >= 5
    finish(folder)

    assert (folder / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert without_times(folder) == without_times(undisturbed)
    ours, theirs = (load_tensors(run / "checkpoint.safetensors", "checkpoint")[0] for run in (folder, undisturbed))
    assert (
        ours.keys() == theirs.keys()
        and {"rng/cpu", "optimizer/0/momentum", "optimizer/1/exp_avg", "model/fc.weight"} <= ours.keys()
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_stopped_after_its_epoch_s_last_step_goes_on(undisturbed, tmp_path, monkeypatch, capsys):
    """Killed while it evaluates, with no step of the epoch left: its estimate of the rest divided by that."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_finish_epoch", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(TINY, folder, device="cpu", progress=False, save_every=0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    fit(TINY, folder, device="cpu")
    steps = TINY.steps(1437 - TINY.val)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"going on from epoch 1, step {steps} of {steps}" and said[1].startswith("epoch 1/3: train ")
    assert (folder / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_the_model_kept_is_the_best_on_validation(undisturbed):
    _, epochs = read_log(undisturbed)
    kept = reported(epochs, "val")
    assert kept["val_acc"] == max(line["val_acc"] for line in epochs)
    from q4lib.pack import load_model

    model, facts = load_model(undisturbed / "model.safetensors")
    images = load("digits")
    assert facts["epoch"] == kept["epoch"]
    assert evaluate(model, images.x_test, images.y_test, "digits")[1] == pytest.approx(kept["test_acc"], abs=0.3)
    assert reported(epochs, "last")["epoch"] == TINY.epochs


def test_the_test_set_never_chooses_the_epoch():
    """Validation is best at epochs 2 and 3, of which the first counts; the test set is best at epoch 3."""
    rows = [(70.0, 80.0), (75.0, 70.0), (75.0, 90.0), (60.0, 85.0)]
    epochs = [{"epoch": i, "val_acc": val, "test_acc": test} for i, (val, test) in enumerate(rows, start=1)]
    assert reported(epochs, "val")["epoch"] == 2
    assert reported(epochs, "last")["epoch"] == 4


def copy_with_two_epochs(tmp_path: Path) -> tuple[Path, Recipe]:
    """A short run of two epochs, finished, to be spoilt."""
    recipe = replace(TINY, epochs=2, val=1300, select="last")
    return fit(recipe, tmp_path / "run", device="cpu", progress=False), recipe


def test_resume_cuts_the_log_back_to_the_checkpoint(tmp_path):
    folder, recipe = copy_with_two_epochs(tmp_path)
    whole = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(whole + whole.splitlines()[-1] + '\n{"epoch": 3, "half a li')
    fit(recipe, folder, device="cpu", progress=False)
    assert (folder / "log.jsonl").read_text() == whole


def test_a_finished_run_writes_a_lost_model_again(tmp_path):
    folder, recipe = copy_with_two_epochs(tmp_path)
    model = (folder / "model.safetensors").read_bytes()
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(model[:20_000])):
        spoil(folder / "model.safetensors")
        fit(recipe, folder, device="cpu", progress=False)
        assert (folder / "model.safetensors").read_bytes() == model


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(RunError, match=r"holds model\.safetensors, which is not of this run"):
        fit(TINY, tmp_path, device="cpu", progress=False)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_run_is_refused_when_what_it_began_with_is_gone(tmp_path):
    """Another recipe, a damaged checkpoint, a shortened log, no checkpoint: one sentence, nothing written."""
    folder, recipe = copy_with_two_epochs(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(RunError, match=r"another recipe \(lr 0.005 -> 0.01\)"):
        fit(replace(recipe, lr=0.01), folder, device="cpu")
    (folder / "log.jsonl").write_bytes(files["log.jsonl"].splitlines(keepends=True)[0])
    with pytest.raises(RunError, match="has lost epochs"):
        fit(recipe, folder, device="cpu")
    (folder / "log.jsonl").write_bytes(files["log.jsonl"])
    spoilt = bytearray(files["checkpoint.safetensors"])
    spoilt[-1000] ^= 1
    (folder / "checkpoint.safetensors").write_bytes(spoilt)
    with pytest.raises(RunError, match=r"checkpoint.safetensors is damaged.*--out"):
        fit(recipe, folder, device="cpu")
    (folder / "checkpoint.safetensors").unlink()
    with pytest.raises(RunError, match="a log but no checkpoint"):
        fit(recipe, folder, device="cpu")
    del files["checkpoint.safetensors"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    folder, recipe = tmp_path / "run", replace(TINY, epochs=2)

    def fill_the_disk(run: Path) -> None:
        self_made = run / ".checkpoint.safetensors.part"
        self_made.symlink_to("/dev/full")

    with pytest.raises(FileError, match="cannot write .*checkpoint.safetensors: No space left on device"):
        fit(recipe, folder, device="cpu", progress=False, save_every=0.0, on_epoch=fill_the_disk)
    assert load_tensors(folder / "checkpoint.safetensors", "checkpoint")[1]["at"]["epoch"] == 2
    (folder / ".checkpoint.safetensors.part").unlink(missing_ok=True)
    fit(recipe, folder, device="cpu", progress=False)
    assert len(read_log(folder)[1]) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot make the run folder .*file/run"):
        fit(TINY, tmp_path / "file" / "run", device="cpu")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """A sentence says so, and what to do; the checkpoint from before is whole."""
    with pytest.raises((RunError, ValueError), match=r"nan|inf") as caught:
        fit(replace(TINY, lr=1e30, soft_clip=None, grad_clip=None), tmp_path / "run", device="cpu", progress=False)
    assert "lower learning rate" in str(caught.value)
    tensors, saved = load_tensors(tmp_path / "run" / "checkpoint.safetensors", "checkpoint")
    assert saved["at"]["epoch"] == 1 and all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_two_processes_do_not_share_a_run(tmp_path):
    process = start(tmp_path / "run", fsync_seconds=0.5)
    while not (tmp_path / "run" / "recipe.json").exists():
        time.sleep(0.01)
    with pytest.raises(FileError, match="another process is at work"):
        fit(TINY, tmp_path / "run", device="cpu")
    process.kill()
    process.join()


def test_the_log_says_what_was_run(undisturbed):
    run, epochs = read_log(undisturbed)
    assert run["recipe"]["bits"] == 4 and run["precision"] == "fp32" and run["memory_format"] == "channels_last"
    assert {"device", "processor", "threads", "versions", "git_commit", "data_digest"} <= run.keys()
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    fields = "epoch train_loss train_acc val_acc test_loss test_acc lr seconds layers"
    assert list(epochs[0]) == fields.split()
    assert len(epochs[0]["layers"]) == 7 and list(epochs[0]["layers"]["fc"]) == ["levels", "entropy", "sqnr", "amax"]
    assert json.loads((undisturbed / "recipe.json").read_text()) == run["recipe"]


def test_paper_is_the_papers_recipe():
    """Rate and levels of the paper's own log, and what paper-claims says was run."""
    paper = RECIPES["paper"]
    rates = [row["lr"] for row in paper_run("cifar10", 7)]
    assert [round(paper.learning_rate(epoch), 6) for epoch in range(1, 8)] == rates
    assert paper.learning_rate(101) == 0 and round(paper.learning_rate(150), 6) == 0.000484
    assert (paper.model, paper.batch_size, paper.lr, paper.weight_decay) == ("vgg4bit", 128, 1e-3, 5e-4)
    assert (paper.crop, paper.flip, paper.dropout) == (4, True, 0.5)
    assert (paper.grad_clip, paper.soft_clip, paper.epochs, paper.precision) == (0.5, 3.0, 150, "fp32")


def test_the_linear_schedule_climbs_and_ends_at_zero():
    fast = replace(RECIPES["fast"], epochs=4, schedule_epochs=4, warmup=0.25)
    rates = [fast.rate(epoch, done) for epoch in range(1, 6) for done in (0.0, 0.5)]
    assert rates == pytest.approx([0, 1 / 2, 1, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6, 0, 0])


def test_a_tuning_run_never_reads_the_test_set(tmp_path, monkeypatch):
    """With a validation split and no choice of epoch, the test images could be missing."""
    monkeypatch.setattr("q4lib.train.evaluate", lambda model, x, y, *rest, **more: (0.5, 100 * len(y) / 1300))
    recipe = replace(TINY, epochs=1, val=1300, select="last", mirror=True, six_views=True)
    line = read_log(fit(recipe, tmp_path / "run", device="cpu", progress=False))[1][0]
    assert {line["val_acc"], line["mirrored_acc"], line["six_views_acc"]} == {100}
    assert line["test_acc"] is line["test_loss"] is None


def test_several_views_give_the_mean_answer_to_an_image_mirrored_and_shifted(tmp_path):
    """By hand: the log has it beside the single view; and whichever way round the images come, it is the same."""
    recipe = replace(TINY, epochs=2, mirror=True, six_views=True)
    folder = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    (first, line), (model, _), digits = read_log(folder)[1], load_model(folder / "model.safetensors"), load("digits")
    x, y = digits.x_test, digits.y_test
    wide = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))

    def answer(images):
        with torch.no_grad():
            return sum(model(normalize(way, "digits")) for way in (images, images.flip(3))) / 2

    two = answer(x)
    for count, mean, key in (
        (2, two, "mirrored_acc"),
        (6, (2 * two + answer(wide[..., :32, :32]) + answer(wide[..., 2:, 2:])) / 4, "six_views_acc"),
    ):
        right = 100 * (mean.argmax(1) == y).double().mean().item()
        found = evaluate(model, x, y, "digits", count=count)
        assert found == pytest.approx((F.cross_entropy(mean, y).item(), right), abs=1e-4)
        assert line[key] == pytest.approx(right, abs=0.3)
    assert evaluate(model, x.flip(3), y, "digits", count=2) == evaluate(model, x, y, "digits", count=2)
    assert line["test_acc"] == pytest.approx(evaluate(model, x, y, "digits")[1], abs=0.3)
    said = f"{line['mirrored_acc']:.2f} % with their mirror images, {line['six_views_acc']:.2f} % in six views"
    assert said in _summary(folder)
    assert "mirrored_acc" in first and "six_views_acc" not in first
    with pytest.raises(ValueError, match="views must be 1, 2 or 6, got 3"):
        evaluate(model, x, y, "digits", count=3)


def test_a_run_begun_before_a_setting_existed_goes_on(tmp_path):
    """A checkpoint without a key is one with that key's default."""
    recipe = replace(RECIPES["digits"], epochs=1, val=1300)
    folder = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    tensors, saved = load_tensors(folder / "checkpoint.safetensors", "checkpoint")
    del saved["run"]["recipe"]["optimizer"]
    save_tensors(folder / "checkpoint.safetensors", tensors, "checkpoint", saved)
    fit(recipe, folder, device="cpu", progress=False)
    with pytest.raises(RunError, match="optimizer adamw -> muon"):
        fit(replace(recipe, optimizer="muon"), folder, device="cpu", progress=False)


def test_a_run_is_named_by_its_departures():
    paper = RECIPES["paper"]
    assert run_name(paper) == "paper-cifar10-b4-s0"
    changed = replace(paper, epochs=7, model="simpleresnet4bit", soft_clip=None, data="cifar100", bits=32, seed=3)
    assert run_name(changed, "cuda") == "paper.simpleresnet4bit.e7.soft_clip=None.gpu-cifar100-b32-s3"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "mnist"}, "data must be one of digits, cifar10, cifar100, cifar10-first5, .*, got 'mnist'"),
        ({"model": "vgg4bits"}, "got 'vgg4bits' .did you mean 'vgg4bit'"),
        ({"bits": 1}, "bits must be 2..8, or 32 for the FP32 twin, got 1: the nearest is 2"),
        ({"bits": 16}, "the nearest is 8"),
        ({"val": 49_900}, "batch_size must be at most the 100 images of cifar10 to train on, got 128"),
        ({"images": 50_001}, "images must be 2..50000, those of cifar10 to train on, got 50001"),
        ({"images": 49_901, "val": 100}, "images must be 2..49900"),
        ({"images": 0}, "images must be 2..50000"),
        ({"images": 100}, "batch_size must be at most the 100 images of cifar10 to train on, got 128"),
        ({"reflect": True, "crop": 32}, "crop must be 0..31, got 32"),
        ({"warmup": 1.0}, "warmup must be at least 0 and less than 1, got 1.0"),
        ({"muon_lr": 0}, "muon_lr must be positive"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"fixed_scale": True, "per_channel": True}, "it excludes per_channel"),
        ({"fixed_scale": True, "normal_range": True}, "it excludes normal_range"),
        ({"seed": -5}, "seed must be 0..2147483647, got -5"),
        ({"crop": 500}, "crop must be 0..32, got 500"),
        ({"lr": float("inf")}, "lr must be positive and finite, got inf"),
        ({"select": "val"}, "select=val needs a validation split"),
        ({"precision": "fp8"}, "precision must be one of"),
    ],
)
def test_a_recipe_that_cannot_run_says_why(change, words):
    with pytest.raises(ValueError, match=words):
        replace(RECIPES["paper"], **change)


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_precision_is_timed_only_when_asked(monkeypatch, faster):
    timed = []

    def seconds(recipe, precision, *args, **more):
        timed.append(precision)
        return 1 if precision == faster else 2

    monkeypatch.setattr("q4lib.step.step_seconds", seconds)
    assert faster_precision(RECIPES["digits"]) == "fp32" and not timed
    assert faster_precision(replace(RECIPES["digits"], precision="auto")) == faster and timed == ["fp32", "bf16"]


def test_bf16_is_resumed_in_bf16_at_the_same_last_bit(tmp_path):
    recipe = replace(TINY, epochs=2, val=1300, select="last", precision="bf16")

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "stopped", device="cpu", progress=False, on_epoch=stop)
    runs = [fit(recipe, tmp_path / name, device="cpu", progress=False) for name in ("stopped", "whole")]
    assert [read_log(run)[0]["precision"] for run in runs] == ["bf16", "bf16"]
    stopped, whole = ((run / "model.safetensors").read_bytes() for run in runs)
    assert stopped == whole


def test_the_fp32_twin_logs_no_grid(tmp_path):
    folder = fit(replace(TINY, bits=32, epochs=1, val=1300), tmp_path / "run", device="cpu", progress=False)
    assert read_log(folder)[1][0]["layers"] == {}


def test_a_gpu_that_is_not_there_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="there is no GPU that torch can use here"):
        fit(TINY, tmp_path / "run", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains(tmp_path):
    folder = fit(replace(TINY, epochs=1), tmp_path / "run", device="cuda", progress=False)
    assert read_log(folder)[1][0]["test_acc"] > 10


@pytest.fixture
def interruptible():
    """Ctrl-C works here and in processes begun here, also where the tests were started in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_loses_no_step(tmp_path, interruptible):
    """One sentence; the step that was running is saved, and the same command ends where an undisturbed run ends."""
    command = [sys.executable, "-m", "q4lib.kit.cli", "train", "--epochs", "2", "--out"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, str(stopped)], **pipes) as process:
        while "epoch 1/2" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "q4: stopped; the same command goes on from its checkpoint"
    at = load_tensors(stopped / "checkpoint.safetensors", "checkpoint")[1]["at"]
    assert at["epoch"] == 2 and at["step"] >= 1, at
    for folder in (stopped, whole):
        assert subprocess.run([*command, str(folder)], capture_output=True).returncode == 0
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert without_times(stopped)[1:] == without_times(whole)[1:]


def test_a_second_ctrl_c_works_at_once(interruptible):
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), _interrupt_held_back() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        reached.append(asked())
        signal.raise_signal(signal.SIGINT)
        reached.append("beyond the second")
    assert reached == [True] and signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt), _interrupt_held_back():
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")
    assert reached == [True, "the end"] and signal.getsignal(signal.SIGINT) == before


def test_sigint_is_left_alone_where_it_is_ignored_or_elsewhere(tmp_path):
    """A run in the background, which Ctrl-C shall not reach; and one in a thread, which may set no handler."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interrupt_held_back() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fit, replace(TINY, epochs=1, val=1300), tmp_path / "run", device="cpu", progress=False).result()


def test_a_part_of_the_images(tmp_path):
    """The same first ones of the training set, whatever the validation split; a run without a part keeps its name."""
    digits, part = load("digits"), replace(TINY, epochs=1, images=96)
    run = _Run(part, tmp_path / "run", digits, "cpu")
    assert torch.equal(run.x, digits.x_train[:96]) and torch.equal(run.y, digits.y_train[:96])
    assert torch.equal(run.x_val, digits.x_train[-200:])
    run.train(False, 60.0, lambda folder: None, lambda: False)
    _, (line,) = read_log(tmp_path / "run")
    assert line["train_acc"] * 96 / 100 == pytest.approx(round(line["train_acc"] * 96 / 100))
    assert run_name(replace(RECIPES["fast"], images=1000)) == "fast.images=1000-cifar10-b4-s0"
    assert run_name(RECIPES["fast"]) == "fast-cifar10-b4-s0"
