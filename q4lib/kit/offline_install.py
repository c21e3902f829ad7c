"""Installs the q4 course from the folder that this file lies in, without a network: python3 install.py [FOLDER]"""

import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACK = Path(__file__).resolve().parent


def main() -> None:
    """A virtual environment from the wheels, and the course beside it; a notebook that is there already stays."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "q4-course").resolve()
    facts = json.loads((PACK / "pack.json").read_text())
    here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {platform.system()} {platform.machine()}"
    if here != (needed := f"Python {facts['python']} on {facts['platform']}"):
        sys.exit(
            f"These wheels are for {needed}, this is {here}: run install.py with that Python, or pack again there."
        )
    try:
        linked = {str(distribution(name).locate_file("")) for name in facts["linked"]}
    except PackageNotFoundError as error:
        sys.exit(f"{error.name} is not in this pack: run install.py with a Python in which it is installed.")

    print(f"Installing into {target}: a minute or two ...", flush=True)
    try:
        for path in sorted((PACK / "course").rglob("*")):
            _copy(path, target / path.relative_to(PACK / "course"))
        cache = Path(os.environ.get("Q4_HOME") or Path.home() / ".q4").expanduser() / "cache"
        for path in sorted((PACK / "data").rglob("*")):
            _copy(path, cache / path.relative_to(PACK / "data"))
        venv.create(target / ".venv", clear=True, symlinks=os.name != "nt", with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{target} could not be made ({error}). On Debian and Ubuntu this needs the package python3-venv.")
    programs = target / ".venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    if subprocess.run([*pip, *map(str, (PACK / "wheels").glob("*.whl"))]).returncode:
        sys.exit("pip could not install the wheels: its own words are above.")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (packages / "q4-linked.pth").write_text("".join(f"{folder}\n" for folder in sorted(linked)))
    print(f"Done. Now: cd {target} && {(programs / 'q4').relative_to(target)} lab")


def _copy(path: Path, copy: Path) -> None:
    """A file as a whole; not over one that is there, which may hold somebody's answers."""
    if path.is_dir() or copy.exists():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f".{copy.name}.part")
    shutil.copyfile(path, part)
    part.replace(copy)


if __name__ == "__main__":
    main()
