"""Thirty submissions, as students, Colab, editors and accidents make them, packed as Moodle packs them."""

import json
import re
import textwrap
import unicodedata
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
import solving
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

EXERCISE = "01_quantization.ipynb"
SOLUTION = solving.ROOT / "solutions" / EXERCISE
RIGHT = {task: solving.reference(SOLUTION, task) for task in solving.tasks(SOLUTION)}
WRONG = {
    "1.1": "return w.abs().max() / 2 ** (bits - 1)",
    "1.2": "return (w / scale).round().to(torch.int8)",
    "1.3": "s = scale(w)\nreturn (w / s).round() * s",
    "1.4": "return w.abs().max() / 7",
    "1.5": "return (w / amax).round()",
    "1.6": "return True",
}


def filled(answers: dict[str, str]):
    """The exercise as handed out, with these bodies in the place of its stubs."""
    notebook = nbformat.read(solving.ROOT / "exercises" / EXERCISE, 4)
    for task, body in answers.items():
        cell = cell_of(notebook, task)
        assert solving.STUB in cell.source
        cell.source = cell.source.replace(f"    {solving.STUB}", textwrap.indent(body.strip("\n"), "    "))
    return notebook


def cell_of(notebook, task: str, kind: str = "task"):
    return next(cell for cell in notebook.cells if cell.id == f"{kind}-{task.replace('.', '-')}")


def after(notebook, task: str, source: str):
    """The notebook with a cell of the student's own after the answer to a task."""
    at = notebook.cells.index(cell_of(notebook, task))
    notebook.cells.insert(at + 1, new_code_cell(source))
    return notebook


def on_top(notebook, task: str, lines: str):
    cell = cell_of(notebook, task)
    cell.source = f"{lines}\n{cell.source}"
    return notebook


def copied(notebook):
    """Answer and check of 1.2 copied below themselves, ids and metadata and all; the first answer is a wrong one."""
    cells = [cell_of(notebook, "1.2"), cell_of(notebook, "1.2", "check")]
    at = notebook.cells.index(cells[1]) + 1
    notebook.cells[at:at] = deepcopy(cells)
    cells[0].source = cells[0].source.replace(".round()", "")
    return notebook


def split(notebook):
    """The function of 1.5 cut in two, and the check of 1.1 in two."""
    cell = cell_of(notebook, "1.5")
    lines = cell.source.splitlines()
    cell.source = "\n".join(lines[:3])
    at = notebook.cells.index(cell)
    notebook.cells.insert(at + 1, new_code_cell("\n".join(lines[3:])))
    check = cell_of(notebook, "1.1", "check")
    at, (head, tail) = notebook.cells.index(check), check.source.split("\n\n")
    notebook.cells[at : at + 1] = [new_code_cell(head), new_code_cell(tail)]
    return notebook


def from_colab(notebook):
    """No metadata of nbgrader's, other ids, and ids in the metadata."""
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = nbformat.from_dict({"id": f"Xy_{number}"}), f"colab{number}"
    notebook.metadata = nbformat.from_dict({"colab": {"provenance": []}})
    return notebook


def from_an_editor(notebook):
    """No text, no metadata, and each answer in one cell with its check; the checks have been altered."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    merged = "\n\n".join(code).replace("q4lib.kit import check\n\n", "q4lib.kit import check\n")
    pieces = re.split(r"^(?=def )", merged, flags=re.M)
    return new_notebook(cells=[new_code_cell(piece) for piece in pieces])


def reordered(notebook):
    """The tasks from the last to the first, text, answer and check together."""
    text = [at for at, cell in enumerate(notebook.cells) if cell.source.startswith("## 1.")]
    parts = [notebook.cells[a:b] for a, b in zip(text, [*text[1:], None], strict=True)]
    notebook.cells[text[0] :] = [cell for part in reversed(parts) for cell in part]
    return notebook


def in_one_cell(notebook):
    """All of its code in a single cell."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "install" not in cell.source]
    return new_notebook(cells=[new_code_cell("\n\n".join(code))])


def of_last_year(notebook):
    """Other numbers, other names in the metadata, a task that is no more; two of its functions are still asked for."""
    cells = [new_markdown_cell("# 01 Exercise: the grid"), new_code_cell("import torch")]
    for number, task in [("1.1", "1.1"), ("1.3", "1.2")]:
        answer, check = deepcopy(cell_of(notebook, task)), deepcopy(cell_of(notebook, task, "check"))
        answer.metadata.nbgrader.grade_id = answer.id = f"q{number}".replace(".", "-")
        check.source = check.source.replace(f'"{task}"', f'"{number}"')
        cells += [new_markdown_cell(f"## {number} Old title"), answer, check]
    cells.append(new_code_cell('def zero_point(w):\n    return 0\n\ncheck("1.9", zero_point)'))
    return new_notebook(cells=cells)


def with_huge_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [new_output("stream", text="0.1234 " * 200_000)]
    return notebook


