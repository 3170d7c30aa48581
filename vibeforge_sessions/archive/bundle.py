"""Bundles: complete, consistent copies of single sessions."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final, Generic, Protocol, Self, TypeVar

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.files import disk_errors
from vibeforge_sessions.errors import (
    CorruptSessionError,
    InvalidSessionError,
    SessionNotFoundError,
    StaleSessionError,
)
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.serialization import WRONG_COUNTS, Record

T = TypeVar("T", ErrorEntry, str)

_MAX_MEMORY: Final = 4 * 1024 * 1024
"""Bytes of a session that are kept in memory. A larger session is kept in a temporary file."""
_FIRST_PAGE: Final = 64
"""Entries of the first page, while the length of the entries is unknown."""
_PAGE_CHARACTERS: Final = 4 * 1024 * 1024
"""Intended number of characters of the following pages."""
_ATTEMPTS: Final = 10
"""Attempts to read a session that other writers update meanwhile."""


class Source(Protocol):
    """Part of a repository that is needed to read sessions."""

    def get_record(self, session_id: str, /) -> Record | None: ...  # noqa: D102
    def list_errors(self, session_id: str, /, *, after: int, limit: int) -> list[ErrorEntry]: ...  # noqa: D102
    def list_logs(self, session_id: str, /, *, after: int, limit: int) -> list[str]: ...  # noqa: D102


class Entries(Generic[T]):
    """Entries of one history of a bundle. They can be iterated repeatedly."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._chunks: list[tuple[int, int]] = []
        self._read: list[T] | None = []
        self.count = 0

    def add(self, offset: int, read: list[T] | None, count: int) -> None:
        """Add a chunk that begins at this offset of the spool.

        The entries stay in memory while there is no second chunk.
        """
        self._read = read if not self._chunks else None
        self._chunks.append((offset, self.count))
        self.count += count

    def __iter__(self) -> Iterator[T]:
        if self._read is not None:
            yield from self._read
            return
        for offset, after in self._chunks:
            with disk_errors():
                self._spool.seek(offset)
                line = self._spool.readline()
            yield from serialization.entries_from(serialization.parse(line), after)


class Bundle:
    """One session as archive lines, with its digest. `SessionRepository.restore_record` stores its parts.

    A bundle must be closed, because it may have a temporary file.

    :param record: in canonical form, as `serialization.canonical` returns it.
    :param line: the number of its first line in the file from which it was read.
    """

    def __init__(self, record: Record, line: int | None = None) -> None:
        self.record = record
        self.line = line
        # no `with`: `close` closes it
        self._spool = tempfile.SpooledTemporaryFile(max_size=_MAX_MEMORY)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self.size = 0
        self.errors: Entries[ErrorEntry] = Entries(self._spool)
        self.logs: Entries[str] = Entries(self._spool)
        self._append(serialization.header_line(record))

    @property
    def digest(self) -> str:
        """The checksum of the lines so far. Equal sessions have equal digests, wherever they are stored."""
        return self._hash.hexdigest()

    @property
    def counted(self) -> dict[str, int]:
        """The number of entries of each history so far."""
        return {serialization.ERRORS: self.errors.count, serialization.LOGS: self.logs.count}

    def add(self, kind: str, line: bytes, read: list[Any]) -> None:
        """Add a chunk of a history.

        :param line: its line in the archive.
        :param read: its entries.
        """
        history: Entries[Any] = self.errors if kind == serialization.ERRORS else self.logs
        history.add(self.size, read, len(read))
        self._append(line)

    def lines(self) -> Iterator[bytes]:
        """Yield all lines, including the closing line."""
        with disk_errors():
            self._spool.seek(0)
        while True:
            with disk_errors():
                line = self._spool.readline()
            if not line:
                break
            yield line
        yield serialization.end_line(self.record, self.digest)

    def close(self) -> None:
        """Release the memory or the temporary file."""
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        with disk_errors():
            self._spool.write(line)
        self._hash.update(line)
        self.size += len(line)


