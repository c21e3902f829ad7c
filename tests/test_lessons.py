"""Every lesson as it is stored: its form, its links, and by nbval its printed outputs against new ones."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, reads_json, writes_json

from q4lib.kit.bootstrap import address, badge, bootstrap, dress

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
FACTS = address(ROOT)
OURS = {
    node.name
    for path in (ROOT / "q4lib").rglob("*.py")
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
}
HEAD = """# 01 Tiny

<!-- badge -->

**You will be able to** count. **You need** nothing. **Minutes:** 1."""


def printed(text):
    return [new_output("stream", name="stdout", text=text)]


def tiny(path: Path):
    """A lesson that keeps every rule, stored at `path`; with the outputs that it will give again."""
    picture = new_output("display_data", {"image/png": "", "text/plain": "picture"})
    picture.metadata = {"image/png": {"alt": "a line that rises"}}
    cells = [
        new_markdown_cell(HEAD),
        new_code_cell("# bootstrap", outputs=printed(f"q4lib {FACTS['version']} is here: nothing to install\n")),
        new_code_cell('PRESET = "smoke"  # smoke, class or full', metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from IPython.display import display\n\nfrom q4lib.kit import asset\nfrom q4lib.quant import qmax\n\n"
            'print("largest code:", qmax(4))\nprint(asset("digits-digits-b4-s0").name)',
            outputs=printed("largest code: 7\ndigits-digits-b4-s0\n"),
        ),
        new_markdown_cell("## One\n\nSee [below](01_tiny.ipynb#one)."),
        new_code_cell(
            'alt = {"image/png": {"alt": "a line that rises"}}\n'
            'display({"image/png": "", "text/plain": "picture"}, metadata=alt, raw=True)',
            outputs=[picture],
        ),
        *[new_code_cell(f"guess_{i} = {i}") for i in range(3)],
        new_markdown_cell("## What to remember\n\nSeven."),
        new_code_cell('if False:\n    quiz("a", {})\n    quiz("b", {})\n    quiz("c", {})', metadata=FOLDED),
        new_markdown_cell('## Next\n\n<a id="one"></a>[The exercise](../exercises/01_tiny.ipynb).'),
    ]
    notebook = new_notebook(cells=cells)
    dress(notebook, path.stem, **FACTS)
    path.write_text(nbformat.writes(notebook) + "\n")
    return notebook


FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}


def code(notebook) -> Iterator[tuple[int, str]]:
    """Number and source of each code cell, its magics taken out."""
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            yield number, re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE)


def outputs(notebook):
    return [(n, o) for n, cell in enumerate(notebook.cells, 1) for o in cell.get("outputs", [])]


def prose(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def is_valid(notebook, path):
    """nbformat 4.5, with ids of its own for its cells, in a file of less than 500 KB."""
    ids = [cell.get("id") for cell in notebook.cells]
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5) or len(set(ids)) < len(ids) or None in ids:
        yield "is not nbformat 4.5, or two cells have one id"
    else:
        nbformat.validate(notebook)
    if path.stat().st_size >= 500_000:
        yield f"{path.stat().st_size} bytes are too many"


def is_as_refresh_writes_it(notebook, path):
    """Badge, bootstrap cell, kernel `python3`; no widgets' state, no times; counts from 1."""
    dressed = deepcopy(notebook)
    dress(dressed, path.stem, **FACTS)
    if nbformat.writes(dressed) + "\n" != path.read_text():
        yield f"`q4 refresh {path.stem}` would write it otherwise"


def is_in_order(notebook, path):
    """Title, badge; bootstrap; parameters; imports; five sections at most; what to remember, three questions; next."""
    first, second, third, *rest = notebook.cells
    number = path.stem.partition("_")[0]
    for needed in (
        rf"# {number} \S",
        re.escape(badge(path.stem, **FACTS)),
        "You will be able to",
        "You need",
        "[Mm]inutes",
    ):
        if first.cell_type != "markdown" or not re.search(needed, first.source):
            yield f"cell 1 lacks {needed}"
    if second.source != bootstrap(**FACTS) or second.metadata.tags != ["bootstrap"]:
        yield "cell 2 is not the bootstrap cell"
    elif [o.get("text") for o in second.outputs] != [f"q4lib {FACTS['version']} is here: nothing to install\n"]:
        yield "cell 2 was executed with another version, or never"
    if not re.match('PRESET = "smoke"', third.source) or third.metadata.get("tags") != ["parameters"]:
        yield "cell 3 is not the parameters cell"
    if any({"bootstrap", "parameters"} & set(cell.metadata.get("tags", ())) for cell in rest):
        yield "a second bootstrap or parameters cell"
    if not re.search("^(from|import) ", next((cell.source for cell in rest if cell.cell_type == "code"), ""), re.M):
        yield "no imports after the parameters"
    titles = re.findall(r"^## (.*)$", prose(notebook), re.M)
    if titles[-2:] != ["What to remember", "Next"]:
        yield f"ends with {titles[-2:]}"
    sections = [title for title in titles[:-2] if not re.search("optional|glossary", title, re.I)]
    if len(sections) > 5:
        yield f"{len(sections)} sections that are not marked optional: {sections}"
    end = next((i for i, cell in enumerate(notebook.cells) if "## What to remember" in cell.source), 0)
    questions = sum(source.count("quiz(") for number, source in code(notebook) if number > end)
    if questions != 3:
        yield f"{questions} quiz questions after what to remember"
    if number != "00" and f"](../exercises/{number}_" not in notebook.cells[-1].source:
        yield "no link to the exercise at the end"


