"""q4 build, and what nbgrader itself makes of the solutions: it takes them, and gives marks to right answers only."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from q4lib.kit import cli
from q4lib.kit.build import STUB, TEXT_STUB, build
from q4lib.kit.lessons import ROOT, _kernel
from q4lib.train import RunError

SOLUTION = ROOT / "solutions" / "01_quantization.ipynb"
TASK = "def f(w):\n    ### BEGIN SOLUTION\n    return w + 1\n    ### END SOLUTION"
CHECK = 'from q4lib.kit import check\n\ncheck("1.1", f)'


@pytest.fixture
def course(tmp_path):
    """A folder with one solution of one task, and one question of text."""
    cells = [
        new_markdown_cell("# 01 Exercise: tiny\n\n<!-- badge -->"),
        new_markdown_cell("## 1.1 Add\n\nOne."),
        new_code_cell(TASK, outputs=[nbformat.v4.new_output("stream", text="8")], execution_count=3),
        new_code_cell(CHECK),
        new_markdown_cell("## 1.2 Why?\n\nSay it."),
        new_markdown_cell("### BEGIN SOLUTION\nBecause.\n### END SOLUTION"),
    ]
    (tmp_path / "solutions").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "solutions" / "01_tiny.ipynb")
    return tmp_path


def read(folder: Path, name: str):
    return nbformat.read(folder / name / "01_tiny.ipynb", 4)


def test_answers_are_taken_out(course, capsys):
    build(root=course)
    assert capsys.readouterr().out == "solutions/01_tiny.ipynb\nexercises/01_tiny.ipynb\n"
    solution, exercise = read(course, "solutions"), read(course, "exercises")
    for notebook in (solution, exercise):
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
        assert "/exercises/01_tiny.ipynb" in notebook.cells[0].source and notebook.cells[1].id == "bootstrap"
    assert solution.cells[3].source == TASK
    assert exercise.cells[3].source == f"def f(w):\n    {STUB}"
    assert exercise.cells[6].source == TEXT_STUB
    kinds = {cell.id: cell.metadata.nbgrader for cell in exercise.cells if "nbgrader" in cell.metadata}
    assert {(name, kind.solution, kind.grade, kind.get("points")) for name, kind in kinds.items()} == {
        ("task-1-1", True, False, None),
        ("check-1-1", False, True, 1),
        ("task-1-2", True, True, 1),
    }
    assert not exercise.cells[4].metadata.editable and not exercise.cells[3].metadata.deletable


def test_nothing_changes_the_second_time_and_points_stay(course, capsys):
    build(root=course)
    before = (course / "exercises" / "01_tiny.ipynb").read_bytes()
    capsys.readouterr()
    build(root=course), build(root=course, check=True)
    assert capsys.readouterr().out.count("nothing to do: 1 exercises") == 2
    assert (course / "exercises" / "01_tiny.ipynb").read_bytes() == before
    solution = read(course, "solutions")
    solution.cells[4].metadata.nbgrader.points = 3
    nbformat.write(solution, course / "solutions" / "01_tiny.ipynb")
    build(root=course)
    assert read(course, "exercises").cells[4].metadata.nbgrader.points == 3


def test_check_writes_nothing_and_names_what_differs(course):
    build(root=course)
    for folder, old, new in [("exercises", STUB, "return w + 1"), ("solutions", "One.", "Two.")]:
        path = course / folder / "01_tiny.ipynb"
        changed = path.read_text().replace(old, new)
        path.write_text(changed)
        with pytest.raises(RunError, match="not as `q4 build` writes them: exercises/01_tiny.ipynb"):
            build(root=course, check=True)
        assert path.read_text() == changed
        build(root=course)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("### END SOLUTION", "", "01_tiny.ipynb: no end solution statement found"),
        ("## 1.1 Add", "## Add", "01_tiny.ipynb: a solution or a check stands before the first heading"),
    ],
)
def test_a_faulty_solution_is_said_in_a_sentence(course, old, new, says):
    path = course / "solutions" / "01_tiny.ipynb"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunError, match=says):
        build(root=course)
    assert not (course / "exercises").exists()


def test_an_exercise_without_a_solution_is_named(course):
    build(root=course)
    (course / "solutions" / "01_tiny.ipynb").rename(course / "solutions" / "02_tiny.ipynb")
    with pytest.raises(RunError, match="01_tiny.ipynb: there is no solution of that name"):
        build(root=course)


def test_without_solutions_and_without_nbgrader(course, tmp_path_factory, monkeypatch, capsys):
    with pytest.raises(RunError, match="there are no solutions in"):
        build(root=tmp_path_factory.mktemp("empty"))
    monkeypatch.setattr("q4lib.kit.build.find_spec", lambda name: None)
    assert cli.main(["build", "--check"]) == 1
    assert "pip install 'q4lib[grade]'" in capsys.readouterr().err


def patient():
    """nbgrader's settings for a busy machine, where importing torch alone may take its 30 seconds."""
    from traitlets.config import Config

    return Config(Execute={"timeout": 300, "iopub_timeout": 60})


