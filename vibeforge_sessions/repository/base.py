"""Abstract repository: the contract of every implementation. `aio` contains the asynchronous counterpart."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, Self

from vibeforge_sessions.errors import SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model.session import ErrorEntry, S
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.arguments import check_attempts
from vibeforge_sessions.repository.instrumentation import Instrumented
from vibeforge_sessions.repository.query import SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.repository.serialization import Record

STALE_RETRY_POLICY = RetryPolicy(longest_delay=0.064)
"""Retry policy of `modify_session` for stale sessions; only its delays are used."""


class SessionRepository(Instrumented, ABC, Generic[S]):
    """Store of sessions. Every implementation gives these guarantees; `vibeforge_sessions.testing` tests each of them.

    ``SessionRepository[MySession]`` stores sessions of an application's own class. ``SessionRepository`` stores
    sessions of class `Session`.

    **Snapshots.** Sessions are copied when they are stored and when they are returned. A caller cannot change stored
    data through an object that it kept. A change is stored when the caller calls `update_session`, not before.

    **Atomicity.** Each call is one transaction; each attempt of `modify_session` reads in one and writes in another. A
    call that raises has written nothing, unless it raises `OutcomeUnknownError`: then its outcome is unknown.

    **Versions.** A stored session has a version, starting at 1. `update_session` and `modify_session` increment it when
    they store something; no other call does. An update is stored only if the stored version and incarnation are those
    that were read. A session that was deleted and created again under the same id is a new incarnation.

    **Histories** are append-only. Entries get the positions 1, 2, 3 …, without gaps, in commit order. Stored entries
    cannot be changed or removed. ``append_*`` does not change the version and never conflicts with an update, so it
    does not make any caller's copy stale.

    **Consistent reads.** A session that is read shows one committed state, never the documents of one version with the
    phase or the history of another.

    **Time.** All times are timezone-aware, in UTC, with microseconds. Every write, including an append, sets the stored
    ``updated_at`` to the current time, unless the stored time is later. ``updated_at`` therefore never decreases.

    **Threads.** All threads of a service can share one repository. They must not share a `Session`: each thread reads
    its own copy.

    **Diagnostics are never rejected.** In error messages and log lines NUL becomes ``␀`` and each surrogate ``�``.
    **All other values are stored exactly or rejected.** `InvalidSessionError` names the path of a rejected value and is
    raised before anything is written. JSON values that are read are equal to those that were stored, with the same
    types and key order. A tuple becomes a list, and a member of an enum over str or int becomes its value.

    **Errors.** All errors are subclasses of `SessionRepositoryError`. Every call raises `InvalidArgumentError` for an
    invalid argument: an id that breaks the rule for ids, a limit out of range, an invalid filter or cursor, an object
    that is not a session of the repository's class. `CorruptSessionError` means that this code cannot read the stored
    session, `StorageError` that the database failed, and `ConfigurationError` that the engine cannot be used.

    **Fault tolerance.** After a transient failure the whole call is retried until its deadline (`RetryPolicy`). A write
    that was acknowledged is stored exactly once. A write that raised is not stored, unless the error is
    `OutcomeUnknownError`.

    **Reports.** Each call writes a record to the logger ``vibeforge_sessions``; docs/services.md describes the
    attributes of the record. An implementation inherits this behavior from the base class.
    """

    # --- sessions ---

    @abstractmethod
    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Store a new session at version 1 and return a copy.

        :param session: the session to store; by default an empty session is created. A given session is marked as
            stored, so that the caller can change and update it. If it was stored before, in another repository or in
            this one before its deletion, it is stored completely, with positions from 1.
        :param session_id: the id of an empty session; a new UUID4 by default. It cannot be combined with `session`.
        :raises SessionExistsError: a session with this id exists.
        :raises InvalidSessionError: the session contains an invalid value, or was read without its older entries.
        :raises InvalidArgumentError: `session_id` is not a valid id, `session` is not of the repository's class, or
            both are given.
        """

    @abstractmethod
    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Return the session, or None if it does not exist.

        :param recent: read only the last `recent` errors and the last `recent` log lines; 0 reads none, and by default
            all are read. ``omitted_errors`` and ``omitted_logs`` of the session are the numbers of older entries. Such
            a session can be changed and updated like any other.
        :raises CorruptSessionError: this code does not know the phase, entries are missing, or stored data cannot be
            read.
        """

    @abstractmethod
    def update_session(self, session: S) -> None:
        """Store the changes made since the session was read, and set its new ``version`` and ``updated_at``.

        Entries added to ``error_history`` and ``logs`` are stored after those that other callers appended meanwhile.
        The other callers' entries are not added to these lists; the new entries in the lists get their positions.

        An unchanged session is not written, even if it is stale. A session made by `Session.from_dict` is compared with
        the stored session, so a stale one raises `StaleSessionError` even if it is unchanged.

        A session that was never stored (version 0) is created.

        :raises StaleSessionError: another caller has since stored the session; this update wrote nothing.
        :raises SessionNotFoundError: the session has since been deleted; it is not created again.
        :raises SessionExistsError: the session was never stored, and a session with its id exists.
        :raises InvalidSessionError: the session contains an invalid value; a stored entry was changed or removed; or
            the session has a version but comes neither from a repository nor from `Session.from_dict`.
        :raises InvalidArgumentError: `session` is not of the repository's class.
        """

    @abstractmethod
    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Delete the session and its histories; return whether a session was deleted.

        :param unchanged_since: a record returned by `get_record`. The session is then deleted only if neither it nor
            its histories have been written since that record was read, and if it is not held.
        """

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        """Read the session, call ``change(session)`` and update it; start again if the session has become stale.

        :param change: a function that changes the session. It is called once per attempt, so it should have no other
            effects. An exception that it raises ends the call, and nothing is written.
        :param attempts: the maximum number of attempts, at least 1; there are short random pauses between them.
        :return: the session as it was stored.
        :raises SessionNotFoundError: the session does not exist, or was deleted meanwhile.
        :raises StaleSessionError: the session was stale at every attempt.
        :raises InvalidArgumentError: `attempts` is not a positive integer.
        """
        attempts = check_attempts(attempts)
        for attempt in range(1, attempts + 1):
            session = self.get_session(session_id)
            if session is None:
                raise SessionNotFoundError(session_id)
            change(session)
            try:
                self.update_session(session)
            except StaleSessionError:
                if attempt == attempts:
                    raise
                instrumentation.report_retry("StaleSessionError")
                time.sleep(STALE_RETRY_POLICY.delay(attempt))
            else:
                return session
        raise AssertionError("unreachable")

    # --- listings ---

    @abstractmethod
    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002 (the contract's name)
        """Return the ids of all sessions, or of those that match the filter, ordered by creation time, then id."""

    @abstractmethod
    def find_sessions(
        self,
        filter: SessionFilter | None = None,  # noqa: A002 (the contract's name)
        *,
        order: SessionOrder = "-created_at",
        limit: int = 50,
        cursor: str | None = None,
    ) -> SessionPage:
        """Return one page of summaries, newest first by default.

        The listing uses stable keyset pagination. When ordered by creation time, each session that exists during the
        whole listing is returned exactly once. When ordered by update time, a session that is written during the
        listing may be returned twice or not at all.

        :param limit: the maximum number of items, 1 to 1000.
        :param cursor: ``next_cursor`` of the previous page, with the same filter and order.
        :raises InvalidArgumentError: the limit is out of range, or the cursor is malformed or belongs to another filter
            or order.
        """

    # --- histories ---

    @abstractmethod
    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        """Append one entry to the stored error history without loading the session; return it with its position.

        :param task_id: the id of the task; unstorable characters are replaced as in the message, and the id is cut at
            255 characters.
        :param phase: the phase in which the error occurred; the stored phase by default. A phase that this code does
            not know is stored as text, with the same replacements, cut at 64 characters.
        :raises SessionNotFoundError: the session does not exist.
        """

    @abstractmethod
    def append_log(self, session_id: str, message: str) -> str:
        """Append the line ``[<ISO time>] message`` to the stored logs without loading the session; return the line.

        :raises SessionNotFoundError: the session does not exist.
        """

    @abstractmethod
    def list_errors(
        self,
        session_id: str,
        *,
        after: int = 0,
        limit: int = 100,
        task_id: str | None = None,
        phase: str | None = None,
    ) -> list[ErrorEntry]:
        """Return up to `limit` entries with positions greater than `after`, ordered by position.

        Without a filter, the cost does not depend on the length of the history. With a filter, at most the history of
        this session is read.

        :param after: a position; 0 for the start of the history.
        :param limit: the maximum number of entries, at least 1.
        :param task_id: return only entries of this task; the id is normalized as by `append_error`.
        :param phase: return only entries of this phase.
        :raises SessionNotFoundError: the session does not exist.
        :raises CorruptSessionError: an entry cannot be read, or entries are missing. Missing entries are detected only
            without a filter.
        """

    @abstractmethod
    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        """Return up to `limit` log lines with positions greater than `after`, ordered by position.

        Positions have no gaps: the first line has the position ``after + 1``, the next one ``after + 2``.

        :raises SessionNotFoundError: the session does not exist.
        :raises CorruptSessionError: lines are missing, or cannot be read.
        """

    # --- holds, export and restore ---

    @abstractmethod
    def hold_session(self, session_id: str) -> None:
        """Exempt the session from deletion by `vibeforge_sessions.retention.prune` until it is released.

        A hold changes neither the version nor ``updated_at``, so it does not make any caller's copy stale. Holding a
        held session has no effect. `delete_session` without `unchanged_since` and `restore_record` with `replacing`
        ignore the hold.

        :raises SessionNotFoundError: the session does not exist.
        """

    @abstractmethod
    def release_session(self, session_id: str) -> None:
        """End the hold of the session, if it has one.

        :raises SessionNotFoundError: the session does not exist.
        """

    @abstractmethod
    def get_record(self, session_id: str) -> Record | None:
        """Return the encoded session without its histories, or None if it does not exist.

        It also returns the record of a session that `get_session` cannot read, for example because of an unknown phase.
        """

    @abstractmethod
    def restore_record(
        self,
        record: Record,
        errors: Iterable[ErrorEntry] = (),
        logs: Iterable[str] = (),
        *,
        replacing: Record | None = None,
    ) -> None:
        """Store a session of another repository with its version, times, counts and hold; only its write id is new.

        The time limit of the call is extended by one second per thousand entries.

        :param errors: all entries of the error history, in order, with their positions. A retry iterates over them
            again, so pass an iterable that can be iterated more than once.
        :param logs: all log lines, in order; a retry iterates over them again, too.
        :param replacing: the record of the stored session to replace, as returned by `get_record`.
        :raises SessionExistsError: a session with this id exists, and `replacing` is None.
        :raises StaleSessionError: the stored session or its histories were written after `replacing` was read.
        :raises SessionNotFoundError: the session to replace no longer exists.
        :raises InvalidSessionError: a value is invalid, or a history does not have the length that the record states.
        :raises InvalidArgumentError: `record` or `replacing` is not a `Record`.
        """

    # --- resources ---

    def close(self) -> None:
        """Release the resources that the repository itself has opened; an engine passed by the caller stays open.

        The method can be called more than once. A later call of another method opens the resources again.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
