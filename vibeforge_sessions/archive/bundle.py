"""One session on its way from one place to another: read whole and of one moment first, and then stored."""

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
from vibeforge_sessions.repository.serialization import Record

T = TypeVar("T", ErrorEntry, str)

_IN_MEMORY: Final = 4 * 1024 * 1024
"""How many bytes of a session are kept in memory; a longer one lies in a temporary file meanwhile."""
_SLICE: Final = 64
"""How many entries are asked for at first, when nobody knows yet how long they are."""
_SLICE_SIZE: Final = 4 * 1024 * 1024
"""How many characters the following slices should have."""
_ATTEMPTS: Final = 10
"""How often a session is read that somebody stores meanwhile."""


class Source(Protocol):
    """What is asked of a repository that sessions are read from."""

    def get_record(self, session_id: str, /) -> Record | None: ...  # noqa: D102
    def list_errors(self, session_id: str, /, *, after: int, limit: int) -> list[ErrorEntry]: ...  # noqa: D102
    def list_logs(self, session_id: str, /, *, after: int, limit: int) -> list[str]: ...  # noqa: D102


class Entries(Generic[T]):
    """The entries of one of a parcel's histories, as often as somebody asks for them."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._chunks: list[tuple[int, int]] = []
        self._read: list[T] | None = []
        self.count = 0

    def add(self, offset: int, read: list[T] | None, count: int) -> None:
        """Take note of a chunk at this place of the spool; its entries are kept if it stays the only one."""
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


class Parcel:
    """A session as lines, with its digest: what `SessionRepository.restore_record` takes.

    Close it: it may hold a temporary file.

    :param record: canonical, as `lines.canonical` returns it.
    :param line: the number of its first line in the file that it comes from.
    """

    def __init__(self, record: Record, line: int | None = None) -> None:
        self.record = record
        self.line = line
        # no with: it lives as long as the parcel
        self._spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self.size = 0
        self.errors: Entries[ErrorEntry] = Entries(self._spool)
        self.logs: Entries[str] = Entries(self._spool)
        self._put(serialization.header_line(record))

    @property
    def digest(self) -> str:
        """The checksum of its lines so far: the same for the same session, wherever it is stored."""
        return self._hash.hexdigest()

    @property
    def counted(self) -> dict[str, int]:
        """How many entries there are so far."""
        return {serialization.ERRORS: self.errors.count, serialization.LOGS: self.logs.count}

    def add(self, kind: str, line: bytes, read: list[Any]) -> None:
        """Take a chunk, as a line and read."""
        history: Entries[Any] = self.errors if kind == serialization.ERRORS else self.logs
        history.add(self.size, read, len(read))
        self._put(line)

    def lines(self) -> Iterator[bytes]:
        """Give all lines, the closing one too."""
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
        """Forget it."""
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, line: bytes) -> None:
        with disk_errors():
            self._spool.write(line)
        self._hash.update(line)
        self.size += len(line)


def pack(source: Source, session_id: str, longest: int | None = None) -> Parcel | None:
    """Return a stored session as of one moment; None if there is none, or not any more.

    :param longest: how long its lines may be, if somebody minds.
    :raises StaleSessionError: it is stored so often that it cannot be read.
    :raises CorruptSessionError: it holds what no repository would keep.
    :raises InvalidSessionError: a line would be longer.
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


def pack_record(source: Source, record: Record, longest: int | None = None) -> Parcel:
    """Return a session as it was when this record was read.

    Its histories are read after that: they only grow, so that up to the record's counts they are of its moment, as long
    as the session has not been stored anew since. That is asked at the end.

    :raises SessionNotFoundError: it is gone.
    :raises StaleSessionError: it was stored since.
    :raises CorruptSessionError: see `pack`; so do the others.
    """
    parcel = Parcel(canonical_of(record))
    try:
        _check_length(parcel.size, longest)
        for kind, line, read in _chunks(source, parcel.record):
            _check_length(len(line), longest)
            parcel.add(kind, line, read)
        _check_read(source, record, parcel.counted)
    except BaseException:
        parcel.close()
        raise
    return parcel


def digest_of(source: Source, record: Record) -> str:
    """Return the digest of a stored session as it was when this record was read; raises as `pack_record` does."""
    kept = canonical_of(record)
    digest = hashlib.sha256(serialization.header_line(kept))
    counted = {serialization.ERRORS: 0, serialization.LOGS: 0}
    for kind, line, read in _chunks(source, kept):
        digest.update(line)
        counted[kind] += len(read)
    _check_read(source, record, counted)
    return digest.hexdigest()


def is_same_head(one: Record, other: Record) -> bool:
    """Tell whether all but the histories of two sessions is the same, and these are of the same lengths."""
    return canonical_of(one) == canonical_of(other)


def canonical_of(record: Record) -> Record:
    """Return what of a stored record is moved."""
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
    """Give the first entries of a history, read in slices that are short where the entries are long.

    Where somebody has deleted rows by hand they are fewer than that.
    """
    after, limit = 0, _SLICE
    last: list[Any] = []
    while after < count:
        # a log line does not tell where it stands: so the one before is read again
        asked = min(limit, count - after) + len(last)
        entries = fetch(session_id, after=after - len(last), limit=asked)
        if (
            len(entries) < asked
            or entries[: len(last)] != last
            or _is_elsewhere(entries[-1], after - len(last) + asked)
        ):
            return
        yield from entries[len(last) :]
        after += asked - len(last)
        last = entries[-1:]
        size = sum(len(entry if isinstance(entry, str) else entry.error_message) for entry in entries)
        limit = max(1, min(serialization.CHUNK, _SLICE_SIZE * len(entries) // (size + 1)))


def _is_elsewhere(entry: ErrorEntry | str, position: int) -> bool:
    return isinstance(entry, ErrorEntry) and entry.position != position


def _check_read(source: Source, record: Record, counted: Mapping[str, int]) -> None:
    """Refuse histories that were not read from the session of this record, or not whole."""
    if not any(record.counts):
        return
    now = source.get_record(record.session_id)
    if now is None:
        raise SessionNotFoundError(record.session_id)
    if (now.version, now.write_id) != (record.version, record.write_id):
        raise StaleSessionError(record.session_id, record.version, now.version)
    if tuple(counted.values()) != record.counts:
        raise CorruptSessionError(record.session_id, "its histories are not what its row says")


def _check_length(length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise InvalidSessionError(f"makes a line of {length} bytes, and those of the archive have at most {longest}")
