"""Lessons executed from the command line: run, refreshed, linked to a repository's address, opened."""

import ast
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..data import home, nearest
from ..files import FileError, write_whole
from ..machine import processor
from ..train import RunError
from .bootstrap import address, dress

CLONE = Path(__file__).resolve().parents[2]
# A q4lib that came as a wheel serves the folder it is called in, such as `q4 offline` makes.
ROOT = CLONE if (CLONE / "notebooks" / "results").is_dir() else Path.cwd()
PRESETS = ("smoke", "class", "full")
IGNORED = "nbval-ignore-output"


def find(names: Sequence[str] = ()) -> list[Path]:
    """The lessons called so ("01", "01_quantization"), or all of them. RunError where there are none; ValueError."""
    lessons = {path.stem: path for path in sorted(_folder().glob("[0-9]*.ipynb"))}
    if not lessons:
        raise RunError(f"there are no lessons in {_folder()}")
    return [lessons[_stem(name, lessons)] for name in names or lessons]


def _folder() -> Path:
    if not (ROOT / "notebooks" / "results").is_dir():
        urls = dict(url.split(", ") for url in metadata("q4lib").get_all("Project-URL") or [])
        raise RunError(f"the lessons come with the repository, not with the package: git clone {urls['Repository']}")
    return ROOT / "notebooks"


def _stem(name: str, lessons: dict[str, Path]) -> str:
    wanted = Path(name).stem
    for stem in lessons:
        if wanted == stem or wanted.zfill(2) == stem.partition("_")[0]:
            return stem
    raise ValueError(f"no lesson is called {name!r}{nearest(wanted, lessons)}: there are {', '.join(lessons)}")


def run(
    names: Sequence[str] = (), preset: str = "smoke", out: Path | None = None, parameters: Sequence[Any] = ()
) -> None:
    """Execute lessons, each in a fresh kernel: executed notebooks, HTML pages and a table of minutes."""
    if preset not in PRESETS:
        raise ValueError(f"no preset is called {preset!r}{nearest(preset, PRESETS)}: there are {', '.join(PRESETS)}")
    paths = find(names)
    given = _parameters(paths, preset, parameters)
    _needs("papermill", "nbconvert", "nbformat", "ipykernel")
    out = (out or home() / "lessons").resolve()
    if out == _folder():
        raise ValueError(f"{out} holds the lessons themselves: give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {out}: {error.strerror}") from None

    rows, failures, total = [], [], 0.0
    with _kernel(smoke=preset == "smoke"):
        for number, path in enumerate(paths, 1):
            print(f"{path.stem} ({number} of {len(paths)})", flush=True)
            start = time.perf_counter()
            failure = _execute(path, out / path.name, given[path], echo=preset != "smoke")
            minutes = (time.perf_counter() - start) / 60
            _page(out / path.name)
            rows.append(f"| {path.stem} | {minutes:.2f} | {'NO' if failure else 'yes'} |")
            failures += [failure] if failure else []
            total += minutes
    table = [
        f"Preset {preset}; {processor()}, {os.cpu_count()} cores.\n",
        "| lesson | minutes | ran to its end |",
        "|---|---|---|",
        *rows,
        f"| together | {total:.2f} | {len(rows) - len(failures)} of {len(rows)} |",
    ]
    write_whole(out / "minutes.md", ("\n".join(table) + "\n").encode())
    print("", *table, "", f"{out}: the executed notebooks, an HTML page each, minutes.md", sep="\n")
    _report(failures)


