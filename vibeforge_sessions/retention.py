"""Retention: deletion of old sessions by phase and age, optionally after archiving.

`prune` works with any repository, `prune_async` with an asynchronous one. `SessionRepository.hold_session` protects a
session from deletion, and `SessionRepository.release_session` ends the hold.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, cast

from vibeforge_sessions import errors
from vibeforge_sessions.archive.report import MAX_PROBLEMS
from vibeforge_sessions.archive.writer import ArchiveWriter
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.aio import AsyncSessionRepository, BlockingRepository, await_completion
from vibeforge_sessions.repository.arguments import check_integer
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.repository.stored_session import matches, summary_of

__all__ = ["BATCH_SIZE", "PAUSE", "OnBatch", "PruneProblem", "PruneReport", "prune", "prune_async"]

BATCH_SIZE: Final = 100
"""Default number of sessions in a batch."""
PAUSE: Final = 1.0
"""Default pause after each deletion, as a multiple of its duration."""


@dataclasses.dataclass(frozen=True, slots=True)
class PruneProblem:
    """A session that was not deleted because it cannot be read or archived."""

    session_id: str
    reason: str
    """The reason. It contains no values of the session."""


@dataclasses.dataclass(slots=True)
class PruneReport:
    """Outcome of a prune, or the expected outcome in a dry run."""

    dry_run: bool
    before: datetime
    """Sessions whose last update was before this time were old enough."""
    phases: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of deleted sessions by phase."""
    oldest: datetime | None = None
    """Earliest ``updated_at`` of the deleted sessions."""
    newest: datetime | None = None
    """Latest ``updated_at`` of the deleted sessions."""
    document_bytes: int = 0
    """Size of the documents of the deleted sessions. The entries of their histories are only counted."""
    errors: int = 0
    """Number of entries in the error histories of the deleted sessions."""
    logs: int = 0
    held: int = 0
    """Number of sessions that were kept because they are held."""
    touched: int = 0
    """Number of sessions that were kept because they were changed after they had been found."""
    gone: int = 0
    """Number of sessions that another client, such as another prune, deleted after they had been found."""
    failed: int = 0
    """Number of sessions that were kept because they cannot be read or archived."""
    problems: list[PruneProblem] = dataclasses.field(default_factory=list)
    """The first 1,000 failures."""
    archived: int = 0
    """Number of archived sessions, including those that were kept because they were changed after the archiving."""
    archived_bytes: int = 0
    """Growth of the archive in bytes."""

    @property
    def total(self) -> int:
        """Number of deleted sessions. In a dry run, the number that would be deleted."""
        return sum(self.phases.values())


OnBatch: TypeAlias = Callable[[PruneReport], object]
"""Callback that receives the report so far after each batch. An exception that it raises ends the prune."""


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
    """Delete the old sessions in the given phases, in the order of their creation.

    A session is deleted only if it matches the filter, its last update is older than `older_than`, it is not held, and
    neither the session nor its histories were changed after it had been found. A session whose ``updated_at`` is in the
    future is never old.

    Each session is checked and deleted in its own short transactions. Other clients therefore do not wait for long, an
    interruption leaves no session half deleted, and several prunes may run at the same time. After an interruption, run
    the prune again.

    :param filter: must name phases. Its ``updated_before`` applies in addition to `older_than`.
    :param older_than: minimum time since the last update, by the clock of this machine at the start.
    :param dry_run: delete and archive nothing. The report contains what would be deleted.
    :param batch_size: number of sessions that are found, and archived, before any of them is deleted; 1 to 1000.
    :param archive: a file. Each session is written to it, flushed, and read back before the session is deleted: see
        `ArchiveWriter`. If that fails, no more sessions are deleted.
    :param pause: time to wait after each deletion, as a multiple of its duration; 0 for no pauses. SQLite allows one
        writer at a time and does not queue the others, so without pauses they would wait for a long time.
    :raises InvalidArgumentError: the filter names no phases, or an argument is out of range.
    :raises ArchiveError: the archive cannot be opened or written, or contains different data when it is read back.
    """
    asked, report = _plan(filter, older_than, dry_run=dry_run)
    return _Pruning(repository, asked, report, batch_size, pause, on_batch, time.sleep).run(archive)


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
    """Prune an asynchronous repository like `prune` does; the call can be canceled.

    The prune runs in a thread. Its calls of the repository and of `on_batch` run on the event loop.
    """
    asked, report = _plan(filter, older_than, dry_run=dry_run)
    calls = BlockingRepository(repository)

    async def report_batch(report: PruneReport) -> None:
        if on_batch is not None:
            on_batch(report)

    on_each, sleep = functools.partial(calls.wait_for, report_batch), functools.partial(calls.wait_for, asyncio.sleep)
    pruning = _Pruning(cast("SessionRepository[Any]", calls), asked, report, batch_size, pause, on_each, sleep)
    return await await_completion(asyncio.to_thread(pruning.run, archive), calls.cancel)


