"""The end of an archive that is to be appended to: what an interrupted writer has left half written is cut off.

Only that is: a file that is no archive, or that is damaged in another way than by ending early, is refused as it is.
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

_BLOCK: Final = 1024 * 1024
_CLOSING: Final = (b'\n{"kind":"end",', b'\n{"kind":"archive_end",')
_LONGEST_CLOSING: Final = 1024
_PIECE: Final = 64 * 1024
_MEMBER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""What each gzip of `compressing` begins with: no name, no time."""


def is_gzip(file: Unbuffered) -> bool:
    """Tell whether a file is compressed."""
    file.seek(0)
    return file.read(len(GZIP)) == GZIP


def cut_off(file: Unbuffered, longest: int) -> int:
    """Cut off what stands half written behind the last whole session; return where the file ends now.

    :param longest: how many bytes a line may have.
    :raises ArchiveError: the file is no archive, or is damaged.
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
        raise _refused("it is no archive")
    end = 0
    for place in _found_backwards(file, size, _CLOSING):
        file.seek(place + 1)
        line, newline, _ = file.read(_LONGEST_CLOSING).partition(b"\n")
        if not newline and not _is_whole(line):
            continue
        _kind_of(line)
        end = place + 1 + len(line) + 1
        if not newline:  # nothing else is missing
            file.seek(end - 1)
            file.write(b"\n")
        break
    file.seek(end)
    with os.fdopen(os.dup(file.fileno()), "rb") as rest:
        for _, line in numbered_lines(rest, longest):
            if not _is_of_a_session(line):
                raise _refused("its end is damaged")
    return end


def _is_of_a_session(line: bytes | None) -> bool:
    """Tell whether a line is one of a session that has no closing line, or the beginning of one."""
    if line is None or not line.endswith(b"\n"):
        return line is not None and _is_beginning(line)
    return _kind_of(line) in {"archive", "session", serialization.ERRORS, serialization.LOGS}


def _is_whole(line: bytes) -> bool:
    try:
        return bool(serialization.parse(line))
    except DamagedLineError:
        return False


def _kind_of(line: bytes) -> str:
    try:
        return str(serialization.parse(line)["kind"])
    except DamagedLineError:
        raise _refused("its end is damaged") from None


# --- gzip --------------------------------------------------------------------------------------------------


def _end_of_members(file: Unbuffered, size: int) -> int:
    torn = size
    for place in _found_backwards(file, size, (_MEMBER,), always=0):
        end = _end_of_member(file, place, torn)
        if end is not None:
            file.seek(end)
            if _MEMBER.startswith(file.read(torn - end)):  # nothing, or the first bytes of another
                return end
            break
        if torn < size:  # of an interrupted writer there is no more than one
            break
        torn = place
        if place == 0:
            return 0
    raise _refused("its end is damaged")


def _end_of_member(file: Unbuffered, place: int, limit: int) -> int | None:
    """Return where a gzip ends that begins at a place; None where it ends early."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    head = b""
    file.seek(place)
    while not stream.eof and (block := file.read(min(_PIECE, limit - place))):
        place += len(block)
        try:
            data = stream.decompress(block)
        except zlib.error:
            raise _refused("its end is damaged") from None
        head = head or data[: len(serialization.BEGINNING)]
    if not _is_beginning(head):
        raise _refused("it is no archive")
    return place - len(stream.unused_data) if stream.eof else None


# --- both --------------------------------------------------------------------------------------------------


def _found_backwards(
    file: Unbuffered, size: int, needles: tuple[bytes, ...], *, always: int | None = None
) -> Iterator[int]:
    """Give the places of some bytes, the last one first, and one more place at the end."""
    pattern = re.compile(b"|".join(map(re.escape, needles)))
    overlap = max(map(len, needles)) - 1
    end, place = size, None
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        block = file.read(end - start + overlap)
        for place in reversed([start + found.start() for found in pattern.finditer(block)]):
            if place < end:
                yield place
        end = start
    if always is not None and always != place:
        yield always


def _is_beginning(data: bytes) -> bool:
    """Tell whether a line of ours may begin so."""
    return serialization.BEGINNING.startswith(data[: len(serialization.BEGINNING)])


def _refused(why: str) -> ArchiveError:
    return ArchiveError(f"nothing can be appended to this file: {why}")
