"""Bundles: complete, consistent copies of single sessions."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Final, Self

from vibeforge_sessions import errors
from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.files import disk_errors
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.serialization import WRONG_COUNTS, Record

_MAX_MEMORY: Final = 4 * 1024 * 1024
"""Maximum size in bytes of a bundle in memory. A larger bundle is kept in a temporary file."""
_FIRST_PAGE: Final = 64
"""Number of entries of the first page, which is read before the length of the entries is known."""
_PAGE_CHARACTERS: Final = 4 * 1024 * 1024
"""Intended number of characters in each page after the first."""
_ATTEMPTS: Final = 10
"""Maximum number of attempts to read a session that other writers update meanwhile."""


@dataclasses.dataclass(slots=True)
class Entries:
    """Entries of one history of a bundle. They can be iterated repeatedly."""

    spool: IO[bytes]
    offsets: list[int] = dataclasses.field(default_factory=list)
    """Offsets of the chunks in the spool."""
    count: int = 0

    def __iter__(self) -> Iterator[Any]:
        after = 0
        for offset in self.offsets:
            with disk_errors():
                self.spool.seek(offset)
                line = self.spool.readline()
            entries = serialization.entries_from(serialization.parse(line), after)
            yield from entries
            after += len(entries)


class Bundle:
    """One session as archive lines, with its digest. `SessionRepository.restore_record` takes its record and histories.

    A bundle must be closed, because it may have a temporary file.

    :param record: the record in canonical form, as `serialization.canonical` returns it.
    :param line: the number of the session's first line in the file that it was read from.
    """

    def __init__(self, record: Record, line: int | None = None) -> None:
        self.record = record
        self.line = line
        # not in a `with` block, because `close` closes the file
        self._spool = tempfile.SpooledTemporaryFile(max_size=_MAX_MEMORY)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._size = 0
        self.longest = 0
        """Length of the longest line in bytes."""
        self.histories = {kind: Entries(self._spool) for kind in (serialization.ERRORS, serialization.LOGS)}
        self._append(serialization.encode_line(serialization.header_of(record)))

    @property
    def digest(self) -> str:
        """The checksum of the lines so far. Equal sessions have equal digests, wherever they are stored."""
        return self._hash.hexdigest()

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of errors and the number of logs so far."""
        return tuple(history.count for history in self.histories.values())

    def add(self, kind: str, line: bytes, count: int) -> None:
        """Add a chunk of a history.

        :param line: the line of the chunk in the archive.
        :param count: the number of entries in the chunk.
        """
        history = self.histories[kind]
        history.offsets.append(self._size)
        history.count += count
        self._append(line)

    def add_history(self, kind: str, entries: Iterable[Any]) -> None:
        """Add the entries of a history, in chunks."""
        for line, count in serialization.chunk_lines(kind, entries):
            self.add(kind, line, count)

    def lines(self) -> Iterator[bytes]:
        """Yield all lines, including the closing line."""
        with disk_errors():
            self._spool.seek(0)
            yield from self._spool
        yield serialization.encode_line(serialization.end_of(self.record, self.digest))

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
        self._size += len(line)
        self.longest = max(self.longest, len(line))


def pack(source: SessionRepository[Any], session_id: str, longest: int | None = None) -> Bundle | None:
    """Return a consistent bundle of a stored session; None if the session is missing or was deleted meanwhile.

    :param longest: maximum length of a line in bytes; None for no limit.
    :raises StaleSessionError: other writers updated the session during each of ten attempts.
    :raises CorruptSessionError: the stored session violates the rules for sessions.
    :raises InvalidSessionError: a line would be too long.
    """
    attempts = 0
    while (record := source.get_record(session_id)) is not None:
        try:
            return pack_record(source, record, longest)
        except errors.SessionNotFoundError:
            break
        except errors.StaleSessionError:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
    return None


def pack_record(source: SessionRepository[Any], record: Record, longest: int | None = None) -> Bundle:
    """Return a bundle of a session in the state that a record describes.

    The histories are read after the record. They only grow, so their entries up to the counts of the record belong to
    its state, unless the session was updated or replaced in between. This is checked at the end.

    :raises SessionNotFoundError: the session was deleted.
    :raises StaleSessionError: the session has been updated since the record was read.
    :raises CorruptSessionError: as for `pack`.
    :raises InvalidSessionError: as for `pack`.
    """
    bundle = Bundle(canonical_of(record))
    try:
        for kind, entries in histories_of(source, record).items():
            bundle.add_history(kind, entries)
        if any(record.counts):
            now = source.get_record(record.session_id)
            if now is None:
                raise errors.SessionNotFoundError(record.session_id)
            if (now.version, now.write_id) != (record.version, record.write_id):
                raise errors.StaleSessionError(record.session_id, record.version, now.version)
        if bundle.counts != record.counts:
            raise errors.CorruptSessionError(record.session_id, WRONG_COUNTS)
        if longest is not None and bundle.longest > longest:
            raise errors.InvalidSessionError(
                f"needs a line of {bundle.longest} bytes, but lines of this archive have at most {longest}: "
                "increase longest_line"
            )
    except BaseException:
        bundle.close()
        raise
    return bundle


def digest_of(source: SessionRepository[Any], record: Record) -> str:
    """Return the digest of a stored session in the state that a record describes; raise the errors of `pack_record`."""
    with pack_record(source, record) as bundle:
        return bundle.digest


def canonical_of(record: Record) -> Record:
    """Return the canonical form of a stored record.

    :raises CorruptSessionError: the record violates the rules for sessions.
    """
    try:
        return serialization.canonical(record)
    except errors.InvalidSessionError as error:
        raise errors.CorruptSessionError(record.session_id, str(error)) from None


def histories_of(source: SessionRepository[Any], record: Record) -> dict[str, Iterator[Any]]:
    """Return the histories of a stored session in the state that a record describes."""
    return {
        serialization.ERRORS: _history_of(source.list_errors, record.session_id, record.error_count),
        serialization.LOGS: _history_of(source.list_logs, record.session_id, record.log_count),
    }


def _history_of(fetch: Callable[..., list[Any]], session_id: str, count: int) -> Iterator[Any]:
    """Yield the first `count` entries of a history, in pages with fewer entries if the entries are long.

    Fewer than `count` entries are yielded if rows were deleted by hand.
    """
    after, limit = 0, _FIRST_PAGE
    last: list[Any] = []
    while after < count:
        # the previous entry is read again, to detect a missing row, after which a page begins later than it should
        asked = min(limit, count - after) + len(last)
        entries = fetch(session_id, after=after - len(last), limit=asked)
        if len(entries) < asked or entries[: len(last)] != last:
            return
        yield from entries[len(last) :]
        after += asked - len(last)
        last = entries[-1:]
        size = sum(len(entry if isinstance(entry, str) else entry.error_message) for entry in entries)
        limit = max(1, min(serialization.CHUNK, _PAGE_CHARACTERS * len(entries) // (size + 1)))
