"""`Session`: the state of one run of the application, without storage code."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator
from pydantic_core import core_schema

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import fields, validation
from vibeforge_sessions.model.builtin_types import exact, exact_dict
from vibeforge_sessions.model.history import ErrorEntry, SessionPhase, log_line, normalize_errors, phase_or_text
from vibeforge_sessions.model.json_encoding import format_path
from vibeforge_sessions.model.record import Baseline

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # its `default` parameter is in `typing` only since Python 3.13
else:
    from typing import TypeVar

__all__ = ["ErrorEntry", "Session", "SessionPhase"]

STORED: Final = "stored"
"""Key of the baseline in the dict that `to_dict` returns."""
_UNKNOWN_TRANSACTION: Final = "unknown"
"""Placeholder for the name of the caller's transaction in a session made by `from_dict`."""


class Session(BaseModel):  # noqa: PLW1641 (mutable, so not hashable)
    """State of one run of the application: its phase, answers, artifacts, tasks, logs and errors.

    A session is a snapshot: a change is stored when `SessionRepository.update_session` is called, not before. Answers,
    artifacts and clarifications are JSON values and are validated when they are stored. Unknown fields are rejected.

    A subclass may narrow ``phase`` to its own string enum and add fields with JSON values. Pass the subclass to the
    repository as ``session_type``.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    session_id: fields.SessionId = Field(default_factory=fields.new_session_id)
    """1 to 64 letters, digits and ``._:~-``; a random UUID by default."""
    phase: SessionPhase = SessionPhase.QUESTIONNAIRE
    """The phase of the run; a subclass may use its own string enum."""
    created_at: fields.Time = Field(default_factory=fields.now)
    """Time of creation; timezone-aware, UTC."""
    updated_at: fields.Time = Field(default_factory=fields.now)
    """Time of the last change; each write by a repository sets it, including appends."""

    current_question_index: fields.Counter = 0
    """Number of the current question of the questionnaire, counted from 0."""
    answers: fields.Document = Field(default_factory=dict)
    """Answers by question id; the values are JSON values."""

    intent_profile: fields.Document | None = None
    """Artifact: a JSON object, or None."""
    build_spec: fields.Document | None = None
    """Artifact: a JSON object, or None."""
    concept: fields.Document | None = None
    """Artifact: a JSON object, or None."""
    task_graph: fields.Document | None = None
    """Artifact: a JSON object, or None."""

    completed_task_ids: fields.Strings = Field(default_factory=list)
    """Ids of the completed tasks."""
    failed_task_ids: fields.Strings = Field(default_factory=list)
    """Ids of the failed tasks."""
    active_task_id: fields.TaskId | None = None
    """Id of the task that is running."""
    logs: fields.Strings = Field(default_factory=list)
    """Log lines, oldest first. Lines can be appended, but neither changed nor removed."""

    pending_clarification: fields.Document | None = None
    """A question to the user that is not answered yet: a JSON object, or None."""
    clarification_answer: Any = None
    """The answer to the last clarification; any JSON value."""

    error_history: fields.ErrorEntries = Field(default_factory=list)
    """Errors, oldest first. Entries can be appended, but neither changed nor removed."""

    version: fields.Counter = 0
    """Incremented by each stored update; 0 before the session is first stored. Only repositories set it."""

    _baseline: Baseline | None = PrivateAttr(default=None)

    @field_validator("phase", mode="before")
    @classmethod
    def _plain_phase(cls, value: object) -> object:
        return validation.check_type(value, str)  # otherwise pydantic compares an object of any type with the phases

    # --- changes ---

    def update_phase(self, phase: str) -> None:
        """Set the phase, and update ``updated_at``.

        :raises InvalidSessionError: this class of session has no such phase.
        """
        self.phase = cast("SessionPhase", parse_phase(type(self), phase))
        self._touch()

    def add_answer(self, question_id: str, answer: Any) -> None:
        """Set the answer to a question, a JSON value, and update ``updated_at``."""
        name = exact(question_id)
        if type(name) is not str:
            raise InvalidSessionError(f"keys must be strings, not {type(question_id).__name__}", "answers")
        validation.check_field(vars(self), "answers", dict)[name] = answer
        self._touch()

    def add_log(self, message: str) -> None:
        """Append the log line ``[<ISO time>] message``; NUL becomes ``␀`` and each surrogate ``�``."""
        self._history("logs").append(log_line(message))

    def add_error(self, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        """Append an entry to the error history, update ``updated_at``, and return the entry.

        Strings are never rejected: characters that a database cannot store are replaced with visible ones.

        :param phase: the phase of the entry; the current phase by default.
        """
        now, known = validation.utc_now(), phase_or_text(self.phase if phase is None else phase, phases_of(type(self)))
        entry = ErrorEntry(now, validation.storable_task_id(task_id), validation.storable_text(error_message), known)
        self._history("error_history").append(entry)
        self._touch()
        return entry

    @property
    def omitted_errors(self) -> int:
        """Number of older stored errors that are not in ``error_history`` (see ``recent`` of `get_session`)."""
        return 0 if self._baseline is None else self._baseline.omitted_errors

    @property
    def omitted_logs(self) -> int:
        """Number of older stored log lines that are not in ``logs``."""
        return 0 if self._baseline is None else self._baseline.omitted_logs

    def _history(self, name: str) -> list[Any]:
        return validation.check_field(vars(self), name, list)

    def _touch(self) -> None:
        self.updated_at = validation.monotonic_now(self.updated_at)

    def __eq__(self, other: object) -> bool:
        # pydantic's own __eq__ also compares private attributes, and the baseline is not part of the value
        if not isinstance(other, Session):
            return NotImplemented
        return type(self) is type(other) and self.__dict__ == other.__dict__

    # --- conversion to and from dicts ---

    def to_dict(self) -> dict[str, Any]:
        """Return the session as a dict of JSON values, for files and network messages; `from_dict` is the reverse.

        The dict of a stored session contains its baseline under the key ``stored``, so that the session can be updated
        after `from_dict`. A field that was missing in the dict given to `from_dict` is missing here too, unless it has
        been assigned in the meantime.

        :raises InvalidSessionError: a value is not JSON, or a missing field was changed in place; the error names its
            path.
        """
        missing = missing_fields(self)
        data = {name: getattr(self, name) for name in type(self).model_fields if name not in missing}
        for name in ("created_at", "updated_at"):
            data[name] = validation.check_time(data[name], path=name).isoformat()
        data["error_history"] = list(map(dict, normalize_errors(self._history("error_history"), phases_of(type(self)))))
        data["logs"] = list(map(validation.storable_text, self._history("logs")))
        baseline = self._baseline
        if baseline is not None:
            errors, logs = baseline.errors or (), baseline.logs or ()
            data[STORED] = {
                "write_id": baseline.write_id,
                "created_at": baseline.created_at.isoformat(),
                "updated_at": baseline.updated_at.isoformat(),
                "errors": len(errors),
                "logs": len(logs),
                "positions": [entry.position for entry in errors],
                "omitted_errors": baseline.omitted_errors,
                "omitted_logs": baseline.omitted_logs,
                "error_digest": "" if baseline.errors is None else _digest(map(dict, errors)),
                "log_digest": "" if baseline.logs is None else _digest(logs),
                "log_position": baseline.log_position,
                "committed": baseline.transaction is None,
            }
        return {name: validation.decode_json(validation.encode_json(value, name)) for name, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the session of a dict written by `to_dict`, or of a dict of field values.

        If the dict has no key ``stored``, a missing field gets its default. If the dict has this key, a missing field
        has its default until the update, and the update keeps the stored value. If the caller assigns the field, the
        update replaces the stored value; if the caller changes the default in place, the update raises.

        :raises InvalidSessionError: the dict is not valid, or has ``stored`` without ``session_id`` or ``version``; the
            error names the first path.
        """
        given = exact_dict(data)
        if given is None:
            raise InvalidSessionError(f"a session must be given as a dict, not {type(data).__name__}")
        if len(given) > 2 * len(cls.model_fields) + 1:  # pydantic reports each unknown key
            raise InvalidSessionError("the dict of a session has too many keys: remove unknown keys")
        has_baseline, stored = STORED in given, given.pop(STORED, None)
        for name in ("session_id", "version"):
            if has_baseline and name not in given:
                raise InvalidSessionError("must not be removed from the dict of a stored session", name)
        try:
            session = cls.model_validate(given)
        except ValidationError as error:
            raise_invalid(error)
        if has_baseline:
            try:
                session._baseline = _restore_baseline(session, stored)  # noqa: SLF001 (defined by this class)
            except (KeyError, TypeError, ValueError):
                raise InvalidSessionError("must be the value that to_dict wrote", STORED) from None
        return session


