"""Disk errors, gzip, file locks, and checks of existing files."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from vibeforge_sessions.errors import ArchiveError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LEVEL: Final = 6
_OPEN_OR_CREATE: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
_CAREFULLY: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""With O_NONBLOCK, opening a named pipe does not wait. The flag has no effect on a regular file."""


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Translate errors of the operating system and of gzip to `ArchiveError`, whose message contains no path."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ArchiveError("the gzip file is damaged or ends early: the rest of the file cannot be read") from None
    except OSError as error:
        raise ArchiveError(f"a file cannot be read or written: {os.strerror(error.errno or 0)}") from error


def is_compressed(path: Path, compress: bool | None) -> bool:  # noqa: FBT001 (an option that is passed on)
    """Return `compress` if it is given; by default, whether the name of the new file ends in ``.gz``."""
    return path.suffix == ".gz" if compress is None else compress


def compressing(file: IO[bytes]) -> IO[bytes]:
    """Return a file that writes compressed data to another file, which stays open. Equal data gives equal bytes."""
    return cast("IO[bytes]", gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0))


def open_locked(path: Path) -> io.FileIO:
    """Open or create a file for reading and writing, unbuffered, and lock it against other processes.

    A new file is readable by its owner only.

    :raises ArchiveError: another process has locked the file, another user may have prepared it, or it cannot be
        opened.
    """
    with disk_errors():
        if path.is_symlink():  # O_NOFOLLOW rejects a link that is created after this check
            raise _unsafe_error("is a symbolic link")
        file = io.FileIO(os.open(path, _OPEN_OR_CREATE | _CAREFULLY, 0o600), "r+b")
    try:
        _check_unprepared(os.fstat(file.fileno()))
        _lock(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _check_unprepared(opened: os.stat_result) -> None:
    """Reject an open file that another user may have prepared, or can write to."""
    if not stat.S_ISREG(opened.st_mode):
        raise _unsafe_error("is not a regular file")
    if opened.st_nlink > 1:
        raise _unsafe_error("has a second name (a hard link)")
    if sys.platform != "win32":  # Windows has no such owners and modes
        if opened.st_uid != os.geteuid():
            raise _unsafe_error("belongs to another user")
        if opened.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _unsafe_error("is writable by other users")


def _unsafe_error(reason: str) -> ArchiveError:
    return ArchiveError(
        f"nothing can be appended to this file: it {reason}; name a new file, or a regular file of this user that no "
        "other user may write"
    )


def _lock(file: io.FileIO, path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(path.lstat(), os.fstat(file.fileno())):  # it was renamed before it was locked
            raise FileNotFoundError
    except OSError as error:
        raise ArchiveError("another process is writing this file: wait until it ends, or name another file") from error


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to the disk, if the operating system supports this."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_page_cache(file: io.FileIO) -> None:
    """Drop the cached pages of a file, if the operating system supports this, so that later reads use the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
