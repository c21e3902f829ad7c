"""The teacher's guide: what it repeats is as the notebooks and the tables say, and what it names is there."""

import re

import guide
import pytest

from q4lib.kit.cli import _parser

TEXT = guide.GUIDE.read_text()


def test_what_it_repeats_is_up_to_date():
    assert guide.written(TEXT) == TEXT, "python tests/guide.py writes it anew"


@pytest.mark.parametrize("part", guide.PARTS)
def test_a_lost_part_is_found(part):
    with pytest.raises(AssertionError, match=part):
        guide.written(TEXT.replace(f"<!-- {part}:", "<!-- "))


def test_every_lesson_has_a_plan():
    """And its minutes add up."""
    plans = re.findall(r"^\| (\d\d) \| ([^|]+\(\d+\)) \| ([^|]+) \|$", TEXT, re.M)
    lessons = [path.name[:2] for path in sorted((guide.ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    assert [lesson for lesson, *_ in plans] == lessons
    for _, short, long in plans:
        minutes = [sum(map(int, re.findall(r"\((\d+)\)", plan))) for plan in (short, long)]
        assert minutes in ([50, 40], [50, 0]), (short, long)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert len(links) > 10 and not [link for link in links if not (guide.GUIDE.parent / link).exists()]


def test_every_command_is_one():
    [commands] = [action.choices for action in _parser()._actions if action.choices]
    named = set(re.findall(r"(?:`| {4})q4 (\w+)", TEXT))
    assert named <= set(commands) and named >= {"grade", "class", "offline", "build", "lab"}
