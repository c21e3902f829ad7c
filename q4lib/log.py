"""A run's log: what it says, and which of its epochs counts."""

import json
from pathlib import Path
from typing import Any

Log = tuple[dict[str, Any], list[dict[str, Any]]]


class RunError(RuntimeError):
    """A run that cannot start or go on, in a sentence that says why and what to do."""


def read_log(folder: Path) -> Log:
    """A run's `log.jsonl`: the facts of its first line, and its epochs. RunError if a line is damaged."""
    path = Path(folder) / "log.jsonl"
    try:
        return parse_log(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not a whole log of a run ({error})") from error


def parse_log(text: str) -> Log:
    """The same from the text of a log. ValueError if a line is damaged."""
    try:
        first, *epochs = [json.loads(line) for line in text.splitlines()]
        return dict(first["run"]), [dict(epoch) for epoch in epochs]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a line is not what a run writes: {error}") from error


def reported(epochs: list[dict[str, Any]], select: str) -> dict[str, Any]:
    """The epoch a run reports: its last, or the first with the best validation accuracy."""
    return epochs[-1] if select == "last" else max(epochs, key=lambda epoch: epoch["val_acc"])
