"""`q4 run`, `refresh`, `link`, `lab` and the bootstrap cell, on tiny notebooks in folders of their own."""

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from q4lib.kit import lessons
from q4lib.kit.bootstrap import address, bootstrap, dress
from q4lib.kit.cli import main

ROOT = Path(__file__).resolve().parent.parent
FACTS = address(ROOT)
PARAMETERS = 'PRESET = "smoke"  # smoke, class or full'


def store(root: Path, name: str, *sources: str, parameters: str = PARAMETERS) -> Path:
    """A lesson without a bootstrap cell, which would load torch: what runs is its third cell and the following."""
    cells = [
        new_markdown_cell(f"# {name}\n\n<!-- badge -->"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    path = root / "notebooks" / f"{name}.ipynb"
    (root / "notebooks" / "results").mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(new_notebook(cells=cells)) + "\n")
    return path


def checkout(root: Path, monkeypatch) -> Path:
    """A folder that q4 takes for its repository."""
    root.mkdir(exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    monkeypatch.setattr(lessons, "ROOT", root)
    return root


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """Two lessons that nobody executes."""
    root = checkout(tmp_path / "course", monkeypatch)
    store(root, "01_quantization", "1")
    store(root, "06_train_cifar10", "1", parameters=f"{PARAMETERS}\nMINUTES = 5")
    return root


SEEN = """import os, sys
from pathlib import Path

print(PRESET, sys.executable, os.environ["OMP_NUM_THREADS"], os.environ["Q4_WIDGETS"], "Q4_DATA" in os.environ)
print(os.environ["Q4_HOME"], os.listdir())"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """`q4 run` of four lessons, from a folder of its own: two end well, one raises, the kernel of one dies."""
    root = tmp_path_factory.mktemp("course")
    home, elsewhere, foreign = (tmp_path_factory.mktemp(name) for name in ("home", "elsewhere", "foreign"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        checkout(root, monkeypatch)
        store(root, "01_seen", SEEN)
        store(root, "02_raises", "fine = 1", "before = 2\n1 / 0", "print('not reached')")
        store(root, "03_dies", "import os", "os._exit(1)  # the kernel is gone")
        store(
            root,
            "04_minutes",
            "print('minutes', MINUTES + 1, kind)",
            parameters=f"{PARAMETERS}\nMINUTES = 5\nkind = 'a'",
        )
        before = {path: path.read_bytes() for path in (root / "notebooks").glob("*.ipynb")}
        # Another Python's kernel has the same name.
        spec = foreign / "kernels" / "python3"
        spec.mkdir(parents=True)
        spec.joinpath("kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
        for name, value in {"JUPYTER_PATH": foreign, "Q4_HOME": home, "Q4_DATA": home}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.chdir(elsewhere)
        variables = dict(os.environ)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = main(["run", "--out", "made", "-p", "MINUTES", "3", "-p", "kind", "long run"])
        assert os.environ == variables and Path.cwd() == elsewhere
    return SimpleNamespace(
        status=status, out=elsewhere / "made", printed=out.getvalue(), said=err.getvalue(), home=home,
        before=before, after={path: path.read_bytes() for path in before},
    )  # fmt: skip


def text(path: Path) -> str:
    cells = nbformat.read(path, 4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_run_names_lesson_cell_and_error(executed):
    assert executed.status == 1
    first, raised, died, *rest = executed.said.strip().splitlines()
    assert first == "q4: not every lesson ran to its end:" and not rest
    assert raised == "  02_raises, cell 4 (`before = 2`): ZeroDivisionError: division by zero"
    assert died.startswith("  03_dies, cell 4 (`os._exit(1)  # the kernel is gone`): DeadKernelError")


def test_run_goes_on_after_a_failure(executed):
    assert text(executed.out / "04_minutes.ipynb") == "minutes 4 long run\n"
    assert "not reached" not in text(executed.out / "02_raises.ipynb")


def test_run_takes_this_python_and_nothing_of_the_users(executed):
    seen, files = text(executed.out / "01_seen.ipynb").splitlines()
    assert seen == f"smoke {sys.executable} 1 0 False"
    assert files.endswith(" []") and not files.startswith(str(executed.home))
    assert not list(executed.home.iterdir())


def test_run_leaves_notebooks_pages_and_minutes(executed):
    names = ["01_seen", "02_raises", "03_dies", "04_minutes"]
    made = {f"{name}.{kind}" for name in names for kind in ("ipynb", "html")} | {"minutes.md"}
    assert {path.name for path in executed.out.iterdir()} == made
    assert sys.executable in (executed.out / "01_seen.html").read_text()
    table = (executed.out / "minutes.md").read_text()
    assert table in executed.printed
    rows = re.findall(r"^\| (\w+) \| (\d+\.\d\d) \| (\w.*) \|$", table, re.M)
    ends = ["yes", "NO", "NO", "yes", "2 of 4"]
    assert [(row[0], row[2]) for row in rows] == list(zip([*names, "together"], ends, strict=True))
    assert [f"{name} ({i} of 4)" in executed.printed for i, name in enumerate(names, 1)] == [True] * 4


def test_run_works_on_copies(executed):
    assert executed.before == executed.after


def test_a_preset_that_takes_its_time_is_heard_at_once(tmp_path, monkeypatch, capsys):
    checkout(tmp_path, monkeypatch)
    store(tmp_path, "01_long", "print('about 3 hours here')\n1 / 0")
    for preset, heard in (("smoke", 0), ("class", 1)):
        assert main(["run", "--preset", preset, "--out", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().out.count("about 3 hours here") == heard


def refused(capsys, *arguments) -> str:
    assert main(list(arguments)) == 1
    said = capsys.readouterr().err
    assert said.startswith("q4: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "smok"], "no preset is called 'smok' (did you mean 'smoke'?): there are smoke, class, full"),
        (["-p", "MINUTE", "3"], "no parameter is called 'MINUTE' (did you mean 'MINUTES'?): there are MINUTES"),
        (["01", "-p", "MINUTES", "3"], "no parameter is called 'MINUTES': there is none but PRESET"),
        (["-p", "PRESET", "class"], "PRESET is set by --preset"),
        (["01_quantisation"], "no lesson is called '01_quantisation' (did you mean '01_quantization'?)"),
        (["7"], "no lesson is called '7': there are 01_quantization, 06_train_cifar10"),
    ],
)
def test_run_refuses_what_it_does_not_know(arguments, words, course, tmp_path, capsys):
    assert words in refused(capsys, "run", "--out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_run_refuses_a_lesson_without_a_preset(course, capsys):
    store(course, "02_none", "1", parameters="MINUTES = 5")
    assert "02_none sets no PRESET in a cell tagged `parameters`" in refused(capsys, "run")


def test_run_never_writes_over_the_lessons(course, capsys):
    assert "holds the lessons themselves" in refused(capsys, "run", "--out", str(course / "notebooks"))


@pytest.mark.parametrize("name", ["1", "01", "01_quantization", "notebooks/01_quantization.ipynb"])
def test_a_lesson_has_several_names(name, course):
    assert [path.stem for path in lessons.find([name])] == ["01_quantization"]
    assert len(lessons.find()) == 2


@pytest.mark.parametrize("command", [["run"], ["refresh"], ["lab"], ["link", "us/q4"]])
def test_lessons_come_with_the_repository(command, tmp_path, monkeypatch, capsys):
    checkout(tmp_path / "site-packages", monkeypatch)
    said = refused(capsys, *command)
    assert "the lessons come with the repository, not with the package: git clone https://github.com/" in said


@pytest.mark.parametrize("command", ["run", "lab", "refresh"])
def test_a_missing_extra_is_named(command, course, monkeypatch, capsys):
    monkeypatch.setattr(lessons, "find_spec", lambda name: None)
    assert "pip install 'q4lib[lab]'" in refused(capsys, command)


def test_lab_opens_the_notebooks(course, monkeypatch):
    called = []
    monkeypatch.setattr(lessons, "find_spec", lambda name: True)
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))
    main(["lab"])
    where = [f"--ServerApp.root_dir={course}", "--LabApp.default_url=/lab/tree/notebooks"]
    command = [sys.executable, "-m", "jupyterlab", *where]
    assert called == [(sys.executable, command)]


def stale_lesson(root: Path) -> Path:
    """A lesson as `refresh` leaves it, but for a number; and with what an editor puts into a notebook."""
    path = store(root, "01_stale", "print('levels:', 15, flush=True)\nprint('done')", "import random\nrandom.random()")
    notebook = nbformat.read(path, 4)
    dress(notebook, path.stem, **FACTS)
    notebook.cells[1].outputs = [new_output("stream", text=f"q4lib {version('q4lib')} is here: nothing to install\n")]
    notebook.cells[3].outputs = [new_output("stream", text="levels: 16\ndone\n")]
    notebook.cells[4].metadata.tags = ["nbval-ignore-output"]
    notebook.metadata.widgets, notebook.cells[3].execution_count = {}, 7
    path.write_text(nbformat.writes(notebook) + "\n")
    return path


def test_refresh_says_which_numbers_changed(tmp_path, monkeypatch, capsys):
    root = checkout(tmp_path / "course", monkeypatch)
    path = stale_lesson(root)
    fails = store(root, "02_fails", "1 / 0")
    before, failing, ids = path.read_bytes(), fails.read_bytes(), [cell.id for cell in nbformat.read(path, 4).cells]

    assert main(["refresh", "01", "--check"]) == 1
    printed, said = capsys.readouterr()
    assert printed == "01_stale\n  cell 4 (`print('levels:', 15, flush=True)`): levels: 16 -> 15\n"
    assert "01_stale" in said and path.read_bytes() == before

    assert main(["refresh"]) == 1
    printed, said = capsys.readouterr()
    assert "levels: 16 -> 15" in printed
    assert "02_fails, cell 4 (`1 / 0`): ZeroDivisionError" in said
    assert fails.read_bytes() == failing

    fresh = nbformat.read(path, 4)
    assert [cell.id for cell in fresh.cells] == ids
    assert fresh.cells[3].outputs == [{"output_type": "stream", "name": "stdout", "text": "levels: 15\ndone\n"}]
    assert fresh.cells[1].source == bootstrap(**FACTS) and fresh.metadata.keys() == {"kernelspec", "language_info"}
    assert [cell.get("execution_count") for cell in fresh.cells] == [None, 1, 2, 3, 4]
    assert not any("papermill" in cell.metadata for cell in fresh.cells)
    written = path.read_bytes()
    assert main(["refresh", "01", "--check"]) == 0
    assert capsys.readouterr().out == "01_stale\n" and path.read_bytes() == written


def test_refresh_keeps_what_was_edited_meanwhile(tmp_path, monkeypatch, capsys):
    root = checkout(tmp_path / "course", monkeypatch)
    path = root / "notebooks" / "01_edited.ipynb"
    edit = f"from pathlib import Path\n\npath = Path({str(path)!r})\npath.write_text(path.read_text() + '\\n')"
    assert store(root, "01_edited", edit) == path
    before = path.read_text()
    assert main(["refresh"]) == 1
    assert "01_edited was edited while it ran, and is left as it is" in capsys.readouterr().err
    assert path.read_text() == before + "\n"


def test_link_leaves_no_old_address(tmp_path, monkeypatch, capsys):
    root = tmp_path / "copy"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    monkeypatch.setattr(lessons, "ROOT", root)
    old = FACTS["repository"]
    lesson = store(root, "99_last", f"# https://github.com/{old}/issues", f"# https://github.com/{old}-data")
    (root / "README.md").write_text(f"{(root / 'README.md').read_text()}\n[q4](https://github.com/{old}.git)\n")
    (root / "exercises").mkdir(exist_ok=True)
    exercise = root / "exercises" / "99_last.ipynb"
    exercise.write_text(f"(https://colab.research.google.com/github/{old}/blob/v1/exercises/99_last.ipynb)")
    assert main(["link", "a-school/four_bits"]) == 0
    assert address(root) == FACTS | {"repository": "a-school/four_bits"}
    left = [
        path
        for path in root.rglob("*")
        if path.is_file() and re.search(rb"%s(?!-data)" % old.encode(), path.read_bytes())
    ]
    assert not left
    notebook = nbformat.read(lesson, 4)
    assert "/github/a-school/four_bits/blob/v" in notebook.cells[0].source
    assert "git+https://github.com/a-school/four_bits@v" in notebook.cells[1].source
    assert notebook.cells[-1].source == f"# https://github.com/{old}-data"
    assert "/github/a-school/four_bits/blob/" in exercise.read_text()
    assert "https://github.com/a-school/four_bits.git" in (root / "README.md").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert {"pyproject.toml", "README.md", "notebooks/99_last.ipynb"} <= set(printed)
    assert main(["link", "a-school/four_bits"]) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize("repository", ["q4", "https://github.com/us/q4", "a/b/c", "a b/c"])
def test_link_refuses_what_is_no_repository(repository, course, capsys):
    assert "give the repository as OWNER/REPO" in refused(capsys, "link", repository)


HERE = f"q4lib {version('q4lib')} is here: nothing to install\n"


@pytest.fixture
def cell(monkeypatch, capsys):
    """Runs the bootstrap cell on a host without q4lib, whose pip ends as told; the command and what was printed."""

    def run(error: str = "", tag: str = FACTS["version"], found: bool = False):
        commands = []

        def pip(command, **_):
            commands.append(command)
            return SimpleNamespace(returncode=bool(error), stderr=error)

        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(subprocess, "run", pip)
        if not found:
            monkeypatch.setattr(importlib, "import_module", missing)
        exec(compile(bootstrap(FACTS["repository"], tag), "bootstrap", "exec"), {"__name__": "__main__"})
        return commands, capsys.readouterr().out

    return run


def test_bootstrap_does_nothing_where_q4lib_is(cell):
    assert cell(found=True) == ([], HERE)
    assert cell(found=True) == ([], HERE)


def test_bootstrap_says_that_the_tag_is_another(cell):
    assert cell(found=True, tag="9.9") == (
        [], HERE + "This lesson belongs to q4lib 9.9: with another version its numbers may differ.\n",
    )  # fmt: skip


def test_bootstrap_installs_the_tag_of_the_badge_and_keeps_the_hosts_packages(cell):
    [[*command, source]], printed = cell()
    assert source == f"git+https://github.com/{FACTS['repository']}@v{FACTS['version']}"
    pins = {f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy", "ipywidgets", "ipython")}
    assert set(command[-5:]) == pins
    assert command[:-5] == [sys.executable, "-m", "pip", "install", "-q", "--upgrade-strategy", "only-if-needed"]
    assert re.fullmatch(r"installed .* in \d+ s\n", printed)


def test_bootstrap_takes_q4_source(cell, monkeypatch):
    monkeypatch.setenv("Q4_SOURCE", "/usb/q4lib.whl")
    [command], _ = cell()
    assert command[-1] == "/usb/q4lib.whl"


def test_bootstrap_tells_colab_how_to_keep_things(cell, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    _, printed = cell()
    assert "Save a copy in Drive" in printed and "%env Q4_HOME=/content/drive/MyDrive/q4" in printed


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("WARNING: Retrying: Temporary failure in name resolution\nERROR: Could not find", "there is no network"),
        ("  fatal: unable to access: Could not resolve host: github.com\nERROR: git failed", "there is no network"),
        ("  fatal: no such tag\n\nerror: subprocess", "fatal: no such tag"),
        (
            "WARNING: x\nERROR: Cannot install q4lib and numpy==2.0\nERROR: Resolution",
            "installed: Cannot install q4lib and numpy",
        ),
        ("No module named pip\n", "No module named pip"),
        ("\n", "pip did not say why"),
    ],
)
def test_bootstrap_fails_in_one_sentence(error, sentence, cell):
    with pytest.raises(Exception) as caught:
        cell(error)
    [shown] = caught.value._render_traceback_()
    assert shown.startswith("q4lib could not be installed: ") and sentence in shown and "\n" not in shown


def test_bootstrap_is_short():
    assert len(bootstrap(**FACTS).splitlines()) <= 45
