"""The course in one folder, for a room without a network: wheels, lessons, exercises, data and an installer."""

import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from .. import data
from ..files import FileError, locked
from ..train import RunError
from .lessons import ROOT, find

README = """\
# The q4 course, for a room without a network

    python3 install.py

makes the folder `q4-course`, with Python packages of its own, from nothing but this folder.
It needs Python {python} on {platform}. Then:

    cd q4-course && .venv/bin/q4 lab

`course/html` has the lessons to read, without installing anything.

{contents}
"""
CUDA = """\
The torch installed here is the CUDA build: its wheels have gigabytes, those of the CPU build some 200 MB. For these,
install torch and torchvision here from the CPU build's index (pytorch.org names it under "Start Locally"), set
PIP_EXTRA_INDEX_URL to that index, and pack again."""


def offline(folder: Path, without: str = "") -> None:
    """Pack the course for a room without a network: wheels of what is installed here, lessons, exercises, data."""
    lessons = find()
    if folder.exists():
        raise FileError(f"{folder} exists: delete it, or give another folder")
    if not find_spec("pip"):
        raise RunError("this needs pip: python -m ensurepip")
    left_out = [name.strip() for name in without.split(",") if name.strip()]
    everything, packed = needed(), needed(left_out)
    linked = {name: package for name, package in everything.items() if name not in packed}
    for name in left_out:
        if name not in everything:
            raise ValueError(f"--without names {name}, which the course does not need")
    for name, package in linked.items():
        if any(file.parts[0] == ".." and "jupyter" in file.parts for file in package.files or []):
            raise ValueError(f"--without would leave out {name}, whose files for Jupyter cannot be linked: pack it")
    part = folder.with_name(f"{folder.name}.part")
    with locked(folder):
        try:
            part.mkdir(parents=True, exist_ok=True)
            _wheels(part / "wheels", packed)
            shutil.rmtree(part / "course", ignore_errors=True)
            _course(part / "course", lessons)
            images = _images(part / "data")
            shutil.copyfile(Path(__file__).with_name("offline_install.py"), part / "install.py")
            facts = {
                "python": f"{sys.version_info.major}.{sys.version_info.minor}",
                "platform": f"{platform.system()} {platform.machine()}",
                "linked": {name: package.version for name, package in linked.items()},
            }
            (part / "pack.json").write_text(json.dumps(facts, indent=1) + "\n")
            contents = _contents(part, len(packed), left_out, images)
            (part / "README.md").write_text(README.format(contents=contents, **facts))
            part.rename(folder)
        except OSError as error:
            raise FileError(f"cannot write {part}: {error.strerror}; the same command goes on from there") from error
    print(f"\n{contents}\n\n{folder}: {_megabytes(folder)}. There: python3 install.py")


def needed(without: Sequence[str] = ()) -> dict[str, Distribution]:
    """The installed packages that the course needs, all in all, by name; not those that only `without` needs."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    # Of q4lib itself what stands there now: an editable install may be older.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    roots = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    found, seen, wanted = {"q4lib": distribution("q4lib")}, set[str](), [Requirement(root) for root in roots]
    while wanted:
        need = wanted.pop()
        name = canonicalize_name(need.name)
        if str(need) in seen or name in without:
            continue
        seen.add(str(need))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise RunError(f"{name} is not installed here, so it cannot be packed: pip install 'q4lib[lab]'") from None
        for further in map(Requirement, found[name].requires or []):
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in ("", *need.extras)):
                wanted.append(further)
    return found


def _wheels(folder: Path, packages: dict[str, Distribution]) -> None:
    """A wheel of each package, in the version that is installed here; one that lies there already is kept."""
    from packaging.utils import parse_wheel_filename

    folder.mkdir(exist_ok=True)
    wanted = {name: f"{name}=={package.version}" for name, package in packages.items() if name != "q4lib"}
    for path in folder.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(path.name)
        if wanted.get(name) == f"{name}=={version}" and zipfile.is_zipfile(path):
            del wanted[name]
        else:  # an earlier version, cut short by a kill, or our own, which may have changed
            path.unlink()
    if any(re.match("nvidia-|cuda-", name) for name in packages):
        print(CUDA)
    print(f"{len(wanted) + 1} wheels to get, {len(packages) - len(wanted) - 1} are here", flush=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    done = subprocess.run([*pip, *wanted.values(), str(ROOT)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise RunError(f"pip could not get every wheel ({lines[-1] if lines else 'it did not say why'})")


def _course(folder: Path, lessons: list[Path]) -> None:
    """Lessons as notebooks and as pages, what they show, and the exercises; without the solutions."""
    from nbconvert import HTMLExporter

    shutil.copytree(ROOT / "notebooks" / "results", folder / "notebooks" / "results")
    shutil.copytree(ROOT / "exercises", folder / "exercises", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "html").mkdir()
    for path in lessons:
        shutil.copy(path, folder / "notebooks")
        body, _ = HTMLExporter(template_name="classic").from_filename(str(path))
        body = re.sub(r'<script[^>]* src="http[^>]*>\s*</script>', "", body)  # a page would wait for them
        for other in lessons:
            body = body.replace(f'href="{other.name}', f'href="{other.stem}.html')
        (folder / "html" / f"{path.stem}.html").write_text(body)


def _images(folder: Path) -> str:
    """CIFAR-10, where it is at hand, and what to say of it."""
    here = data.where("cifar10")
    shutil.rmtree(folder, ignore_errors=True)
    if not here:
        return "CIFAR-10, for lesson 06 with PRESET class or full (`q4 data get cifar10`, then pack again)"
    data.load("cifar10")  # DataError, if it is damaged
    folder.mkdir()
    (shutil.copytree if here.is_dir() else shutil.copyfile)(here, folder / here.name)
    return ""


def _contents(part: Path, count: int, left_out: list[str], missing: str) -> str:
    rows = [(f"{count} wheels, {platform.system()}, Python {platform.python_version()}", part / "wheels")]
    rows += [(what, part / "course" / what) for what in ("notebooks", "html", "exercises")]
    rows += [] if missing else [("CIFAR-10", part / "data")]
    lines = [f"- {what}: {_megabytes(folder)}" for what, folder in rows]
    if left_out:
        lines.append(
            f"- not in it: {', '.join(left_out)} (run install.py with a Python that has them: they are linked)"
        )
    return "\n".join(lines + ([f"- not in it: {missing}"] if missing else []))


def _megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.1f} MB"
