"""A stranger's notebook, executed where it can do little harm: in a process, a folder and a network of its own.

This file runs itself as a script, so that no torch is loaded but the notebook's. The script takes a notebook on stdin,
prints the id of each cell that begins, and at the end a line of JSON: what `run` returns.
"""

import ctypes
import fcntl
import json
import os
import re
import resource
import signal
import site
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

PRINTED = 200_000  # characters a cell may print; a loop that prints for ever ends there
FILE = 256_000_000  # bytes in one file
MEMORY = ("MemoryError", "can't allocate memory", "not enough memory")
KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "Q4_DATA")


def run(notebook: str, seconds: int, longest: int, gigabytes: float, apart: bool) -> dict[str, Any]:
    """`{"cells": outputs by cell}`, or `{"cell": the one that was too much, "why": ...}`; it is "" if none began.

    A cell has so many `seconds`, all of it so many at the `longest`; `apart` says that namespaces are to be had.
    """
    with tempfile.TemporaryDirectory(prefix="q4-", ignore_cleanup_errors=True) as scratch:
        spec, work, report = Path(scratch, "kernels", "python3"), Path(scratch, "work"), Path(scratch, "report")
        spec.mkdir(parents=True)
        work.mkdir()
        argv = [sys.executable, __file__, "kernel", "-f", "{connection_file}", "--log-level=ERROR"]
        (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
        # Nothing else of the teacher's, keys and tokens least of all.
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
            "HOME": str(work), "TMPDIR": str(work), "Q4_HOME": str(work / ".q4"), "JUPYTER_PATH": scratch,
            "PYTHONUSERBASE": site.getuserbase(), "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1", "Q4_WIDGETS": "0",
            "NBGRADER_EXECUTION": "autograde",
        }  # fmt: skip
        command = [sys.executable, __file__, str(work), str(seconds), str(longest), str(gigabytes), str(int(apart))]
        why = "ended the process that ran it"
        with report.open("w") as out, Path(scratch, "errors").open("w") as errors:
            try:
                subprocess.run(command, input=notebook.encode(), stdout=out, stderr=errors, timeout=longest + 30,
                               env=environment, cwd=work)  # fmt: skip
            except subprocess.TimeoutExpired:
                why = f"and those before it took longer than {longest} seconds"
        lines = report.read_text().splitlines()
        if lines and lines[-1].startswith("{"):
            return json.loads(lines[-1])
        if lines:
            return {"cell": lines[-1], "why": why}
        said = re.findall(r"^\w+Error: .+", Path(scratch, "errors").read_text(errors="replace"), re.M)
        return {"cell": "", "why": f"did not begin ({(said or [why])[-1]})"}


def refused() -> str:
    """Why namespaces are not to be had on this machine; "" if they are."""
    with tempfile.TemporaryDirectory() as folder:
        probe = subprocess.run([sys.executable, __file__, "probe", folder], capture_output=True, text=True)
    return (probe.stderr.strip().splitlines() or ["no reason given"])[-1] if probe.returncode else ""


def enclose(folder: Path) -> None:
    """From here on: no network, files written in `folder` only, no process left behind. OSError where Linux refuses.

    In namespaces of this process alone, so it needs no root. What is deliberate may still read files, and more.
    """
    user, group, here = os.getuid(), os.getgid(), os.fsencode(folder)
    users, mounts, network, processes = 0x10000000, 0x20000, 0x40000000, 0x20000000
    _call("unshare", users | mounts | network | processes)
    for file, line in [("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")]:
        Path("/proc/self", file).write_text(line)
    bind, recursive, private, all_below, read_only = 0x1000, 0x4000, 0x40000, 0x8000, 1
    _call("mount", None, b"/", None, recursive | private, None)
    _call("mount", here, here, None, bind, None)
    for place, depth, on, off in [(b"/", all_below, read_only, 0), (here, 0, 0, read_only)]:
        # mount_setattr, which the C library of an older system lacks; -100 is "from the working directory".
        _call("syscall", 442, -100, place, depth, struct.pack("4Q", on, off, 0, 0), 32)
    _call("mount", b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64m")
    with socket.socket() as any_socket:  # Jupyter talks to its kernel over the loopback, which is born switched off
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))
    os.chdir(folder)  # the writable view of it
    for _ in range(2):  # the first child is the namespace's init: with it, all that is left ends
        child = os.fork()
        if child:
            while (ended := os.wait())[0] != child:
                pass
            os._exit(bool(ended[1]))
        _end_with_parent()