def of_exercise_02():
    notebook = nbformat.read(solving.ROOT / "exercises" / "02_straight_through.ipynb", 4)
    cell = cell_of(notebook, "2.1")
    body = solving.reference(solving.ROOT / "solutions" / "02_straight_through.ipynb", "2.1")
    cell.source = cell.source.replace(f"    {solving.STUB}", textwrap.indent(body.strip("\n"), "    "))
    return notebook


def thirty(bait: Path, port: int) -> dict[str, tuple[Callable, set[str], str]]:
    """Each student: what they hand in, the tasks that get their point, and the status."""
    all_ = set(RIGHT)
    fetch = f'import urllib.request\nurllib.request.urlopen("http://127.0.0.1:{port}/", timeout=2)'
    delete = f'import os, shutil\nfor f in (os.getcwd(), "{bait}"):\n    shutil.rmtree(f, ignore_errors=True)'
    patch = "import q4lib.kit\nq4lib.kit.check = lambda *_: None"

    def but(task: str, body: str):
        return lambda: filled(RIGHT | {task: body})

    def right(change=lambda notebook: notebook):
        return lambda: change(filled(RIGHT))

    return {
        "Ada Right": (right(), all_, "graded"),
        "Ben Half": (lambda: filled({t: RIGHT[t] for t in ("1.1", "1.2", "1.3")}), {"1.1", "1.2", "1.3"}, "graded"),
        "Cem Wrong": (lambda: filled(WRONG), set(), "graded"),
        "Dana Stubs": (lambda: filled({}), set(), "graded"),
        "Eli Broken": (lambda: nbformat.writes(filled(RIGHT))[:5000], set(), "not graded"),
        "Fay Empty": (lambda: "", set(), "not graded"),
        "Gus Script": (lambda: {"answers.py": "def scale(w, bits=4):\n    return 1\n"}, set(), "not graded"),
        "Hal Nothing": (lambda: {}, set(), "missing"),
        "Ida Filename": (lambda: {"Untitled3 (1).ipynb": nbformat.writes(filled(RIGHT))}, all_, "graded"),
        "Jan Endless": (but("1.2", "while True: pass"), {"1.1", "1.4", "1.5"}, "graded"),
        "Kim Endless Cell": (lambda: on_top(filled(RIGHT), "1.4", "while True: pass"), all_ - {"1.4"}, "look"),
        "Lea Memory": (
            lambda: on_top(filled(RIGHT), "1.4", "x = []\nwhile True: x.append(b'1' * 10**7)"), all_ - {"1.4"}, "look",
        ),
        "Max Deletes": (lambda: on_top(filled(RIGHT), "1.1", delete), all_, "graded"),
        "Noa Network": (lambda: after(filled(RIGHT), "1.1", fetch), all_, "graded"),
        "Oli Copied": (right(copied), all_, "graded"),
        "Pia Split": (right(split), all_, "graded"),
        "Quin Colab": (right(from_colab), all_, "graded"),
        "Ray Editor": (right(from_an_editor), all_, "graded"),
        "Sam Reordered": (right(reordered), all_, "graded"),
        "Tea One Cell": (right(in_one_cell), all_, "graded"),
        "Uma Last Year": (right(of_last_year), {"1.1", "1.2"}, "look"),
        "Val Outputs": (right(with_huge_outputs), all_, "graded"),
        "Wim Exits": (
            lambda: on_top(filled(RIGHT | {"1.5": "import os\nos._exit(0)"}), "1.4", "exit()"), all_ - {"1.5"}, "look",
        ),
        "Xia Prints": (lambda: after(filled(RIGHT), "1.2", 'while True: print("again")'), all_, "graded"),
        "Yan Own Check": (lambda: on_top(filled(WRONG), "1.1", "check = lambda *_: None"), set(), "graded"),
        "Zac Patches": (lambda: on_top(filled(WRONG), "1.1", patch), set(), "look"),
        "Zoë Müller-Ångström": (right(), all_, "graded"),
        "Abe Twice": (
            lambda: {EXERCISE: nbformat.writes(filled({})), "01_quantization-1.ipynb": nbformat.writes(filled(RIGHT))},
            all_, "graded",
        ),
        "Bea Other": (of_exercise_02, {"2.1"}, "graded"),
        "Col Syntax": (but("1.4", "return ("), all_ - {"1.4"}, "graded"),
    }  # fmt: skip


def pack(students: dict[str, Callable], folder: Path) -> tuple[Path, Path]:
    """Moodle's zip of what they hand in, and its list of participants."""
    roster = ["First name,Last name,ID number,Email address"]
    with zipfile.ZipFile(folder / "submissions.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, made) in enumerate(students.items(), 1):
            first, _, last = name.partition(" ")
            roster.append(f"{first},{last},s{number:02},{number}@example.org")
            files = made()
            files = files if type(files) is dict else {EXERCISE: files}
            owner = unicodedata.normalize("NFD", name)
            for file, content in files.items():
                text = content if isinstance(content, str) else json.dumps(content)
                archive.writestr(f"{owner}_{7000 + number}_assignsubmission_file/{file}", text)
    (folder / "roster.csv").write_text("\ufeff" + "\n".join(roster) + "\n")
    return folder / "submissions.zip", folder / "roster.csv"
