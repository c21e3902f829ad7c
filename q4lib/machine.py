"""What a run's log says about where it was made."""

import ctypes
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """The processor's name, as its maker writes it where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep_memory() -> bool:
    """Have glibc keep freed memory for the next step instead of giving it back; False where there is no glibc.

    Otherwise each step gets its large tensors as new pages, and clearing them takes a fifth of a step of VGG4bit.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(trim_threshold, -1) and mallopt(mmap_max, 0))


def git_commit() -> str | None:
    """The commit of the checkout that q4lib runs from, with `-dirty` when it was changed since; None outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def describe(device: str) -> dict[str, Any]:
    """Device, processor, threads, versions and git commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "q4lib": version("q4lib")},
        "git_commit": git_commit(),
    }
