"""What all lessons share: the badge, the cell that installs q4lib where it is missing, the form they are stored in."""

import re
import tomllib
from pathlib import Path
from typing import Any

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/v{version}/{folder}/{stem}.ipynb) "
    # A copy in Drive has no folder in which its links could be followed.
    "[All lessons](https://github.com/{repository}/tree/v{version}/notebooks) (in a copy of your own, links between "
    "them lead nowhere)"
)
ANY_BADGE = re.compile(r"\[!\[Open in Colab\].*|<!-- badge -->")
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT = ("tags", "cellView", "jupyter", "nbgrader")  # of a cell's metadata

# Text, since it runs where there is no q4lib. The host's packages are asked for as they are: pip then leaves them
# alone, or calls it a conflict.
BOOTSTRAP = """\
# @title Run this cell first: it installs q4lib where it is missing
import importlib.metadata
import os
import subprocess
import sys
import time


class InstallError(Exception):
    def _render_traceback_(self):
        return [f"q4lib could not be installed: {self}"]


def install_q4lib(version, source):
    def packages():
        return {str(d.name).lower(): d.version for d in reversed(list(importlib.metadata.distributions()))}

    try:
        importlib.import_module("q4lib")
        print(f"q4lib {packages().get('q4lib', version)} is here: nothing to install")
    except ImportError:
        start, host = time.time(), packages()
        kept = [f"{p}=={host[p]}" for p in ("torch", "torchvision", "numpy", "ipywidgets", "ipython") if p in host]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade-strategy", "only-if-needed", *kept]
        done = subprocess.run([*pip, os.environ.get("Q4_SOURCE") or source], capture_output=True, text=True)
        if done.returncode:
            if any(word in done.stderr for word in ("resolve host", "name resolution", "Connection", "timed out")):
                raise InstallError("there is no network (on Kaggle: Settings, Internet on)") from None
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["pip did not say why"]
            why = next((line for line in lines if line.startswith(("ERROR:", "fatal:"))), lines[-1])
            raise InstallError(why.removeprefix("ERROR: ")) from None
        importlib.invalidate_caches()
        new = [f"{name} {number}" for name, number in sorted(packages().items()) if host.get(name) != number]
        print(f"installed {', '.join(new)} in {time.time() - start:.0f} s")
        if "google.colab" in sys.modules:
            print("Colab forgets this machine. File > Save a copy in Drive keeps the notebook. To keep your")
            print("runs too, mount Drive (folder icon on the left) and run in a new cell:")
            print("%env Q4_HOME=/content/drive/MyDrive/q4")
    if packages().get("q4lib", version) != version:
        print(f"This lesson belongs to q4lib {version}: with another version its numbers may differ.")


install_q4lib("VERSION", "git+https://github.com/OWNER/REPO@vVERSION")
"""


def address(root: Path) -> dict[str, str]:
    """The `repository` ("OWNER/REPO") and `version` that stand in a checkout's pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {
        "repository": project["urls"]["Repository"].removeprefix("https://github.com/"),
        "version": project["version"],
    }


def badge(stem: str, repository: str, version: str, folder: str = "notebooks") -> str:
    """The Markdown of a badge, which opens a lesson as it is at the tag of `version`, and the way to all others."""
    return BADGE.format(folder=folder, stem=stem, repository=repository, version=version)


def bootstrap(repository: str, version: str) -> str:
    """The source of the bootstrap cell: it installs the same tag that the badge opens."""
    return BOOTSTRAP.strip().replace("OWNER/REPO", repository).replace("VERSION", version)


def dress(notebook: Any, stem: str, repository: str, version: str, folder: str = "notebooks") -> None:
    """Give a lesson its badge, bootstrap cell and kernel, and take away what differs from run to run. In place."""
    from nbformat import from_dict
    from nbformat.v4 import new_code_cell, upgrade

    upgrade(notebook, from_version=4, from_minor=notebook.nbformat_minor)
    notebook.metadata = from_dict(KERNEL)
    cells = notebook.cells
    line = badge(stem, repository, version, folder)
    first, found = ANY_BADGE.subn(line, cells[0].source)
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = first if found else f"{title}\n\n{line}\n{rest}"
    if not any(_is_bootstrap(cell) for cell in cells):
        cells.insert(1, new_code_cell(id="bootstrap"))
        cells[1].metadata.tags = ["bootstrap"]
    for cell in cells:
        cell.metadata = from_dict({key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)})
        if _is_bootstrap(cell):
            cell.source = bootstrap(repository, version)
            # Folded away, in Colab and in JupyterLab.
            cell.metadata = from_dict({"tags": ["bootstrap"], "cellView": "form", "jupyter": {"source_hidden": True}})
    # nbval takes a cell without a count for one that never ran.
    for count, cell in enumerate([cell for cell in cells if cell.cell_type == "code"], 1):
        cell.execution_count = count
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def _is_bootstrap(cell: Any) -> bool:
    return "bootstrap" in cell.metadata.get("tags", ()) or cell.source.strip() == "# bootstrap"


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of one stream as one: how they were cut depends on time."""
    joined: list[Any] = []
    for output in outputs:
        last: Any = joined[-1] if joined else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            joined.append(output)
    return joined
