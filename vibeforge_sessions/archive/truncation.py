"""Truncation recovery: removal of the incomplete end that an interrupted writer has left in an archive.

The file is read once from its beginning. A file that is not an archive, or that is damaged except for a missing end, is
rejected and stays unchanged.
"""

from __future__ import annotations

import io
import mmap
import zlib
from typing import Final

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.reading import GZIP, lines_of, opened
from vibeforge_sessions.archive.serialization import BEGINNING, DamagedLineError
from vibeforge_sessions.errors import ArchiveError

_CLOSING_KINDS: Final = {"end", "archive_end"}
_KINDS: Final = {"archive", "session", serialization.ERRORS, serialization.LOGS, *_CLOSING_KINDS}
_READ_SIZE: Final = 64 * 1024
_MEMBER_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""First bytes of each gzip member that `compressing` writes; they contain neither a name nor a time."""


def is_gzip(file: io.FileIO) -> bool:
    """Return whether a file is compressed."""
    file.seek(0)
    return file.read(len(GZIP)) == GZIP


def recover_truncated(file: io.FileIO, longest: int) -> int:
    """Remove an incomplete end behind the last complete session; return the new size of the file.

    :param longest: maximum length of a line in bytes.
    :raises ArchiveError: the file is not an archive, or is damaged.
    """
    try:
        end = _end_of_members(file) if is_gzip(file) else _end_of_lines(file, longest)
    except (DamagedLineError, zlib.error):
        raise ArchiveError(
            "nothing can be appended to this file: it is damaged, or not an archive; name a new file"
        ) from None
    file.truncate(end)
    return end


def _end_of_lines(file: io.FileIO, longest: int) -> int:
    """Return the offset after the last closing line. If only the newline of this line is missing, write it."""
    end = offset = 0
    file.seek(0)
    with opened(file) as lines:
        for line in lines_of(lines, longest):
            if line is None:
                raise DamagedLineError("must be shorter: allow longer lines")
            offset += len(line)
            if _kind_of(line) in _CLOSING_KINDS:
                end = offset
    file.seek(max(0, end - 1))
    if end and file.read(1) != b"\n":
        end += file.write(b"\n")
    return end


def _kind_of(line: bytes) -> str | None:
    """Return the kind of a line; None for a blank line, and for the beginning of a line at the end of the file."""
    try:
        kind = str(serialization.parse(line)["kind"])
    except DamagedLineError:
        if line.isspace() or (not line.endswith(b"\n") and BEGINNING.startswith(line[: len(BEGINNING)])):
            return None
        raise
    if kind not in _KINDS:
        raise DamagedLineError("is not a line of an archive")
    return kind


def _end_of_members(file: io.FileIO) -> int:
    """Return the offset after the last complete gzip member."""
    end, block = 0, b""
    file.seek(0)
    while True:
        member, beginning = zlib.decompressobj(zlib.MAX_WBITS | 16), b""
        while not member.eof and (block := block or file.read(_READ_SIZE)):
            beginning += member.decompress(block)[: len(BEGINNING) - len(beginning)]
            block = member.unused_data
        if not BEGINNING.startswith(beginning):
            raise DamagedLineError("is not a line of an archive")
        if not member.eof:
            break
        end = file.tell() - len(block)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # an interrupted writer leaves one incomplete member: it is a damaged one if another follows
        if content.find(_MEMBER_HEADER, end + 1) != -1:
            raise DamagedLineError("an incomplete member must be the last one")
    return end
