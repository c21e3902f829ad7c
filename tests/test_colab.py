"""The course where Colab runs it: its ipywidgets 7, IPython 7 and classic notebook, and a folder with one lesson."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from q4lib.kit.bootstrap import address, bootstrap
from q4lib.kit.browser import ClassicNotebook, jupyter

ROOT = Path(__file__).resolve().parent.parent
FACTS = address(ROOT)
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("[0-9]*.ipynb"))
JUPYTER = ["ipykernel", "ipython", "ipywidgets", "notebook", "traitlets"]
HOST = ["filelock", "matplotlib", "numpy", "pillow", "safetensors", "scikit-learn", "scipy", "torchvision", "tqdm"]


def uv(*arguments: object) -> None:
    command = [sys.executable, "-m", "uv", "--quiet", "--no-python-downloads", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"uv {arguments[0]} failed (it needs the package registry):\n{done.stderr}"


def with_needs(*names: str) -> Iterable[importlib.metadata.Distribution]:
    """Installed packages and all that they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [Requirement(name) for name in names]
    while wanted:
        need = wanted.pop()
        if str(need) not in found:
            package = found[str(need)] = importlib.metadata.distribution(need.name)
            for further in map(Requirement, package.requires or []):
                if not further.marker or any(further.marker.evaluate({"extra": e}) for e in ("", *need.extras)):
                    wanted.append(further)
    return found.values()


class Colab:
    """An environment with Colab's Jupyter and this Python's torch, without q4lib; and a home for the reader's files."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.python, self.home, self.temporary = folder / "env/bin/python", folder / "q4", folder / "tmp"
        self.temporary.mkdir(parents=True)
        uv("venv", "--seed", "--python", sys.executable, folder / "env")
        uv("pip", "install", "--python", self.python, "--constraint", ROOT / "tests/colab-packages.txt", *JUPYTER)
        [site] = folder.glob("env/lib/python*/site-packages")
        for package in with_needs(*HOST):
            for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())
        kernel = folder / "kernels/colab"
        kernel.mkdir(parents=True)
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.joinpath("kernel.json").write_text(json.dumps({"argv": argv, "display_name": "", "language": "python"}))
        self.env = {"JUPYTER_PATH": str(folder), "IPYTHONDIR": str(folder / "i"), "TMPDIR": str(self.temporary)}
        self.env |= {"Q4_HOME": str(self.home), "Q4_SOURCE": str(wheel), "OMP_NUM_THREADS": "1"}

    def packages(self) -> dict[str, str]:
        """What pip finds installed."""
        command = [self.python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        return {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed)}

    def execute(self, notebook, folder: Path) -> list[str]:
        """Run all cells in a fresh kernel in a folder; what each code cell printed. Raises what a cell does."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delenv("Q4_WIDGETS", raising=False)
            for name, value in self.env.items():
                monkeypatch.setenv(name, value)
            where = {"metadata": {"path": folder}}
            NotebookClient(notebook, kernel_name="colab", timeout=600, resources=where).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]

    def train(self, *options: str, **how) -> subprocess.Popen:
        command = [self.python, "-m", "q4lib.kit.cli", "train", "digits", "--epochs", "4", "--device", "cpu", *options]
        return subprocess.Popen(command, env=os.environ | self.env, cwd=self.temporary, **how)


BOOTSTRAP_TWICE = new_notebook(cells=[new_code_cell(bootstrap(**FACTS)) for _ in range(2)])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--out-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def colab(tmp_path_factory, wheel) -> SimpleNamespace:
    """An environment in which the bootstrap cell was run twice, in one kernel; what it had, has now and printed."""
    folder = tmp_path_factory.mktemp("colab")
    machine = Colab(folder, wheel)
    before = machine.packages()
    printed = machine.execute(BOOTSTRAP_TWICE, machine.temporary)
    return SimpleNamespace(machine=machine, before=before, printed=printed, after=machine.packages())


