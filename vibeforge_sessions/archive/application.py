"""Session files of the application itself: ``session_state.json``, in the form of `Session.to_dict`."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from datetime import datetime
from typing import Any, Final

from vibeforge_sessions.archive.bundle import Bundle
from vibeforge_sessions.archive.reading import Problem, displayable_id
from vibeforge_sessions.archive.serialization import canonical, chunk_lines
from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import SessionPhase, validation
from vibeforge_sessions.model.session import STORED, Session
from vibeforge_sessions.repository import changeset

_KNOWN: Final = frozenset({*Session.model_fields, STORED})
_SESSION_FIELDS: Final = frozenset({"phase", "created_at", "answers", "error_history", "current_question_index"})
"""A JSON object with one of these keys is a session. Any other object maps ids to sessions."""


def is_session(data: object) -> bool:
    """Return whether a JSON value is a session of the application."""
    return isinstance(data, dict) and not _SESSION_FIELDS.isdisjoint(data)


def decode_sessions(file: bytes) -> list[tuple[str | None, Any]] | None:
    """Decode a file of the application.

    :returns: pairs of the id under which a session was found, if any, and its fields; None for any other file.
    """
    try:
        data = validation.decode_json(file.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if is_session(data):
        return [(None, data)]
    if isinstance(data, list) and data and all(map(is_session, data)):
        return [(None, each) for each in data]
    if isinstance(data, dict) and data and all(map(is_session, data.values())):
        return list(data.items())
    return None


def read_bundles(data: list[tuple[str | None, Any]], written_at: datetime) -> Generator[Bundle | Problem, None, None]:
    """Yield the sessions of a file of the application.

    Older files have fewer fields; the missing ones get their defaults. Fields that `Session` does not have are kept
    like those of a subclass.

    :param written_at: the modification time of the file, used for sessions without times.
    """
    for number, (session_id, fields) in enumerate(data, 1):
        try:
            yield _bundle(session_id, fields, number, written_at)
        except InvalidSessionError as error:
            yield Problem(
                number,
                displayable_id(session_id or fields.get("session_id")),
                f"is not a session that can be stored: {error}",
            )


def _bundle(session_id: str | None, fields: Mapping[str, Any], number: int, written_at: datetime) -> Bundle:
    known = {
        # in a dict of to_dict a field that is null is not a missing one
        name: value
        for name, value in fields.items()
        if name in _KNOWN and (value is not None or STORED in fields)
    }
    if known.setdefault("session_id", session_id) is None:
        raise InvalidSessionError("must be present", "session_id")
    if session_id is not None and known["session_id"] != session_id:
        raise InvalidSessionError("must be equal to the key of this session in the file", "session_id")
    known["updated_at"] = known.get("updated_at") or known.get("created_at") or written_at
    known["created_at"] = known.get("created_at") or known["updated_at"]
    # without this, an entry without a time would get the time of the import, and differ after each import
    known["error_history"] = [
        {"timestamp": known["updated_at"], **entry} if isinstance(entry, Mapping) else entry
        for entry in _list(known.get("error_history", []), "error_history")
    ]
    phase = known.get("phase")
    known["phase"] = SessionPhase.QUESTIONNAIRE.value  # the application may have phases that SessionPhase does not have
    session = Session.from_dict(known)
    write = changeset.changeset_for_create(session)
    record = write.record(max(1, session.version), write.updated_at, len(write.errors), len(write.logs))
    content = dataclasses.replace(
        record.content,
        phase=record.content.phase if phase is None else phase,
        documents={**record.content.documents, "extension": _extension(fields)},
    )
    bundle = Bundle(canonical(dataclasses.replace(record, content=content)), number)
    for kind, entries in (
        ("errors", changeset.assign_positions(write.errors, len(write.errors))),
        ("logs", write.logs),
    ):
        for line, read in chunk_lines(kind, entries):
            bundle.add(kind, line, read)
    return bundle


def _extension(fields: Mapping[str, Any]) -> str | None:
    texts = [
        f"{validation.encode_json(name, name)}:{validation.encode_json(value, name)}"
        for name, value in fields.items()
        if name not in _KNOWN
    ]
    return "{" + ",".join(texts) + "}" if texts else None


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidSessionError(f"must be a list, not {type(value).__name__}", name)
    return value