def _parameters(paths: list[Path], preset: str, parameters: Sequence[Any]) -> dict[Path, dict[str, Any]]:
    """What each lesson is given: papermill itself would only warn of a name that no parameters cell has."""
    given = {name: _value(text) for name, text in parameters}
    if "PRESET" in given:
        raise ValueError("PRESET is set by --preset")
    known = {path: _assigned(path) for path in paths}
    for name in given:
        if not any(name in names for names in known.values()):
            everything = sorted(set().union(*known.values()) - {"PRESET"})
            has = f"there are {', '.join(everything)}" if everything else "there is none but PRESET"
            raise ValueError(f"no parameter is called {name!r}{nearest(name, everything)}: {has}")
    for path, names in known.items():
        if "PRESET" not in names:
            raise RunError(f"{path.stem} sets no PRESET in a cell tagged `parameters`")
    given["PRESET"] = preset
    return {path: {name: value for name, value in given.items() if name in names} for path, names in known.items()}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _assigned(path: Path) -> set[str]:
    """Names that a notebook's parameters cell sets."""
    cells = json.loads(path.read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)}


def _needs(*packages: str) -> None:
    missing = [package for package in packages if not find_spec(package)]
    if missing:
        raise RunError(f"this needs {' and '.join(missing)}: pip install 'q4lib[lab]'")


@contextmanager
def _kernel(smoke: bool) -> Iterator[Path]:
    """A scratch folder, a kernel `python3` that is this very Python, and the environment a lesson runs in.

    A smoke run sees nothing of the user's and leaves nothing behind, so that it prints the same everywhere.
    """
    before = dict(os.environ)
    with TemporaryDirectory(prefix="q4-") as scratch:
        spec = Path(scratch, "kernels", "python3")
        spec.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
        path = [scratch, *filter(None, [before.get("JUPYTER_PATH")])]
        os.environ |= {"JUPYTER_PATH": os.pathsep.join(path), "Q4_WIDGETS": "0"}
        if smoke:
            os.environ |= {"OMP_NUM_THREADS": "1", "Q4_HOME": str(Path(scratch, "home"))}
            os.environ.pop("Q4_DATA", None)
        try:
            yield Path(scratch)
        finally:
            os.environ.clear()
            os.environ.update(before)


def _execute(path: Path, out: Path, parameters: dict[str, Any] | None = None, echo: bool = False) -> str:
    """Execute a lesson into `out`, in an empty folder; "" or one sentence that says where it failed and why.

    With `echo` what the lesson prints is seen at once: a run that takes hours says so before it starts.
    """
    import nbformat
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    try:
        with TemporaryDirectory(prefix="q4-") as empty:
            how = {"kernel_name": "python3", "language": "python", "start_timeout": 300, "cwd": empty}
            bar = {"desc": path.stem, "leave": False, "disable": None}
            heard = sys.stdout if echo else None
            execute_notebook(path, out, parameters, progress_bar=bar, stdout_file=heard, **how)
    except KeyboardInterrupt:
        raise RunError(f"stopped in {path.stem}; what had ended before is in {out.parent}") from None
    except PapermillExecutionError as error:
        why = f"{error.ename}: {error.evalue}"
    except Exception as error:  # a kernel that died or never started has many names
        why = f"{type(error).__name__}: {error}"
    else:
        return ""
    numbers = {cell["id"]: number for number, cell in enumerate(nbformat.read(path, 4).cells, 1)}
    begun = [cell for cell in nbformat.read(out, 4).cells if cell.metadata.get("papermill", {}).get("end_time")]
    if not begun:
        return f"{path.stem}, before its first cell: {why}"
    return f"{path.stem}, cell {numbers[begun[-1]['id']]} (`{begun[-1].source.partition(chr(10))[0]}`): {why}"


def _page(path: Path) -> None:
    from nbconvert import HTMLExporter

    # Of nbconvert's templates this one writes the pictures' alt text.
    body, _ = HTMLExporter(template_name="classic").from_filename(str(path))
    write_whole(path.with_suffix(".html"), body.encode())


def _report(failures: list[str]) -> None:
    if failures:
        raise RunError("\n  ".join(["not every lesson ran to its end:", *failures]))


