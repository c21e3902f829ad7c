"""q4 grade: what a class handed in, executed apart, graded by nbgrader, and told to teacher and students."""

import csv
import hashlib
import io
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..files import locked, write_whole
from ..train import RunError
from .build import released
from .lessons import ROOT
from .mend import Exercise, exercise, mend, parse, recognize, task_of
from .nbgrading import SILENT, Course, said, settle
from .submissions import File, Student, find, match, read_roster

LONGEST = 5  # times the seconds of a cell: what one submission may take
NONE = Exercise("", "", None, {})


@dataclass
class Sheet:
    """One exercise of one student: what was handed in, what each task got, and what is to be said of it."""

    student: Student
    exercise: Exercise = NONE
    notebook: Any = None
    digest: str = ""
    notes: list[str] = field(default_factory=list)
    look: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    points: dict[str, tuple[float | None, float]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """ "graded", "look" if by hand too, "not graded", or "missing"."""
        if self.points:
            return "look" if self.look else "graded"
        return "not graded" if self.look else "missing"

    @property
    def key(self) -> str:
        """What it is called in the memory of an earlier run."""
        return f"{self.student.folder}/{self.exercise.number}"

    @property
    def total(self) -> tuple[float, float]:
        """All points together, and the most; a written answer counts once somebody has read it."""
        return sum(got or 0 for got, _ in self.points.values()), sum(most for _, most in self.points.values())

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.student.name, self.exercise.number]))


def grade(
    submissions: Path, roster: Path | None = None, out: Path = Path("grades"), seconds: int = 300, memory: float = 4.0
) -> None:
    """Grade what a class handed in: a gradebook, a feedback page a student, and who needs a look by hand."""
    from .feedback import write_pages

    if sys.platform == "win32":
        raise RunError("q4 grade needs Linux or macOS: on Windows use WSL")
    if not find_spec("nbgrader"):
        raise RunError("this needs nbgrader: pip install 'q4lib[grade]'")
    out = out.resolve()
    if submissions.resolve() in [out, *out.parents]:
        raise ValueError(f"{out} lies among the submissions: give another --out")
    exercises = _exercises()
    sheets = collect(find(submissions), read_roster(roster) if roster else [], exercises)
    if all(sheet.exercise is NONE for sheet in sheets):
        raise RunError(f"no exercise of this course is in {submissions}")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        start, ran = time.monotonic(), _grade(sheets, out, seconds, memory)
        minutes = (time.monotonic() - start) / 60
        write_whole(out / "gradebook.csv", _table(sheets).encode("utf-8-sig"))
        write_pages(sheets, out / "feedback")
    graded = sum(bool(sheet.points) for sheet in sheets)
    each = f": {30 * minutes / ran:.1f} for 30 of them" if ran else ""
    print(f"\n{graded} of {len(sheets)} graded, {ran} of them now, in {minutes:.1f} minutes{each}")
    for title, status in [("To be looked at", "look"), ("Not graded", "not graded"), ("Missing", "missing")]:
        listed = [f"  {sheet}: {'; '.join(sheet.look)}".rstrip(": ") for sheet in sheets if sheet.status == status]
        print("\n".join([f"{title}:", *listed]) if listed else f"{title}: nobody")
    print(f"{out}: gradebook.csv, feedback (a page a student), nbgrader (its folders and its database)")


def _exercises() -> list[Exercise]:
    import nbformat

    paths = sorted((ROOT / "solutions").glob("[0-9]*.ipynb"))
    if not paths:
        raise RunError(f"there are no solutions in {ROOT / 'solutions'}: q4 grade works in a clone of the repository")
    return [exercise(path.stem, released(nbformat.read(path, 4))) for path in paths]


def collect(files: list[File], roster: list[Student], exercises: list[Exercise]) -> list[Sheet]:
    """A sheet for each exercise that a student handed in, the last of each; one for who handed in nothing of use."""
    piles: dict[Student, list[File]] = {}
    for file in files:
        student = match(file, roster) or Student(file.number or file.owner, file.owner)
        piles.setdefault(student, []).append(file)
    sheets = [sheet for student, pile in piles.items() for sheet in _sheets(student, pile, exercises)]
    for sheet in sheets:
        if roster and sheet.student not in roster:
            sheet.look.append(f"the roster has no {sheet.student.name}, or two")
    sheets += [Sheet(student) for student in roster if student not in piles]
    order = {student: at for at, student in enumerate(roster)}
    return sorted(sheets, key=lambda sheet: (order.get(sheet.student, len(order)), sheet.student.name))


