"""How often the shipped model takes one class for another: `python -m q4lib.kit.confusion` counts it."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import load, normalize
from ..files import write_whole
from ..machine import describe
from ..pack import load_model
from . import asset

NAME = "confusion.json"
MODEL = "fast-cifar10-b4-s0/model.safetensors"


@torch.inference_mode()
def measure(path: Path) -> dict[str, Any]:
    """Counts of a packed model's answers to all test images, fp32: a row for each true class, a column an answer."""
    model, facts = load_model(path)
    data = load(facts["data"])
    n = len(data.classes)
    answers = torch.cat([model(normalize(images, data.name)).argmax(1) for images in data.x_test.split(500)])
    counts = (n * data.y_test + answers).bincount(minlength=n * n).view(n, n)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "file": f"{path.parent.name}/{path.name}",
        "sha256": digest,
        "data_digest": data.digest,
        "classes": data.classes,
        "counts": counts.tolist(),
    }


@cache
def confusion() -> tuple[Tensor, tuple[str, ...]]:
    """The recorded counts int64 (10, 10), true classes down and answers across, and the classes' names."""
    record = json.loads(asset(NAME).read_text())
    return torch.tensor(record["counts"]), tuple(record["classes"])


def main() -> None:
    """Count, and write what was found to `notebooks/results`."""
    record = measure(asset(MODEL)) | {"precision": "fp32", **describe("cpu")}
    # A row of counts a line.
    text = json.dumps(record | {"counts": "COUNTS"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in record["counts"])
    file = Path(__file__).parents[2] / "notebooks" / "results" / NAME
    write_whole(file, (text.replace('"COUNTS"', f"[\n{rows}\n ]") + "\n").encode())


if __name__ == "__main__":
    main()
