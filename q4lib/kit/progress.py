"""Which tasks of the course are done, remembered in `progress.json` of the user's folder."""

import html
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..data import home
from ..files import FileError, locked, write_whole

PATIENCE = 10.0  # seconds to wait for another kernel, which needs milliseconds


def remember(name: str, passed: bool) -> None:
    """Note that a task was tried or done; what was done once stays done. FileError, OSError if it cannot be noted."""
    with _alone() as file:
        entries = _read(file)
        passed = passed or entries.get(name, False)
        if entries.get(name) != passed:
            entries[name] = passed
            write_whole(file, json.dumps(entries, indent=1, sort_keys=True).encode())


def progress() -> None:
    """Show, lesson by lesson, how many of the course's checks are done, and which are left."""
    from .checks import tasks
    from .widgets import headless

    try:
        with _alone() as file:
            entries = _read(file)
    except (FileError, OSError) as error:
        print(error)
        return
    lessons: dict[str, list[str]] = {}
    for name, topic in tasks().items():
        lessons.setdefault(f"{name.partition('.')[0].zfill(2)} {topic.replace('_', ' ')}", []).append(name)
    rows = [(lesson, names, [name for name in names if not entries.get(name)]) for lesson, names in lessons.items()]
    width = max(map(len, lessons), default=0)
    text = "\n".join(
        f"{lesson:{width}}  {'█' * (len(names) - len(left))}{'░' * len(left)}  {_count(names, left)}"
        for lesson, names, left in rows
    )
    if headless():
        print(text)
        return
    from IPython.display import display

    cells = "".join(
        f"<tr><th scope=row style='text-align:left'>{html.escape(lesson)}</th>"
        f"<td><progress max={len(names)} value={len(names) - len(left)} aria-label='{html.escape(lesson)}'></progress>"
        f"</td><td style='text-align:left'>{html.escape(_count(names, left))}</td></tr>"
        for lesson, names, left in rows
    )
    display({"text/html": f"<table>{cells}</table>", "text/plain": text}, raw=True)


def _count(names: list[str], left: list[str]) -> str:
    count = f"{len(names) - len(left)} of {len(names)}"
    return f"{count}, left: {', '.join(left)}" if left else count


@contextmanager
def _alone() -> Iterator[Path]:
    """The file, while no other kernel reads or writes it."""
    file = home() / "progress.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(file))
                break
            except FileError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        yield file


def _read(file: Path) -> dict[str, bool]:
    try:
        entries = json.loads(file.read_bytes())
        if isinstance(entries, dict) and all(isinstance(passed, bool) for passed in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    aside = file.with_suffix(".damaged.json")
    file.replace(aside)
    print(f"{file} was damaged: it is now {aside.name}, and your progress is counted anew")
    return {}
