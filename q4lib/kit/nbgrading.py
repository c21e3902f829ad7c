"""nbgrader, unchanged, over notebooks that were executed elsewhere: its folders, its database, its points."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..train import RunError
from .build import STUB, TEXT_STUB
from .lessons import ROOT
from .mend import Exercise, task_of
from .submissions import Student

LONGEST = 10_000  # characters of a printed text that are kept
LARGEST = 2_000_000  # characters of a picture
SILENT = "its check did not answer"


class Course:
    """nbgrader's folders and database under `root`, with these exercises released in them."""

    def __init__(self, root: Path, exercises: list[Exercise]) -> None:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import Config

        # nbgrader calls alembic, which lies beside this Python.
        beside = str(Path(sys.executable).parent)
        if beside not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join([beside, os.environ["PATH"]])
        config = Config()
        config.CourseDirectory.root = str(root)
        config.Exchange.root = str(root / "exchange")
        config.ClearSolutions.code_stub, config.ClearSolutions.text_stub = {"python": STUB}, TEXT_STUB
        # What is taken in has run already, in a place where it could do no harm: its outputs stay.
        config.Autograde.sanitize_preprocessors = _without("sanitize", "ClearOutput")
        config.Autograde.autograde_preprocessors = _without("autograde", "Execute")
        self.root = root
        self.api = NbGraderAPI(config=config)
        for one in {one.number: one for one in exercises}.values():
            self._release(one)

    def _release(self, one: Exercise) -> None:
        content = (ROOT / "solutions" / f"{one.stem}.ipynb").read_bytes()
        source = self.root / "source" / one.number / f"{one.stem}.ipynb"
        if source.exists() and source.read_bytes() != content:
            raise RunError(f"exercise {one.number} has changed since {self.root.parent} was begun: give another --out")
        if not (self.root / "release" / one.number).exists():
            source.parent.mkdir(parents=True, exist_ok=True)
            write_whole(source, content)
            _checked(self.api.generate_assignment(one.number))

    def take(self, student: Student, one: Exercise, notebook: Any) -> None:
        """Grade an executed notebook. RunError if nbgrader will not have it."""
        from nbformat import writes

        file = self.root / "submitted" / student.folder / one.number / f"{one.stem}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, writes(notebook).encode())
        first, _, last = student.name.rpartition(" ")
        with self.api.gradebook as gradebook:
            gradebook.update_or_create_student(student.folder, first_name=first, last_name=last, email=student.email)
        with warnings.catch_warnings(action="ignore"):  # SQLAlchemy's, of how nbgrader uses it
            _checked(self.api.autograde(one.number, student.folder))

    def points(self, student: Student, one: Exercise) -> dict[str, tuple[float | None, float]]:
        """What each task got, None if somebody must read it first, and the most it can get. {} if nothing was taken."""
        from nbgrader.api import MissingEntry

        with self.api.gradebook as gradebook, warnings.catch_warnings(action="ignore"):
            try:
                grades = gradebook.find_submission_notebook(one.stem, one.number, student.folder).grades
            except MissingEntry:
                return {}
            unread = {grade.name for grade in grades if grade.auto_score is None and grade.manual_score is None}
            got = {task_of(g.name): (None if g.name in unread else g.score, g.max_score) for g in grades}
        return {task: got[task] for task in one.tasks if task in got}


def _without(kind: str, name: str) -> list[Any]:
    from nbgrader.converters import Autograde

    return [step for step in getattr(Autograde(), f"{kind}_preprocessors") if step.__name__ != name]


def _checked(done: dict[str, Any]) -> None:
    if not done["success"]:
        raise RunError(f"nbgrader: {(done.get('log') or done.get('error') or 'it failed').strip().splitlines()[-1]}")


def settle(notebook: Any, outputs: dict[str, list[Any]]) -> None:
    """Give the cells their outputs. A check cell without a ✅ of its own gets an error: that is what nbgrader sees."""
    from nbformat.v4 import new_output

    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kept = [output for output in outputs.get(cell.id, []) if "text" in output or len(str(output)) < LARGEST]
        cell.outputs = [_short(output) for output in kept]
        task = task_of(cell.id)
        if not cell.id.startswith("check-"):
            continue
        # No result of a cell either: nbgrader would take a number for points.
        cell.outputs = [o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stdout"]
        right = any(line.startswith(f"✅ {task} ") for line in _printed(cell).splitlines())
        if not right and not any(output.output_type == "error" for output in cell.outputs):
            why = SILENT if cell.id in outputs else "it was not run"
            cell.outputs.append(new_output("error", ename="NotRight", evalue=why, traceback=[why]))


def _short(raw: dict[str, Any]) -> Any:
    from nbformat import from_dict

    output = from_dict(raw)
    if output.output_type == "stream" and len(output.text) > LONGEST:
        output.text = f"{output.text[:LONGEST]}\n... and so on"
    return output


def said(notebook: Any) -> dict[str, str]:
    """Of each task the line that its check printed, or the error in its place."""
    lines = {}
    for cell in notebook.cells:
        if cell.id.startswith("check-") and cell.cell_type == "code":
            task = task_of(cell.id)
            errors = [f"❌ {task} {o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
            lines[task] = next(iter(_printed(cell).strip().splitlines() + errors), "")
    return lines


def _printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")
