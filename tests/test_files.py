"""A folder's lock: for one process at a time, and gone with it."""

import fcntl
import tempfile

import pytest

from q4lib.files import FileError, locked


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """The folder where locks lie."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_lock_refuses_and_leaves_nothing(locks, tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        assert len(list(locks.iterdir())) == 1
        with pytest.raises(FileError, match="another process is at work in"), locked(tmp_path):
            pass
        assert len(list(locks.iterdir())) == 1
        _ = 1 / 0
    assert not list(locks.iterdir())
    with locked(tmp_path):
        pass


def test_a_lock_that_was_removed_meanwhile_lets_nobody_in(locks, tmp_path, monkeypatch):
    """Its owner may leave between our opening its file and our locking it: that file is no longer the folder's lock."""
    flock = fcntl.flock

    def late(descriptor, operation):
        for file in locks.iterdir():
            file.unlink()
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert len(list(locks.iterdir())) == 1