def pack(source: Source, session_id: str, longest: int | None = None) -> Bundle | None:
    """Return a consistent bundle of a stored session; None if the session is missing or was deleted meanwhile.

    :param longest: maximum length of a line in bytes; None for no limit.
    :raises StaleSessionError: other writers updated the session during each of ten attempts.
    :raises CorruptSessionError: the stored session violates the rules for sessions.
    :raises InvalidSessionError: a line would be too long.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        record = source.get_record(session_id)
        if record is None:
            return None
        try:
            return pack_record(source, record, longest)
        except SessionNotFoundError:
            return None
        except StaleSessionError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def pack_record(source: Source, record: Record, longest: int | None = None) -> Bundle:
    """Return a bundle of a session in the state of a record.

    The histories are read after the record. They only grow, so their entries up to the counts of the record belong to
    its state unless the session was updated since. The version is compared at the end.

    :raises SessionNotFoundError: the session was deleted.
    :raises StaleSessionError: the session was updated since the record was read.
    :raises CorruptSessionError: as for `pack`.
    :raises InvalidSessionError: as for `pack`.
    """
    bundle = Bundle(canonical_of(record))
    try:
        _check_length(bundle.size, longest)
        for kind, line, read in _chunks(source, bundle.record):
            _check_length(len(line), longest)
            bundle.add(kind, line, read)
        _check_read(source, record, bundle.counted)
    except BaseException:
        bundle.close()
        raise
    return bundle


def digest_of(source: Source, record: Record) -> str:
    """Return the digest of a stored session in the state of a record. Raises the errors of `pack_record`."""
    kept = canonical_of(record)
    digest = hashlib.sha256(serialization.header_line(kept))
    counted = {serialization.ERRORS: 0, serialization.LOGS: 0}
    for kind, line, read in _chunks(source, kept):
        digest.update(line)
        counted[kind] += len(read)
    _check_read(source, record, counted)
    return digest.hexdigest()


def has_equal_head(one: Record, other: Record) -> bool:
    """Return whether two sessions are equal without their histories, and have as many history entries."""
    return canonical_of(one) == canonical_of(other)


def canonical_of(record: Record) -> Record:
    """Return the canonical form of a stored record.

    :raises CorruptSessionError: the record violates the rules for sessions.
    """
    try:
        return serialization.canonical(record)
    except InvalidSessionError as error:
        raise CorruptSessionError(record.session_id, str(error)) from None


def _chunks(source: Source, record: Record) -> Iterator[tuple[str, bytes, list[Any]]]:
    for kind, count, fetch in (
        (serialization.ERRORS, record.error_count, source.list_errors),
        (serialization.LOGS, record.log_count, source.list_logs),
    ):
        for line, read in serialization.chunk_lines(kind, history_of(fetch, record.session_id, count)):
            yield kind, line, read


def history_of(fetch: Callable[..., list[Any]], session_id: str, count: int) -> Iterator[Any]:
    """Yield the first `count` entries of a history, in pages that are shorter for longer entries.

    There are fewer entries if rows were deleted by hand.
    """
    after, limit = 0, _FIRST_PAGE
    last: list[Any] = []
    while after < count:
        # a log line has no position: the previous line is read again, to detect missing rows
        asked = min(limit, count - after) + len(last)
        entries = fetch(session_id, after=after - len(last), limit=asked)
        if (
            len(entries) < asked
            or entries[: len(last)] != last
            or _has_other_position(entries[-1], after - len(last) + asked)
        ):
            return
        yield from entries[len(last) :]
        after += asked - len(last)
        last = entries[-1:]
        size = sum(len(entry if isinstance(entry, str) else entry.error_message) for entry in entries)
        limit = max(1, min(serialization.CHUNK, _PAGE_CHARACTERS * len(entries) // (size + 1)))


def _has_other_position(entry: ErrorEntry | str, position: int) -> bool:
    return isinstance(entry, ErrorEntry) and entry.position != position


def _check_read(source: Source, record: Record, counted: Mapping[str, int]) -> None:
    """Check that the histories are complete and belong to the state of this record."""
    if not any(record.counts):
        return
    now = source.get_record(record.session_id)
    if now is None:
        raise SessionNotFoundError(record.session_id)
    if (now.version, now.write_id) != (record.version, record.write_id):
        raise StaleSessionError(record.session_id, record.version, now.version)
    if tuple(counted.values()) != record.counts:
        raise CorruptSessionError(record.session_id, WRONG_COUNTS)


def _check_length(length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise InvalidSessionError(
            f"needs a line of {length} bytes, but lines of this archive have at most {longest}: allow longer lines"
        )