@pytest.fixture
def nbgrader(tmp_path, monkeypatch):
    """nbgrader's own folders and database, exercise 01 released in them."""
    from nbgrader.apps import NbGraderAPI

    # It calls alembic, which lies beside this Python.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    config = patient()
    config.CourseDirectory.root = str(tmp_path)
    config.Exchange.root = str(tmp_path / "exchange")
    config.ClearSolutions.code_stub = {"python": STUB}
    (tmp_path / "source" / "01").mkdir(parents=True)
    (tmp_path / "source" / "01" / SOLUTION.name).write_bytes(SOLUTION.read_bytes())
    with _kernel(smoke=True):
        api = NbGraderAPI(config=config)
        done = api.generate_assignment("01")
        assert done["success"], done
        yield api


def hand_in(course: Path, student: str, notebook) -> None:
    folder = course / "submitted" / student / "01"
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / SOLUTION.name)


def test_nbgrader_releases_the_same_and_grades_it(nbgrader, tmp_path):
    """Unsolved: no mark. Solved: all. Half, with an endless loop and an exit(): those that are right, and no more."""
    released = nbformat.read(tmp_path / "release" / "01" / SOLUTION.name, 4)
    assert released.cells == nbformat.read(ROOT / "exercises" / SOLUTION.name, 4).cells

    solved = nbformat.read(SOLUTION, 4)
    bodies = {
        "task-1-2": "while True: pass",
        "task-1-4": "exit()",
        "task-1-5": "import sys; print('!', file=sys.stderr)",
    }
    half = nbformat.from_dict(json.loads(json.dumps(solved)))
    for cell in half.cells:
        if cell.id in bodies:
            cell.source = cell.source.splitlines()[0] + f"\n    {bodies[cell.id]}"
    for student, notebook in [("unsolved", released), ("solved", solved), ("half", half)]:
        hand_in(tmp_path, student, notebook)
        done = nbgrader.autograde("01", student)
        assert done["success"], done
    with nbgrader.gradebook as gradebook:
        graded = {
            s: gradebook.find_submission_notebook(SOLUTION.stem, "01", s).grades for s in ("unsolved", "solved", "half")
        }
        scores = {student: {grade.name: grade.auto_score for grade in grades} for student, grades in graded.items()}
    assert set(scores["unsolved"].values()) == {0.0} and len(scores["unsolved"]) == 6
    assert set(scores["solved"].values()) == {1.0}
    # 1.3 uses the student's 1.2, and 1.6 the student's 1.3.
    assert {name for name, score in scores["half"].items() if score} == {"check-1-1"}


def test_nbgrader_validates(tmp_path):
    """What a student sees who asks nbgrader: all six checks fail before, none after."""
    from nbgrader.validator import Validator

    with _kernel(smoke=True):
        validator = Validator(config=patient())
        failed = {name: validator.validate(str(ROOT / name / SOLUTION.name)) for name in ("exercises", "solutions")}
    assert len(failed["exercises"].pop("failed")) == 6 and not failed["exercises"] and not failed["solutions"]
