"""Exception hierarchy of the package.

SessionRepositoryError
├── SessionNotFoundError (LookupError)    the session is not stored
├── SessionExistsError                    the id is taken
├── StaleSessionError                     another writer stored the session since it was read
├── InvalidSessionError (ValueError)      a value in a session cannot be stored
├── InvalidArgumentError (ValueError)     an argument of a call is invalid: a limit, a cursor, a filter, an id
├── CorruptSessionError                   a stored session cannot be read
├── ConfigurationError                    the URL, the engine, the environment or a session class is not usable
├── SchemaError                           the tables are missing, or belong to another version
├── ArchiveError                          an archive cannot be read or written
├── StorageError                          the database failed; nothing was written
└── OutcomeUnknownError                   the write may or may not have been stored; not a StorageError

`OutcomeUnknownError` is not a `StorageError`. A caller that repeats a call after ``except StorageError`` therefore does
not write twice.

Errors carry ids, versions and names as attributes. Their messages contain neither values of a session nor a URL, a
password or the parameters of a statement. All errors can be pickled and copied, so that a worker process can send them
to its parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SchemaState = Literal["empty", "behind", "current", "ahead", "foreign", "drifted"]
"""State of a database's schema, compared with this version of the package.

empty: has none of the package's tables; behind: migrations are pending; current: is what this version needs; ahead: was
migrated by a newer version; foreign: has tables of the same names, but no record that this package's migrations created
them; drifted: has the revision that this version needs, but its tables differ from those that the migrations create.
"""


class SessionRepositoryError(Exception):
    """Base class of all errors of this package."""

    def __post_init__(self) -> None:
        self.args = tuple(vars(self).values())  # pickle and copy rebuild an exception from its args

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


@dataclass(eq=False, repr=False)
class SessionNotFoundError(SessionRepositoryError, LookupError):
    """No session with this id is stored, or it was deleted since it was read."""

    session_id: str

    def __str__(self) -> str:
        return f"there is no session {self.session_id!r}: check the id, or create the session"


@dataclass(eq=False, repr=False)
class SessionExistsError(SessionRepositoryError):
    """A session with this id is stored already."""

    session_id: str

    def __str__(self) -> str:
        return f"session {self.session_id!r} already exists: choose another id, or read that session"


@dataclass(eq=False, repr=False)
class StaleSessionError(SessionRepositoryError):
    """Another writer has stored the session since it was read; this update wrote nothing.

    Read the session again and repeat the change, or let ``modify_session`` do both.
    """

    session_id: str
    version: int
    """The version that the caller had read."""
    stored_version: int | None = None
    """The version that is stored now.

    It is 0 if no session is stored: the caller's transaction that created it was rolled back, or it has been deleted.
    It equals ``version`` if the session was deleted and created again, or if the version that was read was rolled back.
    """

    def __str__(self) -> str:
        if self.stored_version == 0:
            return (
                f"session {self.session_id!r} is not stored: the caller's transaction that created it was rolled back, "
                "or the session has since been deleted; create it again, or discard this copy"
            )
        if self.stored_version == self.version:
            return (
                f"session {self.session_id!r} was replaced since version {self.version} was read: it was deleted and "
                "created again, or the caller's transaction was rolled back; read it again and retry"
            )
        now = "" if self.stored_version is None else f" (version {self.stored_version} is now stored)"
        return (
            f"session {self.session_id!r} was changed since version {self.version} was read{now}: read it again and "
            "retry"
        )


@dataclass(eq=False, repr=False)
class InvalidSessionError(SessionRepositoryError, ValueError):
    """A value in a session, or in a record to be restored, cannot be stored. Nothing was written."""

    reason: str
    path: str | None = None
    """The value's place in the session, such as ``answers.budget[2]``; None for the whole session."""

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


@dataclass(eq=False, repr=False)
class InvalidArgumentError(SessionRepositoryError, ValueError):
    """An argument of a call is invalid: a limit, a cursor, an order, a filter, an id. Nothing was written."""

    reason: str
    argument: str | None = None
    """The argument's name, such as ``limit`` or ``session_id``; None if the reason concerns several arguments."""

    def __str__(self) -> str:
        return self.reason if self.argument is None else f"{self.argument}: {self.reason}"


@dataclass(eq=False, repr=False)
class CorruptSessionError(SessionRepositoryError):
    """A stored session cannot be read: this code does not know its phase, or its row was changed by hand."""

    session_id: str | None
    reason: str

    def __str__(self) -> str:
        what = "a session" if self.session_id is None else f"session {self.session_id!r}"
        return (
            f"{what} is stored in a way that this code cannot read: {self.reason}; use code that can read it, or "
            "restore it from a backup"
        )


@dataclass(eq=False, repr=False)
class ConfigurationError(SessionRepositoryError):
    """The application's configuration is not usable: a URL, an engine, an environment variable, a session class.

    Repeating the call does not help. Nothing was written.
    """

    reason: str
    name: str | None = None
    """The variable or option that the error concerns, such as ``VIBEFORGE_SESSIONS_MIGRATE``; None if the reason names
    it."""

    def __str__(self) -> str:
        return self.reason if self.name is None else f"{self.name}: {self.reason}"


@dataclass(eq=False, repr=False)
class SchemaError(SessionRepositoryError):
    """The database's tables do not match this version of the package; the message names the command to run."""

    reason: str
    state: SchemaState | None = None
    """None if the error has another reason, for example that another migration holds the migration lock."""


@dataclass(eq=False, repr=False)
class ArchiveError(SessionRepositoryError):
    """An archive is damaged, has another format, or cannot be read or written (the cause is chained).

    The session that the error concerns was neither stored nor deleted.
    """

    reason: str
    line: int | None = None
    """The line of the file, counted from 1; None if the error concerns the whole file."""

    def __str__(self) -> str:
        return self.reason if self.line is None else f"line {self.line}: {self.reason}"


@dataclass(eq=False, repr=False)
class StorageError(SessionRepositoryError):
    """The database could not be reached, or failed; the cause is chained. Nothing was written."""

    reason: str
    transaction_lost: bool = False
    """Whether the server has rolled back the transaction that the caller began."""


@dataclass(eq=False, repr=False)
class OutcomeUnknownError(SessionRepositoryError):
    """A connection was lost during a write, and the write is stored either completely or not at all.

    The repository tried to resolve the outcome and could not: the database did not answer before the call's deadline,
    or another writer has since deleted or stored the session. (In the caller's own transaction, only the caller's
    COMMIT can have an unknown outcome.) The caller can do the following:

    - after `update_session`, `modify_session` or `restore_record`: read the session, and decide by its content;
    - after `create_session` with an id: read the session; after `create_session` without an id: create another one;
    - after `delete_session`: delete again; False means that the first call, or another caller, deleted the session;
    - after `hold_session` or `release_session`: repeat the call;
    - after `append_error` or `append_log`: read the last entries, or append again and accept a duplicate.

    Wait a moment before that, because a server that lost the connection may still finish the statement it received.
    """

    reason: str

    def __str__(self) -> str:
        return f"{self.reason}; the write may or may not have been stored: read the session before you repeat the call"
