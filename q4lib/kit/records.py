"""The recorded runs and shipped files of `notebooks/results`, as Markdown tables: `python -m q4lib.kit.records`."""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..train import read_log, reported

Run = tuple[str, dict[str, Any], list[dict[str, Any]]]

# The first form of `fast`: a grid out to the largest weight, Muon on the convolutions alone.
FIRST = (
    "fast.normal_range=False.e10.schedule_epochs=10.warmup=0.15.optimizer=muon.muon_lr=0.08.lr=0.003.dropout=0.2"
    "-cifar10-b4-s0"
)

RUNS = """| run | model | bits | epochs | seeds | test accuracy | mean | machine | minutes | logs |
|---|---|---|---|---|---|---|---|---|---|"""
FILES = """| file | kB | SHA-256 | test accuracy | from |
|---|---|---|---|---|"""


def recorded(root: Path) -> dict[str, list[Run]]:
    """Every run under `root`: folder name, facts and epochs, by the name without its seed."""
    groups: dict[str, list[Run]] = {}
    for log in sorted(root.glob("*/log.jsonl")):
        facts, epochs = read_log(log.parent)
        groups.setdefault(re.sub(r"-s\d+$", "", log.parent.name), []).append((log.parent.name, facts, epochs))
    for runs in groups.values():
        runs.sort(key=lambda run: run[1]["recipe"]["seed"])
    return groups


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The mean and half the width of its t interval; the half is infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    from scipy.stats import t

    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    return statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def _spread(values: Sequence[float]) -> str:
    mean, half = mean_interval(values)
    return "one run, no spread" if math.isinf(half) else f"{mean:.2f} ± {half:.2f}"


def run_rows(root: Path, link: str = "") -> list[str]:
    """A row for each recipe and bit width; accuracies in percent at the epoch the recipe reports, a figure a seed.

    A run that tuned a recipe has never read the test set: its accuracies are those of its validation split. `mirrored`
    and `six views` are those of the mean answer to `views`, where the log has them; all others are single view.
    """
    rows = []
    for name, runs in recorded(root).items():
        _, facts, epochs = runs[0]
        lines = [reported(epochs, facts["recipe"]["select"]) for _, facts, epochs in runs]
        key, of = ("val_acc", " (validation)") if lines[0]["test_acc"] is None else ("test_acc", "")
        found = [line[key] for line in lines]
        accuracies, spread = ", ".join(f"{value:.2f}" for value in found) + f" %{of}", _spread(found)
        for more, seen in (("mirrored_acc", "mirrored"), ("six_views_acc", "six views")):
            if more in lines[0]:
                found = [line[more] for line in lines]
                accuracies += f"; {seen} {', '.join(f'{value:.2f}' for value in found)} %"
                spread += f"; {seen} {_spread(found)}"
        minutes = statistics.median(sum(line["seconds"] for line in epochs) / 60 for _, _, epochs in runs)
        seeds = [str(facts["recipe"]["seed"]) for _, facts, _ in runs]
        logs = ", ".join(f"[s{seed}]({link}{run}/log.jsonl)" for seed, (run, _, _) in zip(seeds, runs, strict=True))
        machines = {f"{f['processor']}, threads: {f['threads']}, {f['precision']}" for _, f, _ in runs}
        rows.append(
            f"| `{name}` | {facts['recipe']['model']} | {facts['recipe']['bits']} | {len(epochs)} | {', '.join(seeds)} "
            f"| {accuracies} | {spread} | {'; '.join(sorted(machines))} "
            f"| {minutes:.1f} | {logs} |"
        )
    return rows


def file_rows(root: Path) -> list[str]:
    """A row for each shipped safetensors file, with its digest.

    A model's accuracy is that of its log; of one trained in another precision, that of its answers counted in fp32.
    """
    counted = json.loads((root / "confusion.json").read_text())
    rows = []
    for path in sorted(root.rglob("*.safetensors")):
        name, content = path.relative_to(root).as_posix(), path.read_bytes()
        accuracy, origin = "", f"master weights of `conv2_2` before rounding, fp16, of the run `{FIRST}`"
        if (path.parent / "log.jsonl").exists():
            facts, epochs = read_log(path.parent)
            line = reported(epochs, facts["recipe"]["select"])
            accuracy = f"{line['test_acc']:.2f} %"
            origin = f"epoch {line['epoch']} of [its log]({name.split('/')[0]}/log.jsonl)"
            if facts["precision"] != "fp32" and counted["file"] == name:
                right = sum(row[i] for i, row in enumerate(counted["counts"]))
                in_fp32 = f"{100 * right / sum(map(sum, counted['counts'])):.2f} % in fp32"
                accuracy = f"{in_fp32} ({accuracy} in {facts['precision']}, as trained)"
        digest = hashlib.sha256(content).hexdigest()[:16]
        rows.append(f"| `{name}` | {len(content) / 1000:.0f} | {digest}... | {accuracy} | {origin} |")
    return rows


def main(root: Path | None = None) -> None:
    """Print both tables, as `notebooks/results/README.md` shows them."""
    root = root or Path(__file__).parents[2] / "notebooks" / "results"
    print("\n".join([RUNS, *run_rows(root), "", FILES, *file_rows(root)]))


if __name__ == "__main__":
    main()