def missing_fields(session: Session) -> set[str]:
    """Return the fields that were missing in the dict of the session and not assigned since (see `Session.from_dict`).

    :raises InvalidSessionError: such a field was changed in place, so neither its default nor its stored value is
        correct.
    """
    baseline: Baseline | None = session._baseline  # noqa: SLF001 (defined in this module)
    if baseline is None or not baseline.missing:
        return set()
    missing = baseline.missing.keys() - session.model_fields_set
    for name in sorted(missing):
        if getattr(session, name) != baseline.missing[name]:
            raise InvalidSessionError(
                "must not be changed in place, because the dict that the session was created from did not contain it: "
                "assign a new value, or read the session from the repository",
                name,
            )
    return missing


@functools.cache
def phases_of(session_type: type[Session]) -> type[StrEnum]:
    """Return the phase enum of a session class."""
    return cast("type[StrEnum]", session_type.model_fields["phase"].annotation)


def parse_phase(session_type: type[Session], value: object) -> StrEnum:
    """Return the member of the phase enum with this value.

    :raises InvalidSessionError: this class of session has no such phase.
    """
    try:
        return phases_of(session_type)(validation.check_type(value, str))
    except ValueError:
        raise InvalidSessionError(f"must be a phase of {session_type.__name__}", "phase") from None


