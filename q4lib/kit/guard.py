"""A student's code, run so that what it does stays in there: its loops, its prints, its exit(), its random numbers."""

import ctypes
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class Endless(Exception):  # noqa: N818
    """The code did not end in time; the sentence says whether it still runs."""


def guarded(function: Callable[[], T], seconds: float) -> T:
    """What `function` returns or raises; Endless after so many seconds of work, or three times as many of waiting.

    It runs in a thread, whoever calls. On a busy machine little work is done in a second, so both are counted.

    A loop in Python is ended. One in C code that lets others run, such as a large product of matrices, cannot be: it
    goes on. One that does not (`sum(itertools.count())`) holds up all of Python, this clock too: only a new kernel
    helps, or a grader's process of its own.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # whoever waits gets it, whatever it is
            errors.append(error)

    with _unheard(), _same_random_numbers(), _no_exit():
        thread = threading.Thread(target=work, daemon=True)
        waited, worked = time.monotonic() + 3 * seconds, time.process_time() + seconds
        thread.start()
        try:
            while thread.is_alive() and time.monotonic() < waited and time.process_time() < worked:
                thread.join(0.02)
        finally:  # Ctrl-C, too, ends the thread and not only the waiting for it
            late, busy = thread.is_alive(), time.process_time() < worked
            ended = _end(thread, over=lambda: bool(results or errors))
    if late:
        limit = 3 * seconds if busy else seconds
        why = "does a loop never end" + (", or is the machine busy? Then run the cell again" if busy else "?")
        still = "" if ended else "; it still runs, so restart the kernel (in the menu: Kernel, or Runtime)"
        raise Endless(f"it did not end within {limit:g} seconds: {why}{still}")
    if errors:
        raise errors[0]
    return results[0]


def _end(thread: threading.Thread, over: Callable[[], bool]) -> bool:
    """Raise SystemExit in a thread until its code is over: a loop with an `except:` may catch the first, or all."""
    for _ in range(40):
        if not thread.is_alive():
            return True
        if not over():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(0.01)
    return not thread.is_alive()


def _unheard() -> Any:
    """Swallow what is printed and displayed, stderr too: nbgrader gives no marks to a cell that writes there."""
    from IPython.utils.capture import capture_output

    return capture_output()


@contextmanager
def _no_exit() -> Iterator[None]:
    """In IPython `exit()` asks the kernel to end after the cell; here it only ends the function."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        yield
        return

    def leave() -> None:
        raise SystemExit

    shell.ask_exit = leave
    try:
        yield
    finally:
        del shell.ask_exit


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Afterwards Python, NumPy and torch draw what they would have drawn without this."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
