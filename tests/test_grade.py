"""q4 grade: thirty submissions in one command; whose a file is; what becomes of a notebook and of a written answer."""

import csv
import os
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import nbformat
import pytest
import submissions
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from q4lib.files import FileError
from q4lib.kit import cli, nbgrading, sandbox
from q4lib.kit.build import build, released
from q4lib.kit.grade import collect
from q4lib.kit.mend import Cell, exercise, mend, recognize
from q4lib.kit.submissions import Student, find, match, read_roster

NAMES = list(submissions.thirty(submissions.SOLUTION, 0))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """All thirty, graded once: what was expected, the rows of the gradebook, the folder, the network's visitors."""
    folder, visits = tmp_path_factory.mktemp("class"), []
    (folder / "bait").mkdir()

    class Visited(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            visits.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Visited) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        students = submissions.thirty(folder / "bait", server.server_port)
        files = submissions.pack({name: made for name, (made, *_) in students.items()}, folder)
        command = ["grade", str(files[0]), "--roster", str(files[1]), "--out", str(folder / "out")]
        assert cli.main([*command, "--seconds", "60", "--memory", "2"]) == 0
        server.shutdown()
    with (folder / "out" / "gradebook.csv").open(encoding="utf-8-sig") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    return students, rows, folder, visits, command


@pytest.mark.parametrize("name", NAMES)
def test_each_gets_the_points_of_what_is_right(graded, name):
    students, rows, folder, *_ = graded
    _, right, status = students[name]
    row, tasks = rows[name], [task for task in rows[name] if task[0].isdigit()]
    print(row)
    assert {task for task in tasks if row[task] == "1"} == right
    assert row["status"] == status
    page = folder / "out" / "feedback" / f"{row['id']}.html"
    assert page.exists() == (status != "missing")
    for task in right:
        assert f"✅ {task} " in page.read_text()
    for task in set(submissions.RIGHT) - right if row["exercise"] == "01" else ():
        assert re.search(f"[❌⏳] {task} ", page.read_text())


SAYS = {
    "Eli Broken": "01_quantization.ipynb cannot be read: it is broken JSON",
    "Fay Empty": "it is empty",
    "Gus Script": "answers.py: a notebook (.ipynb) is asked for",
    "Kim Endless Cell": "1.4 did not end within 60 seconds; the rest was graded without it",
    "Lea Memory": "1.4 asked for more than 2 GB of memory",
    "Wim Exits": "1.5 ended Python itself",
    "Uma Last Year": "it checks 1.9, which exercise 01 has not",
    "Zac Patches": "its code mentions q4lib.kit.check: does it change the checks?; 1.1: its check did not answer",
    "Quin Colab": "put back in their places: 1.1, 1.2, 1.3, 1.4, 1.5, 1.6",
    "Abe Twice": "an earlier file does not count: 01_quantization.ipynb",
}


@pytest.mark.parametrize("name", SAYS)
def test_what_is_said_of_it(graded, name):
    assert SAYS[name] in graded[1][name]["note"]


def test_what_they_can_not_reach(graded):
    _, rows, folder, visits, _ = graded
    assert len(rows) == 30 and rows["Bea Other"]["exercise"] == "02"
    assert not visits
    if not sandbox.refused():
        assert (folder / "bait").exists()


def test_a_second_run_grades_only_what_is_new(graded, capsys):
    *_, command = graded
    before = (graded[2] / "out" / "gradebook.csv").read_bytes()
    assert cli.main([*command, "--seconds", "60", "--memory", "2"]) == 0
    printed = capsys.readouterr().out
    assert "26 of 30 graded, 0 of them now" in printed
    assert "Missing:\n  Hal Nothing" in printed and "  Wim Exits, 01: 1.5 ended Python itself" in printed
    assert (graded[2] / "out" / "gradebook.csv").read_bytes() == before


