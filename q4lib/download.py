"""One file of known size and md5, from whichever mirror has it."""

# Our own: pooch, torch.hub and torchvision know no second mirror, resuming or least speed, and Colab has no aria2.
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

_BLOCK = 1 << 16


class DownloadError(RuntimeError):
    """No verified file could be put in place; the message says why and what to do."""


class _MirrorError(Exception):
    """Why a mirror is left; with a `rate`, because another may be faster."""

    def __init__(self, why: str, rate: float | None = None) -> None:
        super().__init__(why)
        self.rate = rate


class _BrokenError(_MirrorError):
    """The connection broke: the same mirror may go on from there."""


def md5_of(path: Path) -> str:
    """The md5 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    size: int,
    md5: str,
    min_rate: float = 200_000,
    patience: float = 20.0,
    progress: bool = True,
) -> Path:
    """`target`, from the first mirror with `min_rate` bytes a second, else the fastest; resumes `<target>.part`.

    Rates are taken over `patience` seconds, and nobody may be silent for longer. DownloadError.
    """
    job = _Job(target, size, md5, patience)
    if job.done():
        return target
    job.prepare(quiet=not progress)
    reasons: dict[str, str] = {}
    slow: dict[str, float] = {}
    with job.bar:
        for mirrors, floor in ((urls, min_rate), (slow, 0.0)):  # the first round fills `slow` for the second
            for url in sorted(mirrors, key=lambda url: -slow.get(url, 0.0)):
                try:
                    return job.finish_from(url, floor)
                except _MirrorError as error:
                    reasons[url] = str(error)
                    if error.rate is not None:
                        slow[url] = error.rate
                    if progress:
                        job.bar.write(f"left {url}: {error}")
    tried = "".join(f"\n  {url}: {why}" for url, why in reasons.items())
    raise DownloadError(
        f"no mirror gave {target.name} ({size:,} bytes, md5 {md5}):{tried or ' the list is empty'}\n"
        f"Try again later, put the file at {target} by hand, or set Q4_DATA to a folder that has the data"
    )


class _Job:
    """The file on its way: its part on the disk, and the mirrors whose bytes are in it."""

    def __init__(self, target: Path, size: int, md5: str, patience: float) -> None:
        self.target, self.size, self.md5, self.patience = target, size, md5, patience
        self.part = target.with_name(target.name + ".part")
        self.sources = {"an earlier run"}

    def done(self) -> bool:
        with _disk(self.target):
            return self.target.is_file() and self.target.stat().st_size == self.size and md5_of(self.target) == self.md5

    def prepare(self, quiet: bool) -> None:
        """Where nothing can be written, say so before the first byte."""
        with _disk(self.part):
            with suppress(FileExistsError):
                self.target.parent.mkdir(parents=True)
            self.part.open("ab").close()
        total, desc = self.size, self.target.name
        self.bar = tqdm(total=total, initial=self.have, desc=desc, unit="B", unit_scale=True, disable=quiet)

    @property
    def have(self) -> int:
        with _disk(self.part):
            return self.part.stat().st_size if self.part.exists() else 0

    def finish_from(self, url: str, floor: float) -> Path:
        """The target, completed by one mirror; `_MirrorError` where that one can't."""
        while not self.done():
            have = self.have
            try:
                if have != self.size:
                    self.receive(url, have, floor)
                self.settle(url)
            except _BrokenError as error:
                if self.have < have + _BLOCK or (floor and error.rate is not None):
                    raise
                time.sleep(min(1.0, self.patience / 10))  # a host in trouble is not helped by a storm of requests
        return self.target

    def receive(self, url: str, have: int, floor: float) -> None:
        answer, start = _ask(url, have, self.size, self.patience)
        self.sources = self.sources | {url} if start else {url}
        self.bar.update(start - self.bar.n)
        with answer, _disk(self.part), self.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for block in _blocks(answer, self.size - start, floor, self.patience):
                file.write(block)
                self.bar.update(len(block))

    def settle(self, url: str) -> None:
        """Put the full part in place if its digest is right, else delete it."""
        with _disk(self.part), suppress(FileNotFoundError):  # another process may have put it in place
            if md5_of(self.part) == self.md5:
                with self.part.open("r+b") as file:
                    os.fsync(file.fileno())
                self.part.replace(self.target)
                return
            self.part.unlink()
            if self.sources == {url}:  # else the wrong bytes may be another's, and this one may start from zero
                raise _MirrorError("wrong bytes (another md5)")


def _ask(url: str, have: int, size: int, patience: float) -> tuple[HTTPResponse, int]:
    """An answer to read, and the position in the file where it begins: `have`, or 0 where a mirror can't resume."""
    headers = {"User-Agent": "q4lib"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer: HTTPResponse = urlopen(Request(url, headers=headers), timeout=patience)
    except HTTPError as error:
        if error.code == 416 and have:
            return _ask(url, 0, size, patience)
        raise _MirrorError(f"HTTP {error.code} {error.reason}".splitlines()[0]) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _BrokenError(str(getattr(error, "reason", error))) from error
    start, total = 0, answer.headers.get("Content-Length", "*")
    if answer.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        start, total = (int(span[1]), span[2]) if span else (-1, "*")
    if have and start not in (0, have):
        answer.close()
        return _ask(url, 0, size, patience)
    if answer.status not in (200, 206) or start not in (0, have):  # the status is None where a redirect left HTTP
        why = f"unexpected status {answer.status}"
    elif answer.headers.get_content_type() == "text/html":
        why = "a web page instead of the file"
    elif total.isdigit() and int(total) != size:
        why = f"its file has {int(total):,} bytes instead of {size:,}"
    else:
        return answer, start
    answer.close()
    raise _MirrorError(why)


def _blocks(answer: HTTPResponse, left: int, min_rate: float, patience: float) -> Iterator[bytes]:
    """The `left` bytes to come, never more; its errors are the mirror's and not the disk's."""
    since, got = time.monotonic(), 0
    while left:
        try:
            block = answer.read1(min(left, _BLOCK))
        except TimeoutError:
            raise _BrokenError(f"silent for {patience:g} s", got / (time.monotonic() - since)) from None
        except (OSError, HTTPException) as error:
            raise _BrokenError(str(error)) from error
        if not block:
            raise _BrokenError("closed the connection early")
        yield block
        left, got, seconds = left - len(block), got + len(block), time.monotonic() - since
        if left and seconds >= patience:
            if got < min_rate * seconds:
                raise _MirrorError(f"slow, {got / seconds / 1000:.0f} kB/s", got / seconds)
            since, got = time.monotonic(), 0


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """An error of the disk ends the download: no mirror is to blame."""
    try:
        yield
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error.strerror}; make room, or set Q4_HOME elsewhere") from error
