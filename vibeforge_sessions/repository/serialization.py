"""Sessions as repositories keep them, plain texts and numbers, and back. The JSON rules stand in `values`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from vibeforge_sessions.errors import CorruptSessionError, InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import dict_of, plain_list, plain_text
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.model.json_encoding import RefusedError, check_count
from vibeforge_sessions.model.record import Baseline, Content
from vibeforge_sessions.model.session import STORED, S, Session, phase_of, phases_of, raise_invalid

ARTIFACTS: Final = ("intent_profile", "build_spec", "concept", "task_graph")
"""The four artifacts, in the order in which a run makes them."""
DOCUMENTS: Final = (
    "answers",
    *ARTIFACTS,
    "completed_task_ids",
    "failed_task_ids",
    "pending_clarification",
    "clarification_answer",
    "extension",
)
"""What is kept as JSON text. ``extension`` holds the fields that a subclass of `Session` adds."""
REQUIRED: Final = frozenset({"answers", "completed_task_ids", "failed_task_ids"})
"""The documents that every session has."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A stored session without its histories."""

    session_id: str
    created_at: datetime
    updated_at: datetime
    version: int
    write_id: str
    error_count: int
    log_count: int
    content: Content
    held_at: datetime | None = None
    """Since when the session is held, so that nothing deletes it for its age; None where it is not."""

    @property
    def counts(self) -> tuple[int, int]:
        """How many errors there are, and how many log lines."""
        return self.error_count, self.log_count


def check_session_type(session_type: type[S]) -> type[S]:
    """Return the class if a repository can store it.

    :raises InvalidSessionError: its phases are no string enum, or a field has a name that `to_dict` needs itself.
    """
    phases: object = phases_of(session_type)
    if not (isinstance(phases, type) and issubclass(phases, str) and issubclass(phases, Enum)):
        raise InvalidSessionError(f"of {session_type.__name__} must be a string enum", "phase")
    if STORED in session_type.model_fields:
        raise InvalidSessionError("is a name that to_dict needs itself", STORED)
    return session_type


def encode_content(session: Session, same: Mapping[str, str | None] | None = None) -> Content:
    """Return the session's content as texts and numbers, or refuse it with its path.

    :param same: the texts of documents that are known not to have changed.
    """
    same = same or {}
    phase = phase_of(type(session), session.phase).value
    if validation.storable_phase(phase) != phase:
        raise InvalidSessionError(f"must be 1 to {validation.MAX_PHASE} characters without control characters", "phase")
    active = session.active_task_id
    content = Content(
        phase=phase,
        current_question_index=validation.check_integer(
            session.current_question_index, "current_question_index", least=0
        ),
        active_task_id=None if active is None else validation.check_task_id(active, "active_task_id"),
        documents={name: same[name] if name in same else _encode_document(session, name) for name in DOCUMENTS},
    )
    if type(session) is not Session:
        _check_readable(session, content.documents["extension"])
    return content


