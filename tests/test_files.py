"""Files that are whole or absent."""

import errno
from pathlib import Path
from typing import IO

import pytest

from sb3_maesn.common.files import write_atomically, write_together


def test_a_file_appears_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "b.bin"
    path.write_bytes(b"old")

    def half(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise error

    with pytest.raises(error):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*b\.bin'"):
        write_atomically(tmp_path / "b.bin", fill)
    with pytest.raises(OSError, match=r"a/c"):
        write_together(tmp_path / "a", {"c/d": b""})  # whose folder is missing
