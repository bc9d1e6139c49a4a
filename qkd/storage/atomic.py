"""Atomic writes and locks: a reader sees the old file or the new one, never part of one, even after a power failure."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from qkd.errors import RunError

UNFINISHED = ".unfinished"
"""The suffix of a file while it is being written; it remains if the process dies."""


class HashingFile:
    """A binary file open for writing that also computes the sha256 of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_atomic(
    path: Path, write: Callable[[HashingFile], object], *, name: Callable[[str], str] | None = None
) -> Path:
    """Write a temporary file beside ``path``, sync it to the disk, rename it to ``path``, sync the folder. -> the final path

    ``write`` gets the open file. ``name`` gives the final file name from the sha256 (hex) of the content. Raises RunError if
    writing fails, and then the file that existed before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            hashing = HashingFile(file)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
        final = path.with_name(name(hashing.digest.hexdigest())) if name else path
        temporary.replace(final)
        _sync(final.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        message = f"{path}: cannot write: {error_text(error)}; what was there before is untouched"
        raise RunError(message, key="file.cannot-write") from error
    except BaseException:  # an interrupt leaves no unfinished file either
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return final


def error_text(error: BaseException) -> str:
    """The reason of a failed write in one line: the operating system's message if one is in the chain of causes."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _sync(folder: Path) -> None:
    """Sync a folder, without which the name of a new file may not survive a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems cannot open folders
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock for creating ``path`` during the block; waits while another process holds it."""
    descriptor = -1
    with contextlib.suppress(ImportError, OSError):  # without locks, work may be done twice, but not wrongly
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove the partly written files that processes which died left in a folder."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process during the block; the operating system unlocks it when the process ends, in any way.

    Raises RunError if another process holds the lock. On file systems without locks nothing is locked.
    """
    descriptor = -1
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            message = f"{folder}: another process is writing here; wait for it, or start a new run"
            raise RunError(message, key="run.locked") from error
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def replaced_on_success(path: Path) -> Iterator[Path]:
    """The path of a temporary file beside ``path``, to be written and checked in the block.

    It replaces ``path`` if the block ends normally and is removed if it raises.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(NotADirectoryError):  # then the block has raised what is wrong with the folder
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex. Raises OSError if it cannot be read."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
