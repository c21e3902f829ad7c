"""A notebook in a real browser: its cells are run, its sliders found by their labels and moved."""

import json
import re
import time
from pathlib import Path

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
PATIENCE = 120  # seconds; a browser on a busy machine is slow
WIDE = (1280, 1000)


def open_chromium(folder: Path):
    """A headless Chromium with nothing but an empty `folder`, which downloads nothing. Skips where there is none."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"needs Chromium: {CHROMIUM} and {DRIVER}")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"--user-data-dir={folder}"]:
        options.add_argument(flag)
    driver = Chrome(options, ChromeService(str(DRIVER)))
    driver.set_window_size(*WIDE)
    driver.set_script_timeout(600)
    return driver


class Notebook:
    """A notebook that is open in the browser, and its widgets."""

    def __init__(self, driver, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.kernel() == "idle", "an idle kernel")

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition, what: str, seconds: float = PATIENCE):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"waited {seconds} s for {what}"
            time.sleep(0.05)
        return found

    def kernel(self) -> str | None:
        return self.js("return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status")

    def run(self) -> None:
        """Run all cells, and wait until that is done."""
        run = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
        failed = self.driver.execute_async_script(f"{run}.then(() => arguments[0](), e => arguments[0](String(e)))")
        assert failed is None
        self.wait(lambda: self.kernel() == "idle", "the end of all cells")

    def cells(self) -> list[dict]:
        return self.js("return window.jupyterapp.shell.currentWidget.context.model.toJSON()")["cells"]

    def errors(self) -> list[str]:
        """Every traceback among the outputs."""
        outputs = [output for cell in self.cells() for output in cell.get("outputs", [])]
        return [
            text for text in map(json.dumps, outputs) if re.search(r'"output_type": "error"|Traceback \(most', text)
        ]

    def explorers(self) -> list["Explorer"]:
        boxes = self.driver.find_elements("css selector", ".jp-OutputArea-output .widget-vbox")
        return [Explorer(self, box) for box in boxes if box.find_elements("css selector", "figure, [role=alert]")]

    def quizzes(self) -> list:
        boxes = self.driver.find_elements("css selector", ".jp-OutputArea-output .widget-vbox")
        return [box for box in boxes if box.find_elements("css selector", "input[type=radio]")]

    def shut_down(self) -> None:
        self.driver.execute_async_script(
            "window.jupyterapp.shell.currentWidget.sessionContext.shutdown().finally(() => arguments[0]())"
        )


class Explorer:
    """The sliders, picture and numbers that one `explore` shows."""

    def __init__(self, notebook: Notebook, box) -> None:
        self.notebook, self.box = notebook, box
        notebook.js("arguments[0].scrollIntoView({block: 'center'})", box)

    def labels(self) -> list[str]:
        found = self.box.find_elements("css selector", ".widget-slider > .widget-label, .widget-checkbox span")
        return [label.text for label in found if label.text]

    def control(self, label: str):
        """What moves: a slider's handle or a box to tick. The label is the one that is read."""
        for row in self.box.find_elements("css selector", ".widget-slider, .widget-checkbox"):
            if label in [text.text for text in row.find_elements("css selector", ".widget-label, span")]:
                return row.find_element("css selector", ".noUi-handle, input[type=checkbox]")
        raise AssertionError(f"no control is labelled {label!r}: there are {self.labels()}")

    def is_slider(self, label: str) -> bool:
        return self.control(label).tag_name != "input"

    def drag(self, label: str, to: float, moves: int = 5) -> None:
        """By mouse: a slider's handle to a share of its track's length, in several moves; or a click on a box."""
        from selenium.webdriver import ActionChains

        handle = self.control(label)
        if not self.is_slider(label):
            handle.click()
            return
        track = handle.find_element("xpath", "ancestor::*[contains(@class, 'noUi-base')]").rect
        here = handle.rect["x"] + handle.rect["width"] / 2
        path = [round((track["x"] + to * track["width"] - here) * i / moves) for i in range(moves + 1)]
        mouse = ActionChains(self.notebook.driver, duration=20).click_and_hold(handle)
        for before, after in zip(path, path[1:], strict=False):
            mouse.move_by_offset(after - before, 0)
        mouse.release().perform()

    def press(self, label: str, *keys: str) -> None:
        """By keyboard."""
        self.control(label).send_keys(*keys)

    def far_end(self, label: str) -> float:
        """The end of a slider's track, 0 or 1, that is farther from its handle."""
        handle = self.control(label)
        track = handle.find_element("xpath", "ancestor::*[contains(@class, 'noUi-base')]").rect
        return float(handle.rect["x"] + handle.rect["width"] / 2 < track["x"] + track["width"] / 2)

    def seen(self) -> tuple[str, str, str]:
        """The picture, the numbers and the error: what is in the page now."""
        read = """return ['img', 'pre', '[role=alert]'].map(what => {
            const found = [...arguments[0].querySelectorAll(what)];
            return found.map(one => what == 'img' ? one.src : one.textContent).join('\\n---\\n');
        })"""
        return tuple(self.notebook.js(read, self.box))

    def numbers(self) -> str:
        return self.seen()[1]

    def wait_for(self, numbers: str) -> None:
        self.notebook.wait(lambda: numbers in self.numbers(), f"{numbers!r} (there is {self.seen()[1:]})")

    def watch(self) -> None:
        """From now on, time each change from the key to the new picture, and look at the box in every frame."""
        self.notebook.js(
            """const box = arguments[0], seen = window.watched = {ms: [], heights: [], empty: 0, on: true};
            let start = 0, shown = box.querySelector('img');
            box.addEventListener('keydown', () => { start = performance.now(); }, true);
            new MutationObserver(() => {
                const img = box.querySelector('img');
                if (!img || img === shown) return;
                shown = img;
                img.decode().then(() => requestAnimationFrame(() => seen.ms.push(performance.now() - start)));
            }).observe(box, {childList: true, subtree: true});
            const frame = () => {
                const img = box.querySelector('img');
                if (!img || !img.complete || !img.naturalWidth) seen.empty += 1;
                seen.heights.push(box.getBoundingClientRect().height);
                if (seen.on) requestAnimationFrame(frame);
            };
            requestAnimationFrame(frame);""",
            self.box,
        )

    def watched(self) -> dict:
        return self.notebook.js("window.watched.on = false; return window.watched")
