"""Encoding and decoding of sessions as records of strings and integers. `validation` has the rules for JSON values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from vibeforge_sessions.errors import ConfigurationError, CorruptSessionError, InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact, exact_dict
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.model.json_encoding import check_count
from vibeforge_sessions.model.record import Baseline, Content
from vibeforge_sessions.model.session import STORED, S, Session, parse_phase, phases_of, raise_invalid

ARTIFACTS: Final = ("intent_profile", "build_spec", "concept", "task_graph")
"""Names of the artifacts, in the order in which a run creates them."""
DOCUMENTS: Final = (
    "answers",
    *ARTIFACTS,
    "completed_task_ids",
    "failed_task_ids",
    "pending_clarification",
    "clarification_answer",
    "extension",
)
"""Names of the documents, stored as JSON text. ``extension`` contains the fields that a subclass of `Session` adds."""
REQUIRED: Final = frozenset({"answers", "completed_task_ids", "failed_task_ids"})
"""Documents that are never None."""


WRONG_COUNTS: Final = "the number of stored history entries differs from the count in its row"
"""Reason of a `CorruptSessionError`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """Encoded session without its histories."""

    session_id: str
    created_at: datetime
    updated_at: datetime
    version: int
    write_id: str
    """Random id of the write that stored this version: the creation or the last update."""
    error_count: int
    """Number of entries in the error history."""
    log_count: int
    """Number of log lines."""
    content: Content
    held_at: datetime | None = None
    """Start of the hold, which exempts the session from pruning; None if it is not held."""

    @property
    def counts(self) -> tuple[int, int]:
        """Number of error entries, and number of log lines."""
        return self.error_count, self.log_count


def check_session_type(session_type: type[S]) -> type[S]:
    """Return the class if a repository can store its instances.

    :raises ConfigurationError: it is not a subclass of `Session`, its phase is not a string enum, or a field has the
        name of a key that `to_dict` uses.
    """
    given: object = session_type
    if not (isinstance(given, type) and issubclass(given, Session)):
        raise ConfigurationError("must be Session or a subclass of it", "session_type")
    phases: object = phases_of(session_type)
    if not (isinstance(phases, type) and issubclass(phases, str) and issubclass(phases, Enum)):
        raise ConfigurationError(f"must have a string enum as {session_type.__name__}.phase", "session_type")
    if STORED in session_type.model_fields:
        raise ConfigurationError(
            f"{session_type.__name__} has a field {STORED}, which is a key of to_dict: rename the field", "session_type"
        )
    return session_type


def encode_content(session: Session, stored: Baseline | None = None) -> tuple[Content, dict[str, bytes | None]]:
    """Return the encoded content of a session, and the fingerprints of its documents (see `validation.fingerprint`).

    :param stored: the stored state; documents whose fingerprints are unchanged are not encoded again. Computing a
        fingerprint takes a tenth of the time of encoding. A session that has just been read has no fingerprints yet.
    :raises InvalidSessionError: a value is invalid; the error names its path.
    """
    phases, phase = phases_of(type(session)), session.phase
    member = phase if type(phase) is phases else parse_phase(type(session), phase)
    fields, known = vars(session), stored.fingerprints if stored else {}
    texts = stored.content.documents if stored and stored.content else {}
    documents: dict[str, str | None] = {}
    fingerprints: dict[str, bytes | None] = {}
    for name in DOCUMENTS:
        is_extension = name == "extension"
        value = [fields[each] for each in _extra_fields(type(session))] if is_extension else fields[name]
        if value is None and name not in REQUIRED:
            documents[name] = None
            continue
        fingerprint = fingerprints[name] = validation.fingerprint(value)
        if fingerprint is not None and fingerprint == known.get(name):
            documents[name] = texts[name]
        else:
            documents[name] = _encode_extension(session) if is_extension else _encode_document(fields, name)
    active = session.active_task_id
    content = Content(
        _phase_texts(phases).get(member) or validation.check_phase(member.value),
        validation.check_integer(session.current_question_index, "current_question_index", least=0),
        None if active is None else validation.check_task_id(active, "active_task_id"),
        documents,
    )
    if type(session) is not Session:
        _check_readable(session, content.documents["extension"])
    return content, fingerprints


