"""Solutions with other answers in them: as students write them, and as single-operator mutants."""

import ast
import contextlib
import io
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat

from q4lib.kit import check

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((ROOT / "solutions").glob("[0-9]*.ipynb"))
STUB = "return None  # your code"
REGION = re.compile(r"^( +)### BEGIN SOLUTION\n(.*?)^ +### END SOLUTION", re.M | re.S)
CHECK = re.compile(r'^check\("([^"]+)", (.*)\)$', re.M)
SHOWS = re.compile(r"^(check|progress)\(", re.M)

SWAPPED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@cache
def code(path: Path) -> list[str]:
    """The cells of a solution that define something; not those between a task and its check, which train."""
    between = {source for _, _, trains in tasks(path).values() for source in trains}
    return [source for source in _sources(path) if source not in between and not SHOWS.search(source)]


def _sources(path: Path) -> list[str]:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if not cell.metadata.get("tags")]


@cache
def tasks(path: Path) -> dict[str, tuple[str, str, list[str]]]:
    """Of each task of a solution the source of its cell, what its check is given, and the cells between the two."""
    found, cell, between = {}, "", []
    for source in _sources(path):
        if REGION.search(source):
            cell, between = source, []
        elif match := CHECK.search(source):
            found[match[1]] = cell, match[2], between
            between = []
        else:
            between.append(source)
    return found


def reference(path: Path, task: str) -> str:
    """The solution of a task: the lines between the markers."""
    return textwrap.dedent(REGION.search(tasks(path)[task][0])[2])


def verdict(path: Path, task: str, answer: str) -> str:
    """What check prints for `answer`, an expression or lines, in the place of a task's solution; the others stay."""
    with contextlib.suppress(SyntaxError):
        ast.parse(answer, mode="eval")
        answer = f"return {answer}"
    namespace: dict = {}
    own, given, between = tasks(path)[task]
    for cell in code(path):
        if cell == own:
            cell = REGION.sub(lambda match: textwrap.indent(answer, match[1]), cell)
        exec(cell, namespace)
    for cell in between:
        exec(cell, namespace)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        check(task, eval(given, namespace))
    return printed.getvalue().strip()


def mutants(body: str) -> Iterator[tuple[str, str]]:
    """Each way to change one operator, integer, sign or method call: the line it makes, the new body."""
    tree = ast.parse(f"def f():\n{textwrap.indent(body, ' ')}")
    before = ast.unparse(tree.body[0].body).splitlines()
    for parent in list(ast.walk(tree)):
        for field, value in list(ast.iter_fields(parent)):
            for at, child in enumerate(value if isinstance(value, list) else [value]):
                for new in _changed(child):
                    changed = [*value[:at], new, *value[at + 1 :]] if isinstance(value, list) else new
                    setattr(parent, field, changed)
                    after = ast.unparse(tree.body[0].body).splitlines()
                    setattr(parent, field, value)
                    line = next(new for old, new in zip(before, after, strict=True) if old != new)
                    yield line.strip(), "\n".join(after)


def _changed(node: object) -> Iterator[ast.AST]:
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.UnaryOp():
            yield node.operand
        case ast.Call(func=ast.Attribute(value=caller)) if ast.unparse(caller) != "torch":
            yield caller
        case _ if type(node) in SWAPPED:
            yield SWAPPED[type(node)]()
