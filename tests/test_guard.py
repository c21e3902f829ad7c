"""Whatever a student's function does: one line, within two seconds of work, no traceback, and nothing of it stays."""

import builtins
import io
import itertools
import random
import sys
import threading
import time

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from q4lib import quant
from q4lib.kit import check, checks
from q4lib.kit.guard import Endless, guarded
from q4lib.kit.lessons import _kernel


def right(w, bits=4):
    return quant.scale(w, bits)


def endless(w, bits=4):
    while True:
        pass


def stubborn(w, bits=4):
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:  # noqa: SIM105
            time.sleep(0.001)
        except:  # noqa: E722
            pass


def recursive(w, bits=4):
    return recursive(w, bits)


def says_nothing(w, bits=4):
    class Mute(Exception):  # noqa: N818
        def __str__(self):
            raise ValueError

    raise Mute


def raises(error, *arguments):
    def function(w, bits=4):
        raise error(*arguments)

    return function


def in_place(w, bits=4):
    return w.abs_().max() / 7


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda w, bits=4: None, "⏳ 1.1 not attempted yet (your function returns None)"),
        (lambda w, bits=4: print(w), "❌ 1.1 your function returns None: is a `return` missing, or does `return None`"),
        (None, "⏳ 1.1 not attempted yet"),
        ([0.5] * 10_000, "yours is [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...]: give its name"),
        (100 * "a", f"...{28 * 'a'}': give its name"),
        (3, "❌ 1.1 a function is asked for, yours is 3: give its name, without brackets after it"),
        (right(torch.ones(3)), "❌ 1.1 a function is asked for, yours is tensor(0.1429)"),
        (lambda w, bits=4: right(w, bits).numpy(), "a tensor is asked for, yours is of type ndarray"),
        (lambda w, bits=4: float(right(w, bits)), "a tensor is asked for, yours is of type float"),
        (lambda w, bits=4: right(w, bits).half(), "their type should be torch.float32, yours is torch.float16"),
        (lambda w, bits=4: right(w, bits)[None], "the shape should be (), yours is (1,)"),
        (lambda w, bits=4: right(w, bits) * torch.nan, "yours has nan in it"),
        (lambda w, bits=4: right(w, bits) if w.numel() > 1 else None, "for a single weight it returns None"),
        (in_place, "it changes the tensor it is given (argument 1)"),
        (lambda: 1, "TypeError: <lambda>() takes 0 positional arguments but 2 were given"),
        (raises(ValueError, "one\n two"), "ValueError: one two (six weights at 4 bits) (line "),
        (raises(KeyboardInterrupt), "❌ 1.1 KeyboardInterrupt"),
        (raises(SystemExit, 3), "❌ 1.1 SystemExit: 3"),
        (lambda w, bits=4: sys.exit(), "❌ 1.1 SystemExit"),
        (lambda w, bits=4: builtins.exit(), "❌ 1.1 SystemExit"),
        (says_nothing, "Mute: <exception str() failed>"),
        (recursive, "RecursionError: maximum recursion depth exceeded"),
        (endless, "seconds: does a loop never end"),
    ],
)
@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another thread"])
def test_one_line_whatever_it_does(value, says, thread, monkeypatch, capsys):
    monkeypatch.setattr(checks, "SECONDS", 0.3 if value is endless else 10.0)
    before = threading.active_count()
    if thread:
        other = threading.Thread(target=check, args=("1.1", value))
        other.start(), other.join()
    else:
        check("1.1", value)
    out, err = capsys.readouterr()
    assert says in out and out.count("\n") == 1 and not err
    assert "restart" not in out and threading.active_count() == before


def test_limits_leave_a_student_less_than_two_seconds():
    assert checks.SECONDS < 2 < checks.GRADER_SECONDS < 30, "nbgrader ends a cell after 30 s"


@pytest.mark.parametrize("value", [lambda w, bits=4: time.sleep(2), stubborn])
def test_what_cannot_be_ended_is_said(value, monkeypatch, capsys):
    monkeypatch.setattr(checks, "SECONDS", 0.1)
    check("1.1", value)
    assert "it still runs, so restart the kernel" in capsys.readouterr().out


def test_a_busy_machine_is_waited_for():
    """What does no work for want of a processor is given three times as long."""
    assert guarded(lambda: time.sleep(0.2), 0.1) is None


