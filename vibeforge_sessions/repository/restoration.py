"""What storing a session as it was elsewhere takes, and deleting or replacing one that nobody has touched since.

As in `changes`, everything that can be refused is refused here, and what is stored is of Python's own types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

from vibeforge_sessions.errors import (
    InvalidSessionError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepositoryError,
    StaleSessionError,
)
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import plain_integer, plain_list, plain_text
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository.serialization import Record, check_documents


def check_seen(record: object, path: str) -> Record:
    """Return what a caller has got of `SessionRepository.get_record`, to be compared with what is stored."""
    if type(record) is not Record:
        raise InvalidSessionError(f"must be a Record, not {type(record).__name__}", path)
    write_id = plain_text(record.write_id)
    return dataclasses.replace(
        record,
        version=validation.check_integer(record.version, f"{path}.version", least=0),
        error_count=validation.check_integer(record.error_count, f"{path}.error_count", least=0),
        log_count=validation.check_integer(record.log_count, f"{path}.log_count", least=0),
        write_id="" if write_id == "" else validation.check_task_id(write_id, f"{path}.write_id"),
    )


def is_same_state(stored: Record, seen: Record) -> bool:
    """Tell whether nobody has written to a session since it was seen: neither to it nor to its histories."""
    return (stored.version, stored.write_id, *stored.counts) == (seen.version, seen.write_id, *seen.counts)


def check_replacing(session_id: str, stored: Record | None, replacing: Record | None) -> None:
    """Refuse to restore a session over one that is not the one to be replaced.

    :raises SessionExistsError: there is one, and none was to be replaced.
    :raises StaleSessionError: somebody has written to the one to be replaced.
    :raises SessionNotFoundError: it is gone.
    """
    seen = None if replacing is None else check_seen(replacing, "replacing")
    if stored is None:
        if seen is not None:
            raise SessionNotFoundError(session_id)
    elif seen is None:
        raise SessionExistsError(session_id)
    elif not is_same_state(stored, seen):
        raise StaleSessionError(session_id, seen.version, stored.version)


def plan_restore(record: object) -> Record:
    """Return the record with a write id of its own, if it can be stored as it is.

    :raises InvalidSessionError: it cannot; the path says where.
    """
    if type(record) is not Record or type(record.content) is not Content:
        raise InvalidSessionError(f"must be a Record, not {type(record).__name__}", "record")
    content, phase = record.content, plain_text(record.content.phase)
    if phase is None or validation.storable_phase(phase) != phase:
        raise InvalidSessionError(f"must be 1 to {validation.MAX_PHASE} characters without control characters", "phase")
    question = validation.check_integer(content.current_question_index, "current_question_index", least=0)
    task_id = content.active_task_id
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
            phase=phase,
            current_question_index=question,
            active_task_id=None if task_id is None else validation.check_task_id(task_id, "active_task_id"),
            documents=check_documents(content.documents),
        ),
    )


def check_history(record: Record, errors: Iterable[Any]) -> Iterator[ErrorEntry]:
    """Give the entries of a history that is to be restored, one by one.

    :raises InvalidSessionError: one cannot be kept, stands at another position, or there are more or fewer of them.
    """
    position = 0
    for position, entry in enumerate(_each(errors, "error_history"), 1):
        path = f"error_history[{position - 1}]"
        if (
            not issubclass(type(entry), ErrorEntry)
            or plain_integer(entry.position) != position
            or position > record.error_count
        ):
            raise InvalidSessionError("is not the next entry of this history", path)
        yield _kept(entry, position, path)
    if position != record.error_count:
        raise InvalidSessionError(f"has {position} entries, and not {record.error_count}", "error_history")


def check_logs(record: Record, logs: Iterable[Any]) -> Iterator[str]:
    """Give the lines that are to be restored, one by one; raises as `check_history` does."""
    position = 0
    for position, line in enumerate(_each(logs, "logs"), 1):
        text = plain_text(line)
        if text is None or validation.storable_text(text) != text or position > record.log_count:
            raise InvalidSessionError("is not a line that these logs keep", f"logs[{position - 1}]")
        yield text
    if position != record.log_count:
        raise InvalidSessionError(f"has {position} lines, and not {record.log_count}", "logs")


def _kept(entry: ErrorEntry, position: int, path: str) -> ErrorEntry:
    task_id = validation.check_task_id(entry.task_id, f"{path}.task_id")
    message, phase = plain_text(entry.error_message), plain_text(entry.phase)
    if (
        message is None
        or phase is None
        or validation.storable_text(message) != message
        or validation.storable_phase(phase) != phase
    ):
        raise InvalidSessionError("holds characters that no entry keeps", path)
    timestamp = validation.check_datetime(entry.timestamp, f"{path}.timestamp")
    known = entry.phase if issubclass(type(entry.phase), StrEnum) else phase
    return ErrorEntry(timestamp, task_id, message, known, position)


def _each(given: Iterable[Any], path: str) -> Iterator[Any]:
    """Give what a caller's own object gives, and say so if it raises instead."""
    try:
        entries = plain_list(given)
        each = iter(given if entries is None else entries)
    except Exception:  # noqa: BLE001 (whatever somebody else's class raises)
        raise InvalidSessionError(f"must be entries, not {type(given).__name__}", path) from None
    while True:
        try:
            entry = next(each)
        except StopIteration:
            return
        except SessionRepositoryError:  # of a repository, or of an archive, that they come from
            raise
        except Exception as error:  # noqa: BLE001
            raise InvalidSessionError(f"could not be read: {type(error).__name__}", path) from None
        yield entry
