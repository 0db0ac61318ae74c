"""Atomic writing: after an interruption every file is either the old or the new one, never a part of it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a temporary file and move it to its place, so that an interruption leaves the old file intact.

    :param path: path of the file; its folder is created if missing
    :param write: function that writes the content to the open file
    :raises OSError: if the file cannot be written; ``filename`` is ``path``
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary_path(path)
    try:
        with _errors_about(path), open(partial, "wb") as file:
            write(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files and move them to their places once all are written, so that a full disk changes none.

    :param folder: folder of the files, created if missing
    :param contents: contents by file name; the files are moved in this order
    :raises OSError: if a file cannot be written; ``filename`` is its path
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: _temporary_path(folder / name) for name in contents}
    try:
        for name, content in contents.items():
            with _errors_about(folder / name), open(partial[name], "wb") as file:
                file.write(content)
        for name, path in partial.items():
            os.replace(path, folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


@contextmanager
def _errors_about(path: Path) -> Iterator[None]:
    """Set the file name of an OSError: the error of a full disk has none, others name the temporary file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
