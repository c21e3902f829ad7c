"""An exercise as a student meets it: a real JupyterLab in a real Chromium, answers pasted into its cells."""

import shutil
import textwrap

import pytest
import solving

from q4lib.kit.browser import Notebook, jupyter

PATH = solving.SOLUTIONS[0]
PASTE = """const data = new DataTransfer();
data.setData('text/plain', arguments[1]);
arguments[0].dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true}))"""


class Exercise(Notebook):
    """An exercise that is open in JupyterLab."""

    def cell(self, name: str):
        """The part of the page that is the cell of this id."""
        number = [cell["id"] for cell in self.cells()].index(name)
        found = self.driver.find_elements("css selector", ".jp-Notebook .jp-Cell")[number]
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        return found

    def answer(self, task: str, body: str) -> None:
        """Paste an answer over a task's cell, run that and the check below it, as a student does: with the keyboard."""
        from selenium.webdriver import ActionChains, Keys

        source = solving.REGION.sub(lambda match: textwrap.indent(body, match[1]), solving.tasks(PATH)[task][0])
        editor = self.cell(f"task-{task.replace('.', '-')}").find_element("css selector", ".cm-content")
        editor.click()
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
        self.js(PASTE, editor, source)
        for _ in range(2):
            ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()

    def said(self, task: str) -> str:
        """What stands below a check in the page."""
        outputs = self.cell(f"check-{task.replace('.', '-')}").find_elements("css selector", ".jp-OutputArea-output")
        return "\n".join(output.text for output in outputs)

    def wait_for(self, task: str, says: str) -> None:
        self.wait(lambda: says in self.said(task), f"{says!r} (there is {self.said(task)!r})")


@pytest.fixture
def exercise(driver, tmp_path):
    folder, home = tmp_path / "exercises", tmp_path / "home"
    folder.mkdir(), home.mkdir()
    shutil.copy(solving.ROOT / "exercises" / PATH.name, folder)
    with jupyter(folder, home, OMP_NUM_THREADS="1") as url:
        exercise = Exercise(driver, url, PATH.name)
        yield exercise
        exercise.shut_down()


def test_checks_answer_in_the_page(exercise, tmp_path):
    exercise.run()
    assert not exercise.errors()
    assert exercise.said("1.1").startswith("⏳ 1.1 not attempted yet")
    exercise.answer("1.1", "while True:\n    pass\n")
    exercise.wait_for("1.1", "does a loop never end?")
    assert exercise.said("1.1").startswith("❌ 1.1 ")
    exercise.answer("1.1", "return w.abs().max() / 2 ** (bits - 1)\n")
    exercise.wait_for("1.1", "did you divide by 2**(bits - 1), 8 at 4 bits?")
    exercise.answer("1.1", solving.reference(PATH, "1.1"))
    exercise.wait_for("1.1", "✅ 1.1 ")
    exercise.driver.save_screenshot(str(tmp_path / "check.png"))

    exercise.run()
    assert not exercise.errors()
    assert exercise.said("1.1").startswith("✅ 1.1 ") and exercise.said("1.2").startswith("⏳ 1.2 ")
    bars = exercise.driver.find_elements("css selector", "progress[aria-label^='01 exercise']")
    assert [(bar.get_attribute("value"), bar.get_attribute("max")) for bar in bars] == [("1", "6")]
    exercise.js("arguments[0].scrollIntoView({block: 'center'})", bars[0])
    exercise.driver.save_screenshot(str(tmp_path / "progress.png"))
