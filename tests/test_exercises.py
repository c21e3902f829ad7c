"""Every exercise: its form, its checks against tables of answers and mutants, and both notebooks run to their end."""

import re
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import solving
from nbclient import NotebookClient
from test_lessons import is_valid, links_lead_somewhere

from q4lib.kit import checks, classroom
from q4lib.kit.bootstrap import address, badge, bootstrap
from q4lib.kit.build import build, released
from q4lib.kit.lessons import ROOT, _kernel

FACTS = address(ROOT)
EXERCISES = solving.SOLUTIONS
TABLES = {path: import_module(name) for path in EXERCISES if find_spec(name := f"answers.exercise{path.stem[:2]}")}
ANSWERS = [(path, *row) for path in TABLES for row in TABLES[path].ANSWERS]
TASKS = [(path, task) for path in EXERCISES for task in solving.tasks(path)]
HEAD = re.compile(r"^## (\d+\.\d+) \S.*\n\n\*(\d+) minutes · (easy|medium|hard) · lesson (\d\d), ", re.M)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Time enough on a busy machine, no nbgrader, and a run of the class in one epoch."""
    monkeypatch.setattr(checks, "SECONDS", 10.0)
    monkeypatch.setattr(classroom, "EPOCHS", 1)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)


def named(parameters):
    return [f"{path.stem[:2]}-{'-'.join(map(str, rest[:2]))}"[:60] for path, *rest in parameters]


@pytest.mark.parametrize(("path", "task"), TASKS, ids=named(TASKS))
def test_reference_and_stub(path, task):
    assert solving.verdict(path, task, solving.reference(path, task)).startswith(f"✅ {task} ")
    assert solving.verdict(path, task, solving.STUB).startswith(f"⏳ {task} not attempted yet")
    begun = solving.verdict(path, task, f"mine = 'not returned'.upper()\n{solving.STUB}")
    assert begun.startswith(f"❌ {task} your ") and "is a `return` missing" in begun


@pytest.mark.parametrize(("path", "task", "answer", "says"), ANSWERS, ids=named(ANSWERS))
def test_answer(path, task, answer, says):
    line = solving.verdict(path, task, answer)
    assert line.startswith(f"✅ {task} " if says == "✅" else f"❌ {task} ") and says in line


@pytest.mark.parametrize(("path", "task"), TASKS, ids=named(TASKS))
def test_table_has_enough_answers(path, task):
    said = [says for of, _, says in TABLES[path].ANSWERS if of == task]
    assert said.count("✅") >= 2, "two right ways beside the reference"
    assert len(set(said) - {"✅"}) >= 3, "three wrong answers, each with a message of its own"


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_mutants_are_rejected(path, monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", 1.0)  # some never end
    equivalent, survived, count = TABLES[path].EQUIVALENT, [], 0
    for task in solving.tasks(path):
        for line, body in solving.mutants(solving.reference(path, task)):
            count += (task, line) not in equivalent
            if solving.verdict(path, task, body).startswith("✅"):
                survived.append((task, line))
    assert set(equivalent) <= set(survived), "listed as equivalent, but rejected or no mutant at all"
    survived = [mutant for mutant in survived if mutant not in equivalent]
    row = f"| {path.stem[:2]} | {count - len(survived)} of {count} | {len(equivalent)} |"
    print(f"{row} mutants rejected, equivalent ones apart")
    assert count >= 20 and len(survived) <= 0.05 * count, survived
    assert row in (ROOT / "solutions/TEACHING.md").read_text(), f"the teacher's guide should say {row}"


def prose(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def has_head_and_end(notebook, path):
    """Title, badge, what it is for, what it needs, minutes; bootstrap second; Next last."""
    number, first = path.stem.partition("_")[0], notebook.cells[0].source
    for needed in (rf"# {number} Exercise: \S", re.escape(badge(path.stem, **FACTS, folder="exercises")),
                   "You will be able to", "You need", r"\*\*Minutes:\*\* \d+"):  # fmt: skip
        if not re.search(needed, first):
            yield f"cell 1 lacks {needed}"
    if notebook.cells[1].source != bootstrap(**FACTS):
        yield "cell 2 is not the bootstrap cell"
    if not notebook.cells[-1].source.startswith("## Next\n"):
        yield "the last cell is not Next"


def has_tasks_in_order(notebook, path):
    """Four to seven tasks of 30 to 60 minutes together, easy ones first; each names a lesson's section, with hints."""
    heads = HEAD.findall("\n".join(prose(notebook)))
    names = [name for name, *_ in heads]
    if names != [f"{int(path.stem[:2])}.{i + 1}" for i in range(len(names))] or not 4 <= len(names) <= 7:
        yield f"its tasks are {heads}"
    minutes = sum(int(minutes) for _, minutes, *_ in heads)
    if not 30 <= minutes <= 60 or f"**Minutes:** {minutes} " not in notebook.cells[0].source:
        yield f"the tasks take {minutes} minutes, the head says otherwise"
    levels = [("easy", "medium", "hard").index(level) for *_, level, _ in heads]
    if levels[:1] != [0] or levels[-1:] == [0]:
        yield "it does not lead from easy to harder"
    sections = re.split(r"^## ", "\n".join(prose(notebook)), flags=re.M)
    for section in sections:
        if re.match(r"\d+\.\d+ ", section) and section.count("<details><summary>Hint ") < 2:
            yield f"fewer than two hints: {section.splitlines()[0]}"


