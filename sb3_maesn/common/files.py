"""Files that are whole or absent."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place and move it there, so that an interruption leaves the old file whole.

    :param path: the file; its folder is made
    :param write: writes to the open file
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with _naming(path), open(partial, "wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files; none takes its place before all are on the disk, so that a full disk leaves the old ones.

    :param folder: their folder, which is made
    :param contents: by name; moved to their places in this order
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: _beside(folder / name) for name in contents}
    try:
        for name, content in contents.items():
            with _naming(folder / name), open(partial[name], "wb") as file:
                file.write(content)
        for name, path in partial.items():
            os.replace(path, folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error say which file was to be written, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
