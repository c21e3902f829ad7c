"""How long a reader waits: lessons' sliders moved in a real browser, until each new picture is in the page."""

import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ..machine import processor
from ..train import RunError
from . import lessons
from .browser import Explorer, Notebook, chromium, jupyter

DRAWN, SEEN = 80, 150  # milliseconds: the most that 95 % of the pictures may take, to be drawn and to be in the page


class Moves(NamedTuple):
    """Milliseconds of each move: to draw the picture, and from the key to the new picture in the page."""

    drawn: list[float]
    seen: list[float]


def moved(explorer: Explorer, moves: int) -> Moves:
    """Move every control of a figure by one step of its own and back, `moves` times each."""
    from selenium.webdriver import Keys

    drawn: list[float] = []
    explorer.watch()
    for label in explorer.labels():
        there, back = Keys.SPACE, Keys.SPACE
        if explorer.is_slider(label):
            there, back = Keys.ARROW_RIGHT, Keys.ARROW_LEFT
            if not explorer.far_end(label):
                there, back = back, there
        for i in range(moves):
            explorer.press(label, back if i % 2 else there)
            explorer.wait_for_pictures(len(drawn) + 1)
            drawn.append(explorer.drawn()[1])
    return Moves(drawn, explorer.watched()["ms"])


def row(what: str, moves: Moves) -> str:
    """A row of the table: median and 95th percentile of both times, and whether they keep what is asked."""
    cells, kept = [], True
    for times, most in zip(moves, (DRAWN, SEEN), strict=True):
        p95 = statistics.quantiles(times, n=20, method="inclusive")[18]
        cells += [f"{statistics.median(times):.0f}", f"{p95:.0f}"]
        kept &= p95 <= most
    return f"| {what} | {len(moves.seen)} | {' | '.join(cells)} | {'yes' if kept else 'NO'} |"


def rows(notebook: Notebook, lesson: str, moves: int) -> Iterator[tuple[str, Moves]]:
    """What was moved, and the times, for each figure of a lesson that has a control."""
    notebook.run()
    for explorer in notebook.explorers():
        if explorer.labels():
            name, _ = explorer.drawn()
            yield f"{lesson} `{name}`: {', '.join(explorer.labels())}", moved(explorer, moves)


def main(names: Sequence[str] = (), moves: int = 20) -> None:
    """Print a Markdown table of milliseconds from moved slider to new picture in the page. RunError; ValueError."""
    if moves < 2:
        raise ValueError(f"take 2 moves or more of each slider, got {moves}")
    paths = lessons.find(names)
    if missing := [package for package in ("jupyterlab", "selenium") if not find_spec(package)]:
        raise RunError(f"this needs {' and '.join(missing)}: pip install -e '.[test]'")
    every: Any = Moves([], [])
    with TemporaryDirectory(prefix="q4-") as scratch:
        folder, home, profile = (Path(scratch, name) for name in ("lessons", "home", "browser"))
        for made in (folder, home, profile):
            made.mkdir()
        for path in paths:
            shutil.copy(path, folder)
        # One thread, as in smoke: on a busy machine two of them wait for each other, and pictures are small.
        with chromium(profile) as driver, jupyter(folder, home, OMP_NUM_THREADS="1") as url:
            print(
                f"JupyterLab {version('jupyterlab')}, ipywidgets {version('ipywidgets')}, "
                f"Chromium {driver.capabilities['browserVersion']}; {processor()}, {os.cpu_count()} cores, "
                f"load {os.getloadavg()[0]:.1f}, one thread. Each control is moved by keyboard, {moves} times; ms.\n\n"
                "| lesson, figure, its controls | moves | drawn: median | p95 | in the page: median | p95 | "
                f"p95 <= {DRAWN} and {SEEN} |\n|---|---|---|---|---|---|---|",
                flush=True,
            )
            for path in paths:
                notebook = Notebook(driver, url, path.name)
                for what, times in rows(notebook, path.stem[:2], moves):
                    print(row(what, times), flush=True)
                    every = Moves(every.drawn + times.drawn, every.seen + times.seen)
                notebook.shut_down()
    print(row("all", every))
