"""What a network loses when it is rounded only after its training: `python -m q4lib.kit.rounded` measures it."""

import copy
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..data import load
from ..files import write_whole
from ..layers import FP32, quantized_layers
from ..machine import describe
from ..pack import load_model
from ..train import evaluate, read_log, reported
from . import asset

NAME = "rounded-afterwards.json"
BITS = (8, 4, 3, 2)


class Pair(NamedTuple):
    """Accuracy in percent of all test images: rounded afterwards, and trained rounded."""

    afterwards: float
    trained: float

    @property
    def gain(self) -> float:
        return round(self.trained, 1) - round(self.afterwards, 1)  # of the figures that are shown


def run(bits: int) -> str:
    """The folder of the recorded run of the small network at `bits`."""
    return f"small-cifar10-b{bits}-s0"


def round_afterwards(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose forward pass puts each layer's weight on its own grid, per tensor; nothing else changes."""
    model = copy.deepcopy(model)
    for layer in quantized_layers(model).values():
        layer.bits = bits
    return model


def measure(path: Path) -> dict[str, Any]:
    """Accuracies in percent of the FP32 network in `path` at 32 bits and rounded to fewer, fp32, all test images."""
    model, facts = load_model(path)
    data = load(facts["data"])
    found = {
        str(bits): evaluate(round_afterwards(model, bits), data.x_test, data.y_test, data.name)[1]
        for bits in (FP32, *BITS)
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": f"{path.parent.name}/{path.name}", "sha256": digest, "data_digest": data.digest, "test_acc": found}


@cache
def compared() -> dict[int, Pair]:
    """The recorded accuracies by bits; at 32, of the FP32 network, the two are one."""
    afterwards = json.loads(asset(NAME).read_text())["test_acc"]
    pairs = {}
    for bits in (FP32, *BITS):
        facts, epochs = read_log(asset(run(bits)))
        trained = reported(epochs, facts["recipe"]["select"])["test_acc"]
        pairs[bits] = Pair(trained if bits == FP32 else afterwards[str(bits)], trained)
    return pairs


def main() -> None:
    """Measure, and write what was found to `notebooks/results`."""
    record = measure(asset(f"{run(FP32)}/model.safetensors")) | {"precision": "fp32", **describe("cpu")}
    file = Path(__file__).parents[2] / "notebooks" / "results" / NAME
    write_whole(file, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
