"""Pruning of old sessions."""

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
from vibeforge_sessions.archive.report import MAX_PROBLEMS
from vibeforge_sessions.archive.writer import ArchiveWriter
from vibeforge_sessions.errors import (
    CorruptSessionError,
    InvalidArgumentError,
    InvalidSessionError,
    SessionNotFoundError,
    StaleSessionError,
)
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.arguments import check_integer
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.repository.stored_session import matches
from vibeforge_sessions.retention.calls import AsynchronousCalls, SynchronousCalls, run
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
    """Delete the old sessions of the given phases, oldest first.

    A session is deleted only if it satisfies all of these conditions: it matches the filter, which names phases; its
    last update is older than `older_than` (a session whose ``updated_at`` is in the future is never old); it is not
    held; and neither the session nor its histories were changed since it was found.

    Each session is checked and deleted in short transactions of its own. So other clients do not wait for long, an
    interruption leaves nothing incomplete, and several prunes may run at the same time. After an interruption, run the
    prune again.

    :param filter: selects sessions and must name phases. Its ``updated_before`` applies in addition to `older_than`.
    :param older_than: minimum time since the last update, by the clock of this machine at the start.
    :param dry_run: delete and archive nothing. The report contains what would be deleted.
    :param batch_size: sessions that are found at once, and archived before any of them is deleted; 1 to 1000.
    :param archive: a file to which each session is written, flushed, and read back, before it is deleted: see
        `ArchiveWriter`. If that fails, no more sessions are deleted.
    :param pause: time to wait after each deletion, as a multiple of its duration; 0 for no pauses. SQLite has one
        writer at a time and no queue: without pauses, other writers would wait for long.
    :raises InvalidArgumentError: the filter names no phases, or an argument is out of range.
    :raises ArchiveError: the archive cannot be opened or written, or contains different data when it is read back.
    """
    pruning = _new_pruning(SynchronousCalls(repository), filter, older_than, dry_run, batch_size, pause, on_batch)
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
    """Prune like `prune`, on an asynchronous repository. It can be canceled. The archive is written in threads."""
    pruning = _new_pruning(AsynchronousCalls(repository), filter, older_than, dry_run, batch_size, pause, on_batch)
    return await pruning.run(archive)


# --- the arguments ---


def _new_pruning(
    calls: SynchronousCalls | AsynchronousCalls,
    asked: SessionFilter,
    older_than: timedelta,
    dry_run: bool,  # noqa: FBT001 (a private function)
    batch_size: int,
    pause: float,
    on_batch: OnBatch | None,
) -> _Pruning:
    """Check the arguments, and return the operation."""
    if not isinstance(asked, SessionFilter):
        raise InvalidArgumentError(f"must be a SessionFilter, not {type(asked).__name__}", "filter")
    if not asked.phases:
        raise InvalidArgumentError("must not be empty: only sessions in these phases are deleted", "phases")
    if not isinstance(older_than, timedelta):
        raise InvalidArgumentError(f"must be a timedelta, not {type(older_than).__name__}", "older_than")
    if older_than <= timedelta(0):
        raise InvalidArgumentError("must be greater than zero", "older_than")
    check_integer(batch_size, "batch_size", least=1, most=MAX_PAGE)
    if not 0 <= pause < math.inf:
        raise InvalidArgumentError("must be a number, 0 or more", "pause")
    try:
        before = validation.utc_now() - older_than
    except OverflowError:  # beyond the year 1: no session is as old
        before = datetime.min.replace(tzinfo=UTC)
    before = min(before, asked.updated_before or before)
    asked = dataclasses.replace(asked, updated_before=before)
    return _Pruning(calls, asked, PruneReport(dry_run, before), batch_size, pause, on_batch)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pruning:
    calls: SynchronousCalls | AsynchronousCalls
    asked: SessionFilter
    report: PruneReport
    batch_size: int
    pause: float
    on_batch: OnBatch | None

    async def run(self, archive: str | os.PathLike[str] | None) -> PruneReport:
        if archive is None or self.report.dry_run:
            return await self._pages(None)
        opened = contextlib.ExitStack()  # it closes the file even if the task was canceled while the file was opened
        try:
            writer = await self.calls.on_disk(lambda: opened.enter_context(ArchiveWriter(archive)))
            return await self._pages(_Archive(writer, Path(archive)))
        finally:
            await self.calls.on_disk(opened.close)

    async def _pages(self, archive: _Archive | None) -> PruneReport:
        cursor = None
        while True:
            # the cursor continues after the sessions that were kept, so each is found once
            page = await self.calls.find(self.asked, self.batch_size, cursor)
            if archive is None:
                for item in page.items:
                    with self._count_skipped(item.session_id):
                        await self._delete(await self._read_unchanged(item))
            else:
                for record in await self._archive(page.items, archive):
                    with self._count_skipped(record.session_id):
                        await self._delete(record)
            if self.on_batch is not None:
                self.on_batch(self.report)
            cursor = page.next_cursor
            if cursor is None:
                return self.report

    async def _read_unchanged(self, item: SessionSummary) -> Record:
        """Return the record of a session that was found, if it may still be deleted."""
        record = await self.calls.get(item.session_id)
        if record is None:
            raise SessionNotFoundError(item.session_id)
        if record.held_at is not None:
            raise _HeldError
        # both the filter and the counters are compared: under a slow clock, a write may not change updated_at
        if not matches(record, self.asked) or _change_counters(record) != _change_counters(item):
            raise StaleSessionError(item.session_id, item.version, record.version)
        return record

    async def _archive(self, items: Iterable[SessionSummary], archive: _Archive) -> list[Record]:
        """Archive the sessions that may be deleted; return their records."""
        before = archive.size
        for item in items:
            with self._count_skipped(item.session_id):
                await self.calls.add(archive.writer, await self._read_unchanged(item))
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
    def _count_skipped(self, session_id: str) -> Iterator[None]:
        """Count a session that is not deleted by its reason, and continue with the others."""
        try:
            yield
        except _HeldError:
            self.report.held += 1
        except StaleSessionError:
            self.report.touched += 1
        except SessionNotFoundError:
            self.report.gone += 1
        # InvalidArgumentError: an id that was changed by hand; InvalidSessionError: a session too long for an archive
        except (CorruptSessionError, InvalidArgumentError, InvalidSessionError) as error:
            self.report.failed += 1
            if len(self.report.problems) < MAX_PROBLEMS:
                self.report.problems.append(PruneProblem(session_id, str(error)))


class _Archive(NamedTuple):
    """The archive to which sessions are written before they are deleted."""

    writer: ArchiveWriter
    path: Path

    @property
    def size(self) -> int:
        with disk_errors():
            return self.path.stat().st_size


class _HeldError(Exception):
    """A session is held."""


def _change_counters(session: SessionSummary | Record) -> tuple[object, ...]:
    """Return values of which every write changes at least one."""
    return session.created_at, session.updated_at, session.version, session.error_count, session.log_count