def decode_session(session_type: type[S], record: Record, errors: Sequence[ErrorEntry], logs: Sequence[str]) -> S:
    """Return the session that a record and the most recent entries of its histories contain.

    :raises CorruptSessionError: this code cannot read the record.
    """
    content = record.content
    try:
        documents = {name: validation.decode_json(text) for name, text in content.documents.items() if text is not None}
        extension = documents.pop("extension", {})
        if not isinstance(extension, dict):
            raise TypeError("the extension is not a JSON object")
        session = session_type.model_validate(
            {
                **{name: getattr(record, name) for name in ("session_id", "created_at", "updated_at", "version")},
                **{name: getattr(content, name) for name in ("phase", "current_question_index", "active_task_id")},
                **documents,
                **{name: extension[name] for name in _extra_fields(session_type) if name in extension},
            }
        )
    except ValidationError as error:
        path = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        # not chained, because the message of an application's validator may contain the value
        raise CorruptSessionError(
            record.session_id, f"the stored value of {path} is missing or not valid for {session_type.__name__}"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptSessionError(record.session_id, "a document is not valid JSON text") from error
    session.error_history, session.logs = list(errors), list(logs)
    session._baseline = Baseline(  # noqa: SLF001 (set by repositories)
        version=record.version,
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
    """Return the JSON of documents from another repository, normalized to the form that `encode_content` returns.

    :raises InvalidSessionError: `documents` does not have the names of a session's documents, or a value is invalid.
    """
    given = exact_dict(documents)
    if given is None or given.keys() != set(DOCUMENTS):
        raise InvalidSessionError(f"must have exactly these keys: {', '.join(DOCUMENTS)}", "documents")
    checked: dict[str, str | None] = {}
    for name in DOCUMENTS:
        try:
            value = None if given[name] is None else validation.decode_json(exact(given[name]))
        except (ValueError, TypeError, RecursionError):
            raise InvalidSessionError("must be JSON text as this package encodes it", name) from None
        if value is None and name not in REQUIRED:
            checked[name] = None
        elif name == "extension":
            checked[name] = _encode_fields(validation.check_type(value, dict, name), validation.encode_json)
        else:
            checked[name] = _encode_document({name: value}, name)
    return checked


@functools.cache
def _phase_texts(phases: type[StrEnum]) -> dict[StrEnum, str]:
    """Return the texts of the phases of an enum, without phases whose text cannot be stored in every database."""
    return {phase: phase.value for phase in phases if validation.storable_phase(phase.value) == phase.value}


def _encode_document(fields: dict[str, Any], name: str) -> str:
    if name == "clarification_answer":  # any JSON value
        value = fields[name]
    elif name in REQUIRED and name != "answers":
        task_ids = validation.check_field(fields, name, list)
        value = [validation.check_task_id(task_id, f"{name}[{index}]") for index, task_id in enumerate(task_ids)]
    else:
        value = validation.check_field(fields, name, dict)
    return validation.encode_json(value, name)


def _encode_extension(session: Session) -> str | None:
    # keeps the stored fields that only a newer version of the application knows
    baseline: Baseline | None = session._baseline  # noqa: SLF001 (set by repositories)
    stored = baseline.content.documents["extension"] if baseline and baseline.content else None
    names = _extra_fields(type(session))
    if stored is None and not names:
        return None
    extension: dict[str, Any] = validation.decode_json(stored) if stored else {}
    extension |= {name: getattr(session, name) for name in names}
    return _encode_fields(extension, functools.partial(_encode_field, session)) if extension else None


def _encode_fields(fields: Mapping[str, Any], encode: Callable[[Any, str], str]) -> str:
    """Return fields as a JSON object. Each field is encoded separately, so that the depth limit applies per field."""
    texts = [f"{validation.encode_json(name, name)}:{encode(value, name)}" for name, value in fields.items()]
    return "{" + ",".join(texts) + "}"


def _encode_field(session: Session, value: Any, name: str) -> str:
    try:
        return validation.encode_json(value, name)
    except InvalidSessionError:
        # a datetime, a model, a Decimal …: pydantic encodes it, and the text is kept if it decodes to an equal value
        try:
            check_count(value, name)  # pydantic does not limit the number of values
            dumped = session.model_dump(mode="json", include={name}, warnings="error")[name]
            text = validation.encode_json(dumped, name)
            field = session.__pydantic_validator__.validate_assignment(session.model_copy(), name, dumped)
            if getattr(field, name) == value and type(getattr(field, name)) is type(value):
                return text
        # ValidationError and InvalidSessionError are ValueErrors
        except (PydanticSerializationError, ValueError, KeyError):
            pass
        raise


def _check_readable(session: Session, extension: str | None) -> None:
    """Reject values that the session class would reject when the session is read."""
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
