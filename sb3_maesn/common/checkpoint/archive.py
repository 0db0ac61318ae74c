"""Reading and writing of a checkpoint's files, in a folder or in a zip file that is never extracted to disk."""

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from sb3_maesn.common.files import write_atomically, write_together

TENSORS, CONFIG = "model.safetensors", "config.json"
#: The files of a checkpoint, in the order in which they are written, with the largest size of each in bytes.
LIMITS = {TENSORS: 2**28, CONFIG: 2**20}
MAX_DIRECTORY = 2**13  # bytes of a zip file's central directory; that of a checkpoint has about 150
MAX_RATIO = 200  # largest compression ratio beyond the first megabyte
_END_OF_DIRECTORY = struct.Struct("<4s4H2LH")  # signature, disks, entries, size, offset, comment's length
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)


class CheckpointError(ValueError):
    """Error for a checkpoint that is damaged, malicious or not one of this package; the message says why."""


def shown(value: object) -> str:
    """Format a value from a file for an error message: short and without control characters.

    :param value: any value
    :return: at most 80 ASCII characters
    """
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def find_archive(path: str | Path) -> Path:
    """Find a checkpoint whose path may lack the suffix ``.zip``.

    :param path: path as the user gave it
    :return: path that exists
    :raises CheckpointError: if the path exists neither with nor without ``.zip``
    """
    for candidate in (Path(path), Path(f"{path}.zip")):
        if os.path.exists(candidate):
            return candidate
    raise CheckpointError(f"there is no checkpoint {path}: expected a folder or a .zip file")


def is_checkpoint(path: Path) -> bool:
    """Check by the names in it whether a folder or a zip file claims to be a checkpoint.

    :param path: path of a file or folder, which need not exist
    :return: whether it contains ``config.json``
    """
    if path.is_dir():
        return (path / CONFIG).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return CONFIG in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def read_archive(path: Path) -> dict[str, bytes]:
    """Read the files of a checkpoint.

    :param path: path of a folder or zip file
    :return: contents by file name
    :raises CheckpointError: if a file is missing or too large, or the zip file has a form that this package never
        writes
    """
    if path.is_dir():
        return {name: _read_file(path / name, limit) for name, limit in LIMITS.items()}
    return _read_zip(_read_file(path, sum(LIMITS.values()) + MAX_DIRECTORY), path.name)


def write_archive(path: Path, members: Mapping[str, bytes]) -> None:
    """Write the files of a checkpoint; an older checkpoint stays intact if that fails.

    :param path: path of a zip file if it ends in ``.zip``, else of a folder
    :param members: contents by file name
    :raises ValueError: if a folder would replace a file
    """
    if path.suffix == ".zip":
        write_atomically(path, lambda file: file.write(_zipped(members)))
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"expected a folder or a name that ends in .zip, got {path}, which is a file")
    write_together(path, {name: members[name] for name in LIMITS})


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in LIMITS:  # ZipInfo has a fixed default date, so equal models give equal files
            archive.writestr(zipfile.ZipInfo(name), members[name])
    return buffer.getvalue()


def _read_file(path: Path, limit: int) -> bytes:
    """Read a regular file; others are refused without waiting for data, as a named pipe may never send any."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise CheckpointError(f"expected a regular file, got {path}")
            if about.st_size > limit:
                raise CheckpointError(f"expected at most {limit} bytes, got {about.st_size} in {path}")
            return file.read(limit)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no O_NONBLOCK


def _read_zip(data: bytes, name: str) -> dict[str, bytes]:
    try:
        _check_directory(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_names(archive.infolist())
            return {info.filename: _read_member(archive, info) for info in archive.infolist()}
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except _BROKEN_ZIP as error:
        raise CheckpointError(f"{name} is no zip file, or a damaged one: {shown(str(error))}") from None


def _check_directory(data: bytes) -> None:
    """Limit the size of the central directory before zipfile creates an object for each of its entries."""
    if len(data) < _END_OF_DIRECTORY.size:
        raise CheckpointError("expected a zip file, got fewer bytes than an empty one has")
    signature, *_, size, _offset, comment = _END_OF_DIRECTORY.unpack(data[-_END_OF_DIRECTORY.size :])
    if signature != b"PK\x05\x06" or comment:
        raise CheckpointError("expected a whole zip file without a comment")
    if size > MAX_DIRECTORY:
        raise CheckpointError(f"expected {len(LIMITS)} files, got a table of contents of {size} bytes")
    if data[-_END_OF_DIRECTORY.size - 20 :].startswith(b"PK\x06\x07"):
        raise CheckpointError("expected a plain zip file, got a zip64 one")


def _check_names(members: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in members]
    if sorted(names) == sorted(LIMITS):
        return
    if "policy.pth" in names:
        raise CheckpointError(
            "this is a file of Stable-Baselines3, whose `load` runs whatever code it holds: expected"
            f" {' and '.join(LIMITS)}; load it with `load` if you trust its author"
        )
    raise CheckpointError(f"expected {' and '.join(LIMITS)}, got {shown(names)}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    limit = min(LIMITS[info.filename], 2**20 + MAX_RATIO * info.compress_size)
    if info.file_size > limit:
        raise CheckpointError(f"expected at most {limit} bytes in {info.filename}, got {info.file_size}")
    if info.flag_bits & 1:
        raise CheckpointError(f"expected {info.filename} in the clear, got it encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"expected {info.filename} stored or deflated, got method {info.compress_type}")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise CheckpointError(f"expected {info.filename} to be a file, got a symbolic link")
    with archive.open(info) as file:
        return file.read(info.file_size + 1)  # zipfile checks size and checksum at the end
