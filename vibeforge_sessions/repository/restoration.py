"""Validation for restoring a session, and for deleting or replacing a session only if it is unchanged.

As in `changeset`, every value is validated and normalized to exact built-in types here, before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any, TypeVar

from vibeforge_sessions.errors import (
    InvalidArgumentError,
    InvalidSessionError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepositoryError,
    StaleSessionError,
)
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository.arguments import check_integer
from vibeforge_sessions.repository.serialization import Record, check_documents

T = TypeVar("T")


def check_expected_record(record: object, argument: str) -> Record | None:
    """Return the validated record that the caller got from `SessionRepository.get_record` and expects to be stored.

    None, which means that the caller passed no record, is returned unchanged.

    :raises InvalidArgumentError: `record` is not a `Record`, or its version, a count or its write id is invalid.
    """
    if record is None:
        return None
    if type(record) is not Record:
        raise InvalidArgumentError(f"must be a Record that get_record returned, not {type(record).__name__}", argument)
    write_id = exact(record.write_id)
    if type(write_id) is not str or validation.storable_task_id(write_id) != (write_id or "\ufffd"):
        raise InvalidArgumentError("must be the write id of a record", f"{argument}.write_id")
    counts: dict[str, Any] = {
        name: check_integer(getattr(record, name), f"{argument}.{name}", least=0)
        for name in ("version", "error_count", "log_count")
    }
    return dataclasses.replace(record, write_id=write_id, **counts)


def is_same_state(stored: Record, expected: Record) -> bool:
    """Return whether the session and its histories are unchanged since `expected` was read."""
    return (stored.version, stored.write_id, *stored.counts) == (expected.version, expected.write_id, *expected.counts)


def check_replacing(session_id: str, stored: Record | None, replacing: Record | None) -> None:
    """Reject a restore unless the stored record is the one that the caller wants to replace.

    :raises SessionExistsError: a session with this id exists, and `replacing` is None.
    :raises StaleSessionError: the stored session was written after `replacing` was read.
    :raises SessionNotFoundError: the session to replace does not exist.
    """
    expected = check_expected_record(replacing, "replacing")
    if stored is None:
        if expected is not None:
            raise SessionNotFoundError(session_id)
    elif expected is None:
        raise SessionExistsError(session_id)
    elif not is_same_state(stored, expected):
        raise StaleSessionError(session_id, expected.version, stored.version)


def record_for_restore(record: object) -> Record:
    """Return the validated record with a new write id.

    :raises InvalidSessionError: a value is invalid; the error names its path.
    :raises InvalidArgumentError: `record` is not a `Record`.
    """
    if type(record) is not Record:
        raise InvalidArgumentError(f"must be a Record, not {type(record).__name__}", "record")
    if type(record.content) is not Content:
        raise InvalidSessionError(f"must be a Content, not {type(record.content).__name__}", "content")
    content, task_id = record.content, record.content.active_task_id
    return Record(
        session_id=validation.check_session_id(record.session_id),
        created_at=validation.check_datetime(record.created_at, "created_at"),
        updated_at=validation.check_datetime(record.updated_at, "updated_at"),
        version=validation.check_integer(record.version, "version", least=1),
        write_id=validation.new_write_id(),
        error_count=validation.check_integer(record.error_count, "error_count", least=0),
        log_count=validation.check_integer(record.log_count, "log_count", least=0),
        held_at=None if record.held_at is None else validation.check_datetime(record.held_at, "held_at"),
        content=Content(
            validation.check_phase(validation.check_type(content.phase, str, "phase")),
            validation.check_integer(content.current_question_index, "current_question_index", least=0),
            None if task_id is None else validation.check_task_id(task_id, "active_task_id"),
            check_documents(content.documents),
        ),
    )


def check_history(record: Record, errors: Iterable[Any]) -> Iterator[ErrorEntry]:
    """Yield the validated entries of an error history to restore.

    :raises InvalidSessionError: an entry is invalid or has a wrong position, or the number of entries differs from the
        count in the record.
    """
    return _check_entries(errors, "error_history", record.error_count, _check_error)


def check_logs(record: Record, logs: Iterable[Any]) -> Iterator[str]:
    """Yield the validated log lines to restore; raise the same errors as `check_history`."""
    return _check_entries(logs, "logs", record.log_count, _check_line)


def _check_entries(given: Iterable[Any], name: str, count: int, check: Callable[[Any, int, str], T]) -> Iterator[T]:
    position = 0
    for position, entry in enumerate(_iterate(given, name), 1):
        if position > count:
            raise InvalidSessionError(f"must not follow the {count} entries of the record", f"{name}[{position - 1}]")
        yield check(entry, position, f"{name}[{position - 1}]")
    if position != count:
        raise InvalidSessionError(f"must have {count} entries, not {position}", name)


def _check_error(entry: Any, position: int, path: str) -> ErrorEntry:
    given = exact(entry.position) if issubclass(type(entry), ErrorEntry) else None
    if type(given) is not int or given != position:
        raise InvalidSessionError("must be the next entry of this history", path)
    task_id = validation.check_task_id(entry.task_id, f"{path}.task_id")
    message = _check_text(entry.error_message, f"{path}.error_message", validation.storable_text)
    phase = _check_text(entry.phase, f"{path}.phase", validation.storable_phase)
    timestamp = validation.check_datetime(entry.timestamp, f"{path}.timestamp")
    known = entry.phase if issubclass(type(entry.phase), StrEnum) else phase
    return ErrorEntry(timestamp, task_id, message, known, position)


def _check_line(line: Any, _position: int, path: str) -> str:
    return _check_text(line, path, validation.storable_text)


def _check_text(value: Any, path: str, storable: Callable[[str], str]) -> str:
    text = validation.check_type(value, str, path)
    if storable(text) != text:
        raise InvalidSessionError("must not contain NUL or surrogates, which an append would have replaced", path)
    return text


def _iterate(given: Iterable[Any], path: str) -> Iterator[Any]:
    """Yield the items of a caller's iterable; translate exceptions of its methods to `InvalidSessionError`."""
    try:
        yield from exact(given)
    except SessionRepositoryError:  # raised by the repository or archive that the entries are read from
        raise
    except Exception as error:  # noqa: BLE001 (a caller's class may raise anything)
        raise InvalidSessionError(f"must be readable, but raised {type(error).__name__}", path) from None
