"""The contract of a repository: the persistence seam. Its twin for asyncio stands in `aio`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Self

from vibeforge_sessions.errors import SessionNotFoundError, StaleSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.session import ErrorEntry, S
from vibeforge_sessions.repository import instrumentation
from vibeforge_sessions.repository.instrumentation import Observed
from vibeforge_sessions.repository.query import SessionFilter, SessionOrder, SessionPage
from vibeforge_sessions.repository.retry import RetryPolicy
from vibeforge_sessions.repository.serialization import Record

__all__ = ["SessionRepository"]

STALE = RetryPolicy(longest_delay=0.064)
"""The pauses of `modify_session`."""


class SessionRepository(Observed, ABC, Generic[S]):
    """Where sessions live. Every implementation keeps these promises; `vibeforge_sessions.testing` asks for each.

    ``SessionRepository[MySession]`` is one of an application's own class of session, ``SessionRepository`` one of
    `Session`.

    **Snapshots.** What goes in and what comes out are copies: no caller can change what is stored by holding on
    to an object, and a change is stored when the repository is told, not before.

    **Atomic.** Each call is one transaction, wholly there or not at all. A call that raises has written nothing
    (`OutcomeUnknownError` says so where nobody can tell).

    **Versions.** A stored session has a version, from 1. `update_session` and `modify_session` raise it by one
    when they store something; nothing else does. An update is stored only if the stored version is the one that
    was read, and from the same life of the session: one that was deleted and made anew under the same id is
    another.

    **Histories** are append-only and commute. Entries get the positions 1, 2, 3 …, without gaps, in the order of
    commits. Entries already stored cannot be changed or removed. ``append_*`` neither moves the version nor
    conflicts with an update: nobody's session becomes stale by it.

    **One moment.** A session that is read shows one state, never the documents of one version with the phase or
    the history of another.

    **Time.** All times are aware, UTC, with microseconds. Every write moves the stored ``updated_at``, appends
    too, to the greater of the old one and now: it never goes back.

    **Threads.** One repository is shared by all threads of a service. A `Session` is not: each thread reads its own.

    **Diagnostics are never refused.** In error messages and log lines NUL becomes ``␀`` and a surrogate ``�``.
    **Everything else is exact or refused** with `InvalidSessionError`, which names the path, before anything is
    written: JSON values come back equal, of the same types and in the same key order; tuples, and enums over str or
    int, become the plain JSON value that they stand for.

    **Errors.** All are `SessionRepositoryError`. An id that breaks the rule of ids, a limit out of range, a filter
    or cursor that cannot be understood is `InvalidSessionError` in every call. A stored session that this code
    cannot read is `CorruptSessionError`; a database that fails, `StorageError`.

    **Faults.** A call that fails for a passing reason is tried again, as a whole, until its deadline (`RetryPolicy`).
    What was acknowledged is there once; what raised is not there, and where nobody can tell, `OutcomeUnknownError` says
    so.

    **Each call is reported** as a record of the logger ``vibeforge_sessions``: see
    `vibeforge_sessions.repository.instrumentation`. An implementation need do nothing for that.
    """

    # --- sessions ---

    @abstractmethod
    def create_session(self, session: S | None = None, *, session_id: str | None = None) -> S:
        """Store a new session, a given one or a fresh one, at version 1, and return a copy.

        The given one is marked as stored: it can be changed and updated from then on. One that was stored before
        (in another repository, or deleted since) is stored anew, whole, with positions from 1.

        :param session_id: the id of the fresh session; a new UUID4 by default. Not together with `session`.
        :raises SessionExistsError: the id is taken.
        :raises InvalidSessionError: it holds what cannot be kept, or was read without its older entries.
        """

    @abstractmethod
    def get_session(self, session_id: str, *, recent: int | None = None) -> S | None:
        """Return the session, or None if there is none.

        :param recent: only the last `recent` errors and the last `recent` logs, 0 for none of them;
            ``omitted_errors`` and ``omitted_logs`` of the session tell how many came before. All by default. Such a
            session can be changed and updated like any other.
        :raises CorruptSessionError: this code does not know its phase, entries are missing, or it cannot be read
            otherwise.
        """

    @abstractmethod
    def update_session(self, session: S) -> None:
        """Store what was changed since the session was read, and refresh its ``version`` and ``updated_at``.

        Entries added to ``error_history`` and ``logs`` are stored after those that others have appended meanwhile.
        The caller's lists stay as they are (others' entries are not in them) and count as stored from then on;
        the new entries know their positions. Without a change nothing is written. (One that travelled as JSON is
        compared with what is stored, so it must not be stale even then.)

        A session that was never stored (version 0) is created.

        :raises StaleSessionError: it was stored by somebody else since; nothing of this update was written.
        :raises SessionNotFoundError: it was deleted since; it is not made anew.
        :raises SessionExistsError: it was never stored, and its id is taken.
        :raises InvalidSessionError: it holds what cannot be kept, an entry stored already was changed or removed,
            or it has a version but was neither read from a repository nor by `Session.from_dict`.
        """

    @abstractmethod
    def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
        """Delete the session and its history; tell whether there was one.

        :param unchanged_since: what `get_record` has returned: delete the session only if nobody has written to it
            since, neither to it nor to its histories, and if it is not held. False otherwise.
        """

    def modify_session(self, session_id: str, change: Callable[[S], object], *, attempts: int = 10) -> S:
        """Read the session, call ``change(session)``, update it; again if it was stored by somebody else meanwhile.

        :param change: changes the session that it is given; called once an attempt, so it should do nothing else.
            What it raises ends the call, with nothing written.
        :param attempts: how often to try, at least once; with short random pauses between.
        :return: the session as it was stored.
        :raises SessionNotFoundError: there is none, or not any more.
        :raises StaleSessionError: it was stale at every attempt.
        """
        attempts = validation.check_integer(attempts, "attempts", least=1)
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
                instrumentation.again("StaleSessionError")
                time.sleep(STALE.delay(attempt))
            else:
                return session
        raise AssertionError("unreachable")

    # --- listings ---

    @abstractmethod
    def list_sessions(self, filter: SessionFilter | None = None) -> list[str]:  # noqa: A002 (the contract's name)
        """Return the ids of all sessions, or of those that match, oldest first (by creation, then id)."""

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

        Pages are good while sessions come and go: by created time each session that is there throughout is
        returned exactly once; by updated time one that is written meanwhile may come twice, or not at all.

        :param limit: 1 to 1000 items.
        :param cursor: ``next_cursor`` of the page before, of the same filter and order.
        :raises InvalidSessionError: the limit is out of range; the cursor is malformed or of another filter or order.
        """

    # --- histories ---

    @abstractmethod
    def append_error(self, session_id: str, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        """Append one entry to the stored error history, without loading the session; return it with its position.

        :param task_id: made storable like the message, and cut at 255 characters.
        :param phase: the phase it happened in; the stored one by default. One that this code does not know is kept as
            text, made storable and cut at 64 characters.
        :raises SessionNotFoundError: there is no such session.
        """

    @abstractmethod
    def append_log(self, session_id: str, message: str) -> str:
        """Append the line ``[<ISO time>] message`` to the stored logs, without loading the session; return the line.

        :raises SessionNotFoundError: there is no such session.
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
        """Return up to `limit` entries with positions greater than `after`, in order.

        The cost does not depend on the length of the history; with a filter, at most this session's is read.

        :param after: a position; 0 for the beginning.
        :param limit: at least 1.
        :param task_id: only entries of this task, as `append_error` would have kept its id.
        :param phase: only entries of this phase.
        :raises SessionNotFoundError: there is no such session.
        :raises CorruptSessionError: entries are missing (without a filter, where that can be told), or cannot be read.
        """

    @abstractmethod
    def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
        """Return up to `limit` log lines after the first `after` ones, in order.

        Positions have no gaps: the first line returned is at ``after + 1``, the next at ``after + 2``.

        :raises SessionNotFoundError: there is no such session.
        :raises CorruptSessionError: lines are missing, or cannot be read.
        """

    # --- keeping and moving ---

    @abstractmethod
    def hold_session(self, session_id: str) -> None:
        """Keep the session from being deleted for its age (`vibeforge_sessions.retention.prune`), until it is released.

        It moves neither the version nor ``updated_at``, and makes nobody's session stale. One that is held already
        stays so. `delete_session` without `unchanged_since` deletes it all the same, and so does who replaces it.

        :raises SessionNotFoundError: there is no such session.
        """

    @abstractmethod
    def release_session(self, session_id: str) -> None:
        """End what `hold_session` has begun, if it has.

        :raises SessionNotFoundError: there is no such session.
        """

    @abstractmethod
    def get_record(self, session_id: str) -> Record | None:
        """Return what is stored of the session but for its histories, as texts, or None if there is none.

        Also of a session that this code cannot read: one in a phase that it does not know, say.
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
        """Store a session as it was elsewhere, whole: with its version, times, counts and hold. Its write id is new.

        Its time limit is a second longer for each thousand entries.

        :param errors: all entries of the history, in order, with their positions. They are asked for one by one, and
            again where the call is tried again: so give what can be iterated more than once.
        :param logs: all lines, likewise.
        :param replacing: what `get_record` has returned of the stored session that this one takes the place of.
        :raises SessionExistsError: there is one of this id, and `replacing` is None.
        :raises StaleSessionError: somebody has written to the stored one, or to its histories, since.
        :raises SessionNotFoundError: the one to be replaced is not there any more.
        :raises InvalidSessionError: something cannot be kept, or the histories are not as long as the record says.
        """

    # --- its own life ---

    def close(self) -> None:
        """Give back what the repository itself has opened; a host's engine is left alone.

        It may be called twice. A call after it opens what it needs again.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
