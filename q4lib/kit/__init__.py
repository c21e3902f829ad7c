"""The course's machinery; the method never imports it."""

from pathlib import Path

from .checks import check
from .progress import progress
from .widgets import explore, quiz

__all__ = ["asset", "check", "explore", "progress", "quiz"]


def asset(name: str) -> Path:
    """A recorded run or model of `notebooks/results`: in the repository where there is one, else in the wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "notebooks" / "results", package / "results"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"no recorded result is called {name!r}: this q4lib is another version than the lesson's")
