"""Truncation recovery: removal of the incomplete end that an interrupted writer has left in an archive.

A file that is not an archive, or whose end is damaged in any other way, is rejected and stays unchanged.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Iterator
from typing import Final

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.files import GZIP, Unbuffered
from vibeforge_sessions.archive.reading import numbered_lines
from vibeforge_sessions.archive.serialization import DamagedLineError
from vibeforge_sessions.errors import ArchiveError

_SEARCH_BLOCK: Final = 1024 * 1024
_CLOSING: Final = (b'\n{"kind":"end",', b'\n{"kind":"archive_end",')
_LONGEST_CLOSING: Final = 1024
_READ_SIZE: Final = 64 * 1024
_MEMBER_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""First bytes of each gzip member of `compressing`: without a name and a time."""


def is_gzip(file: Unbuffered) -> bool:
    """Return whether a file is compressed."""
    file.seek(0)
    return file.read(len(GZIP)) == GZIP


def recover_truncated(file: Unbuffered, longest: int) -> int:
    """Remove an incomplete end behind the last complete session; return the new size of the file.

    :param longest: maximum length of a line in bytes.
    :raises ArchiveError: the file is not an archive, or is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        return 0
    end = _end_of_members(file, size) if is_gzip(file) else _end_of_lines(file, size, longest)
    if end < size:
        file.truncate(end)
    return end


# --- plain -------------------------------------------------------------------------------------------------


def _end_of_lines(file: Unbuffered, size: int, longest: int) -> int:
    file.seek(0)
    if not _is_beginning(file.read(len(serialization.BEGINNING))):
        raise _append_error("it is not an archive")
    end = 0
    for place in _search_backwards(file, size, _CLOSING):
        file.seek(place + 1)
        line, newline, _ = file.read(_LONGEST_CLOSING).partition(b"\n")
        if not newline and not _is_complete(line):
            continue
        _kind_of(line)
        end = place + 1 + len(line) + 1
        if not newline:  # only the newline is missing
            file.seek(end - 1)
            file.write(b"\n")
        break
    file.seek(end)
    with os.fdopen(os.dup(file.fileno()), "rb") as rest:
        for _, line in numbered_lines(rest, longest):
            if not _belongs_to_open_session(line):
                raise _append_error("its end is damaged")
    return end


def _belongs_to_open_session(line: bytes | None) -> bool:
    """Return whether a line belongs to a session without a closing line, or is the beginning of such a line."""
    if line is None or not line.endswith(b"\n"):
        return line is not None and _is_beginning(line)
    return _kind_of(line) in {"archive", "session", serialization.ERRORS, serialization.LOGS}


def _is_complete(line: bytes) -> bool:
    try:
        return bool(serialization.parse(line))
    except DamagedLineError:
        return False


def _kind_of(line: bytes) -> str:
    try:
        return str(serialization.parse(line)["kind"])
    except DamagedLineError:
        raise _append_error("its end is damaged") from None


# --- gzip --------------------------------------------------------------------------------------------------


def _end_of_members(file: Unbuffered, size: int) -> int:
    incomplete = size
    for place in _search_backwards(file, size, (_MEMBER_HEADER,), always=0):
        end = _end_of_member(file, place, incomplete)
        if end is not None:
            file.seek(end)
            # between the members and the end, there may be an incomplete header of another member
            if _MEMBER_HEADER.startswith(file.read(incomplete - end)):
                return end
            break
        if incomplete < size:  # an interrupted writer leaves at most one incomplete member
            break
        incomplete = place
        if place == 0:
            return 0
    raise _append_error("its end is damaged")


def _end_of_member(file: Unbuffered, place: int, limit: int) -> int | None:
    """Return the end of the gzip member that begins at `place`; None if it is incomplete."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    head = b""
    file.seek(place)
    while not stream.eof and (block := file.read(min(_READ_SIZE, limit - place))):
        place += len(block)
        try:
            data = stream.decompress(block)
        except zlib.error:
            raise _append_error("its end is damaged") from None
        head = head or data[: len(serialization.BEGINNING)]
    if not _is_beginning(head):
        raise _append_error("it is not an archive")
    return place - len(stream.unused_data) if stream.eof else None


# --- both --------------------------------------------------------------------------------------------------


def _search_backwards(
    file: Unbuffered, size: int, needles: tuple[bytes, ...], *, always: int | None = None
) -> Iterator[int]:
    """Yield the offsets of any of the needles, the last one first, and finally `always`."""
    pattern = re.compile(b"|".join(map(re.escape, needles)))
    overlap = max(map(len, needles)) - 1
    end, place = size, None
    while end > 0:
        start = max(0, end - _SEARCH_BLOCK)
        file.seek(start)
        block = file.read(end - start + overlap)
        for place in reversed([start + found.start() for found in pattern.finditer(block)]):
            if place < end:
                yield place
        end = start
    if always is not None and always != place:
        yield always


def _is_beginning(data: bytes) -> bool:
    """Return whether these bytes may begin a line of an archive."""
    return serialization.BEGINNING.startswith(data[: len(serialization.BEGINNING)])


def _append_error(reason: str) -> ArchiveError:
    return ArchiveError(f"nothing can be appended to this file: {reason}; name a new file")
