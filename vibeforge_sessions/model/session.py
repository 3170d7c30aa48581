"""The session: everything that one run of the application knows. No storage in here."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
)
from pydantic_core import core_schema

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import fields, validation
from vibeforge_sessions.model.builtin_types import dict_of, plain_text
from vibeforge_sessions.model.history import ErrorEntry, SessionPhase, clean_errors, log_line, phase_or_text
from vibeforge_sessions.model.json_encoding import path_of
from vibeforge_sessions.model.record import Baseline

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with a default, which Python has from 3.13 on
else:
    from typing import TypeVar

__all__ = ["ErrorEntry", "Session", "SessionPhase"]

STORED: Final = "stored"
"""The key of `to_dict` under which the baseline travels."""
_UNKNOWN_TRANSACTION: Final = "unknown"
"""Stands for the caller's transaction in a session that traveled as a dict."""


class Session(BaseModel):  # noqa: PLW1641 (mutable, so not hashable)
    """One run of the application: where it stands, what it was told and made, and what went wrong.

    A session is a snapshot: a change to it is stored when a repository is told, and not before. Answers,
    artifacts and clarifications are JSON values, checked when they are stored. Unknown fields are refused.

    A subclass may narrow ``phase`` to a string enum of its own and add fields that hold JSON values; hand the
    subclass to the repository as its ``session_type``.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    session_id: fields.SessionId = Field(default_factory=fields.fresh_id)
    phase: SessionPhase = SessionPhase.QUESTIONNAIRE
    created_at: fields.Time = Field(default_factory=fields.now)
    updated_at: fields.Time = Field(default_factory=fields.now)

    current_question_index: fields.Counter = 0
    answers: fields.Document = Field(default_factory=dict)

    intent_profile: fields.OptionalDocument = None
    build_spec: fields.OptionalDocument = None
    concept: fields.OptionalDocument = None
    task_graph: fields.OptionalDocument = None

    completed_task_ids: fields.Texts = Field(default_factory=list)
    failed_task_ids: fields.Texts = Field(default_factory=list)
    active_task_id: fields.OptionalTaskId = None
    logs: fields.Texts = Field(default_factory=list)

    pending_clarification: fields.OptionalDocument = None
    clarification_answer: Any = None

    error_history: fields.ErrorEntries = Field(default_factory=list)

    version: fields.Counter = 0
    """Raised by each stored update; 0 = never stored. Only repositories write it."""

    _baseline: Baseline | None = PrivateAttr(default=None)

    @field_validator("phase", mode="before")
    @classmethod
    def _plain_phase(cls, value: object) -> object:
        return fields.check_text(value)

    # --- what the application does with it ---

    def update_phase(self, phase: str) -> None:
        """Move to `phase`; moves ``updated_at``.

        :raises InvalidSessionError: this class of session has no such phase.
        """
        self.phase = cast("SessionPhase", phase_of(type(self), phase))
        self._touch()

    def add_answer(self, question_id: str, answer: Any) -> None:
        """Keep the answer, a JSON value, to a question; moves ``updated_at``."""
        name = plain_text(question_id)
        if name is None:
            raise InvalidSessionError(f"keys must be texts, not {type(question_id).__name__}", "answers")
        if not issubclass(type(self.answers), dict):
            raise InvalidSessionError(f"must be a dict, not {type(self.answers).__name__}", "answers")
        dict.__setitem__(self.answers, name, answer)
        self._touch()

    def add_log(self, message: str) -> None:
        """Add the line ``[<ISO time>] message``; NUL and surrogates are replaced visibly."""
        list.append(self._history("logs"), log_line(message))

    def add_error(self, task_id: str, error_message: str, phase: str | None = None) -> ErrorEntry:
        """Add an entry to the error history and return it; moves ``updated_at``.

        Nothing is refused: what cannot be stored is replaced visibly. `phase` is the current one by default.
        """
        entry = ErrorEntry(
            timestamp=validation.utc_now(),
            task_id=validation.storable_task_id(task_id),
            error_message=validation.storable_text(error_message),
            phase=phase_or_text(self.phase if phase is None else phase, phases_of(type(self))),
        )
        list.append(self._history("error_history"), entry)
        self._touch()
        return entry

    @property
    def omitted_errors(self) -> int:
        """How many older errors are stored and not in ``error_history`` (see `get_session`'s ``recent``)."""
        return 0 if self._baseline is None else self._baseline.omitted_errors

    @property
    def omitted_logs(self) -> int:
        """How many older log lines are stored and not in ``logs``."""
        return 0 if self._baseline is None else self._baseline.omitted_logs

    def _history(self, name: str) -> list[Any]:
        value = getattr(self, name)
        if not issubclass(type(value), list):
            raise InvalidSessionError(f"must be a list, not {type(value).__name__}", name)
        return cast("list[Any]", value)

    def _touch(self) -> None:
        self.updated_at = validation.moved(self.updated_at)

    def __eq__(self, other: object) -> bool:
        # pydantic's own also compares private attributes: what is stored already is no part of the value
        if not isinstance(other, Session):
            return NotImplemented
        return type(self) is type(other) and self.__dict__ == other.__dict__

    # --- files and wires ---

    def to_dict(self) -> dict[str, Any]:
        """Return the session as plain JSON values, for files and wires; `from_dict` reads it back.

        A stored session carries along what makes it updatable afterwards, under the key ``stored``. A field that was
        missing in the dict that the session was made from, and was not assigned since, is missing in this one, too.

        :raises InvalidSessionError: a value is not JSON, or a missing field was changed in place; the error names its
            path.
        """
        missing = missing_fields(self)
        data = {name: getattr(self, name) for name in type(self).model_fields if name not in missing}
        for name in ("created_at", "updated_at"):
            data[name] = validation.check_time(data[name], path=name).isoformat()
        entries = list.copy(self._history("error_history"))
        data["error_history"] = list(map(dict, clean_errors(entries, phases_of(type(self)))))
        data["logs"] = list(map(validation.storable_text, list.copy(self._history("logs"))))
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
        """Return the session that `to_dict` wrote, or one of a dict of its fields.

        Without the key ``stored`` a missing field gets its default. With it a missing field counts as unchanged: an
        update keeps its stored value. Until then the session has the default in its place; assigning the field
        replaces the stored value, and changing the default in place makes the update raise.

        :raises InvalidSessionError: it is no such dict, or has ``stored`` without ``session_id`` or ``version``; the
            error names the first path.
        """
        given = dict_of(data)
        if given is None:
            raise InvalidSessionError(f"a session is made from a dict, not from a {type(data).__name__}")
        if len(given) > 2 * len(cls.model_fields) + 1:  # pydantic tells each that it does not know
            raise InvalidSessionError("has more keys than a session has fields")
        travelled, stored = STORED in given, given.pop(STORED, None)
        for name in ("session_id", "version"):
            if travelled and name not in given:
                raise InvalidSessionError("is missing in the dict of a stored session: keep what to_dict wrote", name)
        try:
            session = cls.model_validate(given)
        except ValidationError as error:
            raise_invalid(error)
        if travelled:
            try:
                session._baseline = _restore_baseline(session, stored)  # noqa: SLF001 (its own)
            except (KeyError, TypeError, ValueError):
                raise InvalidSessionError("is not what to_dict wrote", STORED) from None
        return session


def missing_fields(session: Session) -> set[str]:
    """Return the fields of which only the repository knows the value (see `Session.from_dict`).

    :raises InvalidSessionError: one was changed in place, so neither value would be right.
    """
    baseline: Baseline | None = session._baseline  # noqa: SLF001 (its own)
    if baseline is None or not baseline.missing:
        return set()
    missing = baseline.missing.keys() - session.model_fields_set
    for name in sorted(missing):
        if getattr(session, name) != baseline.missing[name]:
            raise InvalidSessionError(
                "was missing in the dict that the session was made from, and was changed in place: assign the field, "
                "or read the session from the repository",
                name,
            )
    return missing


@functools.cache
def phases_of(session_type: type[Session]) -> type[StrEnum]:
    """Return the enum of phases that this class of session uses."""
    return cast("type[StrEnum]", session_type.model_fields["phase"].annotation)


def phase_of(session_type: type[Session], value: object) -> StrEnum:
    """Return the phase that a text stands for.

    :raises InvalidSessionError: this class of session has no such phase.
    """
    try:
        return phases_of(session_type)(cast("str", plain_text(value)))
    except ValueError:
        raise InvalidSessionError(f"is no phase of {session_type.__name__}", "phase") from None


_ERRORS_OF_PYDANTIC: Final = frozenset(get_args(core_schema.ErrorType))


def raise_invalid(error: ValidationError) -> NoReturn:
    """Raise pydantic's refusal as ours: the first path and reason, no values."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    reason = details[0]["msg"]
    if details[0]["type"] in {"value_error", "assertion_error"} or details[0]["type"] not in _ERRORS_OF_PYDANTIC:
        reason = "is refused by its validator"  # whose message may quote the value
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InvalidSessionError(f"{reason}{more}", path_of(details[0]["loc"])) from None


def _restore_baseline(session: Session, given: object) -> Baseline:
    stored = validation.decode_json(validation.encode_json(given, STORED))
    counts = {key: stored[key] for key in ("errors", "logs", "omitted_errors", "omitted_logs")}
    for key in (*counts, "log_position"):
        validation.check_integer(stored[key], key, least=0)
    validation.check_integer(session.version, "version", least=1)
    if type(stored["committed"]) is not bool:
        raise TypeError("committed must be true or false")
    write_id = validation.check_session_id(stored["write_id"])
    if len(stored["positions"]) != counts["errors"]:
        raise ValueError("a position for each stored entry")
    created_at, updated_at = validation.check_time(stored["created_at"]), validation.check_time(stored["updated_at"])
    missing = type(session).model_fields.keys() - session.model_fields_set
    # what a missing history has stored is omitted, as with `get_session(recent=0)`; the times are known
    for name, history in (("errors", "error_history"), ("logs", "logs")):
        if history in missing:
            counts[f"omitted_{name}"] += counts[name]
            counts[name] = 0
    for name, time in (("created_at", created_at), ("updated_at", updated_at)):
        if name in missing:
            setattr(session, name, time)
    errors = tuple(
        entry.at(validation.check_integer(position, "positions", least=1))
        for entry, position in zip(session.error_history, stored["positions"], strict=False)
    )
    logs = tuple(session.logs[: counts["logs"]])
    session.error_history[: len(errors)] = errors
    same_errors = "error_history" in missing or _digest(map(dict, errors)) == stored["error_digest"]
    same_logs = "logs" in missing or _digest(logs) == stored["log_digest"]
    return Baseline(
        write_id=write_id,
        created_at=created_at,
        updated_at=updated_at,
        errors=errors if same_errors and len(errors) == counts["errors"] else None,
        logs=logs if same_logs and len(logs) == counts["logs"] else None,
        omitted_errors=counts["omitted_errors"],
        omitted_logs=counts["omitted_logs"],
        missing={
            name: copy.deepcopy(getattr(session, name))
            for name in missing - {"created_at", "updated_at", "error_history", "logs"}
        },
        log_position=stored["log_position"],
        transaction=None if stored["committed"] else _UNKNOWN_TRANSACTION,
    )


def _digest(entries: Iterable[object]) -> str:
    return hashlib.sha256(validation.encode_json(list(entries), STORED).encode("ascii")).hexdigest()


if TYPE_CHECKING:
    S = TypeVar("S", bound=Session, default=Session)
else:
    S = TypeVar("S", bound=Session)
"""The class of session that a repository stores."""
