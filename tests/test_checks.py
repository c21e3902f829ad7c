"""check and progress: one line for each value, never a traceback, and nothing forgotten."""

import html
import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from q4lib.files import FileError, locked
from q4lib.kit import check, checks, progress
from q4lib.kit.progress import remember


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """Two lessons of three tasks, instead of the course's own, and no nbgrader."""
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    monkeypatch.setattr(checks, "_registered", {})
    monkeypatch.setattr(checks, "__path__", [])

    @checks.task("01.a")
    def levels(value):
        random.random(), np.random.rand(), torch.rand(1)
        if value == 16:
            raise checks.Wrong("zero would have two codes: did you count it twice?")
        if value != 15:
            raise ValueError("one\n  two")
        return "7 on each side and zero"

    @checks.task("01.b")
    def quits(value):
        sys.exit(3)

    @checks.task("02.a")
    def silent(value):
        return None


def line(capsys, name, value):
    check(name, value)
    out, err = capsys.readouterr()
    assert out.endswith("\n") and out.count("\n") == 1 and not err
    return out.strip()


def done(home):
    return json.loads((home / "progress.json").read_text())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("01.a", 15, "✅ 01.a 7 on each side and zero"),
        ("01.a", 16, "❌ 01.a zero would have two codes: did you count it twice?"),
        ("01.a", 14, "❌ 01.a ValueError: one two"),
        ("01.a", None, "⏳ 01.a not attempted yet"),
        ("01.b", 1, "❌ 01.b SystemExit: 3"),
        ("02.a", 1, "✅ 02.a right"),
        ("01.z", 1, "❌ there is no task '01.z' (did you mean '01.b'?)"),
        ("01.z", None, "❌ there is no task '01.z' (did you mean '01.b'?)"),
        ("exercise", 1, "❌ there is no task 'exercise'"),
        (12, 1, "❌ there is no task 12"),
    ],
)
def test_one_line_and_no_traceback(capsys, monkeypatch, name, value, expected):
    assert line(capsys, name, value) == expected
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    if expected.startswith("✅"):
        assert line(capsys, name, value) == expected
    else:
        with pytest.raises(checks.Wrong) as caught:
            check(name, value)
        assert str(caught.value) == expected == capsys.readouterr().out.strip()


@pytest.mark.parametrize("value", [14, 15, 16, None])
def test_random_numbers_go_on_as_if_nothing_had_been_checked(value):
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seeded():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seeded()
    expected = drawn()
    seeded()
    check("01.a", value)
    assert drawn() == expected


def test_an_id_belongs_to_one_function():
    with pytest.raises(ValueError, match="two tasks are called '01.a': .*levels and .*other"):

        @checks.task("01.a")
        def other(value): ...


def test_a_module_may_be_loaded_again():
    def again(value): ...

    checks.task("03.a")(again)
    checks.task("03.a")(again)


def test_topics_are_found_by_themselves(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checks, "__path__", [str(tmp_path)])
    (tmp_path / "new_topic.py").write_text("from . import task\n@task('99.a')\ndef f(value): return 'found'\n")
    try:
        assert line(capsys, "99.a", 1) == "✅ 99.a found"
        assert checks.tasks()["99.a"] == "new_topic"
    finally:
        sys.modules.pop("q4lib.kit.checks.new_topic", None)


def test_a_topic_that_does_not_load_is_no_traceback(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(checks, "__path__", [str(tmp_path)])
    (tmp_path / "broken_topic.py").write_text("1 / 0")
    assert line(capsys, "01.a", 15) == "❌ 01.a ZeroDivisionError: division by zero"


def test_what_was_done_stays_done(q4_home, capsys):
    for value, expected in [(16, {"01.a": False}), (15, {"01.a": True}), (16, {"01.a": True}), (None, {"01.a": True})]:
        check("01.a", value)
        assert done(q4_home) == expected
    check("02.a", None)
    check("09.z", 1)
    assert done(q4_home) == {"01.a": True}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"01.a": 3}', b"\xff", b""])
def test_a_damaged_file_is_set_aside(q4_home, capsys, content):
    file = q4_home / "progress.json"
    file.write_bytes(content)
    check("01.a", 15)
    assert done(q4_home) == {"01.a": True}
    assert (q4_home / "progress.damaged.json").read_bytes() == content
    out = capsys.readouterr().out
    assert "✅ 01.a" in out and f"{file} was damaged: it is now progress.damaged.json" in out


