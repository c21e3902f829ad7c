"""The checks of lessons and exercises: each topic's module registers its tasks, `check` finds them by id."""

import importlib
import os
import pkgutil
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ...data import nearest
from ...files import FileError
from ..progress import remember

Task = Callable[[Any], str | None]

_registered: dict[str, Task] = {}


class Wrong(Exception):  # noqa: N818
    """The student's value is wrong; the sentence says why, or what was probably done."""


def task(name: str) -> Callable[[Task], Task]:
    """Register a check under an id such as "01.a". ValueError if another function has that id."""

    def register(function: Task) -> Task:
        other = _registered.setdefault(name, function)
        # The same function once more is a module loaded again.
        if (other.__module__, other.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"two tasks are called {name!r}: {other.__qualname__} and {function.__qualname__}")
        _registered[name] = function
        return function

    return register


def tasks() -> dict[str, str]:
    """Every known id, in order, with the topic it belongs to. A topic that cannot be imported raises its own error."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {name: function.__module__.rpartition(".")[2] for name, function in sorted(_registered.items())}


def check(name: str, value: Any) -> None:
    """Print one line that says whether `value` is right, and remember it. Under nbgrader, raise unless it is."""
    passed, line = _verdict(name, value)
    print(line)
    if os.environ.get("NBGRADER_EXECUTION") and not passed:
        raise Wrong(line)


def _verdict(name: str, value: Any) -> tuple[bool, str]:
    try:
        with _same_random_numbers():
            known = tasks()
            if name not in known:
                return False, f"❌ there is no task {name!r}{nearest(name, known)}"
            if value is None:
                return False, f"⏳ {name} not attempted yet"
            passed, line = True, f"✅ {name} {_registered[name](value) or 'right'}"
    except Wrong as error:
        passed, line = False, f"❌ {name} {error}"
    # A student's function may do anything, and exit() is a likely thing.
    except (Exception, SystemExit) as error:
        passed, line = False, f"❌ {name} {type(error).__name__}: {error}"
    line = " ".join(line.split())
    try:
        remember(name, passed)
    except (FileError, OSError) as error:
        line += f" (not remembered: {error})"
    return passed, line


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Afterwards Python, NumPy and torch draw what they would have drawn without this."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
