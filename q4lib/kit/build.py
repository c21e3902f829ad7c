"""Exercises made from their solutions: answers taken out, nbgrader's metadata put in."""

import re
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..train import RunError
from .bootstrap import address, dress
from .lessons import ROOT

BEGIN = "### BEGIN SOLUTION"
STUB = "return None  # your code"
TEXT_STUB = "*Your answer, in place of this line.*"


def build(check: bool = False, root: Path = ROOT) -> None:
    """Make `exercises/` from `solutions/`, and store the solutions in their own form: marked, without outputs."""
    import nbformat

    paths = sorted((root / "solutions").glob("[0-9]*.ipynb"))
    if not paths:
        raise RunError(f"there are no solutions in {root / 'solutions'}: q4 build works in a clone of the repository")
    if not find_spec("nbgrader"):
        raise RunError("this needs nbgrader: pip install 'q4lib[grade]'")
    stale = [path for path in sorted((root / "exercises").glob("*.ipynb")) if path.name not in {p.name for p in paths}]
    if stale:
        raise RunError(f"{', '.join(map(str, stale))}: there is no solution of that name, so delete it")
    for path in paths:
        solution = nbformat.read(path, 4)
        dress(solution, path.stem, folder="exercises", **address(ROOT))
        try:
            mark(solution)
            exercise = released(solution)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{path.name}: {error}") from None
        for file, notebook in [(path, solution), (root / "exercises" / path.name, exercise)]:
            content = (nbformat.writes(notebook) + "\n").encode()
            if not file.exists() or file.read_bytes() != content:
                stale.append(file)
                if not check:
                    file.parent.mkdir(exist_ok=True)
                    write_whole(file, content)
    changed = [str(file.relative_to(root)) for file in stale]
    if check and changed:
        raise RunError(f"not as `q4 build` writes them: {', '.join(changed)}")
    print("\n".join(changed) or f"nothing to do: {len(paths)} exercises are as `q4 build` writes them")


def mark(notebook: Any) -> None:
    """Take the outputs out of a solution, and give its cells nbgrader's metadata. In place.

    A cell with a solution in it is the student's; one that calls `check` gives a point, or the points it gave before;
    one of text with a solution is read and graded by the teacher. The number is that of the heading above.
    """
    from nbformat import from_dict

    number = ""
    for cell in notebook.cells:
        text = cell.cell_type == "markdown"
        heading = re.search(r"^## (\d+)\.(\d+) ", cell.source, re.M) if text else None
        number = "-".join(heading.groups()) if heading else number
        solution = BEGIN in cell.source
        grade = solution if text else bool(re.search(r"^check\(", cell.source, re.M))
        points = cell.metadata.pop("nbgrader", {}).get("points", 1)
        if not text:
            cell.outputs, cell.execution_count = [], None
        if not (solution or grade):
            continue
        if not number:
            raise ValueError("a solution or a check stands before the first heading such as `## 1.1 Title`")
        cell.id = f"{'task' if solution else 'check'}-{number}"
        cell.metadata.nbgrader = from_dict({
            "schema_version": 3,
            "grade_id": cell.id,
            "grade": grade,
            "solution": solution,
            "locked": not solution,
            "task": False,
        } | ({"points": points} if grade else {}))  # fmt: skip


def released(solution: Any) -> Any:
    """The notebook that students get, by nbgrader's own steps; our stub, since nbgrader's raises."""
    from nbgrader.preprocessors import CheckCellMetadata, ClearSolutions, ComputeChecksums, LockCells

    notebook, resources = deepcopy(solution), dict[str, Any]()
    stubs = {"code_stub": {"python": STUB}, "text_stub": TEXT_STUB}
    for step in (LockCells(), ClearSolutions(**stubs), ComputeChecksums(), CheckCellMetadata()):
        notebook, resources = step.preprocess(notebook, resources)
    return notebook
