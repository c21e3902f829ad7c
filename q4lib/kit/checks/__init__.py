"""The checks of lessons and exercises: each topic's module registers its tasks, `check` finds them by id."""

import importlib
import os
import pkgutil
import reprlib
import traceback
from collections.abc import Callable
from typing import Any

from ...data import nearest
from ...files import FileError
from ..guard import Endless, guarded
from ..progress import remember

Task = Callable[[Any], str | None]

SECONDS = 1.5  # a student waits for the answer
GRADER_SECONDS = 10.0  # nobody waits, and a busy machine must not cost a mark

_registered: dict[str, Task] = {}


class Wrong(Exception):  # noqa: N818
    """The student's value is wrong; the sentence says why, or what was probably done."""


class NotYet(Exception):  # noqa: N818
    """The student's function returns None, as the stub does. If it does more than the stub, check says so."""


class ToDo(NotYet):
    """The function is right as far as it goes; the sentence says what is to be done next."""


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60


COMMA = ": in Python a comma makes two of it, write the number without one"


def shown(value: Any) -> str:
    """What a student gave, in a sentence: a long thing is shortened."""
    return _brief.repr(value)


def task(name: str) -> Callable[[Task], Task]:
    """Register a check under an id: "01.a" in lesson 01, "1.1" in its exercise. ValueError if another has that id."""

    def register(function: Task) -> Task:
        other = _registered.setdefault(name, function)
        # The same function once more is a module loaded again.
        if (other.__module__, other.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"two tasks are called {name!r}: {other.__qualname__} and {function.__qualname__}")
        _registered[name] = function
        return function

    return register


def tasks() -> dict[str, str]:
    """Every known id, lesson by lesson, with the topic it belongs to. A topic that cannot be imported raises."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {name: _registered[name].__module__.rpartition(".")[2] for name in sorted(_registered, key=_place)}


def _place(name: str) -> tuple[str, bool, str]:
    """Sorts lesson by lesson, and in each its own checks before those of its exercise."""
    lesson, _, rest = name.partition(".")
    return lesson.zfill(2), rest.isdigit(), rest


def check(name: str, value: Any) -> None:
    """Print one line that says whether `value` is right, and remember it. Under nbgrader, raise unless it is."""
    passed, line = _verdict(name, value)
    print(line)
    if _grading() and not passed:
        raise Wrong(line)


def _grading() -> bool:
    return bool(os.environ.get("NBGRADER_EXECUTION"))


def _verdict(name: str, value: Any) -> tuple[bool, str]:
    try:
        known = tasks()
        if name not in known:
            return False, f"❌ there is no task {name!r}{nearest(name, known)}"
        answer = guarded(lambda: _answer(name, value), GRADER_SECONDS if _grading() else SECONDS)
    except Endless as error:
        answer = f"❌ {name} {error}"
    except Exception as error:
        answer = f"❌ {name} {type(error).__name__}: {error}"
    line, passed = " ".join(answer.split()), answer.startswith("✅")
    if not line.startswith("⏳"):
        try:
            remember(name, passed)
        except (FileError, OSError) as error:
            line += f" (not remembered: {error})"
    return passed, line


def _answer(name: str, value: Any) -> str:
    try:
        if value is None:
            return f"⏳ {name} not attempted yet"
        return f"✅ {name} {_registered[name](value) or 'right'}"
    except NotYet as error:
        if _written(value) and not isinstance(error, ToDo):
            return f"❌ {name} {error}: is a `return` missing, or does `return None` still stand at its end?"
        return f"⏳ {name} not attempted yet{f' ({error})' if str(error) else ''}"
    except Wrong as error:
        return f"❌ {name} {error}"
    # A student's function may do anything, and exit() is a likely thing.
    except BaseException as error:
        return f"❌ {name} {_described(error, value)}"


def _written(value: Any) -> bool:
    """True for a function, or a layer's forward, that does more than return None: by its length in bytecode."""
    code = getattr(getattr(value, "forward", value), "__code__", None)
    return code is not None and len(code.co_code) > len((lambda: None).__code__.co_code)


def _described(error: BaseException, value: Any) -> str:
    """The error, and the student's own line that it comes from."""
    # Not str(error), which may be anything too.
    what = " ".join(traceback.format_exception_only(error)).strip()
    what = what if len(what) < 300 else f"{what[:300]} ..."
    file = getattr(getattr(value, "__code__", None), "co_filename", None)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == file:
            return f"{what} (line {frame.lineno}{f': `{frame.line}`' if frame.line else ''})"
    return what
