"""Widgets as a reader meets them: a real JupyterLab in a real Chromium, sliders moved by mouse and keyboard."""

import shutil
import statistics
import time
from pathlib import Path

import nbformat
import pytest

from q4lib.kit.bench_widgets import Moves, moved, row
from q4lib.kit.browser import WIDE, Notebook, jupyter

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))

FIGURES = '''
"""Figure functions of the test's own: what they print is easily computed by the test."""
import time
import matplotlib
from matplotlib.figure import Figure
from q4lib.kit.plots import BLUE, STYLE

drawn = 0

def plot_bars(bits=4, amax=0.5, kind="plain", signed=True):
    """Bars, one for each level."""
    if bits == 7:
        raise ValueError("no bars for <7> bits")
    levels = 2**bits - (1 if signed else 0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.5), dpi=100)
        left, right = figure.subplots(1, 2)
        left.bar(range(32), [(i * amax) % 1 for i in range(32)], color=BLUE, hatch="/" if kind == "hatched" else None)
        right.plot([i % levels for i in range(64)])
        left.set(xlabel="level", ylabel="share", title=f"{levels} levels")
    return figure, f"bits {bits}, levels {levels}\\namax {amax:.2f}, step {amax / 7:.4f}, kind {kind}"

def plot_slowly(x=0):
    """A slow picture."""
    global drawn
    drawn += 1
    time.sleep(0.3)
    figure = Figure(figsize=(3, 1))
    figure.text(0, 0, str(x))
    return figure, f"x {x}, drawn {drawn}"
'''
CELLS = [
    "from figures_of_test import plot_bars, plot_slowly\nfrom q4lib.kit import explore, quiz",
    'explore(plot_bars, bits=(2, 8), amax=(0.1, 0.9, 0.1), kind=["plain", "hatched"], signed=True)',
    "explore(plot_slowly, x=(0, 400))",
    'quiz("Why `15` levels?", {"16 is `2**4`, but zero": "Zero has two codes.", "✓ 7 on each side": "And zero."})',
]
RUN = """from dataclasses import replace
from q4lib.kit.live import watch
from q4lib.recipes import RECIPES
watch(replace(RECIPES["digits"], epochs=8, schedule_epochs=8), guess=90)"""


@pytest.fixture(scope="session")
def lab(driver, tmp_path_factory):
    """Opens a notebook, by its name, in a JupyterLab of the test's own, with no file of the user's."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    (folder / "figures_of_test.py").write_text(FIGURES)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "test.ipynb")
    cells = [nbformat.v4.new_code_cell(RUN)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "run.ipynb")
    for lesson in LESSONS:
        shutil.copy(lesson, folder)
    with jupyter(folder, home, OMP_NUM_THREADS="1") as url:
        yield lambda name: Notebook(driver, url, name)


@pytest.fixture(scope="module")
def notebook(lab):
    """The test's own notebook, with all cells run."""
    notebook = lab("test.ipynb")
    notebook.run()
    assert not notebook.errors()
    notebook.wait(lambda: len(notebook.explorers()) == 2, "two explorers")
    yield notebook
    notebook.shut_down()


@pytest.fixture
def bars(notebook):
    from selenium.webdriver import Keys

    explorer = notebook.explorers()[0]
    explorer.press("bits", Keys.HOME)
    explorer.wait_for("bits 2")
    return explorer


def numbers_of(bits: int, amax: float, kind: str = "plain", signed: bool = True) -> str:
    levels = {2: 3, 3: 7, 4: 15, 5: 31, 6: 63, 8: 255}[bits] + (not signed)
    return f"bits {bits}, levels {levels}\namax {amax:.2f}, step {round(amax / 7, 4):.4f}, kind {kind}"


def test_mouse_moves_every_control(bars, tmp_path):
    assert bars.labels() == ["bits", "amax", "kind", "signed"]
    expected = {
        "bits": numbers_of(8, 0.5),
        "amax": numbers_of(8, 0.9),
        "kind": numbers_of(8, 0.9, "hatched"),
        "signed": numbers_of(8, 0.9, "hatched", False),
    }
    for label, numbers in expected.items():
        before = bars.seen()
        bars.drag(label, to=1)
        bars.wait_for(numbers)
        picture, now, error = bars.seen()
        assert now == numbers and not error
        assert picture.startswith("data:image/png;base64,")
        assert picture != before[0]
    bars.notebook.driver.save_screenshot(str(tmp_path / "wide.png"))
    bars.drag("amax", to=0.5), bars.drag("kind", to=0), bars.drag("signed", to=0)
    bars.wait_for(numbers_of(8, 0.5))


