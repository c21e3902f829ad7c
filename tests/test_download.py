"""Whatever the mirrors do, `fetch` ends in the right file or in one clear sentence, and never in half a file."""

import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from q4lib import download
from q4lib.download import DownloadError, fetch, md5_of

BODY = random.Random(4).randbytes(300_000)
WRONG = random.Random(5).randbytes(300_000)
SIZE, MD5 = len(BODY), hashlib.md5(BODY).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """Serves BODY, each path with a fault of its own: `/reset/100000` calls `reset(100000)`."""

    server: "Host"

    def do_GET(self):  # noqa: N802
        self.server.requests.append((self.path, self.headers["Range"]))
        fault, *numbers = self.path.strip("/").split("/")
        with suppress(ConnectionError):  # the client leaves, as it should
            getattr(self, fault)(*map(int, numbers))
        self.close_connection = True

    def log_message(self, *_):
        pass

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data, per_second=None):
        step = len(data) if per_second is None else per_second // 50
        for i in range(0, len(data), max(step, 1)):
            self.wfile.write(data[i : i + step])
            self.server.served[self.path] += len(data[i : i + step])
            if per_second and self.server.closing.wait(0.02):
                return

    def honest_head(self, body=BODY):
        """The head of a right answer, also to a Range; returns what should follow it."""
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        if start >= SIZE:
            self.head(416, Content_Range=f"bytes */{SIZE}")
        elif start:
            self.head(206, Content_Range=f"bytes {start}-{SIZE - 1}/{SIZE}", Content_Length=SIZE - start)
        else:
            self.head(Content_Length=SIZE, Content_Type="application/gzip")
        return body[start:]

    def good(self):
        self.send(self.honest_head())

    def wrong(self):
        self.send(self.honest_head(WRONG))

    def paced(self, per_second):
        self.send(self.honest_head(), per_second)

    def whole(self):
        """Knows no ranges."""
        self.head(Content_Length=SIZE)
        self.send(BODY)

    def unsatisfied(self):
        """Refuses every range."""
        self.head(416) if self.headers["Range"] else self.whole()

    def elsewhere(self):
        """Answers a request for a range with another range."""
        if not self.headers["Range"]:
            return self.whole()
        self.head(206, Content_Range=f"bytes 7-{SIZE - 1}/{SIZE}", Content_Length=SIZE - 7)
        self.send(BODY[7:])

    def unasked(self):
        self.head(206, Content_Range=f"bytes 7-{SIZE - 1}/{SIZE}", Content_Length=SIZE - 7)
        self.send(BODY[7:])

    def unmeasured(self):
        """Gives no Content-Length."""
        self.head()
        self.send(BODY)

    def endless(self):
        self.head()
        while not self.server.closing.is_set():
            self.send(WRONG)

    def surplus(self):
        """Sends more than it promised."""
        self.head(Content_Length=SIZE)
        self.send(BODY + WRONG)

    def short(self, length):
        self.head(Content_Length=length)
        self.send(BODY[:length])

    def html(self):
        self.head(Content_Type="text/html; charset=utf-8", Content_Length=SIZE)
        self.send(b"<p>Please sign in".ljust(SIZE))

    def status(self, code):
        self.head(code, Content_Length=0)

    def noise(self):
        self.send(b"220 this is not HTTP\r\n")

    def moved(self):
        self.head(302, Location="/good", Content_Length=0)

    def circle(self):
        self.head(302, Location="/circle", Content_Length=0)

    def local(self):
        self.head(302, Location="file:///etc/hostname", Content_Length=0)

    def hang(self):
        self.server.closing.wait(10)

    def stall(self, after):
        """Stops sending but keeps the line open, at each request."""
        self.send(self.honest_head()[:after])
        self.server.closing.wait(10)

    def early(self, after):
        """Closes the connection, in due form, before all is sent."""
        self.send(self.honest_head()[:after])

    def reset(self, after):
        """Breaks the connection at each request, `after` bytes further."""
        self.send(self.honest_head()[:after])
        self.abort()

    def wrong_then_gone(self, after):
        self.once(WRONG, after)

    def good_then_gone(self, after):
        self.once(BODY, after)

    def once(self, body, after):
        if self.server.served[self.path]:
            return self.status(503)
        self.send(self.honest_head(body)[:after])
        self.abort()

    def abort(self):
        time.sleep(0.1)  # a reset discards what is still under way
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


class Host(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Mirror)
        self.requests: list[tuple[str, str | None]] = []
        self.served: Counter[str] = Counter()
        self.closing = Event()

    def __call__(self, *paths):
        return [f"http://127.0.0.1:{self.server_port}/{path}" for path in paths]


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Host() as host:
        Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield host
        host.closing.set()
        host.shutdown()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "cache" / "data.tar.gz"


