"""Reading of archives: complete and checked bundles, and problems."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any, Final, NamedTuple, cast

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.bundle import Bundle
from vibeforge_sessions.archive.files import GZIP, Decompressing, disk_errors
from vibeforge_sessions.archive.serialization import DamagedLineError
from vibeforge_sessions.errors import ArchiveError, InvalidSessionError
from vibeforge_sessions.model import validation

BUFFER: Final = 1024 * 1024
"""Size of a read in bytes, chosen so that a long line needs few reads."""
_TRUNCATED: Final = "ends early"


@dataclasses.dataclass(slots=True)
class _Export:
    """An export whose last line was not read yet."""

    line: int
    sessions: int = 0
    problems: int = 0


class Problem(NamedTuple):
    """A problem of a line, or of a session that begins there."""

    line: int
    session_id: str | None
    reason: str


@contextlib.contextmanager
def opened(file: IO[bytes]) -> Iterator[io.BufferedReader]:
    """Provide the decompressed content of a file, which may be compressed. The file stays open."""
    plain = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file), BUFFER)
    try:
        with disk_errors():
            compressed = plain.peek(len(GZIP))[: len(GZIP)] == GZIP
        yield io.BufferedReader(Decompressing(plain), BUFFER) if compressed else plain
    finally:
        if plain is not file:
            plain.detach()  # otherwise closing it would close the file


def numbered_lines(file: io.BufferedReader, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield pairs of the line number, from 1, and the line; None for a line that is too long.

    At most one byte more than `longest` of a line is kept in memory.


    :raises ArchiveError: the file cannot be read, or the gzip is damaged or ends early.
    """
    for number in itertools.count(1):
        line: bytes | None = _read(file, longest + 1, number)
        if not line:
            return
        if len(line) <= longest:
            yield number, line
            continue
        ended = line.endswith(b"\n")
        line = None  # release the memory: the line may be as long as the limit
        yield number, None
        while not ended:
            piece = _read(file, BUFFER, number)
            ended = not piece or piece.endswith(b"\n")


def _read(file: io.BufferedReader, size: int, number: int) -> bytes:
    try:
        with disk_errors():
            return file.readline(size)
    except ArchiveError as error:
        raise ArchiveError(error.reason, number) from error.__cause__


def read_bundles(file: io.BufferedReader, longest: int) -> Generator[Bundle | Problem, None, None]:
    """Yield each session of an archive once its closing line was checked, and the problems of the others.

    The caller closes the bundles. After a damaged line, the rest of its session is skipped without a report.
    """
    reader = _Reader()
    number = 0
    try:
        for number, line in numbered_lines(file, longest):
            if line is None:
                yield reader.reject(number, f"is longer than {longest} bytes: allow longer lines")
            elif not line.isspace():
                yield from reader.read_line(number, line)
        yield from reader.finish(number)
    except ArchiveError as error:
        yield reader.reject(error.line or number, error.reason)
    finally:
        reader.discard()


class _Reader:
    """State machine over the lines of an archive."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._skipping = False
        """Whether the following lines may belong to a rejected session."""
        self._export: _Export | None = None
        self._steps: dict[str, Callable[[int, dict[str, Any], bytes], Iterator[Bundle | Problem]]] = {
            "session": self._begin,
            serialization.ERRORS: self._chunk,
            serialization.LOGS: self._chunk,
            "end": self._end,
            "archive": self._begin_export,
            "archive_end": self._end_export,
        }

    def read_line(self, number: int, line: bytes) -> Iterator[Bundle | Problem]:
        """Process the next line."""
        try:
            data = serialization.parse(line)
            if data["kind"] not in self._steps:
                raise DamagedLineError("is not a line of an archive")
            yield from self._steps[data["kind"]](number, data, line.rstrip(b"\r\n") + b"\n")
        except DamagedLineError as error:
            yield self.reject(number, str(error))

    def reject(self, number: int, reason: str, session_id: str | None = None) -> Problem:
        """Discard the current session; return the problem."""
        if self._bundle is not None:
            session_id = self._bundle.record.session_id
        self.discard()
        self._skipping = True
        return self._problem(number, session_id, reason)

    def discard(self) -> None:
        """Discard the current session."""
        if self._bundle is not None:
            self._bundle.close()
            self._bundle = None

    def finish(self, number: int) -> Iterator[Problem]:
        """Process the end of the file."""
        yield from self._reject_unfinished(number)
        if self._export is not None and not self._skipping:
            yield Problem(
                number,
                None,
                f"{_TRUNCATED}: the last line of the export that begins at line {self._export.line} is missing",
            )

    def _begin(self, number: int, data: dict[str, Any], _: bytes) -> Iterator[Problem]:
        yield from self._reject_unfinished(number - 1)
        try:
            self._bundle = Bundle(serialization.record_from(data), number)
        except DamagedLineError as error:
            yield self.reject(number, str(error), displayable_id(data.get("session_id")))
        else:
            self._skipping = False

    def _chunk(self, _: int, data: dict[str, Any], line: bytes) -> Iterator[Problem]:
        bundle = self._current_bundle()
        if bundle is not None:
            kind = data["kind"]
            bundle.add(kind, line, serialization.entries_from(data, bundle.counted[kind]))
        yield from ()

    def _end(self, _: int, data: dict[str, Any], __: bytes) -> Iterator[Bundle]:
        bundle = self._current_bundle()
        if bundle is not None:
            serialization.check_end(data, bundle.record, bundle.counted, bundle.digest)
            self._bundle = None
            if self._export is not None:
                self._export.sessions += 1
            yield bundle

    def _begin_export(self, number: int, data: dict[str, Any], _: bytes) -> Iterator[Problem]:
        yield from self.finish(number - 1)
        self._export = _Export(number)
        serialization.check_format(data)

    def _end_export(self, number: int, data: dict[str, Any], _: bytes) -> Iterator[Problem]:
        yield from self._reject_unfinished(number)
        export, self._export = self._export, None
        if export is not None and export.problems == 0 and export.sessions != data.get("sessions"):
            yield Problem(
                number, None, f"has another number of sessions than the export, which contains {export.sessions}"
            )

    def _current_bundle(self) -> Bundle | None:
        """Return the current session; None if the line may belong to a rejected session."""
        if self._bundle is None and not self._skipping:
            raise DamagedLineError("belongs to no session: the header before it is missing")
        return self._bundle

    def _reject_unfinished(self, number: int) -> Iterator[Problem]:
        if self._bundle is not None:
            yield self.reject(
                number,
                f"{_TRUNCATED}: the closing line of the session that begins at line {self._bundle.line} is missing",
            )

    def _problem(self, number: int, session_id: str | None, reason: str) -> Problem:
        if self._export is not None:
            self._export.problems += 1
        return Problem(number, session_id, reason)


def displayable_id(value: object) -> str | None:
    """Return an id if it is valid. Any other value is not shown, because it could contain data."""
    with contextlib.suppress(InvalidSessionError):
        return validation.check_session_id(value)
    return None