def test_it_is_as_colab_is(colab):
    theirs = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "tests/colab-packages.txt").read_text(), re.M))
    assert {name: colab.before[name] for name in JUPYTER} == {name: theirs[name] for name in JUPYTER}
    assert colab.before["torch"] == importlib.metadata.version("torch") and "q4lib" not in colab.before


def test_the_bootstrap_adds_q4lib_and_changes_nothing(colab):
    assert colab.after == colab.before | {"q4lib": FACTS["version"]}
    first, second = colab.printed
    [seconds] = re.findall(rf"^installed q4lib {re.escape(FACTS['version'])} in (\d+) s$", first.strip())
    assert int(seconds) < 30
    assert second == f"q4lib {FACTS['version']} is here: nothing to install\n"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_alone(colab, lesson, tmp_path):
    """With live widgets, in smoke, in a folder that holds nothing but it, and that holds nothing else afterwards."""
    shutil.copy(lesson, tmp_path)
    colab.machine.execute(nbformat.read(tmp_path / lesson.name, 4), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [lesson.name]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_runs_alone(colab, exercise, tmp_path):
    """Unsolved, and then solved in the same kernel; in a folder that holds nothing but it, before and afterwards."""
    shutil.copy(exercise, tmp_path)
    notebook = nbformat.read(exercise, 4)
    notebook.cells += nbformat.read(ROOT / "solutions" / exercise.name, 4).cells[2:]
    printed = colab.machine.execute(notebook, tmp_path)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    said = [text for source, text in zip(code, printed, strict=True) if re.search(r"^check\(", source, re.M)]
    half = len(said) // 2
    assert half >= 4 and [text[:1] for text in said] == ["⏳"] * half + ["✅"] * half, said
    assert [path.name for path in tmp_path.iterdir()] == [exercise.name]


def test_the_classic_notebook_moves_a_slider(colab, driver, tmp_path):
    from selenium.webdriver import Keys

    lesson, home = tmp_path / "lesson", tmp_path / "home"
    lesson.mkdir(), home.mkdir()
    shutil.copy(ROOT / "notebooks/01_quantization.ipynb", lesson)
    variables = colab.machine.env | {"JUPYTER_PATH": ""}
    with jupyter(lesson, home, ["notebook"], colab.machine.python, **variables) as url:
        notebook = ClassicNotebook(driver, url, "01_quantization.ipynb")
        notebook.run()
        assert not notebook.errors()
        ruler = notebook.wait(notebook.explorers, "a figure")[0]
        picture, numbers, _ = ruler.seen()
        assert numbers.startswith("2 bits: 3 levels")
        ruler.press("bits", Keys.ARROW_RIGHT)
        ruler.wait_for("3 bits: 7 levels")
        seen = ruler.seen()
        assert seen[0].startswith("data:image/png") and seen[0] != picture and not seen[2]
        ruler.drag("bits", to=1)
        ruler.wait_for("8 bits: 255 levels")
        assert ruler.seen()[0] != seen[0]
        driver.save_screenshot(str(tmp_path / "classic.png"))


def test_a_run_survives_its_machine(colab, wheel, tmp_path):
    """Killed, its Q4_HOME brought to a second fresh machine, resumed there: it ends as if nothing had happened."""
    run = "runs/digits.e4-digits-b4-s0"
    first = colab.machine
    whole = first.train("--out", str(tmp_path / "whole"))
    assert whole.wait(600) == 0
    killed = first.train()
    log = first.home / run / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert killed.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL and not (first.home / run / "model.safetensors").exists()

    second = Colab(tmp_path / "second", wheel)
    shutil.copytree(first.home / run, second.home / run)
    second.execute(BOOTSTRAP_TWICE, second.temporary)
    resumed = second.train(stdout=subprocess.PIPE, text=True)
    printed, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0 and "going on from epoch" in printed, printed
    for file in ("model.safetensors", "checkpoint.safetensors"):
        assert (second.home / run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
