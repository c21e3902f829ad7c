"""What solutions/TEACHING.md repeats of lessons, exercises and answers: `python tests/guide.py` writes it there."""

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "solutions/TEACHING.md"
HEAD = re.compile(r"^## (\d+\.\d+) (\S.*)\n\n\*(\d+) minutes · (\w+) · ", re.M)
LONGEST = 110


def prose(path: Path) -> str:
    """A notebook's text."""
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def plan() -> str:
    """A row a lesson: what it needs, its minutes, and those of its exercise."""
    rows = ["| lesson | needs | minutes | exercise | minutes |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        text, exercise = prose(path), ROOT / "exercises" / path.name
        needs = re.findall(r"\d\d(?=\]\(\d)", re.search(r"\*\*You need\*\*(.*?)\n\n", text, re.S)[1])
        minutes = re.search(r"\*\*(?:Minutes|Time).*?(\d+)", text)[1]
        row = f"| [{path.stem}](../notebooks/{path.name}) | {', '.join(needs) or '-'} | {minutes} |"
        if exercise.exists():
            tasks = [int(task[2]) for task in HEAD.findall(prose(exercise))]
            row += f" [{len(tasks)} tasks](../exercises/{path.name}) | {sum(tasks)} |"
        rows.append(row if exercise.exists() else f"{row} - | - |")
    return "\n".join(rows)


def mistakes() -> str:
    """Of each task of each exercise the wrong answers in its table, and what check says to them."""
    parts = []
    for path in sorted((ROOT / "solutions").glob("[0-9]*.ipynb")):
        if not find_spec(table := f"answers.exercise{path.stem[:2]}"):
            continue
        answers = import_module(table).ANSWERS
        parts.append(f"<details><summary>Exercise {path.stem[:2]}</summary>")
        for task, title, minutes, level in HEAD.findall(prose(path)):
            wrong = [(says, answer) for name, answer, says in answers if name == task and says != "✅"]
            parts.append(f"**{task} {title}** ({minutes} minutes, {level})")
            parts.append("\n".join(f"- *{_plain(says)}* {_code(answer)}".strip() for says, answer in wrong))
        parts.append("</details>")
    return "\n\n".join(part for part in parts if part)


def _plain(text: str) -> str:
    """A message in which Markdown sees nothing to format."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text.strip())


def _code(answer: str) -> str:
    """An answer on one line, if it is short enough for one; none where it takes something from the table."""
    line = re.sub(r"\s*\n\s*", "; ", answer.strip())
    own = "`" not in line and "from answers" not in line
    return f"`{line}`" if len(line) <= LONGEST and own else ""


PARTS = {"plan": plan, "mistakes": mistakes}


def written(text: str) -> str:
    """The guide, with its parts as they should be."""
    for name, part in PARTS.items():
        marked = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end -->)", re.S)
        text, count = marked.subn(lambda found, part=part: f"{found[1]}\n{part()}\n\n{found[2]}", text)
        assert count == 1, f"{GUIDE.name} needs one place for {name}"
    return text


if __name__ == "__main__":
    GUIDE.write_text(written(GUIDE.read_text()))