def _plan(asked: SessionFilter, older_than: timedelta, *, dry_run: bool) -> tuple[SessionFilter, PruneReport]:
    """Return the filter of the sessions that are old enough, and the report before the first deletion."""
    if not isinstance(asked, SessionFilter):
        raise errors.InvalidArgumentError(f"must be a SessionFilter, not {type(asked).__name__}", "filter")
    if not asked.phases:
        raise errors.InvalidArgumentError("must not be empty: only sessions in these phases are deleted", "phases")
    if not isinstance(older_than, timedelta):
        raise errors.InvalidArgumentError(f"must be a timedelta, not {type(older_than).__name__}", "older_than")
    if older_than <= timedelta(0):
        raise errors.InvalidArgumentError("must be greater than zero", "older_than")
    try:
        before = validation.utc_now() - older_than
    except OverflowError:  # before the year 1: no session is that old
        before = datetime.min.replace(tzinfo=UTC)
    before = min(before, asked.updated_before or before)
    return dataclasses.replace(asked, updated_before=before), PruneReport(dry_run, before)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pruning:
    repository: SessionRepository[Any]
    asked: SessionFilter
    report: PruneReport
    batch_size: int
    pause: float
    on_batch: OnBatch | None
    sleep: Callable[[float], object]

    def __post_init__(self) -> None:
        check_integer(self.batch_size, "batch_size", least=1, most=MAX_PAGE)
        if not 0 <= self.pause < math.inf:
            raise errors.InvalidArgumentError("must be a number, 0 or more", "pause")

    def run(self, archive: str | os.PathLike[str] | None) -> PruneReport:
        """Prune. If an archive is named, archive each batch before its sessions are deleted."""
        find = functools.partial(self.repository.find_sessions, self.asked, order="created_at", limit=self.batch_size)
        cursor = None
        with nullcontext() if archive is None or self.report.dry_run else ArchiveWriter(archive) as writer:
            while True:
                # an index contains the sessions of a phase in this order, so only the sessions of the page are read;
                # the cursor continues after the sessions that were kept, so each session is found only once
                page = find(cursor=cursor)
                records = self._unchanged(page.items) if writer is None else self._archived(page.items, writer)
                for record in records:
                    with self._count_skipped(record.session_id):
                        self._delete(record)
                if self.on_batch is not None:
                    self.on_batch(self.report)
                cursor = page.next_cursor
                if cursor is None:
                    return self.report

    def _archived(self, items: Iterable[SessionSummary], archive: ArchiveWriter) -> list[Record]:
        """Archive the sessions that may be deleted; return their records."""
        size = archive.size
        for record in self._unchanged(items):
            with self._count_skipped(record.session_id):
                archive.add(self.repository, record)
        records = archive.commit()
        self.report.archived += len(records)
        self.report.archived_bytes += archive.size - size
        return records

    def _unchanged(self, items: Iterable[SessionSummary]) -> Iterator[Record]:
        """Yield the records of the sessions that may still be deleted."""
        for item in items:
            with self._count_skipped(item.session_id):
                record = self._read_unheld(item.session_id)
                # the summary is compared too, because a write by a client with a slow clock keeps updated_at unchanged
                if not matches(record, self.asked) or summary_of(record) != item:
                    raise errors.StaleSessionError(item.session_id, item.version, record.version)
                yield record

    def _read_unheld(self, session_id: str) -> Record:
        record = self.repository.get_record(session_id)
        if record is None:
            raise errors.SessionNotFoundError(session_id)
        if record.held_at is not None:
            raise _HeldError
        return record

    def _delete(self, record: Record) -> None:
        """Delete a session, count it, and pause."""
        began = time.perf_counter()
        if not self.report.dry_run and not self.repository.delete_session(record.session_id, unchanged_since=record):
            stored = self._read_unheld(record.session_id)
            raise errors.StaleSessionError(record.session_id, record.version, stored.version)
        took = time.perf_counter() - began
        report, phase, touched = self.report, record.content.phase, record.updated_at
        report.phases[phase] = report.phases.get(phase, 0) + 1
        report.oldest = min(report.oldest or touched, touched)
        report.newest = max(report.newest or touched, touched)
        report.document_bytes += sum(len(text) for text in record.content.documents.values() if text is not None)
        report.errors += record.error_count
        report.logs += record.log_count
        if not report.dry_run:
            self.sleep(self.pause * took)

    @contextmanager
    def _count_skipped(self, session_id: str) -> Iterator[None]:
        """If a session is not deleted, count it by reason, so that the prune continues with the other sessions."""
        try:
            yield
        except _HeldError:
            self.report.held += 1
        except errors.StaleSessionError:
            self.report.touched += 1
        except errors.SessionNotFoundError:
            self.report.gone += 1
        # InvalidArgumentError: an id that was changed by hand; InvalidSessionError: a session too long for an archive
        except (errors.CorruptSessionError, errors.InvalidArgumentError, errors.InvalidSessionError) as error:
            self.report.failed += 1
            if len(self.report.problems) < MAX_PROBLEMS:
                self.report.problems.append(PruneProblem(session_id, str(error)))


class _HeldError(Exception):
    """A session is held."""
