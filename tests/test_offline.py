"""`q4 offline`: packed once, then installed and used with the network off."""

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
from packaging.utils import canonicalize_name

from q4lib.kit.cli import main
from q4lib.kit.offline import _images, needed, offline

# What takes long to fetch and to install; install.py links it.
HEAVY = (
    "torch,torchvision,scipy,scikit-learn,matplotlib,numpy,pillow,babel,debugpy,jedi,"
    "anyio,argon2-cffi,bleach,httpx,jsonschema,prometheus-client,prompt-toolkit,pyyaml,requests"
)

NAMESPACE = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:  # a kernel is talked to over the loopback, which is down in a new namespace
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
os.execvp(sys.argv[1], sys.argv[1:])
"""
GUARD = """
import socket

def guarded(connect):
    def connect_here(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise OSError(f"the network is off: {address}")
        return connect(self, address)
    return connect_here

socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""
DIALS = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=60)"
HAS_NAMESPACES = bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-rn", "true"]).returncode


def without_network(way: str, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """What to put before a command, and the variables to run it with."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH"))}
    env |= {"Q4_HOME": str(scratch / "home"), "OMP_NUM_THREADS": "1"}
    if way == "namespace":
        return ["unshare", "-rn", sys.executable, "-c", NAMESPACE], env
    (scratch / "sitecustomize.py").write_text(GUARD)
    dead = "http://127.0.0.1:9"
    return [], env | {"PYTHONPATH": str(scratch), "http_proxy": dead, "https_proxy": dead, "all_proxy": dead}


def python_of_the_room(folder: Path, names: list[str]) -> Path:
    """A Python in which nothing is installed but these packages, linked."""
    venv.create(folder)
    [site] = folder.glob("lib/python*/site-packages")
    for package in map(distribution, names):
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return folder / "bin/python"


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("usb") / "q4"
    with pytest.MonkeyPatch.context() as patch:  # q4_home is for one test, this for all: without CIFAR-10
        patch.delenv("Q4_DATA", raising=False)
        patch.setenv("Q4_HOME", str(folder.parent / "home"))
        offline(folder, HEAVY)
    return folder


WAYS = ["guard", pytest.param("namespace", marks=[] if HAS_NAMESPACES else pytest.mark.xfail(reason="none here"))]


@pytest.mark.parametrize("way", WAYS)
def test_the_network_is_off(way, tmp_path):
    prefix, env = without_network(way, tmp_path)
    done = subprocess.run([*prefix, sys.executable, "-c", DIALS], env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode and ("the network is off" if way == "guard" else "unreachable") in done.stderr


def test_installed_and_used_without_a_network(pack, tmp_path):
    way = "namespace" if HAS_NAMESPACES else "guard"
    print(f"the network is off by {way}")
    prefix, env = without_network(way, tmp_path)
    course, out = tmp_path / "room", tmp_path / "out"

    def run(*command: object) -> str:
        done = subprocess.run([*prefix, *map(str, command)], env=env, cwd=course, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    mine = course / "exercises/01_quantization.ipynb"
    mine.parent.mkdir(parents=True)
    mine.write_text("my answers")
    (pack / "data").mkdir()
    (pack / "data/cifar10.npz").write_text("images")
    python = python_of_the_room(tmp_path / "python", json.loads((pack / "pack.json").read_text())["linked"])
    assert run(python, pack / "install.py", course).endswith(f"cd {course} && .venv/bin/q4 lab\n")
    assert mine.read_text() == "my answers" and (mine.parent / "02_straight_through.ipynb").exists()
    assert (tmp_path / "home/cache/cifar10.npz").read_text() == "images"

    run(course / ".venv/bin/q4", "run", "00", "01", "02", "--preset", "smoke", "--out", out)
    assert "| together | " in (out / "minutes.md").read_text() and "| 3 of 3 |" in (out / "minutes.md").read_text()
    for path in sorted(out.glob("*.ipynb")):
        stored = nbformat.read(course / "notebooks" / path.name, 4)
        assert len(stored.cells) == len(nbformat.read(path, 4).cells) - 1  # papermill's own with the preset


def test_what_is_in_it(pack, capsys):
    wheels = {canonicalize_name(path.name.partition("-")[0]) for path in pack.glob("wheels/*.whl")}
    linked = set(json.loads((pack / "pack.json").read_text())["linked"])
    assert wheels | linked == set(needed()) and not wheels & linked
    assert wheels >= {"q4lib", "ipywidgets", "papermill"} and linked >= set(HEAVY.split(","))
    course = pack / "course"
    assert not list(course.rglob("solutions")) and len(list(course.glob("exercises/*.ipynb"))) >= 5
    page = (course / "html/01_quantization.html").read_text()
    assert "15 levels" in page and 'href="02_straight_through.html"' in page and '<script src="http' not in page
    readme = (pack / "README.md").read_text()
    assert f"- {len(wheels)} wheels" in readme and "not in it: torch," in readme and "CIFAR-10" in readme
    assert not pack.with_name("q4.part").exists()


def test_a_killed_run_goes_on(pack, tmp_path, capfd):
    """From what a kill leaves: a wheel cut short, one of an older version, an old course."""
    part = tmp_path / "again.part"
    shutil.copytree(pack, part)
    count = len(list(part.glob("wheels/*")))
    [cut] = part.glob("wheels/comm-*.whl")
    cut.write_bytes(cut.read_bytes()[:-100])
    cut.with_name("comm-0.0.1-py3-none-any.whl").write_bytes(b"old")
    (part / "course/exercises/99_old.ipynb").touch()
    offline(tmp_path / "again", HEAVY)
    assert f"2 wheels to get, {count - 2} are here" in capfd.readouterr().out
    assert {path.name for path in tmp_path.glob("again/wheels/*")} == {path.name for path in pack.glob("wheels/*")}
    assert cut.name in {path.name for path in tmp_path.glob("again/wheels/*")} and not part.exists()
    assert not (tmp_path / "again/course/exercises/99_old.ipynb").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"python": "3.1"}, "These wheels are for Python 3.1 on "),
        ({"platform": "Plan9 z80"}, "on Plan9 z80, this is Python "),
        (
            {"linked": {"no-such-package": "1.0"}},
            "no-such-package is not in this pack: run install.py with a Python in",
        ),
    ],
)
def test_the_wrong_python_is_told(pack, change, says, tmp_path):
    shutil.copy(pack / "install.py", tmp_path)
    (tmp_path / "pack.json").write_text(json.dumps(json.loads((pack / "pack.json").read_text()) | change))
    done = subprocess.run([sys.executable, tmp_path / "install.py", tmp_path / "room"], capture_output=True, text=True)
    assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "room").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["here"], "q4: here exists: delete it, or give another folder\n"),
        (["new", "--without", "nbconvert"], "whose files for Jupyter cannot be linked: pack it\n"),
        (["new", "--without", "torch,tensorflow"], "q4: --without names tensorflow, which the course does not need\n"),
    ],
)
def test_refusals(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(["offline", *arguments]) == 1 and capsys.readouterr().err.endswith(says)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_package_left_out_takes_what_only_it_needs():
    everything, packed = set(needed()), set(needed(["torch", "torchvision"]))
    assert {"torch", "torchvision", "sympy"} <= everything - packed and {"numpy", "jinja2", "ipykernel"} <= packed


def test_images_go_along(cifar10_pack, tmp_path):
    assert _images(tmp_path / "data") == ""
    assert (tmp_path / "data/cifar10.npz").stat().st_size == cifar10_pack.stat().st_size