def folds_its_quizzes(notebook, path):
    """The code of a question names the right answer: JupyterLab and Colab fold it away."""
    for number, cell in enumerate(notebook.cells, 1):
        if "quiz(" in cell.source and not FOLDED.items() <= cell.metadata.items():
            yield f"cell {number} shows the answer"


def shows_pictures_in_words(notebook, path):
    """Every picture has alt text."""
    for number, output in outputs(notebook):
        if "image/png" in output.get("data", {}) and not output.metadata.get("image/png", {}).get("alt"):
            yield f"cell {number}: a picture without alt text"


def hides_little_from_nbval(notebook, path):
    """At most 15 % of its code cells are tagged nbval-ignore-output; none is skipped."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells if cell.cell_type == "code"]
    ignored = sum("nbval-ignore-output" in of for of in tags)
    if ignored > 0.15 * len(tags):
        yield f"{ignored} of {len(tags)} code cells are tagged nbval-ignore-output"
    if any("nbval-skip" in of for of in tags):
        yield "a cell is tagged nbval-skip"


def uses_the_library(notebook, path):
    """No function or class in a lesson has the name of one in q4lib."""
    for number, source in code(notebook):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in OURS:
                yield f"cell {number}: q4lib has a {node.name}"


def opens_assets_only(notebook, path):
    """No file by any way but asset(...): Colab has the notebook alone."""
    for number, source in code(notebook):
        for node in ast.walk(ast.parse(source)):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            # A path may be made of what is no file of the course: Path(mkdtemp()).
            if called == "open" or called == "Path" and not (node.args and isinstance(node.args[0], ast.Call)):
                yield f"cell {number}: {called}("
            if isinstance(node, ast.Constant) and re.search(r"(^|/)results(/|$)", str(node.value)):
                yield f"cell {number}: {node.value!r}"


def links_lead_somewhere(notebook, path):
    """Relative links lead to a file, and to a heading or an `<a id>` in it; exercises may come later."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(notebook)):
        file, _, anchor = target.partition("#")
        if re.match(r"https?:|mailto:|attachment:|\.\./exercises/", target):
            continue
        there = path.parent / file if file else path
        if not there.exists():
            yield f"{target} leads nowhere"
        elif anchor and there.suffix == ".ipynb":
            text = prose(reads_json(there.read_text()) if there != path else notebook)
            headings = [title.strip().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)]
            if anchor not in headings and f'id="{anchor}"' not in text:
                yield f"{target}: there is no such heading"


def ran_well(notebook, path):
    """No error, and nothing on stderr."""
    for number, output in outputs(notebook):
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"cell {number}: an error, or something on stderr"


def ends_no_line_with_a_semicolon(notebook, path):
    """A trailing `;` hides an output that nbval should see."""
    for number, source in code(notebook):
        if re.search(r";\s*$", source, re.M):
            yield f"cell {number}: a trailing semicolon"