@pytest.fixture
def part(target) -> Path:
    target.parent.mkdir()
    return target.with_name("data.tar.gz.part")


def get(urls, target, min_rate=1, patience=2, progress=False):
    """`fetch` of BODY, patient enough for a busy machine: tests of speed say their own numbers."""
    return fetch(urls, target, size=SIZE, md5=MD5, min_rate=min_rate, patience=patience, progress=progress)


def whole(target):
    return target.read_bytes() == BODY and [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("status/404", "HTTP 404 Not Found"),
        ("status/500", "HTTP 500"),
        ("status/503", "HTTP 503"),
        ("status/204", "unexpected status 204"),
        ("html", "a web page instead of the file"),
        ("wrong", "wrong bytes"),
        ("endless", "wrong bytes"),
        ("short/1000", "its file has 1,000 bytes instead of 300,000"),
        ("unasked", "unexpected status 206"),
        ("noise", "220 this is not HTTP"),
        ("circle", "HTTP 302 .*infinite loop"),
        ("local", "HTTP 302 .*not allowed"),
        ("hang", "timed out"),
        ("stall/0", "silent for 0.3 s"),
        ("reset/0", "reset by peer"),
    ],
)
def test_a_bad_mirror_is_left_with_its_reason_for_the_next(host, target, path, why):
    with pytest.raises(DownloadError, match=f"/{path}: .*{why}"):
        get(host(path), target, patience=0.3)
    assert not target.exists()
    assert get(host(path, "good"), target, patience=1) == target
    assert whole(target)


@pytest.mark.parametrize("path", ["good", "whole", "moved", "unmeasured", "surplus", "unsatisfied", "elsewhere"])
@pytest.mark.parametrize("have", [0, 200_000])
def test_an_odd_but_honest_mirror_serves_new_and_resumed(host, target, part, path, have):
    part.write_bytes(BODY[:have])
    get(host(path), target)
    assert whole(target)


def test_a_closed_port_and_an_unknown_scheme_are_left(host, target, tmp_path):
    """A file:// mirror would hand out files of this machine."""
    (tmp_path / "own").write_bytes(BODY)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    mirrors = [f"http://127.0.0.1:{port}/", (tmp_path / "own").as_uri(), "gopher://127.0.0.1/", "nothing"]
    with pytest.raises(DownloadError) as error:
        get(mirrors, target)
    assert all(f"\n  {url}: " in str(error.value) for url in mirrors)
    get([*mirrors, *host("good")], target)
    assert whole(target)


def test_the_error_names_each_mirror_and_what_to_do(host, target):
    mirrors = host("status/404", "wrong", "html")
    with pytest.raises(DownloadError) as error:
        get(mirrors, target)
    first, *reasons, last = str(error.value).splitlines()
    assert first == f"no mirror gave data.tar.gz (300,000 bytes, md5 {MD5}):"
    assert [line.split(": ")[0].strip() for line in reasons] == mirrors
    assert str(target) in last and "Q4_DATA" in last


def test_an_empty_list_of_mirrors_is_said(target):
    with pytest.raises(DownloadError, match="the list is empty"):
        get([], target)


def test_a_verified_file_needs_no_network_and_a_damaged_one_is_replaced(host, target, part):
    target.write_bytes(BODY)
    assert get([], target) == target
    target.write_bytes(WRONG)
    get(host("good"), target)
    assert whole(target)


def test_only_checked_bytes_that_are_on_the_disk_are_put_in_place(host, target, monkeypatch):
    steps, fsync, replace = [], os.fsync, Path.replace

    def spy_on_fsync(descriptor):
        steps.append("fsync")
        fsync(descriptor)

    def spy_on_replace(path, to):
        steps.append(md5_of(path))
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", spy_on_fsync)
    monkeypatch.setattr(Path, "replace", spy_on_replace)
    get(host("wrong", "endless", "good"), target)
    assert steps == ["fsync", MD5]


@pytest.mark.parametrize("path", ["reset/120000", "early/120000"])
def test_broken_connections_are_resumed_at_the_same_mirror(host, target, path):
    get(host(path, "good"), target)
    assert whole(target)
    assert host.requests == [(f"/{path}", wanted) for wanted in (None, "bytes=120000-", "bytes=240000-")]
    assert host.served == {f"/{path}": SIZE}


def test_a_mirror_that_resets_without_progress_is_left(host, target):
    get(host("reset/100", "good"), target)
    assert len(host.requests) == 2 and whole(target)


def test_the_next_mirror_goes_on_where_the_last_one_left(host, target):
    get(host("good_then_gone/100000", "good"), target)
    assert whole(target)
    assert host.served == {"/good_then_gone/100000": 100_000, "/good": 200_000}


