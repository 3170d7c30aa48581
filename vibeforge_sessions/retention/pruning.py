"""`prune` and `prune_async`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from vibeforge_sessions.archive.files import disk_errors
from vibeforge_sessions.archive.report import KEPT
from vibeforge_sessions.archive.writer import ArchiveWriter
from vibeforge_sessions.errors import (
    CorruptSessionError,
    InvalidSessionError,
    SessionNotFoundError,
    StaleSessionError,
)
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.repository.stored_session import matches
from vibeforge_sessions.retention.calls import Awaited, Direct, run
from vibeforge_sessions.retention.report import OnBatch, PruneProblem, PruneReport

BATCH_SIZE: Final = 100
PAUSE: Final = 1.0


def prune(
    repository: SessionRepository[Any],
    filter: SessionFilter,  # noqa: A002 (the contract's name)
    *,
    older_than: timedelta,
    dry_run: bool = False,
    batch_size: int = BATCH_SIZE,
    archive: str | os.PathLike[str] | None = None,
    pause: float = PAUSE,
    on_batch: OnBatch | None = None,
) -> PruneReport:
    """Delete the sessions of some phases that nobody has touched for a time, the oldest first.

    A session is deleted only if all of this holds: its phase is one of those that the filter names, and the rest of
    the filter holds, too; its last update is older than `older_than` (so one whose ``updated_at`` is in the future is
    never old); it is not held; and nobody has written to it, or to its histories, since it was found.

    Each session is looked at and deleted in short transactions of its own. So nobody waits for long, whoever interrupts
    a prune leaves nothing half done, and several may run at once. One that was interrupted is just begun again.

    :param filter: which sessions; it must name phases. Its ``updated_before`` holds beside `older_than`.
    :param older_than: how long nobody has touched them, by this machine's clock at the beginning.
    :param dry_run: delete and archive nothing; the report says what would be.
    :param batch_size: how many sessions are found at once, and archived before any of them is deleted; 1 to 1000.
    :param archive: a file that each session is written to, synced, and read back from, before it is deleted: see
        `ArchiveWriter`. Once that fails, nothing more is deleted.
    :param pause: how long to leave the database to the others after each deletion, as a multiple of the time that it
        took; 0 for not at all. SQLite has one writer at a time and no queue: without pauses, others would wait long.
    :raises InvalidSessionError: the filter names no phases, or an argument is out of range.
    :raises ArchiveError: the archive cannot be written: not opened, full, or it gives back something else.
    """
    pruning = _pruning(Direct(repository), filter, older_than, dry_run, batch_size, pause, on_batch)
    return run(pruning.run(archive))


async def prune_async(
    repository: AsyncSessionRepository[Any],
    filter: SessionFilter,  # noqa: A002 (the contract's name)
    *,
    older_than: timedelta,
    dry_run: bool = False,
    batch_size: int = BATCH_SIZE,
    archive: str | os.PathLike[str] | None = None,
    pause: float = PAUSE,
    on_batch: OnBatch | None = None,
) -> PruneReport:
    """Do what `prune` does, on a repository of asyncio. It may be cancelled; the archive is written in threads."""
    pruning = _pruning(Awaited(repository), filter, older_than, dry_run, batch_size, pause, on_batch)
    return await pruning.run(archive)


# --- the arguments ---


def _pruning(
    calls: Direct | Awaited,
    asked: SessionFilter,
    older_than: timedelta,
    dry_run: bool,  # noqa: FBT001 (ours alone)
    batch_size: int,
    pause: float,
    on_batch: OnBatch | None,
) -> _Pruning:
    """Check the arguments."""
    if not isinstance(asked, SessionFilter):
        raise InvalidSessionError(f"must be a SessionFilter, not {type(asked).__name__}", "filter")
    if not asked.phases:
        raise InvalidSessionError("must be named: only sessions in one of them are deleted", "phases")
    if not isinstance(older_than, timedelta):
        raise InvalidSessionError(f"must be a timedelta, not {type(older_than).__name__}", "older_than")
    if older_than <= timedelta(0):
        raise InvalidSessionError("must be more than no time", "older_than")
    if validation.check_integer(batch_size, "batch_size", least=1) > MAX_PAGE:
        raise InvalidSessionError(f"must be an integer from 1 to {MAX_PAGE}", "batch_size")
    if not 0 <= pause < math.inf:
        raise InvalidSessionError("must be a number, 0 or more", "pause")
    try:
        before = validation.utc_now() - older_than
    except OverflowError:  # nothing is so old
        before = datetime.min.replace(tzinfo=UTC)
    before = min(before, asked.updated_before or before)
    asked = dataclasses.replace(asked, updated_before=before)
    return _Pruning(calls, asked, PruneReport(dry_run, before), batch_size, pause, on_batch)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pruning:
    calls: Direct | Awaited
    asked: SessionFilter
    report: PruneReport
    batch_size: int
    pause: float
    on_batch: OnBatch | None

    async def run(self, archive: str | os.PathLike[str] | None) -> PruneReport:
        if archive is None or self.report.dry_run:
            return await self._pages(None)
        opened = contextlib.ExitStack()  # it knows the file even where opening it was cancelled
        try:
            writer = await self.calls.on_disk(lambda: opened.enter_context(ArchiveWriter(archive)))
            return await self._pages(_Archive(writer, Path(archive)))
        finally:
            await self.calls.on_disk(opened.close)

    async def _pages(self, archive: _Archive | None) -> PruneReport:
        cursor = None
        while True:
            # the cursor goes on behind those that are left, so none of them is met twice
            page = await self.calls.find(self.asked, self.batch_size, cursor)
            if archive is None:
                for item in page.items:
                    with self._explained(item.session_id):
                        await self._delete(await self._untouched(item))
            else:
                for record in await self._archived(page.items, archive):
                    with self._explained(record.session_id):
                        await self._delete(record)
            if self.on_batch is not None:
                self.on_batch(self.report)
            cursor = page.next_cursor
            if cursor is None:
                return self.report

    async def _untouched(self, item: SessionSummary) -> Record:
        """Return the record of a session that was found, if it may be deleted still."""
        record = await self.calls.get(item.session_id)
        if record is None:
            raise SessionNotFoundError(item.session_id)
        if record.held_at is not None:
            raise _HeldError
        # the filter is asked again, and so is what was found: a clock that is behind does not move updated_at
        if not matches(record, self.asked) or _state_of(record) != _state_of(item):
            raise StaleSessionError(item.session_id, item.version, record.version)
        return record

    async def _archived(self, items: Iterable[SessionSummary], archive: _Archive) -> list[Record]:
        """Return the records of those that may be deleted, now that they are in the archive."""
        before = archive.size
        for item in items:
            with self._explained(item.session_id):
                await self.calls.add(archive.writer, await self._untouched(item))
        records = await self.calls.on_disk(archive.writer.commit)
        self.report.archived += len(records)
        self.report.archived_bytes += archive.size - before
        return records

    async def _delete(self, record: Record) -> None:
        if self.report.dry_run:
            self._count(record)
            return
        began = time.perf_counter()
        if not await self.calls.delete(record):
            stored = await self.calls.get(record.session_id)
            if stored is None:
                raise SessionNotFoundError(record.session_id)
            if stored.held_at is not None:
                raise _HeldError
            raise StaleSessionError(record.session_id, record.version, stored.version)
        took = time.perf_counter() - began
        self._count(record)
        await self.calls.sleep(self.pause * took)

    def _count(self, record: Record) -> None:
        report, phase, touched = self.report, record.content.phase, record.updated_at
        report.phases[phase] = report.phases.get(phase, 0) + 1
        report.oldest = min(report.oldest or touched, touched)
        report.newest = max(report.newest or touched, touched)
        report.document_bytes += sum(len(text) for text in record.content.documents.values() if text is not None)
        report.errors += record.error_count
        report.logs += record.log_count

    @contextlib.contextmanager
    def _explained(self, session_id: str) -> Iterator[None]:
        """Count why a session is left, and go on with the others."""
        try:
            yield
        except _HeldError:
            self.report.held += 1
        except StaleSessionError:
            self.report.touched += 1
        except SessionNotFoundError:
            self.report.gone += 1
        except (CorruptSessionError, InvalidSessionError) as error:  # the latter: too long for an archive
            self.report.failed += 1
            if len(self.report.problems) < KEPT:
                self.report.problems.append(PruneProblem(session_id, str(error)))


class _Archive(NamedTuple):
    """The archive that each session goes into first."""

    writer: ArchiveWriter
    path: Path

    @property
    def size(self) -> int:
        with disk_errors():
            return self.path.stat().st_size


class _HeldError(Exception):
    """A session is held."""


def _state_of(session: SessionSummary | Record) -> tuple[object, ...]:
    """Return what every write moves some of."""
    return session.created_at, session.updated_at, session.version, session.error_count, session.log_count
