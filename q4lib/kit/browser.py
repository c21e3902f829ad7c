"""A notebook in a real browser: its cells are run, its sliders found by their labels and moved."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..train import RunError

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
PATIENCE = 120  # seconds; a browser on a busy machine is slow
WIDE = (1280, 1000)
LAB = ("jupyterlab", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly")
# Every cell is in the page, and nothing is asked for or fetched.
SETTINGS: dict[str, dict[str, Any]] = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A headless Chromium with nothing but an empty `folder`, which downloads nothing. RunError if there is none."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        raise RunError(f"this needs Chromium as Debian has it: {CHROMIUM} and {DRIVER}")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS.split(), f"--user-data-dir={folder}"]:
        options.add_argument(flag)
    driver: Any = Chrome(options, ChromeService(str(DRIVER)))
    try:
        driver.set_window_size(*WIDE)
        # A script waits for all cells of a lesson; the connection would give up after two minutes.
        driver.set_script_timeout(600)
        driver.command_executor.client_config.timeout = 610
        yield driver
    finally:
        driver.quit()


@contextmanager
def jupyter(
    folder: Path, home: Path, app: Sequence[str] = LAB, python: str | Path = sys.executable, **variables: str
) -> Iterator[Callable[[str], str]]:
    """A JupyterLab, or another `app`, over `folder`, with no file of the user's; gives the address of a path in it."""
    for extension, settings in SETTINGS.items():
        file = home / f"lab/user-settings/@jupyterlab/{extension}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, token = f"http://127.0.0.1:{port}", secrets.token_hex()
    own = {"CONFIG": home, "DATA": home / "d", "RUNTIME": home / "r"}
    env = os.environ | {f"JUPYTER_{kind}_DIR": str(place) for kind, place in own.items()}
    env |= {"IPYTHONDIR": str(home / "i"), "Q4_HOME": str(home / "q4"), "JUPYTER_TOKEN": token, **variables}
    env.pop("Q4_WIDGETS", None)
    options = ["--ip=127.0.0.1", f"--port={port}", "--port-retries=0", "--no-browser", "--allow-root"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([python, "-m", *app, *options], env=env, cwd=folder, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not _answers(f"{url}/api/status?token={token}"):
            if server.poll() is not None or time.monotonic() > end:
                raise RunError(f"{app[0]} did not start: {(home / 'log').read_text()}")
            time.sleep(0.2)
        yield lambda path: f"{url}/{path}?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


class Notebook:
    """A notebook that is open in JupyterLab, and its widgets."""

    path, outputs = "doc/tree", ".jp-OutputArea-output .widget-vbox"
    widget = "window.jupyterapp?.shell.currentWidget"

    def __init__(self, driver: Any, url: Callable[[str], str], name: str) -> None:
        self.driver = driver
        driver.get(url(f"{self.path}/{name}"))
        self.wait(lambda: self.kernel() == "idle", "an idle kernel")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def promise(self, code: str) -> None:
        """Run JavaScript that gives a promise, and wait for it."""
        failed = self.driver.execute_async_script(f"{code}.then(() => arguments[0](), e => arguments[0](String(e)))")
        if failed:
            raise RunError(f"the page says: {failed}")

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """What `condition` gives as soon as that is true. RunError if it never is."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                raise RunError(f"waited {seconds} s for {what}")
            time.sleep(0.05)
        return found

    def kernel(self) -> str | None:
        return self.js(f"return {self.widget}?.sessionContext?.session?.kernel?.status")

    def run(self) -> None:
        """Run all cells, and wait until that is done."""
        self.promise("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait(lambda: self.kernel() == "idle", "the end of all cells")

    def cells(self) -> list[dict]:
        return self.js(f"return {self.widget}.context.model.toJSON()")["cells"]

    def errors(self) -> list[str]:
        """Every traceback among the outputs."""
        outputs = [output for cell in self.cells() for output in cell.get("outputs", [])]
        return [
            text for text in map(json.dumps, outputs) if re.search(r'"output_type": "error"|Traceback \(most', text)
        ]

    def explorers(self) -> list["Explorer"]:
        return [Explorer(self, box) for box in self._boxes("figure, [role=alert]")]

    def quizzes(self) -> list[Any]:
        return self._boxes("input[type=radio]")

    def _boxes(self, holding: str) -> list[Any]:
        boxes = self.driver.find_elements("css selector", self.outputs)
        return [box for box in boxes if box.find_elements("css selector", holding)]

    def shut_down(self) -> None:
        self.promise(f"{self.widget}.sessionContext.shutdown()")


class ClassicNotebook(Notebook):
    """A notebook that is open in the classic notebook of Jupyter, version 6."""

    path, outputs = "notebooks", ".output_area .widget-vbox"
    widget = "window.Jupyter?.notebook"

    def kernel(self) -> str | None:
        """As JupyterLab would say it. Ready only once ipywidgets is: what a cell shows before that is never drawn."""
        ready = f"const n = {self.widget}; return n && n._fully_loaded && n.kernel?.is_connected()"
        ready += " && n.kernel.comm_manager.targets['jupyter.widget']"
        return "idle" if self.js(f"{ready} && !n.kernel_busy && !document.querySelector('.cell.running')") else None

    def run(self) -> None:
        self.js(f"{self.widget}.execute_all_cells()")
        self.wait(lambda: self.kernel() == "idle", "the end of all cells")

    def cells(self) -> list[dict]:
        return self.js(f"return {self.widget}.toJSON()")["cells"]

    def shut_down(self) -> None:
        self.js(f"{self.widget}.session.delete()")


class Explorer:
    """The sliders, picture and numbers that one `explore` shows."""

    def __init__(self, notebook: Notebook, box: Any) -> None:
        self.notebook, self.box = notebook, box
        notebook.js("arguments[0].scrollIntoView({block: 'center'})", box)

    def labels(self) -> list[str]:
        found = self.box.find_elements("css selector", ".widget-slider > .widget-label, .widget-checkbox span")
        return [label.text for label in found if label.text]

    def control(self, label: str) -> Any:
        """What moves: a slider's handle or a box to tick. The label is the one that is read."""
        for row in self.box.find_elements("css selector", ".widget-slider, .widget-checkbox"):
            if label in [text.text for text in row.find_elements("css selector", ".widget-label, span")]:
                return row.find_element("css selector", ".noUi-handle, .ui-slider-handle, input[type=checkbox]")
        raise RunError(f"no control is labelled {label!r}: there are {self.labels()}")

    def is_slider(self, label: str) -> bool:
        return self.control(label).tag_name != "input"

    def drag(self, label: str, to: float, moves: int = 5) -> None:
        """By mouse: a slider's handle to a share of its track's length, in several moves; or a click on a box."""
        from selenium.webdriver import ActionChains

        handle = self.control(label)
        if not self.is_slider(label):
            handle.click()
            return
        here, track = self._place(handle)
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
        here, track = self._place(self.control(label))
        return float(here < track["x"] + track["width"] / 2)

    def _place(self, handle: Any) -> tuple[float, dict[str, float]]:
        """Where a handle's middle and its track are."""
        track = handle.find_element(
            "xpath", "ancestor::*[contains(@class, 'noUi-base') or contains(@class, 'ui-slider')]"
        )
        return handle.rect["x"] + handle.rect["width"] / 2, track.rect

    def seen(self) -> tuple[str, str, str]:
        """The picture, the numbers and the error: what is in the page now."""
        read = """return ['img', 'pre', '[role=alert]'].map(what => {
            const found = [...arguments[0].querySelectorAll(what)];
            return found.map(one => what == 'img' ? one.src : one.textContent).join('\\n---\\n');
        })"""
        picture, numbers, error = self.notebook.js(read, self.box)
        return picture, numbers, error

    def numbers(self) -> str:
        return self.seen()[1]

    def drawn(self) -> tuple[str, float]:
        """The function that drew the picture, and in how many milliseconds."""
        drawn = self.notebook.js("return arguments[0].querySelector('figure').dataset.drawn", self.box)
        name, milliseconds = drawn.removesuffix(" ms").split(", ")
        return name, float(milliseconds)

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

    def wait_for_pictures(self, number: int) -> None:
        """Until as many new pictures have been seen since `watch`."""
        self.notebook.wait(lambda: self.notebook.js("return window.watched.ms.length") >= number, "the new picture")

    def watched(self) -> dict[str, Any]:
        return self.notebook.js("window.watched.on = false; return window.watched")
