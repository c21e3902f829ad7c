"""A student's notebook brought back into the form of its exercise, whatever Colab or an editor did to its cells."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

CHECK = re.compile(r"""^check\(\s*["'](\d+\.\d+)["'].*\n?""", re.M)
IMPORT = re.compile(r"^from q4lib\.kit import check *\n?", re.M)
HEADING = re.compile(r"^#+ (\d+\.\d+)\b", re.M)
DEFINED = re.compile(r"^(?:def|class) (\w+)|^(\w+) *= *lambda\b", re.M)
TAMPER = re.compile(r"✅|NBGRADER|sys\.modules|builtins|q4lib\.kit\.check|q4lib\.kit import checks")


@dataclass
class Cell:
    """What is left of a cell when editors are done with it: kind, text, the name it may still bear; then, its task."""

    kind: str
    source: str
    name: str = ""
    task: str = ""
    late: bool = False

    def defines(self, names: set[str]) -> bool:
        """Whether it is code that binds one of these names."""
        return self.kind == "code" and any(set(found) & names for found in DEFINED.findall(self.source))


@dataclass(frozen=True)
class Exercise:
    """An exercise as handed out; `tasks` maps "1.2" to the names that its stub defines, none if it is a text."""

    number: str
    stem: str
    notebook: Any
    tasks: dict[str, set[str]]


@dataclass
class Mended:
    """The exercise with a student's cells in it, and what there is to say: plain notes, and reasons to look."""

    notebook: Any
    notes: list[str] = field(default_factory=list)
    look: list[str] = field(default_factory=list)


def exercise(stem: str, notebook: Any) -> Exercise:
    """The exercise that a released notebook is."""
    answers = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    tasks = {task_of(cell.id): {a or b for a, b in DEFINED.findall(cell.source)} for cell in answers}
    return Exercise(stem.partition("_")[0], stem, notebook, tasks)


def task_of(name: str) -> str:
    """The "1.2" of a cell called "task-1-2" or "check-1-2", else ""."""
    match = re.fullmatch(r"(?:task|check)-(\d+)-(\d+)", name)
    return ".".join(match.groups()) if match else ""


def parse(content: bytes) -> list[Cell]:
    """A notebook's cells, whatever else is missing in it. ValueError in a sentence where there are none."""
    if not content.strip():
        raise ValueError("it is empty")
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is broken JSON ({error})") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not cells:
        raise ValueError("it is no notebook: it has no cells")
    return list(_joined(_cell(cell) for cell in cells if isinstance(cell, dict)))


def _cell(cell: dict[str, Any]) -> Cell:
    source, metadata = cell.get("source", ""), cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = marks.get("grade_id") if isinstance(marks, dict) else None
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    return Cell(str(cell.get("cell_type")), source, str(name or cell.get("id") or ""))


def _joined(cells: Iterator[Cell]) -> Iterator[Cell]:
    """A function that "split cell" cut in two goes on in a cell that begins indented: that one belongs to it."""
    last = None
    for cell in cells:
        if last and last.kind == cell.kind == "code" and re.match(r"\n*[ \t]+\S", cell.source):
            last.source += f"\n{cell.source}"
            continue
        if last:
            yield last
        last = cell
    if last:
        yield last


def recognize(cells: list[Cell], file: str, exercises: list[Exercise]) -> Exercise | None:
    """The exercise that most of the cells belong to, whatever the file is called. None where nothing speaks for any."""
    text = "\n".join(cell.source for cell in cells)
    numbers = {*CHECK.findall(text), *HEADING.findall(text), *(task_of(cell.name) for cell in cells)}

    def likeness(one: Exercise) -> float:
        functions = sum(any(cell.defines(names) for cell in cells) for names in one.tasks.values())
        return len(numbers & set(one.tasks)) + functions + 0.5 * (Path(file).stem[:2] == one.number)

    best = max(exercises, key=likeness)
    return best if likeness(best) >= 1 else None


def mend(cells: list[Cell], one: Exercise) -> Mended:
    """The exercise as handed out, with the student's cells in it, each at its task: so the checks are ours, and whole.

    A cell belongs to the task whose function it defines, or whose name it bears, or in whose section it stands.
    """
    from nbformat.v4 import new_code_cell

    own, mended = _own(cells, one), Mended(deepcopy(one.notebook))
    ours, result = mended.notebook.cells, list[Any]()
    first = next(cell for cell in ours if cell.cell_type == "markdown" and HEADING.search(cell.source))
    number = count(1)

    def put(group: list[Cell]) -> None:
        result.extend(new_code_cell(mine.source, id=f"extra-{next(number)}") for mine in group)

    for cell in ours:
        if cell is first:
            put([mine for mine in own if not mine.task])
        task = task_of(cell.id)
        group = [mine for mine in own if task and mine.task == task]
        if cell.metadata.get("nbgrader", {}).get("solution"):
            early = [mine for mine in group if not mine.late and mine.kind == "code"]
            texts = [mine.source for mine in group if mine.kind == "markdown"]
            at = _answer(early, one.tasks[task], cell.id)
            put(early[:at])
            result.append(cell)
            if cell.cell_type == "markdown":
                cell.source = "\n\n".join(texts) or cell.source
            elif at < len(early):
                cell.source = early[at].source
                put(early[at + 1 :])
            elif any(mine.defines(one.tasks[task]) for mine in own):
                cell.source = f"# The answer to {task} stands in another cell."
        else:
            result.append(cell)
            put([mine for mine in group if mine.late and mine.kind == "code"])
    mended.notebook.cells = result
    found = {task: [task_of(mine.name) for mine in own if mine.defines(names)] for task, names in one.tasks.items()}
    if moved := [task for task, bearing in found.items() if bearing and task not in bearing]:
        mended.notes = [f"answers put back in their places: {', '.join(moved)}"]
    mended.look = list(_look(cells, own, one))
    return mended


def _own(cells: list[Cell], one: Exercise) -> list[Cell]:
    """The cells that are the student's own, since nobody handed them out, each with its task."""
    given = {cell.source.strip() for cell in one.notebook.cells}
    texts = {task for task, names in one.tasks.items() if not names}
    checks = {task: at for at, cell in enumerate(cells) for task in CHECK.findall(cell.source) if cell.kind == "code"}
    section, own = "", []
    for at, cell in enumerate(cells):
        heading = HEADING.search(cell.source) if cell.kind == "markdown" else None
        called = CHECK.findall(cell.source) if cell.kind == "code" else []
        source = IMPORT.sub("", CHECK.sub("", cell.source)) if called else cell.source
        mine = Cell(cell.kind, source.strip("\n").rstrip(), cell.name)
        defined = next((task for task, names in one.tasks.items() if mine.defines(names)), "")
        section = next((task for task in (heading and heading[1], defined, *called) if task in one.tasks), section)
        named = task_of(cell.name) if task_of(cell.name) in one.tasks else ""
        mine.task = defined or named or section
        mine.late = not defined and at > checks.get(mine.task, at)
        if mine.source.strip() in given or not mine.source or "install_q4lib(" in mine.source:
            continue
        if mine.kind == "code" or (mine.kind == "markdown" and not heading and mine.task in texts):
            own.append(mine)
    return own


def _answer(group: list[Cell], names: set[str], name: str) -> int:
    """Which of a task's cells is its answer: the last that defines its function, or the one that bears its name."""
    fits = [at for at, mine in enumerate(group) if mine.defines(names)]
    fits = fits or [at for at, mine in enumerate(group) if mine.name == name]
    return fits[-1] if fits else len(group)


def _look(cells: list[Cell], own: list[Cell], one: Exercise) -> Iterator[str]:
    called = {task for cell in cells if cell.kind == "code" for task in CHECK.findall(cell.source)}
    if unknown := sorted(called - set(one.tasks)):
        yield f"it checks {', '.join(unknown)}, which exercise {one.number} has not: is it of another year?"
    for task, names in one.tasks.items():
        code = any(mine.task == task and re.search(r"^(def|class) ", mine.source, re.M) for mine in own)
        if names and code and not any(mine.defines(names) for mine in own):
            yield f"{task} has code, but none that defines {' or '.join(sorted(names))}"
        if not names and {mine.kind for mine in own if mine.task == task} == {"code"}:
            yield f"{task} asks for a text, and there is only code"
    if words := sorted({word for mine in own if mine.kind == "code" for word in TAMPER.findall(mine.source)}):
        yield f"its code mentions {' and '.join(words)}: does it change the checks?"