def test_without_namespaces_it_says_so_and_still_blocks_python(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "refused", lambda: "unshare: Operation not permitted")
    probe = "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/', timeout=2)"
    notebook = submissions.after(submissions.filled({"1.1": submissions.RIGHT["1.1"]}), "1.1", probe)
    (tmp_path / "in" / "ada").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "in" / "ada" / submissions.EXERCISE)
    assert cli.main(["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "No namespaces here (unshare: Operation not permitted)" in capsys.readouterr().out
    done = (tmp_path / "out" / "nbgrader" / "submitted" / "ada" / "01" / submissions.EXERCISE).read_text()
    assert "there is no network while an exercise is graded" in done
    assert "ada,ada,,01,1,0,0,0,0,0,1,6,graded" in (tmp_path / "out" / "gradebook.csv").read_text("utf-8-sig")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An exercise of one function and one written answer."""
    cells = [
        new_markdown_cell("# 01 Exercise: tiny\n\n<!-- badge -->"),
        new_markdown_cell("## 1.1 Add\n\nOne."),
        new_code_cell("def f(w):\n    ### BEGIN SOLUTION\n    return w + 1\n    ### END SOLUTION"),
        new_code_cell('from q4lib.kit import check\n\ncheck("1.1", f)'),
        new_markdown_cell("## 1.2 Why?\n\nSay it."),
        new_markdown_cell("### BEGIN SOLUTION\nBecause.\n### END SOLUTION"),
    ]
    (tmp_path / "solutions").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "solutions" / "01_tiny.ipynb")
    build(root=tmp_path)
    monkeypatch.setattr(nbgrading, "ROOT", tmp_path)
    return exercise("01_tiny", released(nbformat.read(tmp_path / "solutions" / "01_tiny.ipynb", 4)))


def test_a_written_answer_waits_for_its_points(tiny, tmp_path):
    """Without one, 0 points; with one, none before a teacher gives them. Code gets its point for a ✅ alone."""
    course = nbgrading.Course(tmp_path / "nbgrader", [tiny])
    answer = [Cell("markdown", "## 1.2 Why?"), Cell("markdown", "Since it is so."), Cell("markdown", "Really.")]
    right, number = new_output("stream", text="✅ 1.1 right\n"), new_output("execute_result", {"text/plain": "1"})
    error = new_output("error", ename="Wrong", evalue="❌", traceback=[])
    students = {
        "reader": (answer, {"check-1-1": [right]}, (1, 1), None),
        "stub": ([], {"check-1-1": [error]}, (0, 1), 0),
        "silent": ([], {"check-1-1": [number]}, (0, 1), 0),
        "unrun": ([], {}, (0, 1), 0),
    }
    for name, (cells, outputs, code, written) in students.items():
        notebook = mend(cells, tiny).notebook
        nbgrading.settle(notebook, outputs)
        course.take(Student(name, name), tiny, notebook)
        assert course.points(Student(name, name), tiny) == {"1.1": code, "1.2": (written, 1)}, name
    file = tmp_path / "nbgrader" / "autograded" / "reader" / "01" / "01_tiny.ipynb"
    cells = nbformat.read(file, 4).cells
    assert "Since it is so.\n\nReally." in [cell.source for cell in cells]
    assert len(cells) == len(tiny.notebook.cells)
    in_code = mend([Cell("markdown", "## 1.2 Why?"), Cell("code", "Since it is so.")], tiny)
    assert in_code.look == ["1.2 asks for a text, and there is only code"]
    with course.api.gradebook as gradebook:
        gradebook.find_grade("task-1-2", "01_tiny", "01", "reader").manual_score = 0.5
        gradebook.db.commit()
    assert course.points(Student("reader", "reader"), tiny)["1.2"] == (0.5, 1)


def test_a_cell_goes_where_it_belongs():
    """By the function it defines, whatever it is called; else by its name; else by its section, and its check."""
    one = exercise("01_quantization", submissions.filled({}))
    scratch, later = Cell("code", "x = 1"), Cell("code", "y = 2")
    cells = [Cell("code", "def channel_scale(w):\n    return 3", "task-1-2"), Cell("code", "z = 3", "task-1-5")]
    cells += [Cell("markdown", "## 1.3 There"), scratch, Cell("code", 'check("1.3", fake_quantize)'), later]
    mended = mend(cells, one)
    order = [cell.source if cell.id.startswith("extra") else cell.id for cell in mended.notebook.cells]
    assert order[order.index("x = 1") :][:4] == ["x = 1", "task-1-3", "check-1-3", "y = 2"]
    sources = {cell.id: cell.source for cell in mended.notebook.cells}
    assert sources["task-1-4"].startswith("def channel_scale") and sources["task-1-5"] == "z = 3"
    assert sources["task-1-2"].endswith(submissions.solving.STUB)
    assert mended.notes == ["answers put back in their places: 1.4"] and not mended.look


def test_what_has_nothing_to_do_with_it_is_no_exercise(tiny):
    assert recognize([Cell("code", "def f(w):\n    return w")], "x.ipynb", [tiny]) is tiny
    assert recognize([Cell("markdown", "## 1.2 Why?")], "x.ipynb", [tiny]) is tiny
    assert recognize([Cell("code", "print(1)")], "01_tiny.ipynb", [tiny]) is None


CLASS = [
    Student("17", "Ada Byron Lovelace", "ada@example.org"),
    Student("18", "Zoë Müller"),
    Student("19", "Zoë Müller"),
]


def test_whose_a_file_is(tmp_path):
    """Moodle's folders, Canvas' names, folders by id or address; of two of one name it is nobody's."""
    for name in ("Ada Byron Lovelace_7_assignsubmission_file/a.ipynb", "lovelaceadabyron_17_900_b.ipynb",
                 "lovelaceada_LATE_17_901_b-1.ipynb", "ada/c.ipynb", "ada@example.org/c.ipynb", "17/c.ipynb",
                 "Zoë Müller_8_assignsubmission_file/z.ipynb", "nobody/d.ipynb", "__MACOSX/x.ipynb",
                 "ada/.ipynb_checkpoints/c.ipynb", "17_01_quantization.ipynb"):  # fmt: skip
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    os.symlink("/etc/hostname", tmp_path / "in" / "link.ipynb")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in (tmp_path / "in").rglob("*.ipynb"):
            archive.write(file, file.relative_to(tmp_path / "in"))
    for path in (tmp_path / "in", tmp_path / "in.zip"):
        found = [(match(file, CLASS), file.name) for file in find(path) if file.name != "link.ipynb"]
        assert sorted(name for student, name in found if student) == [
            "17_01_quantization.ipynb", "a.ipynb", "b-1.ipynb", "b.ipynb", "c.ipynb", "c.ipynb", "c.ipynb",
        ]  # fmt: skip
        assert {name for student, name in found if not student} == {"z.ipynb", "d.ipynb"}
        assert {student for student, _ in found} == {CLASS[0], None}
    assert "link.ipynb" not in [file.name for file in find(tmp_path / "in")]
    with pytest.raises(FileError, match="neither a folder nor a zip"):
        find(tmp_path / "in" / "ada" / "c.ipynb")


@pytest.mark.parametrize(
    ("text", "students"),
    [
        ("id,name,email\n17,Ada Lovelace,a@b.c\n", [Student("17", "Ada Lovelace", "a@b.c")]),
        (
            "First name;Surname;ID number;Email address\nAda;Lovelace;17;a@b.c\n",
            [Student("17", "Ada Lovelace", "a@b.c")],
        ),
        (
            'Student,ID,SIS User ID,SIS Login ID\n    Points Possible,,,\n"Lovelace, Ada",17,x9,ada\n',
            [Student("17", "Ada Lovelace", "ada")],
        ),
    ],
)
def test_rosters(tmp_path, text, students):
    (tmp_path / "roster.csv").write_text(text)
    assert read_roster(tmp_path / "roster.csv") == students


@pytest.mark.parametrize(
    ("text", "says"), [("a,b\n1,2\n", "should name the columns"), ("id,name\n1,A\n1,B\n", "two students with the id 1")]
)
def test_faulty_rosters(tmp_path, text, says):
    (tmp_path / "roster.csv").write_text(text)
    with pytest.raises(FileError, match=says):
        read_roster(tmp_path / "roster.csv")


def test_who_is_not_in_the_roster_is_graded_and_said(tmp_path, tiny):
    (tmp_path / "in").mkdir()
    nbformat.write(tiny.notebook, tmp_path / "in" / "eve.ipynb")
    sheets = collect(find(tmp_path / "in"), CLASS[:1], [tiny])
    assert [str(sheet) for sheet in sheets] == ["Ada Byron Lovelace", "eve, 01"]
    assert sheets[1].look == ["the roster has no eve, or two"]


def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.ipynb").write_text("{}")
    assert cli.main(["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert cli.main(["grade", str(tmp_path / "in"), "--out", str(tmp_path / "in" / "out")]) == 1
    assert cli.main(["grade", str(tmp_path / "no.zip")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "no exercise of this course is in" in said[0] and not (tmp_path / "out").exists()
    assert "lies among the submissions: give another --out" in said[1] and "no.zip is neither" in said[2]
