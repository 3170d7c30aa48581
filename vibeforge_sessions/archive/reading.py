"""From the bytes of an archive to parcels: each session whole and checked, or what is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any, Final, NamedTuple, cast

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.bundle import Parcel
from vibeforge_sessions.archive.files import GZIP, Decompressing, disk_errors
from vibeforge_sessions.archive.serialization import DamagedLineError
from vibeforge_sessions.errors import ArchiveError, InvalidSessionError
from vibeforge_sessions.model import validation

BUFFER: Final = 1024 * 1024
"""How many bytes are read at once: a long line in few pieces."""
_CUT_OFF: Final = "what should follow is missing"


@dataclasses.dataclass(slots=True)
class _Export:
    """An export between its first and its last line."""

    line: int
    sessions: int = 0
    problems: int = 0


class Problem(NamedTuple):
    """What is wrong with a line, or with a session that begins there."""

    line: int
    session_id: str | None
    reason: str


@contextlib.contextmanager
def opened(file: IO[bytes]) -> Iterator[io.BufferedReader]:
    """Give a file to read lines of, whether it is compressed or not; it is left open."""
    plain = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file), BUFFER)
    try:
        with disk_errors():
            compressed = plain.peek(len(GZIP))[: len(GZIP)] == GZIP
        yield io.BufferedReader(Decompressing(plain), BUFFER) if compressed else plain
    finally:
        if plain is not file:
            plain.detach()  # it would close the file with itself


def numbered_lines(file: io.BufferedReader, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Give each line with its number, from 1; None for one that is longer, of which no more than that is kept.

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
        line = None  # nobody needs it, and it is as long as lines may be
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


def parcels(file: io.BufferedReader, longest: int) -> Generator[Parcel | Problem, None, None]:
    """Give each session of an archive once its closing line agrees with it, and what is wrong with the rest.

    A parcel is closed by whoever gets it. After a damaged line the rest of its session is passed over without a word.
    """
    reader = _Reader()
    number = 0
    try:
        for number, line in numbered_lines(file, longest):
            if line is None:
                yield reader.lose(number, f"is longer than {longest} bytes")
            elif not line.isspace():
                yield from reader.take(number, line)
        yield from reader.finish(number)
    except ArchiveError as error:
        yield reader.lose(error.line or number, error.reason)
    finally:
        reader.drop()


class _Reader:
    """Where the reading of an archive stands."""

    def __init__(self) -> None:
        self._parcel: Parcel | None = None
        self._lost = False
        """Whether what comes next may belong to a session that cannot be read any more."""
        self._export: _Export | None = None
        self._steps: dict[str, Callable[[int, dict[str, Any], bytes], Iterator[Parcel | Problem]]] = {
            "session": self._begin,
            serialization.ERRORS: self._chunk,
            serialization.LOGS: self._chunk,
            "end": self._end,
            "archive": self._begin_export,
            "archive_end": self._end_export,
        }

    def take(self, number: int, line: bytes) -> Iterator[Parcel | Problem]:
        """Take the next line."""
        try:
            data = serialization.parse(line)
            if data["kind"] not in self._steps:
                raise DamagedLineError("is no line of an archive")
            yield from self._steps[data["kind"]](number, data, line.rstrip(b"\r\n") + b"\n")
        except DamagedLineError as error:
            yield self.lose(number, str(error))

    def lose(self, number: int, reason: str, session_id: str | None = None) -> Problem:
        """Give up the session that is being read."""
        if self._parcel is not None:
            session_id = self._parcel.record.session_id
        self.drop()
        self._lost = True
        return self._problem(number, session_id, reason)

    def drop(self) -> None:
        """Forget the session that is being read."""
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None

    def finish(self, number: int) -> Iterator[Problem]:
        """Take the end of the file."""
        yield from self._cut_off(number)
        if self._export is not None and not self._lost:
            yield Problem(
                number, None, f"{_CUT_OFF}: the last line of the export that begins at line {self._export.line}"
            )

    def _begin(self, number: int, data: dict[str, Any], _: bytes) -> Iterator[Problem]:
        yield from self._cut_off(number - 1)
        try:
            self._parcel = Parcel(serialization.record_from(data), number)
        except DamagedLineError as error:
            yield self.lose(number, str(error), shown_id(data.get("session_id")))
        else:
            self._lost = False

    def _chunk(self, _: int, data: dict[str, Any], line: bytes) -> Iterator[Problem]:
        parcel = self._current()
        if parcel is not None:
            kind = data["kind"]
            parcel.add(kind, line, serialization.entries_from(data, parcel.counted[kind]))
        yield from ()

    def _end(self, _: int, data: dict[str, Any], __: bytes) -> Iterator[Parcel]:
        parcel = self._current()
        if parcel is not None:
            serialization.check_end(data, parcel.record, parcel.counted, parcel.digest)
            self._parcel = None
            if self._export is not None:
                self._export.sessions += 1
            yield parcel

    def _begin_export(self, number: int, data: dict[str, Any], _: bytes) -> Iterator[Problem]:
        yield from self.finish(number - 1)
        self._export = _Export(number)
        serialization.check_format(data)

    def _end_export(self, number: int, data: dict[str, Any], _: bytes) -> Iterator[Problem]:
        yield from self._cut_off(number)
        export, self._export = self._export, None
        if export is not None and export.problems == 0 and export.sessions != data.get("sessions"):
            yield Problem(number, None, f"does not agree on the number of sessions: there are {export.sessions}")

    def _current(self) -> Parcel | None:
        """Return the session that is being read; None if the line is of one that cannot be read any more."""
        if self._parcel is None and not self._lost:
            raise DamagedLineError("belongs to no session: the header before it is missing")
        return self._parcel

    def _cut_off(self, number: int) -> Iterator[Problem]:
        if self._parcel is not None:
            yield self.lose(
                number, f"{_CUT_OFF}: the closing line of the session that begins at line {self._parcel.line}"
            )

    def _problem(self, number: int, session_id: str | None, reason: str) -> Problem:
        if self._export is not None:
            self._export.problems += 1
        return Problem(number, session_id, reason)


def shown_id(value: object) -> str | None:
    """Return an id that may be shown: what breaks the rule of ids could be anything."""
    with contextlib.suppress(InvalidSessionError):
        return validation.check_session_id(value)
    return None
