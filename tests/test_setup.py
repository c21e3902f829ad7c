"""The project as a stranger finds it: what installs it, what it promises of its parts, and the rules of the house."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METHOD = sorted((ROOT / "q4lib").glob("*.py"))
KIT = sorted((ROOT / "q4lib" / "kit").rglob("*.py"))
# README's test command, as CI calls it.
PYTEST = "python -m pytest -n auto --dist loadfile"
# Colab's torch has no CUDA, and Colab's IPython, which needs jedi, came without it.
NOT_ON_COLAB = re.compile(r"(nvidia|cuda)-.*|triton|jedi")


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(r).name) for r in requirements}


BASE = names(PROJECT["dependencies"])
EXTRAS = {name for extra in PROJECT["optional-dependencies"].values() for name in names(extra)}


def uv(*args: object) -> str:
    command = [sys.executable, "-m", "uv", "--no-python-downloads", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"uv {args[0]} failed (it needs the package registry):\n{done.stderr}"
    return done.stdout


def pins(text: str) -> dict[str, str]:
    """`name==version` lines as {canonical name: version}."""
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports, as a dotted name from the top, and the column its import starts at."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.col_offset) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found += [(f"{module}.{alias.name}", node.col_offset) for alias in node.names]
    return found


def test_colab_keeps_all_its_packages():
    colab = pins((ROOT / "tests/colab-packages.txt").read_text())
    resolved = pins(
        uv("pip", "compile", "pyproject.toml", "--constraint", "tests/colab-packages.txt", "--python-version", "3.13",
           "--python-platform", "x86_64-manylinux_2_28", "--no-header", "--no-annotate")
    )  # fmt: skip
    added = {name for name in resolved.keys() - colab.keys() if not NOT_ON_COLAB.fullmatch(name)}
    assert not added, f"Colab would have to install {sorted(added)}"
    assert resolved.keys() >= colab.keys(), f"reached by nothing: {sorted(colab.keys() - resolved.keys())}"
    assert {name: resolved[name] for name in colab} == colab
    assert colab.keys() >= BASE


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_lower_bounds_exist_as_wheels(python):
    lowest = pins(
        uv("pip", "compile", "pyproject.toml", "--resolution", "lowest-direct", "--only-binary", ":all:",
           "--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--no-header", "--no-annotate")
    )  # fmt: skip
    for requirement in map(Requirement, PROJECT["dependencies"]):
        lower = {s.version for s in requirement.specifier if s.operator == ">="}
        assert len(lower) == 1, f"{requirement}: one lower bound"
        assert Version(lowest[canonicalize_name(requirement.name)]) == Version(lower.pop()), requirement


def test_python_versions_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert f"python>={versions[0]},<3.{int(versions[-1][2:]) + 1}" in environment


def test_environment_yml_takes_its_packages_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [d for d in environment if not str(d).startswith("python")] == ["pip", {"pip": ["-e .[lab]"]}]
    assert "lab" in PROJECT["optional-dependencies"]


def test_wheel_built_from_sdist_holds_the_results(tmp_path):
    uv("build", "--quiet", "--out-dir", tmp_path, ROOT)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        built = {name for name in wheel.namelist() if name.startswith("q4lib/")}
    files = [path.relative_to(ROOT).as_posix() for path in project_files()]
    expected = {name for name in files if name.startswith("q4lib/")}
    expected |= {name.replace("notebooks/", "q4lib/", 1) for name in files if name.startswith("notebooks/results/")}
    assert built == expected


STUB = """#!/bin/sh
echo "$(basename $0) $* Q4_ALL=$Q4_ALL Q4_DATA=${Q4_DATA:+set}" >> {log}
[ "$(basename $0) $*" != "$FAILING" ]
"""


@pytest.fixture
def ci(tmp_path):
    """Runs .ci/run with README.md in a folder where every program only logs how it was called."""
    log, clone = tmp_path / "log", tmp_path / "clone"
    for folder in (".ci", ".venv/bin", "bin"):
        (clone / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", clone / ".ci/run")
    shutil.copy(ROOT / "README.md", clone)
    for program in ("bin/python3", *(f".venv/bin/{name}" for name in ("pip", "python", "ruff", "mypy"))):
        (clone / program).write_text(STUB.replace("{log}", str(log)))
        (clone / program).chmod(0o755)

    def run(failing: str = "") -> tuple[int, list[str]]:
        log.unlink(missing_ok=True)
        env = {"PATH": f"{clone}/bin:{os.environ['PATH']}", "FAILING": failing}
        done = subprocess.run(["bash", clone / ".ci/run"], env=env, stdin=subprocess.DEVNULL, timeout=60)
        return done.returncode, log.read_text().splitlines()

    return run


def commands_in_readme() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.split(" && ") for block in blocks for line in block.splitlines() if "-m venv" in line]


def test_readme_has_two_commands():
    train, tests = commands_in_readme()
    assert train == ["python3 -m venv .venv", ".venv/bin/pip install -q -e .", ".venv/bin/q4 train"]
    assert tests == train[:1] + ['.venv/bin/pip install -q -e ".[test]"', f".venv/bin/{PYTEST}"]


def test_ci_runs_readmes_test_command(ci, tmp_path):
    bare, full = " Q4_ALL= Q4_DATA=", " Q4_ALL=1 Q4_DATA="
    setup = ["python3 -m venv .venv" + bare, "pip install -q -e .[test]" + bare]
    checks = ["ruff check .", "mypy ", PYTEST]
    assert ci() == (0, setup + [check + full for check in checks])

    (tmp_path / "shared/data").mkdir(parents=True)
    (tmp_path / "shared/data/unpack").touch()
    status, log = ci()
    assert (status, len(log)) == (0, 6)
    assert log[2].startswith("python ../shared/data/unpack /")
    assert log[3:] == [check + full + "set" for check in checks]


@pytest.mark.parametrize("failing", ["pip install -q -e .[test]", "ruff check .", "mypy ", PYTEST])
def test_ci_fails_when_a_step_fails(ci, failing):
    assert ci(failing)[0] != 0


def test_no_lock_file_and_no_registry_host():
    sites = (
        "pypi",
        "python" + "hosted",
        "registry." + "npmjs",
        "deb." + "debian",
        "download.pytorch",
        "conda.anaconda",
    )
    hosts = [f"{site}.org" for site in sites]
    files = project_files()
    assert len(files) > 10
    assert not [f.name for f in files if f.suffix == ".lock" or re.search(r"[-.]lock\b", f.name)]
    assert not [(f.name, host) for f in files for host in hosts if host.encode() in f.read_bytes()]


def test_citation_names_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    papers = {paper["title"]: paper["authors"][0]["family-names"] for paper in citation["references"]}
    assert papers == {
        "True 4-Bit Quantized Convolutional Neural Network Training on CPU: Achieving Full-Precision Parity": "Tathe",
        "Efficient On-device Transfer Learning using Activation Memory Reduction": "Yoosefi",
    }


@pytest.mark.parametrize("path", METHOD + KIT, ids=lambda path: str(path.relative_to(ROOT)))
class TestModule:
    def test_is_short(self, path):
        lines = len(path.read_text().splitlines())
        assert lines <= 300, f"{lines} lines: is it two things?"

    def test_imports_only_what_it_may(self, path):
        forbidden = r"(notebooks|tests)\b" if path in KIT else r"(notebooks|tests|q4lib\.kit)\b"
        assert not [name for name, _ in imports(path) if re.match(forbidden, name)]

    def test_imports_are_declared(self, path):
        """The kit may import what an extra brings, inside the function that needs it."""
        distributions = packages_distributions()
        for name, column in imports(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top == "q4lib":
                continue
            found = {canonicalize_name(d) for d in distributions.get(top, [top])}
            allowed = BASE | EXTRAS if path in KIT and column else BASE
            assert found & allowed, f"{top} is no declared dependency"


def test_importing_the_method_stays_light():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in METHOD]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(*sorted({{"torchvision", "sklearn", "matplotlib", "IPython", "ipywidgets"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


SKIPS = """
import pytest

