"""Widgets as a reader meets them: a real JupyterLab in a real Chromium, sliders moved by mouse and keyboard."""

import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from browser import PATIENCE, WIDE, Notebook, open_chromium

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


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    driver = open_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def lab(driver, tmp_path_factory):
    """Opens a notebook, by its name, in a JupyterLab of the test's own, with no file of the user's."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    (folder / "figures_of_test.py").write_text(FIGURES)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "test.ipynb")
    for lesson in LESSONS:
        shutil.copy(lesson, folder)
    # Every cell is in the page, and nothing is asked for or fetched.
    for extension, settings in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        file = home / f"lab/user-settings/@jupyterlab/{extension}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    own = {
        f"JUPYTER_{kind}_DIR": str(home / part) for kind, part in {"CONFIG": "", "DATA": "d", "RUNTIME": "r"}.items()
    }
    env = os.environ | own | {"IPYTHONDIR": str(home / "i"), "Q4_HOME": str(home / "q4"), "OMP_NUM_THREADS": "1"}
    env.pop("Q4_WIDGETS", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, token = f"http://127.0.0.1:{port}", secrets.token_hex()
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.allow_root": True,
        "ServerApp.open_browser": False, "ServerApp.root_dir": folder, "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True, "LabApp.extension_manager": "readonly",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not _answers(f"{url}/api/status?token={token}"):
            assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()
            time.sleep(0.2)
        yield lambda name: Notebook(driver, f"{url}/doc/tree/{name}?token={token}")
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


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
        bars.notebook.wait(lambda i=i: len(bars.notebook.js("return window.watched.ms")) > i, "the new picture")
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