def test_keyboard_moves_every_control(bars):
    from selenium.webdriver import Keys

    for label, key, back, numbers in [
        ("bits", Keys.ARROW_RIGHT, Keys.ARROW_LEFT, numbers_of(3, 0.5)),
        ("amax", Keys.ARROW_RIGHT, Keys.ARROW_LEFT, numbers_of(2, 0.6)),
        ("kind", Keys.ARROW_RIGHT, Keys.ARROW_LEFT, numbers_of(2, 0.5, "hatched")),
        ("signed", Keys.SPACE, Keys.SPACE, numbers_of(2, 0.5, signed=False)),
    ]:
        start = bars.seen()
        bars.press(label, key)
        bars.wait_for(numbers)
        assert bars.seen()[0] != start[0]
        bars.press(label, back)
        bars.wait_for(numbers_of(2, 0.5))
        assert bars.seen() == start


def test_an_error_is_seen_in_the_page_and_goes_away(bars, tmp_path):
    from selenium.webdriver import Keys

    bars.press("bits", Keys.END)
    bars.wait_for("bits 8")
    bars.press("bits", Keys.ARROW_LEFT)
    bars.notebook.wait(lambda: bars.seen()[2], "the error")
    assert bars.seen() == ("", "", "plot_bars failed. ValueError: no bars for <7> bits")
    bars.notebook.driver.save_screenshot(str(tmp_path / "error.png"))
    bars.press("bits", Keys.ARROW_LEFT)
    bars.wait_for(numbers_of(6, 0.5))
    assert bars.seen()[0] and not bars.seen()[2]


def test_twenty_moves_neither_stack_nor_flicker(bars):
    from selenium.webdriver import Keys

    bars.watch()
    for i in range(20):
        bars.press("bits", Keys.ARROW_LEFT if i % 2 else Keys.ARROW_RIGHT)
        bars.wait_for(numbers_of(2 if i % 2 else 3, 0.5))
        bars.wait_for_pictures(i + 1)
    seen = bars.watched()
    assert len(bars.box.find_elements("css selector", "img")) == 1
    assert len(bars.box.find_elements("css selector", "pre")) == 1
    assert len(bars.notebook.explorers()) == 2
    assert len(set(seen["heights"])) == 1 and seen["empty"] == 0, seen
    p50, p95 = (statistics.quantiles(seen["ms"], n=20)[i] for i in (9, 18))
    print(f"slider move to new picture: median {p50:.0f} ms, p95 {p95:.0f} ms, {len(seen['heights'])} frames")


def test_a_drag_draws_the_newest_value_and_not_all(notebook):
    slow = notebook.explorers()[1]
    slow.drag("x", to=0)
    slow.wait_for("x 0,")
    before = int(slow.numbers().split("drawn ")[1])
    start = time.monotonic()
    slow.drag("x", to=1, moves=60)
    slow.wait_for("x 400,")
    drawn = int(slow.numbers().split("drawn ")[1]) - before
    assert 1 <= drawn <= 3 + (time.monotonic() - start) / 0.3
    assert drawn < 40
    time.sleep(1)
    assert f"x 400, drawn {before + drawn}" == slow.numbers()


def test_the_benchmark_times_what_a_reader_waits_for(notebook, bars):
    before = bars.seen()
    times = moved(bars, 2)
    assert len(times.drawn) == len(times.seen) == 2 * 4 and bars.seen() == before
    slow = notebook.explorers()[1]
    times = moved(slow, 2)
    assert all(300 < drawn < seen for drawn, seen in zip(*times, strict=True))
    assert slow.drawn()[0] == "plot_slowly" and row("slow", times).endswith("| NO |")
    assert row("quick", Moves([1, 2, 3], [10, 20, 30])) == "| quick | 3 | 2 | 3 | 20 | 29 | yes |"


def test_a_quiz_answers(notebook):
    [box] = notebook.quizzes()
    notebook.js("arguments[0].scrollIntoView({block: 'center'})", box)
    assert "Why 15 levels?" in box.text and not box.find_elements("css selector", "[role=status]")
    answers = {"16 is 2**4, but zero": "❌ Zero has two codes.", "7 on each side": "✅ And zero."}
    radios = box.find_elements("css selector", "input[type=radio]")
    assert not any(radio.is_selected() for radio in radios)
    for radio, (text, answer) in zip(radios, answers.items(), strict=True):
        assert radio.find_element("xpath", "ancestor::label").text == text
        radio.click()
        read = "return [...arguments[0].querySelectorAll('[role=status]')].map(one => one.textContent)"
        notebook.wait(lambda a=answer, read=read: notebook.js(read, box) == [a], answer)