def refresh(names: Sequence[str] = (), check: bool = False) -> None:
    """Execute lessons in smoke, store their outputs if all went well, say which printed numbers changed."""
    paths, facts = find(names), address(ROOT)
    _needs("papermill", "nbformat", "ipykernel")
    import nbformat

    failures, stale = [], []
    for path in paths:
        print(path.stem, flush=True)
        begun = path.read_bytes()
        notebook = nbformat.reads(begun.decode(), 4)
        stored = deepcopy(notebook)
        dress(notebook, path.stem, **facts)
        with _kernel(smoke=True) as scratch:
            copy, out = scratch / path.name, scratch / f"executed-{path.name}"
            nbformat.write(notebook, copy)
            failure = _execute(copy, out)
            if failure:
                failures.append(failure)
                continue
            fresh = nbformat.read(out, 4)
        dress(fresh, path.stem, **facts)
        nbformat.validate(fresh)
        for line in changes(stored, fresh):
            print(f"  {line}", flush=True)
        if check and _compared(stored) != _compared(fresh):
            stale.append(path.stem)
        content = (nbformat.writes(fresh) + "\n").encode()
        if path.read_bytes() != begun:
            failures.append(f"{path.stem} was edited while it ran, and is left as it is: refresh it again")
        elif not check and content != begun:
            write_whole(path, content)
    _report(failures)
    if stale:
        raise RunError(f"not as `q4 refresh` writes them: {', '.join(stale)}")


def changes(old: Any, new: Any) -> Iterator[str]:
    """A line for each printed word or number that changed: its cell, two words before it, from what to what."""
    before = {cell["id"]: _printed(cell).split() for cell in old.cells}
    for number, cell in enumerate(new.cells, 1):
        was, now = before.get(cell["id"], []), _printed(cell).split()
        for kind, a, b, c, d in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
            if kind != "equal":
                place = f"cell {number} (`{cell.source.partition(chr(10))[0]}`)"
                words = " ".join([*now[max(0, c - 2) : c], " ".join(was[a:b]) or "(nothing)"])
                yield f"{place}: {words} -> {' '.join(now[c:d]) or '(nothing)'}"


def _printed(cell: Any) -> str:
    """The text that nbval compares: without pictures, and without what varies by its nature."""
    if cell.cell_type != "code" or IGNORED in cell.metadata.get("tags", ()):
        return ""
    texts = [o.get("text") or "\n".join(v for k, v in o.get("data", {}).items() if k.startswith("text/"))
             for o in cell.outputs]  # fmt: skip
    return "\n".join(texts)


def _compared(notebook: Any) -> list[Any]:
    """What `--check` compares: everything but pictures, which differ between releases of matplotlib."""
    return [notebook.metadata, *[(c["id"], c.cell_type, c.metadata, c.source, _printed(c)) for c in notebook.cells]]


def link(repository: str) -> None:
    """Write the repository's address on GitHub into pyproject.toml and wherever it is repeated."""
    import nbformat

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"give the repository as OWNER/REPO, got {repository!r}")
    lessons, old = list(_folder().glob("[0-9]*.ipynb")), address(ROOT)["repository"]
    mention = re.compile(rf"(github(?:usercontent)?\.com/|/github/|/gh/){re.escape(old)}(?![\w-])")
    for path in [ROOT / "pyproject.toml", ROOT / "CITATION.cff", *ROOT.glob("*.md"), *ROOT.glob("*/*.ipynb")]:
        before = path.read_text()
        text = mention.sub(rf"\g<1>{repository}", before)
        if path in lessons:
            notebook = nbformat.reads(text, 4)
            dress(notebook, path.stem, **address(ROOT))
            text = nbformat.writes(notebook) + "\n"
        if text != before:
            write_whole(path, text.encode())
            print(path.relative_to(ROOT))


def lab() -> None:
    """Open the course in JupyterLab."""
    root = _folder().parent  # the exercises' folder too
    _needs("jupyterlab")
    where = [f"--ServerApp.root_dir={root}", "--LabApp.default_url=/lab/tree/notebooks"]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *where])