def test_an_earlier_part_is_resumed_and_a_full_one_only_verified(host, target, part):
    part.write_bytes(BODY[:250_000])
    get(host("good"), target)
    assert whole(target) and host.served["/good"] == 50_000
    target.rename(part)
    get(host("good"), target)
    assert whole(target) and host.served["/good"] == 50_000


@pytest.mark.parametrize("length", [100_000, SIZE, SIZE + 1])
def test_wrong_bytes_from_an_earlier_run_are_thrown_away(host, target, part, length):
    part.write_bytes((WRONG + WRONG)[:length])
    get(host("good"), target)
    assert whole(target)


def test_wrong_bytes_leave_no_part(host, target):
    with pytest.raises(DownloadError):
        get(host("wrong"), target)
    assert list(target.parent.iterdir()) == []


def test_an_honest_mirror_is_not_blamed_for_what_a_bad_one_began(host, target):
    get(host("wrong_then_gone/100000", "good"), target)
    assert whole(target)
    assert [wanted for path, wanted in host.requests if path == "/good"] == ["bytes=100000-", None]


def test_a_bad_mirror_gets_one_retry_from_zero_and_no_more(host, target):
    get(host("good_then_gone/100000", "wrong", "good"), target)
    assert whole(target)
    assert [wanted for path, wanted in host.requests if path == "/wrong"] == ["bytes=100000-", None]


@pytest.mark.parametrize("path", ["paced/30000", "stall/100000"])
def test_a_slow_or_stalled_mirror_is_left_and_its_bytes_are_kept(host, target, path):
    get(host(path, "good"), target, min_rate=100_000, patience=0.6)
    assert whole(target)
    assert [asked for asked, _ in host.requests] == [f"/{path}", "/good"] and host.served["/good"] < SIZE


def test_where_all_are_slow_the_fastest_finishes(host, target):
    get(host("paced/20000", "status/404", "paced/300000"), target, min_rate=10_000_000, patience=0.3)
    assert whole(target)
    assert [path for path, _ in host.requests] == ["/paced/20000", "/status/404", "/paced/300000", "/paced/300000"]


def test_a_slow_host_that_stalls_is_resumed_while_it_makes_progress(host, target):
    get(host("stall/100000"), target, min_rate=10_000_000, patience=1)
    assert whole(target) and host.served["/stall/100000"] == SIZE


def test_the_second_round_does_not_wait_for_a_silent_mirror(host, target):
    with pytest.raises(DownloadError, match=r"silent for 0\.5 s"):
        get(host("stall/1000"), target, min_rate=10_000_000, patience=0.5)
    assert len(host.requests) == 2 and not target.exists()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_download_is_resumed(host, target, part, sign):
    code = f"""
import signal
from pathlib import Path
from download import fetch  # from its own folder: importing q4lib would load torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without
fetch({host("stall/150000")}, Path({str(target)!r}), size={SIZE}, md5={MD5!r})
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(download.__file__).parent, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(sign)
    child.communicate()
    assert child.returncode != 0 and not target.exists()
    get(host("good"), target)
    assert whole(target) and host.served["/good"] < SIZE - 100_000


def test_two_downloads_of_one_file_do_not_spoil_it(host, target):
    """A class opens the same lesson twice."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(get, host("paced/400000"), target)
        time.sleep(0.2)
        second = pool.submit(get, host("paced/400000"), target)
        assert first.result() == second.result() == target
    assert whole(target)


def test_a_full_disk_is_no_mirrors_fault(host, target, part):
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=f"^cannot write {part}: No space left on device; make room.*$"):
        get(host("good", "whole"), target)
    assert len(host.requests) == 1 and not target.exists()


@pytest.mark.parametrize("below", ["data.tar.gz", "cache/data.tar.gz"])
def test_a_folder_that_cannot_be_written_is_said_before_the_download(host, tmp_path, below):
    """A file in the folder's place stops root as well, whom no permission stops."""
    (tmp_path / "file").touch()
    target = tmp_path / "file" / below
    with pytest.raises(DownloadError, match=f"^cannot write {target}.part: Not a directory; .*$"):
        get(host("good"), target)
    assert not host.requests


def test_progress_shows_the_file_and_why_a_mirror_was_left(host, target, capsys):
    get(host("status/404", "good"), target, progress=True)
    out, err = capsys.readouterr()
    assert f"left {host('status/404')[0]}: HTTP 404 Not Found\n" in out
    assert "data.tar.gz: 100%" in err and "300k/300k" in err and "B/s" in err


def test_without_progress_nothing_is_printed(host, target, capsys):
    get(host("status/404", "good"), target)
    assert capsys.readouterr() == ("", "")