def test_a_thread_that_is_ending_is_left_in_peace(monkeypatch):
    """On a busy machine a thread takes its time to end, after the code that it was to end."""
    hit = []

    class Slow(threading.Thread):
        def run(self):
            super().run()
            try:
                for _ in range(20):
                    time.sleep(0.005)
            except SystemExit:
                hit.append(1)

    monkeypatch.setattr(threading, "Thread", Slow)
    with pytest.raises(Endless, match=r"did not end within 0\.[01]5 seconds"):
        guarded(lambda: endless(None), 0.05)
    assert not hit


def test_the_grader_waits_longer(monkeypatch, capsys):
    monkeypatch.setattr(checks, "SECONDS", 0.05)

    def slow(w, bits=4):
        time.sleep(0.1)
        return right(w, bits)

    check("1.1", slow)
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    check("1.1", slow)
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["❌", "✅"]


def test_nothing_is_heard(capfd):
    def loud(w, bits=4):
        print("secret"), print("secret", file=sys.stderr)
        sys.stdout = io.StringIO()
        return right(w, bits)

    check("1.1", loud)
    out, err = capfd.readouterr()
    assert out == "✅ 1.1 9 of 9 cases\n" and not err


def test_random_numbers_and_gradients_stay_as_they_were():
    def draws(w, bits=4):
        random.random(), np.random.rand(), torch.rand(1)
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        torch.set_grad_enabled(False)
        return right(w, bits)

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    check("1.1", draws)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert torch.is_grad_enabled()


def test_gradients_can_be_taken_whatever_the_notebook_has_switched_off(capsys):
    def needs_gradients(w, bits=4):
        w = w.detach().requires_grad_()
        w.sum().backward()
        return right(w, bits) * w.grad.max()

    with torch.no_grad():
        check("1.1", needs_gradients)
    assert capsys.readouterr().out.startswith("✅")


def test_inputs_are_new_each_time_whatever_the_seed():
    seen = []

    def watches(w, bits=4):
        seen.append(w.flatten()[:6].tolist())
        return right(w, bits)

    for _ in range(2):
        torch.manual_seed(0)
        check("1.1", watches)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert sum(a != b for a, b in zip(first, second, strict=True)) >= 7


def test_ctrl_c_ends_the_function_too(monkeypatch):
    def interrupted(self, seconds):
        monkeypatch.undo()
        raise KeyboardInterrupt

    ticks = []
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guarded(lambda: [ticks.append(time.sleep(0.001)) for _ in itertools.count()], 10)
    count = len(ticks)
    time.sleep(0.05)
    assert len(ticks) == count


def test_a_result_that_comes_too_late_does_not_count():
    def late():
        try:
            while True:
                time.sleep(0.001)
        except SystemExit:
            return "late"

    with pytest.raises(Endless, match="did not end within 0.3 seconds: .* is the machine busy"):
        guarded(late, 0.1)


def test_work_without_end_is_not_put_down_to_the_machine(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # however long it takes to get a processor
    with pytest.raises(Endless, match=r"within 0.1 seconds: does a loop never end\?$"):
        guarded(lambda: endless(torch.ones(1)), 0.1)


def test_in_a_kernel(tmp_path):
    """exit() there asks the kernel to leave, and display() does not go by way of sys.stdout."""
    function = "from q4lib.kit import check\ndef f(w, bits=4):\n    {}\ncheck('1.1', f)"
    bodies = [
        "exit()",
        "quit()",
        "display('secret'); print('secret')",
        "while True: print('secret')",
        "return w[9] + 1",
    ]
    notebook = new_notebook(cells=[new_code_cell(function.format(body)) for body in [*bodies, "exit()"]])
    notebook.cells.append(new_code_cell("print('alive')"))
    with _kernel(smoke=True):
        place = {"metadata": {"path": tmp_path}}
        NotebookClient(notebook, kernel_name="python3", timeout=300, resources=place).execute()
    printed = ["".join(output.text for output in cell.outputs) for cell in notebook.cells]
    assert printed[0] == printed[5] == "❌ 1.1 SystemExit (line 3: `exit()`)\n"
    assert printed[1] == "❌ 1.1 SystemExit (line 3: `quit()`)\n"
    assert (
        printed[2].startswith("❌ 1.1 your function returns None: is a `return` missing") and "secret" not in printed[2]
    )
    assert "does a loop never end?" in printed[3] and "secret" not in printed[3]
    assert "IndexError" in printed[4] and "(line 3: `return w[9] + 1`)" in printed[4]
    assert printed[6] == "alive\n" and nbformat.validate(notebook) is None