def test_a_narrow_page_shows_everything(bars, tmp_path):
    bars.notebook.driver.set_window_size(400, 900)
    try:
        bars.notebook.js("arguments[0].scrollIntoView({block: 'start'})", bars.box)
        parts = "[...arguments[0].querySelectorAll('img, pre, .widget-slider')]"
        assert bars.notebook.js("return arguments[0].scrollWidth <= arguments[0].clientWidth", bars.box)
        inside = bars.notebook.js("return arguments[0].getBoundingClientRect()", bars.box)
        for rect in bars.notebook.js(f"return {parts}.map(one => one.getBoundingClientRect())", bars.box):
            assert inside["left"] <= rect["left"] < rect["right"] <= inside["right"] <= 500, (rect, inside)
        bars.notebook.driver.save_screenshot(str(tmp_path / "narrow.png"))
    finally:
        bars.notebook.driver.set_window_size(*WIDE)


def test_a_run_is_stopped_by_the_button_and_goes_on(lab, tmp_path):
    """The curve grows in one picture; the stop button leaves one sentence, and the same cell goes on."""
    notebook = lab("run.ipynb")
    try:
        started = notebook.js("return window.jupyterapp.commands.execute('notebook:run-all-cells'), true")
        assert started and notebook.wait(lambda: notebook.explorers(), "the first epoch")
        notebook.promise(f"{notebook.widget}.sessionContext.session.kernel.interrupt()")
        [error] = notebook.wait(notebook.errors, "the end of the step")
        done = int(notebook.explorers()[0].numbers().split("epoch ")[1].split(" of 8")[0])
        assert 1 <= done < 8 and "Stopped, and saved. Run this cell again" in error and "train.py" not in error
        # For a moment after an error a kernel puts aside what it is asked, and no output is left: it is asked again.
        notebook.wait(lambda: notebook.run() or notebook.cells()[0]["outputs"], "the run to go on")
        assert not notebook.errors()
        assert f"going on from epoch {done + 1}, step " in str(notebook.cells()[0]["outputs"])
        [explorer] = notebook.explorers()
        explorer.wait_for("epoch 8 of 8")
        assert len(explorer.box.find_elements("css selector", "img")) == 1
        notebook.driver.save_screenshot(str(tmp_path / "run.png"))
    finally:
        notebook.shut_down()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson(lab, lesson, tmp_path):
    """All cells run, and each control of each figure is moved by mouse; the first of each kind by keyboard too."""
    from selenium.webdriver import Keys

    notebook = lab(lesson.name)
    try:
        notebook.run()
        assert not notebook.errors()
        by_keyboard = set()
        asked = [cell for cell in notebook.cells() if cell["cell_type"] == "code" and "explore(" in cell["source"]]
        notebook.wait(lambda: len(notebook.explorers()) >= len(asked), "all figures")
        explorers = notebook.explorers()
        for number, explorer in enumerate(explorers):
            for label in explorer.labels():
                before, where = explorer.seen(), f"{lesson.stem}, figure {number + 1}, {label!r}"
                slider = explorer.is_slider(label)
                end = explorer.far_end(label) if slider else 1
                explorer.drag(label, to=end)
                notebook.wait(lambda e=explorer, b=before: e.seen() != b, f"a change: {where}")
                assert explorer.seen()[0] and not explorer.seen()[2], (where, explorer.seen()[2])
                if slider not in by_keyboard:
                    by_keyboard.add(slider)
                    before = explorer.seen()
                    back = Keys.ARROW_LEFT if end else Keys.ARROW_RIGHT
                    explorer.press(label, back if slider else Keys.SPACE)
                    notebook.wait(lambda e=explorer, b=before: e.seen() != b, f"a change by keyboard: {where}")
            assert len(explorer.box.find_elements("css selector", "img")) == 1
            notebook.driver.save_screenshot(str(tmp_path / f"{lesson.stem}-{number + 1}.png"))
        for box in notebook.quizzes():
            radio = box.find_elements("css selector", "input[type=radio]")[-1]
            notebook.js("arguments[0].scrollIntoView({block: 'center'})", radio)
            radio.click()
            notebook.wait(lambda b=box: b.find_elements("css selector", "[role=status]"), "an explanation")
    finally:
        notebook.shut_down()