_ERRORS_OF_PYDANTIC: Final = frozenset(get_args(core_schema.ErrorType))


def raise_invalid(error: ValidationError) -> NoReturn:
    """Raise `InvalidSessionError` for the first problem of a pydantic error; its message contains no values."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    reason = details[0]["msg"]
    if details[0]["type"] in {"value_error", "assertion_error"} or details[0]["type"] not in _ERRORS_OF_PYDANTIC:
        reason = "was rejected by its validator"  # the validator's own message may quote the value
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InvalidSessionError(f"{reason}{more}", format_path(details[0]["loc"])) from None


def _restore_baseline(session: Session, given: object) -> Baseline:
    stored = validation.decode_json(validation.encode_json(given, STORED))
    for key in ("errors", "logs", "omitted_errors", "omitted_logs", "log_position"):
        validation.check_integer(stored[key], key, least=0)
    validation.check_integer(session.version, "version", least=1)
    if type(stored["committed"]) is not bool:
        raise TypeError("committed must be true or false")
    if len(stored["positions"]) != stored["errors"]:
        raise ValueError("each stored entry must have a position")
    times: dict[str, Any] = {name: validation.check_time(stored[name]) for name in ("created_at", "updated_at")}
    missing = type(session).model_fields.keys() - session.model_fields_set
    documents = missing - times.keys() - {"error_history", "logs"}
    # the entries of a missing history count as omitted, as after `get_session(recent=0)`
    for name, history in (("errors", "error_history"), ("logs", "logs")):
        if history in missing:
            stored[f"omitted_{name}"] += stored[name]
            stored[name] = 0
    for name in missing & times.keys():
        setattr(session, name, times[name])
    errors = tuple(
        entry.at(validation.check_integer(position, "positions", least=1))
        for entry, position in zip(session.error_history, stored["positions"], strict=False)
    )
    logs = tuple(session.logs[: stored["logs"]])
    session.error_history[: len(errors)] = errors
    same_errors = "error_history" in missing or _digest(map(dict, errors)) == stored["error_digest"]
    same_logs = "logs" in missing or _digest(logs) == stored["log_digest"]
    return Baseline(
        version=session.version,
        write_id=validation.check_session_id(stored["write_id"]),
        **times,
        errors=errors if same_errors and len(errors) == stored["errors"] else None,
        logs=logs if same_logs and len(logs) == stored["logs"] else None,
        **{name: stored[name] for name in ("omitted_errors", "omitted_logs", "log_position")},
        missing={name: copy.deepcopy(getattr(session, name)) for name in documents},
        transaction=None if stored["committed"] else _UNKNOWN_TRANSACTION,
    )


def _digest(entries: Iterable[object]) -> str:
    return hashlib.sha256(validation.encode_json(list(entries), STORED).encode("ascii")).hexdigest()


if TYPE_CHECKING:
    S = TypeVar("S", bound=Session, default=Session)
    """Class of the sessions that a repository stores."""
else:
    S = TypeVar("S", bound=Session)
