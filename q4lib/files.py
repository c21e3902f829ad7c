"""Files written whole or not at all, by one process at a time: tensors with a few facts, and a SHA-256 over both."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8


class FileError(RuntimeError):
    """A file that cannot be written, or cannot be trusted, in a sentence that names it."""


class BusyError(FileError):
    """A folder in which another process is at work."""


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` by way of a temporary file, fsync and replace. FileError leaves what was there before."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise FileError(f"cannot write {path}: {error.strerror}; what was there before is untouched") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder. BusyError if one is in it; the lock ends with its process."""
    # The lock lies elsewhere: not every file system that holds a run can lock.
    name = hashlib.sha1(str(folder.resolve()).encode()).hexdigest()
    lock = Path(tempfile.gettempdir()) / f"q4-{name}.lock"
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                # While it is held: who opened it before finds it unlinked, and filelock lets nobody have it.
                with suppress(OSError):
                    lock.unlink()
    except Timeout:
        raise BusyError(f"another process is at work in {folder}: wait for it, or give another folder") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], kind: str, facts: dict[str, Any]) -> None:
    """Write one safetensors file of some `kind` ("checkpoint", say) that holds tensors and JSON facts. FileError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in no fixed order, and equal content is to give equal files.
    head = {"kind": kind, "facts": facts, "sha256": _digest(tensors, kind, facts)}
    write_whole(path, save(tensors, {"q4lib": json.dumps(head)}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. FileError if the file is missing, cut short, of another kind, or changed since."""
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {}).get("q4lib", "{}"))
            # Clones: the tensors must outlive the file, which they would only map.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is not a whole safetensors file ({error})") from None
    if not isinstance(head, dict):
        head = {}
    if head.get("kind") != kind:
        raise FileError(f"{path} is not a {kind} of q4lib (it is a {head.get('kind', 'file of another program')})")
    if head.get("sha256") != _digest(tensors, kind, head.get("facts")):
        raise FileError(f"{path} is damaged: its content does not match the SHA-256 it was written with")
    return tensors, head["facts"]


def _digest(tensors: dict[str, Tensor], kind: str, facts: Any) -> str:
    digest = hashlib.sha256(f"{kind}\n{json.dumps(facts)}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(dtype=uint8).numpy().data)
    return digest.hexdigest()