def test_a_home_that_cannot_be_written_is_no_traceback(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("Q4_HOME", str(tmp_path / "file"))
    assert line(capsys, "01.a", 15).startswith("✅ 01.a 7 on each side and zero (not remembered: ")
    progress()
    assert "file" in capsys.readouterr().out


def test_a_file_is_written_whole(q4_home, monkeypatch, capsys):
    remember("01.a", True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "not remembered: cannot write" in line(capsys, "02.a", 1)
    assert done(q4_home) == {"01.a": True}


KERNEL = """
import sys
from q4lib.kit.progress import remember
for i in range(40):
    remember(f"{sys.argv[1]}.{i}", True)
"""


def test_two_kernels_lose_nothing(q4_home):
    kernels = [subprocess.Popen([sys.executable, "-c", KERNEL, str(k)], env=dict(os.environ)) for k in range(3)]
    assert [kernel.wait(timeout=120) for kernel in kernels] == [0, 0, 0]
    assert done(q4_home) == {f"{k}.{i}": True for k in range(3) for i in range(40)}


def test_a_kernel_that_holds_the_file_is_not_waited_for_without_end(q4_home, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["q4lib.kit.progress"], "PATIENCE", 0.1)
    with locked(q4_home / "progress.json"):
        with pytest.raises(FileError):
            remember("01.a", True)
        assert "✅ 01.a 7 on each side and zero (not remembered: another process" in line(capsys, "01.a", 15)


PROGRESS = """\
01 test checks  █░  1 of 2, left: 01.b
02 test checks  █  1 of 1
"""


def test_progress_counts_what_is_done(monkeypatch, capsys):
    monkeypatch.setenv("Q4_WIDGETS", "0")
    progress()
    assert capsys.readouterr().out.splitlines()[-1] == "02 test checks  ░  0 of 1, left: 02.a"
    check("01.a", 15), check("01.b", 1), check("02.a", 1)
    capsys.readouterr()
    progress()
    keep = f'progress("{code(capsys)}") brings this back on another machine\n'
    progress()
    assert capsys.readouterr().out == PROGRESS + keep

    monkeypatch.setenv("Q4_WIDGETS", "1")
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    progress()
    [data] = shown
    assert data["text/plain"] + "\n" == PROGRESS + keep and not capsys.readouterr().out
    assert data["text/html"].count("<tr>") == 2
    assert "<progress max=2 value=1 " in data["text/html"] and "<progress max=1 value=1 " in data["text/html"]
    assert "1 of 2, left: 01.b</td>" in data["text/html"] and html.escape(keep.strip()) in data["text/html"]


def test_an_exercise_follows_its_lesson(monkeypatch, capsys):
    for name in ("1.2", "1.1"):
        checks.task(name)(lambda value: None)
    monkeypatch.setenv("Q4_WIDGETS", "0")
    progress()
    assert [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()] == [
        "01 test checks", "01 exercise", "02 test checks"
    ]  # fmt: skip
    assert list(checks.tasks()) == ["01.a", "01.b", "1.1", "1.2", "02.a"]


def code(capsys) -> str:
    return re.search(r'progress\("([0-9A-Z-]+)"\)', capsys.readouterr().out)[1]


EVERYTHING = [f"{lesson:02}.{rest}" for lesson in range(10) for rest in "abcdefgh"] + [
    f"{lesson}.{rest}" for lesson in range(1, 10) for rest in range(1, 9)
]


@pytest.mark.parametrize("names", [["00.a"], ["01.a", "1.1", "6.7"], ["9.8"], EVERYTHING])
def test_a_code_brings_it_all_back(names, q4_home, monkeypatch, capsys):
    monkeypatch.setenv("Q4_WIDGETS", "0")
    for name in names:
        remember(name, True)
    progress()
    keep = code(capsys)
    assert len(keep) <= 9 * len(names) + 5 * 16 and len(keep) < 90
    (q4_home / "progress.json").unlink()
    remember("02.a", True), remember("01.b", False)
    # As it is copied from a sheet of paper.
    progress(f" {keep.lower().replace('-', ' ').replace('0', 'o').replace('1', 'l')}")
    assert done(q4_home) == {"01.b": "01.b" in names, "02.a": True} | dict.fromkeys(names, True)


def test_every_task_of_the_course_has_a_place_in_the_code(monkeypatch):
    monkeypatch.undo()
    assert set(checks.tasks()) <= set(EVERYTHING)


@pytest.mark.parametrize("wrong", ["", "X", "a b c", "é", 12345, "0000", "Y" * 500])
def test_a_wrong_code_changes_nothing(wrong, q4_home, monkeypatch, capsys):
    monkeypatch.setenv("Q4_WIDGETS", "0")
    check("01.a", 15)
    progress()
    keep = code(capsys)
    for mistyped in [wrong] if wrong else [keep[:-1], keep[1:], keep[1] + keep[0] + keep[2:], keep[:-1] + "Z"]:
        progress(mistyped)
        out = capsys.readouterr().out
        assert out == f"{mistyped!r} is no progress code: is a letter or digit missing, or mistyped?\n"
    assert done(q4_home) == {"01.a": True}
