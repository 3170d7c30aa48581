"""Reading of archives: a complete, checked bundle for each valid session, and a result for each problem."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
from collections.abc import Generator, Iterator
from typing import IO, Any, Final, TypeAlias, cast

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.bundle import Bundle
from vibeforge_sessions.archive.files import disk_errors
from vibeforge_sessions.archive.report import Result
from vibeforge_sessions.archive.serialization import DamagedLineError
from vibeforge_sessions.errors import ArchiveError, InvalidSessionError
from vibeforge_sessions.model import validation

Lines: TypeAlias = io.BufferedReader | gzip.GzipFile
"""A file whose lines can be read."""

GZIP: Final = b"\x1f\x8b"
"""First bytes of every gzip file."""
_BUFFER: Final = 1024 * 1024
"""Size of a read in bytes, chosen so that a long line needs few reads."""


@contextlib.contextmanager
def opened(file: IO[bytes] | io.FileIO) -> Iterator[Lines]:
    """Provide the content of an open file, decompressed if it is compressed. The file stays open.

    If the file is damaged, all complete lines before the damage are read before the error is raised.
    """
    plain: io.BufferedReader = io.BufferedReader(cast("Any", file), _BUFFER)
    try:
        with disk_errors():
            is_compressed = plain.peek(len(GZIP)).startswith(GZIP)
        yield gzip.GzipFile(fileobj=plain, mode="rb") if is_compressed else plain
    finally:
        plain.detach()  # otherwise closing the buffer would close the file


def lines_of(file: Lines, longest: int) -> Iterator[bytes | None]:
    """Yield the lines; None for a line that is too long.

    At most `longest` + 1 bytes of a line are kept in memory.

    :raises ArchiveError: the file cannot be read, or the gzip data are damaged or end early.
    """
    with disk_errors():
        while line := file.readline(longest + 1):
            if len(line) <= longest:
                yield line
                continue
            line = line[-1:]  # release the memory: the line may be as long as the limit
            yield None
            while line and not line.endswith(b"\n"):
                line = file.readline(_BUFFER)


def read_bundles(file: Lines, longest: int) -> Generator[Bundle | Result, None, None]:
    """Yield each session of an archive once its closing line has been checked, and the problems of the other sessions.

    The caller must close the bundles. After a damaged line, the rest of its session is skipped without further reports.
    """
    reader = _Reader()
    number = 0
    try:
        for number, line in enumerate(lines_of(file, longest), 1):
            try:
                if line is None:
                    raise DamagedLineError(f"is longer than {longest} bytes: increase longest_line")
                if not line.isspace():
                    yield from reader.read_line(number, line.rstrip(b"\r\n") + b"\n")
            except DamagedLineError as error:
                yield reader.reject(number, str(error))
        yield from reader.finish(number)
    except ArchiveError as error:
        yield reader.reject(number + 1, error.reason)
    finally:
        reader.discard()


class _Reader:
    """State machine over the lines of an archive."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._hash = hashlib.sha256()
        """Checksum of the session's lines as they are in the file, which may have an earlier format."""
        self._session_id: str | None = None
        """Id in the current header, if it is valid."""
        self._skipping = False
        """Whether the following lines may belong to a rejected session."""
        self._export: int | None = None
        """First line of the export whose last line has not been read yet."""
        self._sessions = self._problems = 0
        """Number of sessions and number of problems in this export, as far as it has been read."""

    def read_line(self, number: int, line: bytes) -> Iterator[Bundle | Result]:
        """Process the next line.

        :raises DamagedLineError: the line is rejected.
        """
        data = serialization.parse(line)
        if data["kind"] in {"session", "archive", "archive_end"}:
            yield from self._reject_unfinished(number - 1)
        match data["kind"]:
            case "session":
                self._session_id = displayable_id(data.get("session_id"))
                self._bundle = Bundle(serialization.record_from(data), number)
                self._hash = hashlib.sha256(line)
                self._skipping = False
            case serialization.ERRORS | serialization.LOGS as kind:
                if bundle := self._current_bundle():
                    entries = serialization.entries_from(data, bundle.histories[kind].count)
                    bundle.add(kind, line, len(entries))
                    self._hash.update(line)
            case "end":
                if bundle := self._current_bundle():
                    serialization.check_end(data, bundle.record, bundle.counts, self._hash.hexdigest())
                    self._bundle = self._session_id = None
                    self._sessions += 1
                    yield bundle
            case "archive":
                yield from self.finish(number - 1)
                self._export, self._sessions, self._problems = number, 0, 0
                serialization.check_format(data)
            case "archive_end":
                if self._export is not None and not self._problems and self._sessions != data.get("sessions"):
                    reason = f"states a different number of sessions from the {self._sessions} that the export contains"
                    yield Result("failed", None, reason=reason, line=number)
                self._export = None
            case _:
                raise DamagedLineError("is not a line of an archive")

    def reject(self, number: int, reason: str) -> Result:
        """Discard the current session; return the problem."""
        problem = Result("failed", self._session_id, reason=reason, line=number)
        self.discard()
        self._skipping = True
        self._problems += 1
        return problem

    def discard(self) -> None:
        """Discard the current session."""
        if self._bundle is not None:
            self._bundle.close()
        self._bundle = self._session_id = None

    def finish(self, number: int) -> Iterator[Result]:
        """Process the end of the file."""
        yield from self._reject_unfinished(number)
        if self._export is not None and not self._skipping:
            reason = f"ends early: the last line of the export that begins at line {self._export} is missing"
            yield Result("failed", None, reason=reason, line=number)

    def _current_bundle(self) -> Bundle | None:
        """Return the current session; None if the current line may belong to a rejected session."""
        if self._bundle is None and not self._skipping:
            raise DamagedLineError("belongs to no session: the header before it is missing")
        return self._bundle

    def _reject_unfinished(self, number: int) -> Iterator[Result]:
        if self._bundle is not None:
            yield self.reject(
                number,
                f"ends early: the closing line of the session that begins at line {self._bundle.line} is missing",
            )


def displayable_id(value: object) -> str | None:
    """Return the value if it is a valid id, else None: any other value could contain data, so it must not be shown."""
    with contextlib.suppress(InvalidSessionError):
        return validation.check_session_id(value)
    return None
