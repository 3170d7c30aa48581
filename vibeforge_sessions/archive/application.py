"""Session files that the application itself writes: ``session_state.json``, in the form of `Session.to_dict`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Mapping
from datetime import datetime
from typing import Any, Final

from vibeforge_sessions.archive.bundle import Bundle
from vibeforge_sessions.archive.reading import displayable_id
from vibeforge_sessions.archive.report import Result
from vibeforge_sessions.archive.serialization import ERRORS, LOGS, canonical
from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import SessionPhase
from vibeforge_sessions.model.session import STORED, Session
from vibeforge_sessions.repository.changeset import changeset_for_create
from vibeforge_sessions.repository.stored_session import StoredSession

_KNOWN: Final = frozenset({*Session.model_fields, STORED})
_SESSION_FIELDS: Final = frozenset({"phase", "created_at", "answers", "error_history", "current_question_index"})
"""A JSON object with one of these keys is a session. Any other object maps ids to sessions."""


def _is_session(data: object) -> bool:
    return isinstance(data, dict) and not _SESSION_FIELDS.isdisjoint(data)


def decode_sessions(file: bytes) -> list[tuple[str | None, Any]] | None:
    """Decode a file of the application.

    :returns: a pair for each session: the id under which the file lists it, if any, and its fields. None if it is not a
        file of the application.
    """
    try:
        data = validation.decode_json(file.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if isinstance(data, dict) and not _is_session(data):
        sessions = list(data.items())
    else:
        sessions = [(None, fields) for fields in (data if isinstance(data, list) else [data])]
    return sessions if sessions and all(_is_session(fields) for _, fields in sessions) else None


def read_bundles(data: list[tuple[str | None, Any]], written_at: datetime) -> Generator[Bundle | Result, None, None]:
    """Yield the sessions of a file of the application.

    Older files have fewer fields; the missing fields get their defaults. Fields that `Session` does not have are kept
    like the fields of a subclass.

    :param written_at: the modification time of the file, used for sessions without times.
    """
    for number, (session_id, fields) in enumerate(data, 1):
        try:
            yield _bundle(session_id, fields, number, written_at)
        except (InvalidSessionError, RecursionError) as error:
            found = displayable_id(session_id or fields.get("session_id"))
            yield Result("failed", found, reason=f"is not a session that can be stored: {error}", line=number)


def _bundle(session_id: str | None, fields: Mapping[str, Any], number: int, written_at: datetime) -> Bundle:
    known = {name: value for name, value in fields.items() if name in _KNOWN}
    if STORED not in fields:  # not written by to_dict: null counts as a missing field
        known = {name: value for name, value in known.items() if value is not None}
    if known.setdefault("session_id", session_id) is None:
        raise InvalidSessionError("must be present", "session_id")
    if session_id is not None and known["session_id"] != session_id:
        raise InvalidSessionError("must be equal to the key of this session in the file", "session_id")
    known["updated_at"] = known.get("updated_at") or known.get("created_at") or written_at
    known["created_at"] = known.get("created_at") or known["updated_at"]
    errors = known.get("error_history", [])
    if not isinstance(errors, list):
        raise InvalidSessionError(f"must be a list, not {type(errors).__name__}", "error_history")
    # otherwise an entry without a time would get the time of the import, and would differ after each import
    time = {"timestamp": known["updated_at"]}
    known["error_history"] = [{**time, **entry} if isinstance(entry, dict) else entry for entry in errors]
    phase = known.get("phase")
    known["phase"] = SessionPhase.QUESTIONNAIRE.value  # the application may have phases that SessionPhase does not have
    session = Session.from_dict(known)
    stored = StoredSession.from_changeset(changeset_for_create(session))
    own = {name: value for name, value in fields.items() if name not in _KNOWN}
    content = dataclasses.replace(
        stored.record.content,
        phase=known["phase"] if phase is None else phase,
        documents={**stored.record.content.documents, "extension": json.dumps(own) if own else None},
    )
    record = dataclasses.replace(stored.record, version=max(1, session.version), content=content)
    bundle = Bundle(canonical(record), number)
    bundle.add_history(ERRORS, stored.errors)
    bundle.add_history(LOGS, stored.logs)
    return bundle
