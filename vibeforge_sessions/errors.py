"""Every error this package raises.

SessionRepositoryError
├── SessionNotFoundError (LookupError)    no such session, or not any more
├── SessionExistsError                    the id is taken
├── StaleSessionError                     somebody else has stored the session since it was read
├── InvalidSessionError (ValueError)      what was handed in cannot be stored or understood
├── CorruptSessionError                   what is stored cannot be understood
├── StorageError                          the database did not do it
│   └── OutcomeUnknownError               … and nobody can tell whether it did
├── SchemaError                           the tables are missing, or not of this version
└── ArchiveError                          a file of sessions cannot be read or written

The errors carry ids and versions as attributes. Their messages show neither values of a session nor a URL,
a password or the parameters of a statement. All of them survive ``pickle``, so that a worker process can
hand them to its parent.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ArchiveError",
    "CorruptSessionError",
    "InvalidSessionError",
    "OutcomeUnknownError",
    "SchemaError",
    "SchemaState",
    "SessionExistsError",
    "SessionNotFoundError",
    "SessionRepositoryError",
    "StaleSessionError",
    "StorageError",
]

SchemaState = Literal["empty", "behind", "current", "ahead", "foreign", "drifted"]
"""Where a database stands, seen from this version of the package.

empty: none of our tables; behind: migrations are pending; current: what this version needs; ahead: migrated by a newer
version; foreign: tables of our names, and nothing that says that our migrations made them; drifted: at the revision
that this version needs, but the tables are not those that its migrations make.
"""


# Each subclass keeps its constructor's arguments in ``args`` and makes its text in ``__str__``: that is what
# lets ``pickle`` and ``copy`` rebuild it.


class SessionRepositoryError(Exception):
    """The root of all errors of this package."""


class SessionNotFoundError(SessionRepositoryError, LookupError):
    """There is no session with this id, or it has been deleted since it was read."""

    session_id: str

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id

    def __str__(self) -> str:
        return f"there is no session {self.session_id!r}"


class SessionExistsError(SessionRepositoryError):
    """A session with this id is stored already."""

    session_id: str

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id

    def __str__(self) -> str:
        return f"there is a session {self.session_id!r} already"


class StaleSessionError(SessionRepositoryError):
    """The session was stored by somebody else since it was read; nothing of this update was written.

    Read it again and repeat the change, or let ``modify_session`` do that.
    """

    session_id: str
    version: int
    """The version the caller had read."""
    stored_version: int | None
    """The version stored now.

    0: none is; the session was created in a transaction of the caller that was rolled back, or was deleted since. Equal
    to ``version``: the session was deleted and created again, or what was read was rolled back.
    """

    def __init__(self, session_id: str, version: int, stored_version: int | None = None) -> None:
        super().__init__(session_id, version, stored_version)
        self.session_id = session_id
        self.version = version
        self.stored_version = stored_version

    def __str__(self) -> str:
        if self.stored_version == 0:
            return (
                f"session {self.session_id!r} is not stored: the caller's transaction that created it was rolled back, "
                "or it was deleted since: create it again, or drop it"
            )
        if self.stored_version == self.version:
            return (
                f"session {self.session_id!r} is not the one of which version {self.version} was read: it was deleted "
                "and created again, or the caller's transaction was rolled back: read it again and retry"
            )
        now = "" if self.stored_version is None else f", version {self.stored_version} is stored now"
        return f"session {self.session_id!r} was changed since version {self.version} was read{now}"


class InvalidSessionError(SessionRepositoryError, ValueError):
    """A session, an id, a filter, a cursor or a limit that cannot be stored or understood. Nothing was written."""

    path: str | None
    """Where in the session it stands, such as ``answers.budget[2]``; None where the reason says it all."""
    reason: str

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


class CorruptSessionError(SessionRepositoryError):
    """A stored session cannot be read: its phase is unknown to this code, or its row was changed by hand."""

    session_id: str | None
    reason: str

    def __init__(self, session_id: str | None, reason: str) -> None:
        super().__init__(session_id, reason)
        self.session_id = session_id
        self.reason = reason

    def __str__(self) -> str:
        what = "a session" if self.session_id is None else f"session {self.session_id!r}"
        return f"{what} is stored in a way this code cannot read: {self.reason}"


class StorageError(SessionRepositoryError):
    """The database could not be reached, or failed; the cause is chained. Nothing was written."""

    reason: str
    transaction_lost: bool
    """True where the server has rolled back the transaction that the caller had begun itself."""

    def __init__(self, reason: str, transaction_lost: bool = False) -> None:  # noqa: FBT001, FBT002 (pickle passes args by position)
        super().__init__(reason, transaction_lost)
        self.reason = reason
        self.transaction_lost = transaction_lost

    def __str__(self) -> str:
        return self.reason


class OutcomeUnknownError(StorageError):
    """The connection broke while the write was being committed: it is stored wholly, or not at all.

    The repository has looked for it and could not tell: the database was away for longer than the call's deadline, or
    somebody else has deleted or stored the session since. (In a host's own transaction it is the host's commit that
    may end so.) What a caller may do:

    - after `update_session` or `modify_session`: read the session, and decide from what it holds;
    - after `create_session` with an id of one's own: read it; after one with a new id: create another;
    - after `delete_session`: delete again; False says that the first one, or somebody else, has done it;
    - after `append_error` and `append_log`: look at the last entries, or append again and accept that one may be there
      twice.

    A moment later is better than at once: a server that was cut off may still finish what it was told.
    """


class SchemaError(SessionRepositoryError):
    """The database's tables are not those of this version; the message names the command to run."""

    reason: str
    state: SchemaState | None
    """None where a migration failed for another reason, such as its lock."""

    def __init__(self, reason: str, state: SchemaState | None = None) -> None:
        super().__init__(reason, state)
        self.reason = reason
        self.state = state

    def __str__(self) -> str:
        return self.reason


class ArchiveError(SessionRepositoryError):
    """A file of sessions is damaged or none of ours, or it cannot be read or written (full, say; the cause is chained).

    Nothing was stored of the session that it is about, and nothing deleted.
    """

    reason: str
    line: int | None
    """The line of the file that it is about, from 1; None where it is about the file."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason, line)
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        return self.reason if self.line is None else f"line {self.line}: {self.reason}"