def has_cells_in_order(notebook, path):
    """In each task a function for the student, then a check that imports `check` itself; no other check."""
    graded = [cell for cell in notebook.cells if "nbgrader" in cell.metadata and cell.cell_type == "code"]
    wanted = [name for name in checks.tasks() if name.partition(".")[0] == str(int(path.stem[:2]))]
    for name, task, check in zip(wanted, graded[::2], graded[1::2], strict=False):
        if task.id != f"task-{name.replace('.', '-')}" or not re.search(r"^(def|class) ", task.source, re.M):
            yield f"{name}: {task.id} is no function of the student's"
        if not re.fullmatch(rf'from q4lib\.kit import check\n\ncheck\("{name}", [^\n]+\)', check.source):
            yield f"{name}: its check is {check.source}"
    if len(graded) != 2 * len(wanted):
        yield f"{len(graded)} cells for the tasks {wanted}"


def gives_nothing_away(notebook, path):
    """An exercise holds no output and no answer, but a stub in its place."""
    for cell in notebook.cells:
        if cell.get("outputs") or "SOLUTION" in cell.source:
            yield f"{cell.id}: an output, or an answer"
        if cell.id.startswith("task-") and cell.cell_type == "code" and solving.STUB not in cell.source:
            yield f"{cell.id}: no stub"


RULES = [is_valid, links_lead_somewhere, has_head_and_end, has_tasks_in_order, has_cells_in_order]


@pytest.mark.parametrize("rule", [*RULES, gives_nothing_away], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_every_exercise(rule, path):
    path = path.parent.parent / "exercises" / path.name
    assert not list(rule(nbformat.read(path, 4), path)), rule.__doc__


def change(at, old, new):
    def breaks(notebook):
        cell = next(cell for cell in notebook.cells if at in cell.source)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return breaks


BREAKS = [
    (has_head_and_end, change("# 01 Exercise", "Exercise", "Task")),
    (has_head_and_end, change("# 01 Exercise", "/exercises/", "/notebooks/")),
    (has_head_and_end, change("install_q4lib", "torch", "")),
    (has_head_and_end, lambda notebook: notebook.cells.pop()),
    (has_tasks_in_order, change("## 1.2", "## 1.2", "## 1.7")),
    (has_tasks_in_order, change("## 1.2", "10 minutes", "11 minutes")),
    (has_tasks_in_order, change("## 1.1", "easy", "hard")),
    (has_tasks_in_order, change("## 1.3", "<summary>Hint 2", "<summary>Note")),
    (has_cells_in_order, change('check("1.2"', "from q4lib.kit import check\n", "")),
    (has_cells_in_order, change('check("1.2"', '"1.2"', '"1.3"')),
    (has_cells_in_order, change("def scale", "def scale", "scale = ")),
    (has_cells_in_order, lambda notebook: notebook.cells.pop(4)),
    (gives_nothing_away, lambda notebook: notebook.cells[4].update(outputs=[nbformat.v4.new_output("stream")])),
    (gives_nothing_away, change("def scale", solving.STUB, "return w.abs().max() / 7")),
]


@pytest.mark.parametrize(("rule", "breaks"), BREAKS)
def test_a_broken_exercise_is_found(rule, breaks):
    path = EXERCISES[0]
    notebook = released(nbformat.read(path, 4))
    assert not list(rule(notebook, path))
    breaks(notebook)
    assert list(rule(notebook, path))


def test_exercises_are_as_build_writes_them():
    build(check=True)


def executed(path: Path, tmp_path: Path) -> list[str]:
    """What the checks of a notebook print, cell by cell; an error anywhere fails."""
    notebook = deepcopy(nbformat.read(path, 4))
    with _kernel(smoke=True):
        place = {"metadata": {"path": tmp_path}}
        NotebookClient(notebook, kernel_name="python3", timeout=300, resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    cells = [cell for cell in notebook.cells if cell.id.startswith("check-") and cell.cell_type == "code"]
    return ["".join(output.text for output in cell.outputs) for cell in cells]


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("folder", "symbol"), [("exercises", "⏳"), ("solutions", "✅")])
def test_runs_from_top_to_bottom(path, folder, symbol, tmp_path):
    printed = executed(ROOT / folder / path.name, tmp_path)
    assert [line[0] for line in printed] == [symbol] * len(solving.tasks(path))
    assert all(line.count("\n") == 1 for line in printed)