def _call(name: str, *values: int | bytes | None) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(f"this system has no {name}")
    if function(*[ctypes.c_long(value) if isinstance(value, int) else value for value in values]) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _end_with_parent() -> None:
    with suppress(OSError):
        _call("prctl", 1, int(signal.SIGKILL))


def limit(seconds: int, gigabytes: float) -> None:
    """Bounds of processor time, memory and file size, for this process and each that it starts."""
    for kind, most in [
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, int(gigabytes * 2**30)),  # not RLIMIT_AS: torch maps far more than it uses
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
    ]:
        with suppress(OSError, ValueError):  # macOS knows some of them by name only
            resource.setrlimit(kind, (most, most))


def execute(notebook: Any, seconds: int, gigabytes: float, begun: Any) -> dict[str, Any]:
    """Outputs by cell, or the first cell that did not end, ended the kernel, or left no memory for those after it."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    last = ""

    def note(cell: Any, cell_index: int) -> None:
        nonlocal last
        last = cell.id
        print(last, file=begun, flush=True)

    client = NotebookClient(
        notebook, kernel_name="python3", timeout=seconds, startup_timeout=300, allow_errors=True,
        shutdown_kernel="immediate", on_cell_execute=note, resources={"metadata": {"path": os.getcwd()}},
    )  # fmt: skip
    try:
        client.execute()
    except CellTimeoutError:
        return {"cell": last, "why": f"did not end within {seconds} seconds"}
    except DeadKernelError:
        return {"cell": last, "why": "ended Python itself"}
    cells = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    for name, outputs in cells.items():
        errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
        if not name.startswith("check-") and any(sign in error for error in errors for sign in MEMORY):
            return {"cell": name, "why": f"asked for more than {gigabytes:g} GB of memory"}
    return {"cells": cells}


def main(folder: str, seconds: int, longest: int, gigabytes: float, apart: bool) -> None:
    """Execute the notebook that comes on stdin; `apart` in namespaces, else with the limits only."""
    report = os.fdopen(os.dup(1), "w")  # its own, since the kernel inherits the first
    os.dup2(2, 1)
    content = sys.stdin.read()
    limit(longest, gigabytes)
    if apart:
        enclose(Path(folder))
    import nbformat  # not before: namespaces are for a process of one thread

    print(json.dumps(execute(nbformat.reads(content, 4), seconds, gigabytes, report)), file=report, flush=True)


def kernel(arguments: list[str]) -> None:
    """An IPython kernel that prints so much a cell and no more, stays when told to exit(), and opens no connection."""
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.zmqshell import ZMQInteractiveShell

    _end_with_parent()
    _unconnected()
    ZMQInteractiveShell.ask_exit = lambda self: None  # type: ignore[method-assign]
    app = IPKernelApp.instance()
    app.initialize(arguments)
    left = PRINTED

    def fresh(*_: Any) -> None:
        nonlocal left
        left = PRINTED

    def limited(write: Any) -> Any:
        def some(text: str) -> Any:
            nonlocal left
            left -= len(text)
            if left < 0:
                raise RuntimeError(f"this cell prints more than {PRINTED:,} characters")
            return write(text)

        return some

    assert app.shell
    app.shell.events.register("pre_run_cell", fresh)
    for stream in (sys.stdout, sys.stderr):
        stream.write = limited(stream.write)  # type: ignore[method-assign]
    app.start()


def _unconnected() -> None:
    """Python's own sockets refuse: a clear word at once, and all there is where Linux gives no namespace."""
    connect = socket.socket.connect

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("there is no network while an exercise is graded")

    def only_here(self: socket.socket, address: Any) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else refuse()

    socket.socket.connect = only_here  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = refuse


if __name__ == "__main__":
    if sys.argv[1] == "kernel":
        kernel(sys.argv[2:])
    elif sys.argv[1] == "probe":
        enclose(Path(sys.argv[2]))
    else:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5] == "1")
