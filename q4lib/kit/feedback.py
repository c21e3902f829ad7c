"""A page for each student: what each task got, what its check said, and the answer it was said of."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_whole
from .mend import HEADING, task_of

if TYPE_CHECKING:
    from .grade import Sheet

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222 }}
pre {{ background: #f4f4f4; padding: .7em 1em; white-space: pre-wrap; font-size: 14px; line-height: 1.4 }}
h3 span {{ float: right; font-weight: normal }}
ul {{ padding-left: 1.2em }}
</style></head><body>
<h1>{name}</h1>
{body}
</body></html>
"""


def write_pages(sheets: "list[Sheet]", folder: Path) -> None:
    """A page for each student who handed something in."""
    folder.mkdir(exist_ok=True)
    for student in dict.fromkeys(sheet.student for sheet in sheets if sheet.status != "missing"):
        body = "\n".join(_sheet(sheet) for sheet in sheets if sheet.student == student)
        write_whole(folder / f"{student.folder}.html", PAGE.format(name=escape(student.name), body=body).encode())


def _sheet(sheet: "Sheet") -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in sheet.look + sheet.notes)
    notes = f"<ul>{notes}</ul>" if notes else ""
    if not sheet.exercise.number:
        return f"<p>This could not be graded.</p>{notes}"
    texts = [cell.source for cell in sheet.exercise.notebook.cells if cell.cell_type == "markdown"]
    titles = {match[1]: text[match.start() :].splitlines()[0] for text in texts if (match := HEADING.search(text))}
    answers = {task_of(cell.id): cell.source for cell in sheet.notebook.cells if cell.id.startswith("task-")}
    name, (total, most) = texts[0].splitlines()[0].lstrip("# "), sheet.total
    parts = [f"<h2>{escape(name)}: {total:g} of {most:g}</h2>{notes}"]
    for task, (points, most) in sheet.points.items():
        got = "not read yet" if points is None else f"{points:g} of {most:g}"
        parts.append(
            f"<h3>{escape(titles[task].lstrip('# '))} <span>{got}</span></h3>\n"
            f"<p>{escape(sheet.said.get(task, ''))}</p>\n<pre>{escape(answers[task])}</pre>"
        )
    return "\n".join(parts)