RULES = [
    is_valid, is_as_refresh_writes_it, is_in_order, folds_its_quizzes, shows_pictures_in_words, hides_little_from_nbval,
    uses_the_library, opens_assets_only, links_lead_somewhere, ran_well, ends_no_line_with_a_semicolon,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_lesson(rule, tmp_path):
    tiny(tmp_path / "01_tiny.ipynb")
    found = {
        path.name: problems
        for path in [tmp_path / "01_tiny.ipynb", *LESSONS]
        if (problems := list(rule(reads_json(path.read_text()), path)))
    }
    assert not found, rule.__doc__


def change(number, **changed):
    """Cell `number` (from 1) with another source, other outputs or other metadata."""
    return lambda notebook: notebook.cells[number - 1].update(nbformat.from_dict(changed))


def head(old, new):
    return lambda notebook: notebook.cells[0].update(source=notebook.cells[0].source.replace(old, new))


BREAKS = [
    (is_valid, lambda notebook: notebook.update(nbformat_minor=4)),
    (is_valid, lambda notebook: notebook.cells[3].update(id=notebook.cells[4].id)),
    (is_valid, change(5, source="x" * 500_000)),
    (is_as_refresh_writes_it, lambda notebook: notebook.metadata.update(widgets={})),
    (is_as_refresh_writes_it, lambda notebook: notebook.metadata.kernelspec.update(name="conda")),
    (is_as_refresh_writes_it, change(4, execution_count=40)),
    (is_as_refresh_writes_it, change(4, metadata={"papermill": {"duration": 1}})),
    (is_as_refresh_writes_it, change(4, outputs=printed("7\n") + printed("8\n"))),
    (is_as_refresh_writes_it, change(2, source="import q4lib")),
    (is_as_refresh_writes_it, head(FACTS["version"], "0.0.1")),
    (is_in_order, head("# 01 Tiny", "# Tiny")),
    (is_in_order, head(FACTS["version"], "0.0.1")),
    (is_in_order, head("You will be able to", "Learn to")),
    (is_in_order, head("You need", "Bring")),
    (is_in_order, head("Minutes", "Time")),
    (is_in_order, change(2, source="# bootstrap")),
    (is_in_order, change(2, outputs=printed("q4lib 0.0.1 is here: nothing to install\n"))),
    (is_in_order, change(3, source='PRESET = "full"')),
    (is_in_order, change(3, metadata={})),
    (is_in_order, change(7, metadata={"tags": ["parameters"]})),
    (is_in_order, change(4, source="print(7)")),
    (is_in_order, change(5, source="\n".join(f"## Section {i}" for i in range(6)))),
    (is_in_order, change(10, source="## Remember")),
    (is_in_order, change(11, source='quiz("a", {})')),
    (is_in_order, change(12, source="## Next\n\nNothing.")),
    (folds_its_quizzes, change(11, metadata={"jupyter": {"source_hidden": True}})),
    (shows_pictures_in_words, lambda notebook: notebook.cells[5].outputs[0].update(metadata={})),
    (hides_little_from_nbval, lambda n: [n.cells[i].metadata.update(tags=["nbval-ignore-output"]) for i in (3, 5)]),
    (hides_little_from_nbval, change(4, metadata={"tags": ["nbval-skip"]})),
    (uses_the_library, change(4, source="%matplotlib inline\ndef fake_quantize(w):\n    return w")),
    (uses_the_library, change(4, source="class Conv4bit:\n    pass")),
    (opens_assets_only, change(4, source='open("log.jsonl")')),
    (opens_assets_only, change(4, source='Path("log.jsonl")')),
    (opens_assets_only, change(4, source='log = "notebooks/results/run/log.jsonl"')),
    (links_lead_somewhere, change(5, source="[there](02_nowhere.ipynb)")),
    (links_lead_somewhere, change(5, source="[there](01_tiny.ipynb#two)")),
    (links_lead_somewhere, change(5, source="[there](#two)")),
    (ran_well, change(4, outputs=[new_output("error", ename="E", evalue="", traceback=[])])),
    (ran_well, change(4, outputs=[new_output("stream", name="stderr", text="50 %")])),
    (ends_no_line_with_a_semicolon, change(4, source="plot();\nprint(7)")),
]


@pytest.mark.parametrize(("rule", "breaks"), BREAKS)
def test_a_broken_lesson_is_found(rule, breaks, tmp_path):
    path = tmp_path / "01_tiny.ipynb"
    notebook = tiny(path)
    breaks(notebook)
    path.write_text(writes_json(notebook) + "\n")
    assert list(rule(reads_json(path.read_text()), path))


def nbval(path: Path, **variables) -> tuple[int, str]:
    """Exit status of a strict nbval of one notebook in this very Python, and what it printed."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", path.name]
    env = os.environ | {"Q4_WIDGETS": "0", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True, timeout=1800)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("path", [None, *LESSONS], ids=lambda path: path.stem if path else "tiny")
def test_outputs_are_what_they_were(path, tmp_path):
    if path is None:
        path = tmp_path / "01_tiny.ipynb"
        tiny(path)
    status, output = nbval(path)
    assert status == 0, output


def test_the_net_holds(tmp_path):
    """With a q4lib whose grid has a level too many, nbval fails, and by an output, not by a crash."""
    path = next((path for path in LESSONS if path.stem.startswith("01_")), tmp_path / "01_tiny.ipynb")
    if path not in LESSONS:
        tiny(path)
    shutil.copytree(ROOT / "q4lib", tmp_path / "q4lib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    module = tmp_path / "q4lib" / "quant.py"
    right, wrong = "return int(2 ** (bits - 1) - 1)", "return int(2 ** (bits - 1) - (bits != 4))"
    assert right in module.read_text()
    module.write_text(module.read_text().replace(right, wrong))
    status, output = nbval(path, PYTHONPATH=str(tmp_path))
    assert status == 1 and "Cell outputs differ" in output, output