def test_gpu():
    pytest.skip("needs a GPU")

@pytest.mark.skipif(True, reason="needs data: CIFAR-10")
def test_data(): ...

def test_slow():
    pytest.skip("slow; it also needs a GPU")

@pytest.mark.skip
def test_no_reason(): ...

@pytest.mark.xfail
def test_known_bug():
    assert False

def test_library():
    pytest.importorskip("no_such_library")
"""


@pytest.mark.parametrize("everything", [True, False])
def test_q4_all_lets_only_gpu_and_data_be_skipped(pytester, monkeypatch, everything):
    monkeypatch.setenv("Q4_ALL", "1" if everything else "0")
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makepyfile(test_skips=SKIPS, test_whole_file="import pytest; pytest.importorskip('no_such_library')")
    outcomes = pytester.runpytest_subprocess("--continue-on-collection-errors").parseoutcomes()
    if everything:
        assert outcomes == {"skipped": 2, "failed": 2, "errors": 2, "xfailed": 1}
    else:
        assert outcomes == {"skipped": 6, "xfailed": 1}


def test_tests_never_touch_the_users_folder(q4_home):
    assert os.environ["Q4_HOME"] == str(q4_home)
    assert not list(q4_home.iterdir())
    assert "Q4_DATA" not in os.environ
