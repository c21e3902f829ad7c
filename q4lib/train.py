"""The run: the loop, its log and its checkpoint; killed at any moment, it goes on to the same last bit."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from .accuracy import evaluate
from .checkpoint import get_state, set_state
from .data import Dataset, batches, home, load, normalize
from .files import FileError, load_tensors, locked, save_tensors, write_whole
from .layers import FP32, quantized_layers
from .log import RunError, read_log, reported
from .machine import describe
from .pack import load_model, save_model
from .quant import statistics
from .recipes import RECIPES, Recipe, run_name
from .step import build, faster_precision, train_step

__all__ = ["RECIPES", "Recipe", "RunError", "evaluate", "fit", "read_log", "reported", "run_name", "train_step"]


def fit(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
    save_every: float = 60.0,
    on_epoch: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Train, or go on where a run was stopped, and return the run folder; a finished run is left as it is.

    Writes `recipe.json`, `log.jsonl`, `checkpoint.safetensors` (every `save_every` seconds and after every epoch) and
    `model.safetensors` (packed). `on_epoch` is called after each epoch. The device is CUDA where there is one, else the
    CPU. Ctrl-C ends the step, saves, then raises KeyboardInterrupt; a second one stops at once. RunError, FileError and
    DataError say what is wrong.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise RunError(f"there is no GPU that torch can use here: leave out --device, or give cpu, got {device}")
    folder = Path(folder or home() / "runs" / run_name(recipe, device))
    with locked(folder):
        run = _Run(recipe, folder, load(recipe.data), device)
        with _interrupt_held_back() as asked:
            run.train(progress, save_every, on_epoch, asked)
    return folder


@contextmanager
def _interrupt_held_back() -> Iterator[Callable[[], bool]]:
    """Tells the block whether Ctrl-C was pressed, and raises KeyboardInterrupt at its end; a second works at once."""
    before = signal.getsignal(signal.SIGINT)
    asked: list[bool] = []
    # Only the main thread may set a handler, and where SIGINT is ignored it must stay so.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def hold_back(*_: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold_back)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _layer_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    layers = {name: layer for name, layer in quantized_layers(model).items() if layer.bits != FP32}
    found = {name: statistics(layer.weight, layer.bits, step=layer.scale()) for name, layer in layers.items()}
    return {name: {key: of[key] for key in ("levels", "entropy", "sqnr", "amax")} for name, of in found.items()}


def _identity(recipe: dict[str, Any], data_digest: str, device: str) -> dict[str, Any]:
    """What must stay the same for a run to go on."""
    return {**recipe, "data_digest": data_digest, "device": "cpu" if device == "cpu" else "gpu"}


class _Run:
    """The state of a run: everything that a checkpoint holds, and the files it is written to."""

    def __init__(self, recipe: Recipe, folder: Path, data: Dataset, device: str) -> None:
        self.recipe, self.folder, self.data, self.device = recipe, folder, data, device
        self.log, self.checkpoint = folder / "log.jsonl", folder / "checkpoint.safetensors"
        self.model_file = folder / "model.safetensors"
        x, y = data.x_train.to(device), data.y_train.to(device)
        split = len(x) - recipe.val
        self.x, self.y = x[: recipe.images or split], y[: recipe.images or split]
        self.x_val, self.y_val = x[split:], y[split:]
        self.x_test, self.y_test = data.x_test.to(device), data.y_test.to(device)
        # TF32 is not fp32, and cuDNN's fastest kernels add in no fixed order.
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
        self.saved = time.perf_counter()
        if not self.checkpoint.exists():
            self._start()
        else:
            self._resume()

    def _start(self) -> None:
        if self.log.exists() and read_log(self.folder)[1]:
            raise RunError(f"{self.folder} holds a log but no checkpoint to go on from: give another --out")
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        others = sorted(name for name in there - {"recipe.json", "log.jsonl"} if not name.startswith("."))
        if others:
            raise RunError(f"{self.folder} holds {others[0]}, which is not of this run: give another --out")
        self.facts = {
            "recipe": asdict(self.recipe),
            **describe(self.device),
            "precision": faster_precision(self.recipe, self.device),
            "memory_format": "channels_last",
            "data_digest": self.data.digest,
            **self.recipe.origin(),
        }
        self.at: dict[str, Any] = {"epoch": 1, "step": 0, "loss": 0.0, "right": 0, "seen": 0, "seconds": 0.0}
        self.model, self.optimizer = build(self.recipe, len(self.data.classes), self.device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the run folder {self.folder}: {error.strerror}") from error
        write_whole(self.folder / "recipe.json", json.dumps(asdict(self.recipe), indent=2).encode())
        write_whole(self.log, json.dumps({"run": self.facts}).encode() + b"\n")
        self.save()

    def _resume(self) -> None:
        try:
            tensors, saved = load_tensors(self.checkpoint, "checkpoint")
        except FileError as error:
            raise RunError(f"{error}: delete {self.folder} to start again, or give another --out") from error
        self.facts, self.at = saved["run"], saved["at"]
        origin = self.recipe.origin()
        asked = _identity(json.loads(json.dumps(asdict(self.recipe))) | origin, self.data.digest, self.device)
        first = asdict(type(self.recipe)(self.recipe.name)) | self.facts["recipe"]
        first |= {key: self.facts.get(key) for key in origin}
        begun = _identity(first, self.facts["data_digest"], self.facts["device"])
        changed = [f"{key} {begun.get(key)} -> {new}" for key, new in asked.items() if begun.get(key) != new]
        if changed:
            raise RunError(f"{self.folder} was begun with another recipe ({', '.join(changed)}): give another --out")
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        if len(lines) < self.at["epoch"]:
            raise RunError(f"{self.log} has lost epochs that its checkpoint has: restore it, or give another --out")
        if len(lines) > self.at["epoch"]:
            write_whole(self.log, "".join(lines[: self.at["epoch"]]).encode())
        torch.set_num_threads(self.facts["threads"])
        self.model, self.optimizer = build(self.recipe, len(self.data.classes), self.device)
        set_state(self.model, self.optimizer, tensors)

    def save(self) -> None:
        tensors = get_state(self.model, self.optimizer)
        save_tensors(self.checkpoint, tensors, "checkpoint", {"run": self.facts, "at": self.at})
        self.saved = time.perf_counter()

    def train(
        self, progress: bool, save_every: float, on_epoch: Callable[[Path], None], asked: Callable[[], bool]
    ) -> None:
        first, last = self.at["epoch"], self.recipe.epochs
        steps = self.recipe.steps(len(self.x))
        done = (first - 1) * steps + self.at["step"]
        if first > last:
            self._mend_model()
        if progress and first > last:
            print("this run is finished: nothing was left to do", flush=True)
        elif progress and done:
            print(f"going on from epoch {first}, step {min(self.at['step'] + 1, steps)} of {steps}", flush=True)
        tested = ""
        barred = progress and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        began = time.perf_counter()
        with tqdm(total=last * steps, initial=done, unit="step", disable=not barred) as bar:
            for epoch in range(first, last + 1):
                bar.set_description_str(f"epoch {epoch}/{last}{tested}")
                self._train_epoch(bar, save_every, asked)
                line = self._finish_epoch()
                of = "val" if line["test_acc"] is None else "test"
                tested = f", {of} {line[f'{of}_acc']:.2f} %"
                if progress and not barred:
                    left = (time.perf_counter() - began) * (last - epoch) * steps / max(1, epoch * steps - done)
                    told = f"epoch {epoch}/{last}: train {line['train_acc']:.2f} %{tested}"
                    print(f"{told}, {line['seconds']:.0f} s, {left / 60:.1f} min left", flush=True)
                on_epoch(self.folder)

    def _train_epoch(self, bar: Any, save_every: float, asked: Callable[[], bool]) -> None:
        recipe, at = self.recipe, self.at
        steps = recipe.steps(len(self.x))
        self.model.train()
        began = time.perf_counter() - at["seconds"]
        drawn = batches(
            self.x, self.y, recipe.batch_size,
            seed=recipe.seed, epoch=at["epoch"], crop=recipe.crop, reflect=recipe.reflect, flip=recipe.flip,
            alternate=recipe.alternate, start=at["step"],
        )  # fmt: skip
        for images, labels in drawn:
            x = normalize(images, recipe.data).contiguous(memory_format=torch.channels_last)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * recipe.rate(at["epoch"], (at["step"] + 0.5) / steps)
            loss, right = train_step(
                self.model, self.optimizer, x, labels, self.facts["precision"], recipe.label_smoothing
            )
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss became {loss} in epoch {at['epoch']}, step {at['step'] + 1}: try a lower learning rate, "
                    f"such as --set lr={recipe.lr / 10:g}; the last checkpoint is in {self.folder}"
                )
            at["step"] += 1
            at["loss"] += loss * len(labels)
            at["right"] += right
            at["seen"] += len(labels)
            at["seconds"] = time.perf_counter() - began
            bar.set_postfix_str(f"{100 * at['right'] / at['seen']:.1f} % right", refresh=False)
            bar.update()
            if asked():
                self.save()
                raise KeyboardInterrupt
            if time.perf_counter() - self.saved > save_every:
                self.save()

    def _finish_epoch(self) -> dict[str, Any]:
        """Evaluate, then write the log's line, the model and the checkpoint: in this order a kill repeats the rest."""
        recipe, at, began = self.recipe, self.at, time.perf_counter()
        check = (recipe.data, self.facts["precision"])
        val_acc = evaluate(self.model, self.x_val, self.y_val, *check)[1] if recipe.val else None
        # A run that holds images out to choose a recipe never reads the test set.
        tuning = recipe.val and recipe.select == "last"
        test_loss, test_acc = (None, None) if tuning else evaluate(self.model, self.x_test, self.y_test, *check)
        held_out = (self.x_val, self.y_val) if tuning else (self.x_test, self.y_test)
        more = {"mirrored_acc": 2} if recipe.mirror else {}
        more |= {"six_views_acc": 6} if recipe.six_views and at["epoch"] == recipe.epochs else {}
        line = {
            "epoch": at["epoch"],
            "train_loss": at["loss"] / at["seen"],
            "train_acc": 100 * at["right"] / at["seen"],
            "val_acc": val_acc,
            "test_loss": test_loss,
            "test_acc": test_acc,
            **{key: evaluate(self.model, *held_out, *check, count)[1] for key, count in more.items()},
            "lr": recipe.learning_rate(at["epoch"]),
            "seconds": at["seconds"] + time.perf_counter() - began,
            "layers": _layer_statistics(self.model),
        }
        try:
            with self.log.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self.log}: {error.strerror}; the last checkpoint is intact") from error
        best = reported(read_log(self.folder)[1], recipe.select)["epoch"] == at["epoch"]
        if best and (recipe.select == "val" or at["epoch"] == recipe.epochs):
            self._save_model(line)
        self.at = {"epoch": at["epoch"] + 1, "step": 0, "loss": 0.0, "right": 0, "seen": 0, "seconds": 0.0}
        self.save()
        return line

    def _mend_model(self) -> None:
        """Write a finished run's lost or damaged model again."""
        try:
            load_model(self.model_file)
        except FileError as error:
            if self.recipe.select == "val":
                raise RunError(f"{error}, and its epoch's weights are lost: give another --out") from error
            self._save_model(read_log(self.folder)[1][-1])

    def _save_model(self, line: dict[str, Any]) -> None:
        facts = {"recipe": self.recipe.name, "data": self.recipe.data, "classes": self.data.classes}
        save_model(self.model_file, self.model, **facts, epoch=line["epoch"], test_acc=line["test_acc"])