def decode_session(session_type: type[S], record: Record, errors: Sequence[ErrorEntry], logs: Sequence[str]) -> S:
    """Return the session that a record and the last entries of its histories stand for.

    :raises CorruptSessionError: this code cannot read it.
    """
    content = record.content
    try:
        documents = {
            name: validation.decode_json(text)
            for name, text in content.documents.items()
            if text is not None and name != "extension"
        }
        extension = validation.decode_json(content.documents["extension"] or "{}")
        if not isinstance(extension, dict):
            raise TypeError("the extension is no JSON object")
        session = session_type.model_validate(
            {
                "session_id": record.session_id,
                "phase": content.phase,
                "created_at": record.created_at,
                "updated_at": record.updated_at,
                "current_question_index": content.current_question_index,
                "active_task_id": content.active_task_id,
                "version": record.version,
                **documents,
                **{name: extension[name] for name in _extra_fields(session_type) if name in extension},
            }
        )
    except ValidationError as error:
        path = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        # not chained: a validator of the application's own may quote the value
        raise CorruptSessionError(
            record.session_id, f"{path} has no value that {session_type.__name__} takes"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptSessionError(record.session_id, "a document is no JSON text of ours") from error
    session.error_history = plain_list(errors) or []
    session.logs = plain_list(logs) or []
    session._baseline = Baseline(  # noqa: SLF001 (a repository's)
        write_id=record.write_id,
        created_at=record.created_at,
        updated_at=record.updated_at,
        errors=tuple(session.error_history),
        logs=tuple(session.logs),
        omitted_errors=record.error_count - len(session.error_history),
        omitted_logs=record.log_count - len(session.logs),
        content=content,
        log_position=record.log_count,
    )
    return session


def check_documents(documents: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the texts of documents that come from elsewhere, as `encode_content` would write them.

    :raises InvalidSessionError: they are not the documents of a session, or hold what cannot be kept.
    """
    given = dict_of(documents)
    if given is None or given.keys() != set(DOCUMENTS):
        raise InvalidSessionError(f"must be {', '.join(DOCUMENTS)}", "documents")
    checked: dict[str, str | None] = {}
    for name in DOCUMENTS:
        text = None if given[name] is None else plain_text(given[name])
        value: Any = None
        if given[name] is not None:
            try:
                value = validation.decode_json(text)  # type: ignore[arg-type]
            except (ValueError, TypeError, RecursionError):
                raise InvalidSessionError("is no JSON text of ours", name) from None
        wanted: tuple[type, ...] = (list,) if name in {"completed_task_ids", "failed_task_ids"} else (dict,)
        optional = value is None and name not in REQUIRED
        if not (optional or name == "clarification_answer" or isinstance(value, wanted)):
            raise InvalidSessionError(f"must be a {wanted[0].__name__}, not {type(value).__name__}", name)
        if wanted == (list,):
            for index, task_id in enumerate(value):
                validation.check_task_id(task_id, f"{name}[{index}]")
        if name == "extension" and value is not None:  # each field is as deep as a document may be
            fields = [f"{validation.encode_json(key, key)}:{validation.encode_json(value[key], key)}" for key in value]
            checked[name] = "{" + ",".join(fields) + "}"
        else:
            checked[name] = None if value is None else validation.encode_json(value, name)
    return checked


def fingerprints_of(session: Session) -> dict[str, bytes | None]:
    """Return the fingerprint of what each document is made of (see `values.fingerprint`)."""
    fields, fingerprint = session.__dict__, validation.fingerprint
    found = {name: fingerprint(fields[name]) for name in DOCUMENTS if name != "extension"}
    extra = _extra_fields(type(session))
    found["extension"] = fingerprint([fields[name] for name in extra]) if extra else b""
    return found


def _encode_document(session: Session, name: str) -> str | None:
    if name == "extension":
        return _encode_extension(session)
    value = getattr(session, name)
    if name in {"completed_task_ids", "failed_task_ids"}:
        entries = plain_list(value)
        if entries is None:
            raise InvalidSessionError(f"must be a list, not {type(value).__name__}", name)
        value = [validation.check_task_id(task_id, f"{name}[{index}]") for index, task_id in enumerate(entries)]
    elif name == "clarification_answer":
        pass  # any JSON value
    elif not issubclass(type(value), dict) and (value is not None or name == "answers"):
        raise InvalidSessionError(f"must be a dict, not {type(value).__name__}", name)
    return None if value is None else validation.encode_json(value, name)


def _encode_extension(session: Session) -> str | None:
    # fields that a newer version of the application stored, and this one does not know, stay as they are
    baseline: Baseline | None = session._baseline  # noqa: SLF001 (a repository's)
    stored = baseline.content.documents["extension"] if baseline and baseline.content else None
    extension: dict[str, Any] = validation.decode_json(stored) if stored else {}
    extension |= {name: getattr(session, name) for name in _extra_fields(type(session))}
    # each is a document of its own, as deep as any other
    texts = [
        f"{validation.encode_json(name, name)}:{_encode_field(session, name, extension[name])}" for name in extension
    ]
    return "{" + ",".join(texts) + "}" if texts else None


def _encode_field(session: Session, name: str, value: Any) -> str:
    try:
        return validation.encode_json(value, name)
    except InvalidSessionError:
        # a datetime, a model, a Decimal …: as pydantic writes it, if it reads the same from that
        try:
            check_count(value)  # pydantic writes out whatever it is
            dumped = session.model_dump(mode="json", include={name}, warnings="error")[name]
            text = validation.encode_json(dumped, name)
            field = session.__pydantic_validator__.validate_assignment(session.model_copy(), name, dumped)
            if getattr(field, name) == value and type(getattr(field, name)) is type(value):
                return text
        # a ValidationError is a ValueError, as is our own
        except (RefusedError, PydanticSerializationError, ValueError, KeyError):
            pass
        raise


def _check_readable(session: Session, extension: str | None) -> None:
    """Refuse values that the class itself would not take when the session is read."""
    known = {name: value for name, value in vars(session).items() if name not in {"error_history", "logs"}}
    if extension is not None:
        stored = validation.decode_json(extension)
        known |= {name: stored[name] for name in _extra_fields(type(session))}
    try:
        type(session).model_validate(known)
    except ValidationError as error:
        raise_invalid(error)


@functools.cache
def _extra_fields(session_type: type[Session]) -> tuple[str, ...]:
    return tuple(name for name in session_type.model_fields if name not in Session.model_fields)