def _sheets(student: Student, pile: list[File], exercises: list[Exercise]) -> list[Sheet]:
    found: dict[str, Sheet] = {}
    wrong, older = list[str](), dict[str, list[str]]()
    notebooks = [file for file in pile if file.name.lower().endswith(".ipynb")]
    for file in sorted(notebooks, key=lambda file: file.order, reverse=True):
        try:
            content = file.read()
            cells = parse(content)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a zip with a password
            wrong.append(f"{file.name} cannot be read: {error}")
            continue
        one = recognize(cells, file.name, exercises)
        if one is None:
            wrong.append(f"{file.name} has nothing of an exercise of this course")
        elif one.number in found:
            older.setdefault(one.number, []).append(file.name)
        else:
            mended = mend(cells, one)
            digest = hashlib.sha256(content + str(one.notebook).encode()).hexdigest()
            found[one.number] = Sheet(student, one, mended.notebook, digest, mended.notes, mended.look + wrong)
    for number, names in older.items():
        found[number].notes.append(f"an earlier file does not count: {', '.join(names)}")
    if not found:
        files = ", ".join(file.name for file in pile)
        return [Sheet(student, look=wrong or [f"{files}: a notebook (.ipynb) is asked for"])]
    return [found[number] for number in sorted(found)]


def _grade(sheets: list[Sheet], out: Path, seconds: int, memory: float) -> int:
    """Fill in the sheets; how many had to be run. What was graded before and has not changed is not run again."""
    from . import sandbox  # not where Windows reads it

    why = sandbox.refused()
    print("Each submission runs with limits of time and memory, without a network, and writes in its own folder only."
          if not why else f"No namespaces here ({why}): submissions run with limits of time and memory, but one that "
          "means harm could reach the network and your files.")  # fmt: skip
    handed_in = [sheet for sheet in sheets if sheet.exercise is not NONE]
    course = Course(out / "nbgrader", [sheet.exercise for sheet in handed_in])
    memo = out / "done.json"
    done = json.loads(memo.read_text()) if memo.exists() else {}
    waiting = [sheet for sheet in handed_in if done.get(sheet.key, {}).get("digest") != sheet.digest]
    start = time.monotonic()
    # The work is done by other processes; two of them where there are two cores.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        running = {pool.submit(_executed, sheet, seconds, memory, not why): sheet for sheet in waiting}
        try:
            for number, future in enumerate(as_completed(running), 1):
                sheet = running[future]
                notebook, look, lines = future.result()
                try:
                    course.take(sheet.student, sheet.exercise, notebook)
                except RunError as error:
                    look.append(str(error))
                done[sheet.key] = {"digest": sheet.digest, "look": look, "said": lines}
                write_whole(memo, json.dumps(done, ensure_ascii=False, indent=1).encode())
                left = (time.monotonic() - start) / number * (len(waiting) - number) / 60
                print(f"{number} of {len(waiting)}: {sheet} (about {left:.1f} minutes left)", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for sheet in handed_in:
        sheet.said = done[sheet.key]["said"]
        sheet.look += done[sheet.key]["look"]
        sheet.points = course.points(sheet.student, sheet.exercise)
        unread = [task for task, (got, _) in sheet.points.items() if got is None]
        sheet.look += [f"{', '.join(unread)} waits for somebody to read it and give points"] if unread else []
    return len(waiting)


def _executed(sheet: Sheet, seconds: int, memory: float, apart: bool) -> tuple[Any, list[str], dict[str, str]]:
    """The notebook with its outputs, reasons to look, and what is said of each task.

    A cell that was too much is taken out, and the rest runs again without it.
    """
    from nbformat import writes

    from . import sandbox

    notebook, look = deepcopy(sheet.notebook), list[str]()
    until, taken = time.monotonic() + LONGEST * seconds, dict[str, str]()
    while True:
        left = max(1, int(until - time.monotonic()))
        result = sandbox.run(writes(notebook), min(seconds, left), left, memory, apart)
        if "cells" in result:
            break
        name = result["cell"].replace("check-", "task-")
        cell = next((cell for cell in notebook.cells if cell.id == name), None)
        if cell is None or name in taken or time.monotonic() > until:
            look.append(f"it could not be run to its end: {task_of(name) or name or 'it'} {result['why']}")
            break
        taken[name] = f"❌ {task_of(name)} it {result['why']}"
        what = task_of(name) or f"a cell beside the tasks, `{cell.source.strip().partition(chr(10))[0]}`,"
        look.append(f"{what} {result['why']}; the rest was graded without it")
        stub = next((ours.source for ours in sheet.exercise.notebook.cells if ours.id == name and task_of(name)), "")
        cell.source = stub or "# This cell was taken out."
    settle(notebook, result.get("cells", {}))
    lines = said(notebook)
    look += [f"{task}: {SILENT}, has it been changed?" for task, line in lines.items() if line.endswith(SILENT)]
    return notebook, look, lines | {task_of(name): line for name, line in taken.items() if task_of(name)}


def _table(sheets: list[Sheet]) -> str:
    """The gradebook as CSV: a row a sheet, a column a task."""
    tasks = sorted({task for sheet in sheets for task in sheet.points}, key=lambda task: [*map(int, task.split("."))])
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["id", "name", "email", "exercise", *tasks, "total", "of", "status", "note"])
    for sheet in sheets:
        who = [sheet.student.id, sheet.student.name, sheet.student.email]
        got = [sheet.points.get(task, (None, 0))[0] for task in tasks]
        numbers = [
            "" if one is None else f"{one:g}" for one in [*got, *(sheet.total if sheet.points else (None, None))]
        ]
        table.writerow([*who, sheet.exercise.number, *numbers, sheet.status, "; ".join(sheet.look + sheet.notes)])
    return text.getvalue()
