"""Atomic: a file is the old one or the new one, never half of one, whenever the power goes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from qkd.errors import RunError

UNFINISHED = ".unfinished"  # the ending of what was being written when a process died


class Hashing:
    """A file that is being written, and the sha256 of what went into it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_atomic(path: Path, write: Callable[[Hashing], object], *, name: Callable[[str], str] | None = None) -> Path:
    """Write a file beside ``path``, sync it to the disk, rename it into place, sync the folder. -> where it lies

    ``name`` makes the final name from the sha256 (hex) of the content. Raises RunError where that fails; what was there
    before is untouched then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with beside.open("wb") as file:
            hashing = Hashing(file)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
        final = path.with_name(name(hashing.digest.hexdigest())) if name else path
        beside.replace(final)
        _sync(final.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot write: {error_text(error)}; what was there before is untouched") from error
    except BaseException:  # an interrupt too leaves nothing behind
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return final


def error_text(error: BaseException) -> str:
    """Why a write failed, in one line: the operating system's words, wherever in the chain of errors they stand."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _sync(folder: Path) -> None:
    """The name of a new file is on the disk only when its folder is."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some systems open no folders
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Wait until no other process is making ``path``, and let none make it meanwhile."""
    descriptor = -1
    with contextlib.suppress(ImportError, OSError):  # without locks work may be done twice, but never wrongly
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
    """Remove what processes that died left half written."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the operating system lets go of it when the process ends, however it ends.

    Raises RunError if another process holds it. Where a file system knows no locks, nothing is held.
    """
    descriptor = -1
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunError(f"{folder}: another process is writing here; wait for it, or start a new run") from error
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def replaced_on_success(path: Path) -> Iterator[Path]:
    """A file beside ``path``, to be written and examined: it takes the place when the block ends well, else it is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    finally:
        with contextlib.suppress(
            NotADirectoryError
        ):  # as with a file that is not there: why it is not was raised already
            beside.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex. Raises OSError where it cannot be read."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
