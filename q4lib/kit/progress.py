"""Which tasks of the course are done: remembered in `progress.json` of the user's folder, carried by a short code."""

import html
import json
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..data import home
from ..files import FileError, locked, write_whole

PATIENCE = 10.0  # seconds to wait for another kernel, which needs milliseconds
LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # without I, L, O and U, which are misread
READ_AS = str.maketrans("ILO", "110")
CHECKSUM = 20  # bits: one wrong code in a million passes


def remember(name: str, passed: bool) -> None:
    """Note that a task was tried or done; what was done once stays done. FileError, OSError if it cannot be noted."""
    with _alone() as file:
        entries = _read(file)
        passed = passed or entries.get(name, False)
        if entries.get(name) != passed:
            entries[name] = passed
            write_whole(file, json.dumps(entries, indent=1, sort_keys=True).encode())


def progress(code: str = "") -> None:
    """Show how many of the course's checks are done, and which are left. A `code` brings what another machine knew."""
    from .checks import tasks
    from .widgets import headless

    try:
        done = _names(code)
        with _alone() as file:
            entries = _read(file)
            if done:
                entries |= dict.fromkeys(done, True)
                write_whole(file, json.dumps(entries, indent=1, sort_keys=True).encode())
    except (FileError, OSError, ValueError) as error:
        print(error)
        return
    lessons: dict[str, list[str]] = {}
    for name, topic in tasks().items():
        lesson, _, rest = name.partition(".")
        title = "exercise" if rest.isdigit() else topic.replace("_", " ")
        lessons.setdefault(f"{lesson.zfill(2)} {title}", []).append(name)
    rows = [(lesson, names, [name for name in names if not entries.get(name)]) for lesson, names in lessons.items()]
    width = max(map(len, lessons), default=0)
    text = "\n".join(
        f"{lesson:{width}}  {'█' * (len(names) - len(left))}{'░' * len(left)}  {_count(names, left)}"
        for lesson, names, left in rows
    )
    keep = f'progress("{_code(entries)}") brings this back on another machine' if any(entries.values()) else ""
    if headless():
        print(f"{text}\n{keep}".strip())
        return
    from IPython.display import display

    cells = "".join(
        f"<tr><th scope=row style='text-align:left'>{html.escape(lesson)}</th>"
        f"<td><progress max={len(names)} value={len(names) - len(left)} aria-label='{html.escape(lesson)}'></progress>"
        f"</td><td style='text-align:left'>{html.escape(_count(names, left))}</td></tr>"
        for lesson, names, left in rows
    )
    page = f"<table>{cells}</table><p>{html.escape(keep)}</p>"
    display({"text/html": page, "text/plain": f"{text}\n{keep}".strip()}, raw=True)


def _count(names: list[str], left: list[str]) -> str:
    count = f"{len(names) - len(left)} of {len(names)}"
    return f"{count}, left: {', '.join(left)}" if left else count


def _bit(name: str) -> int:
    """The place of a task in a code, the same in every version: 16 a lesson, "01.a" to "01.h" before "1.1" to "1.8"."""
    lesson, _, rest = name.partition(".")
    return 16 * int(lesson) + (7 + int(rest) if rest.isdigit() else ord(rest) - ord("a"))


def _name(bit: int) -> str:
    lesson, place = divmod(bit, 16)
    return f"{lesson:02}.{'abcdefgh'[place]}" if place < 8 else f"{lesson}.{place - 7}"


def _code(entries: dict[str, bool]) -> str:
    """What is done, as letters and digits in groups of four; the first four are the checksum."""
    names = [name for name, passed in entries.items() if passed and re.fullmatch(r"\d+\.[a-h1-8]", name)]
    number = sum(1 << _bit(name) for name in names)
    number = number << CHECKSUM | _checksum(number)
    digits = ""
    while number:
        number, digit = divmod(number, 32)
        digits += LETTERS[digit]
    return "-".join(re.findall(".{1,4}", digits))


def _names(code: str) -> list[str]:
    """The tasks that a code says are done. ValueError where it is mistyped."""
    text = re.sub(r"[\s-]", "", str(code).upper().translate(READ_AS))
    if not text:
        return []
    digits = [LETTERS.find(letter) for letter in text]
    number, checksum = divmod(sum(digit << 5 * place for place, digit in enumerate(digits)), 1 << CHECKSUM)
    if -1 in digits or checksum != _checksum(number):
        raise ValueError(f"{code!r} is no progress code: is a letter or digit missing, or mistyped?")
    return [_name(bit) for bit in range(number.bit_length()) if number >> bit & 1]


def _checksum(number: int) -> int:
    return zlib.crc32(str(number).encode()) % (1 << CHECKSUM)


@contextmanager
def _alone() -> Iterator[Path]:
    """The file, while no other kernel reads or writes it."""
    file = home() / "progress.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(file))
                break
            except FileError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        yield file


def _read(file: Path) -> dict[str, bool]:
    try:
        entries = json.loads(file.read_bytes())
        if isinstance(entries, dict) and all(isinstance(passed, bool) for passed in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    aside = file.with_suffix(".damaged.json")
    file.replace(aside)
    print(f"{file} was damaged: it is now {aside.name}, and your progress is counted anew")
    return {}
