"""What students handed in, found in a folder or in a zip of Moodle or Canvas, and whose it is."""

import csv
import io
import re
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import FileError

MOODLE = re.compile(r"(.+?)_(\d+)_assignsubmission_[a-z]+_?(.*)")
CANVAS = re.compile(r"([^_]+)_(?:LATE_)?(\d+)_(\d+)_(.+)")
LARGEST = 200_000_000  # bytes of one file


@dataclass(frozen=True)
class Student:
    """A row of the roster, or what a file's name says of its owner."""

    id: str
    name: str
    email: str = ""

    @property
    def folder(self) -> str:
        """The id as a file may be called, and as nbgrader knows it."""
        return re.sub(r"[^\w.@+-]+", "-", unicodedata.normalize("NFC", self.id)).lstrip(".-")[:80] or "unnamed"


@dataclass(frozen=True)
class File:
    """One file of a submission; of two, the larger `order` was handed in later. `number` is the platform's own."""

    owner: str
    number: str
    name: str
    order: tuple[float, ...]
    read: Callable[[], bytes] = field(repr=False)


def plain(text: str) -> str:
    """A name as it is compared: no marks, no case, composed letters."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", text)).strip().casefold()


def find(path: Path) -> list[File]:
    """Every file in a folder or a zip, with its owner: the folder it lies in, or the name Moodle or Canvas gave it."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()]
        found = [(file.relative_to(path).parts, file.stat().st_mtime, _reader(file)) for file in files]
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        found = [(_named(e), float("".join(f"{n:02}" for n in e.date_time)), _reader(archive, e)) for e in entries]
    else:
        raise FileError(f"{path} is neither a folder nor a zip that Moodle or Canvas made")
    kept = [one for one in found if not any(part.startswith((".", "__MACOSX")) for part in one[0])]
    return [_file(parts, time, read) for parts, time, read in kept]


def _named(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    name = entry.filename
    if not entry.flag_bits & 0x800:  # not marked as UTF-8, and yet it often is
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return PurePosixPath(name).parts


def _reader(file: Any, entry: zipfile.ZipInfo | None = None) -> Callable[[], bytes]:
    def read() -> bytes:
        size = file.stat().st_size if entry is None else entry.file_size
        if size > LARGEST:
            raise ValueError(f"it has {size / 1e6:.0f} MB, a notebook should have less than one")
        return file.read_bytes() if entry is None else file.read(entry)

    return read


def _file(parts: tuple[str, ...], time: float, read: Callable[[], bytes]) -> File:
    name = parts[-1]
    for part in parts:
        if match := MOODLE.fullmatch(part):
            name = match[3] if part == name and match[3] else name
            return File(match[1], f"moodle-{match[2]}", name, (_suffix(name), time), read)
    if match := CANVAS.fullmatch(name):
        return File(match[1], match[2], match[4], (int(match[3]), _suffix(match[4]), time), read)
    owner = parts[0] if len(parts) > 1 else re.sub(r"[ _-]+\d\d_[a-z_]+( ?\(\d+\)|-\d+)?$", "", Path(name).stem)
    return File(owner, "", name, (_suffix(name), time), read)


def _suffix(name: str) -> int:
    """The 2 that Canvas or a browser puts behind a name: "x-2.ipynb", "x (2).ipynb"."""
    match = re.search(r"(?:-| ?\()(\d+)\)?$", Path(name).stem)
    return int(match[1]) if match else 0


def read_roster(path: Path) -> list[Student]:
    """Students of a CSV that Moodle or Canvas exports, or that has the columns id, name and email."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise FileError(f"cannot read the roster {path}: {error}") from None
    head = text.partition("\n")[0]
    rows = list(csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count)))
    students = []
    for row in rows:
        got = {plain(str(key)): str(value or "").strip() for key, value in row.items()}
        first, last = got.get("first name", ""), got.get("last name", got.get("surname", ""))
        name = f"{first} {last}".strip() or got.get("name") or got.get("full name") or got.get("student", "")
        name = " ".join(reversed([part.strip() for part in name.split(",", 1)]))
        number = got.get("id") or got.get("id number") or got.get("sis user id", "")
        email = got.get("email") or got.get("email address") or got.get("sis login id", "")
        if name and plain(name) != "points possible":
            students.append(Student(number or email or name, name, email))
    if not students:
        raise FileError(f"the roster {path} has no students: its first line should name the columns id, name and email")
    twice = [one.id for one in students if sum(one.folder == other.folder for other in students) > 1]
    if twice:
        raise FileError(f"the roster {path} has two students with the id {twice[0]}")
    return students


def match(file: File, roster: list[Student]) -> Student | None:
    """Whose file it is: by name, by id, by address; None where none or two of the roster could be meant."""
    owner = plain(file.owner)

    def meant(student: Student) -> bool:
        words = plain(student.name).split()
        turned = ["".join(words[k:] + words[:k]) for k in range(len(words))]
        keys = {plain(student.id), plain(student.email), plain(student.email.partition("@")[0])} - {""}
        return owner.replace(" ", "") in turned or owner in keys

    found = [student for student in roster if student.id == file.number] or list(filter(meant, roster))
    return found[0] if len(found) == 1 else None
