"""The lines of an archive: how a session is written as JSON Lines, and read back.

A session is a header line, its errors and its logs in chunks, and a closing line::

    {"kind":"session","format":1,"session_id":"…","created_at":"…","updated_at":"…","held_at":null,"version":3,…}
    {"kind":"errors","after":0,"entries":[{"timestamp":"…","task_id":"t1","error_message":"…","phase":"EXECUTION"},…]}
    {"kind":"logs","after":0,"entries":["[…] started",…]}
    {"kind":"end","session_id":"…","errors":1,"logs":1,"sha256":"…"}

The checksum is of all lines of the session before the closing one. An export as a whole stands between two lines
more, ``{"kind":"archive","format":1}`` and ``{"kind":"archive_end","sessions":1}``, by which one that was cut off
between two sessions is told from a whole one.

The same session gives the same bytes, whatever it is stored in: no write ids, no spaces, the keys in this order, ASCII.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.model.record import Content
from vibeforge_sessions.repository import restoration
from vibeforge_sessions.repository.serialization import DOCUMENTS, Record

FORMAT: Final = 1
"""The version of the format. One that is raised is one that this code cannot read."""
LONGEST_LINE: Final = 64 * 1024 * 1024
"""How many bytes a line may have, unless somebody asks for more: what is longer is refused without reading it all."""
CHUNK: Final = 1_000
"""How many entries a chunk has at most."""
CHUNK_SIZE: Final = 1024 * 1024
"""With how many characters a chunk ends early, so that long messages do not make long lines."""

BEGINNING: Final = b'{"kind":'
"""What every line begins with."""
ERRORS: Final = "errors"
LOGS: Final = "logs"
_HEADER: Final = (
    "kind",
    "format",
    "session_id",
    "created_at",
    "updated_at",
    "held_at",
    "version",
    "phase",
    "current_question_index",
    "active_task_id",
    ERRORS,
    LOGS,
    "documents",
)
_encode: Final = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


class DamagedLineError(Exception):
    """A line cannot be read; the text says why, without showing it."""


# --- writing -----------------------------------------------------------------------------------------------


def canonical(record: Record) -> Record:
    """Return what of a record is moved: all but its write id, each document in the one form that it is written in.

    :raises InvalidSessionError: it holds what no repository would keep.
    """
    return dataclasses.replace(restoration.record_for_restore(record), write_id="")


def header_line(record: Record) -> bytes:
    """Return the first line of a session; the record is canonical."""
    content = record.content
    head = _encode(
        {
            "kind": "session",
            "format": FORMAT,
            "session_id": record.session_id,
            "created_at": record.created_at.isoformat(),
            "updated_at": record.updated_at.isoformat(),
            "held_at": None if record.held_at is None else record.held_at.isoformat(),
            "version": record.version,
            "phase": content.phase,
            "current_question_index": content.current_question_index,
            "active_task_id": content.active_task_id,
            ERRORS: record.error_count,
            LOGS: record.log_count,
        }
    )
    # as they are stored: written anew they would be no other, but take their time
    documents = ",".join(f'"{name}":{content.documents[name] or "null"}' for name in DOCUMENTS)
    return f'{head[:-1]},"documents":{{{documents}}}}}\n'.encode("ascii")


def chunk_lines(kind: str, entries: Iterable[Any]) -> Iterator[tuple[bytes, list[Any]]]:
    """Write entries in lines of at most `CHUNK`, and not much more than `CHUNK_SIZE`; give each with its entries."""
    text_of: Callable[[Any], str] = _error_text if kind == ERRORS else _encode
    chunk: list[Any] = []
    texts: list[str] = []
    size = after = 0
    for entry in entries:
        text = text_of(entry)
        chunk.append(entry)
        texts.append(text)
        size += len(text)
        if len(chunk) == CHUNK or size >= CHUNK_SIZE:
            yield _chunk(kind, after, texts), chunk
            after += len(chunk)
            chunk, texts, size = [], [], 0
    if chunk:
        yield _chunk(kind, after, texts), chunk


def _error_text(entry: ErrorEntry) -> str:
    return _encode(
        {
            "timestamp": entry.timestamp.isoformat(),
            "task_id": entry.task_id,
            "error_message": entry.error_message,
            "phase": entry["phase"],
        }
    )


def end_line(record: Record, digest: str) -> bytes:
    """Return the last line of a session."""
    end = {"kind": "end", "session_id": record.session_id, **_counts(record), "sha256": digest}
    return f"{_encode(end)}\n".encode("ascii")


def archive_line() -> bytes:
    """Return the first line of an export."""
    return f"{_encode({'kind': 'archive', 'format': FORMAT})}\n".encode("ascii")


def archive_end_line(sessions: int) -> bytes:
    """Return the last line of an export."""
    return f"{_encode({'kind': 'archive_end', 'sessions': sessions})}\n".encode("ascii")


def _chunk(kind: str, after: int, texts: list[str]) -> bytes:
    return f'{{"kind":"{kind}","after":{after},"entries":[{",".join(texts)}]}}\n'.encode("ascii")


def _counts(record: Record) -> dict[str, int]:
    return {ERRORS: record.error_count, LOGS: record.log_count}


# --- reading -----------------------------------------------------------------------------------------------


def parse(line: bytes) -> dict[str, Any]:
    """Return what a line says.

    :raises DamagedLineError: it is none of an archive.
    """
    try:
        data = validation.decode_json(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise DamagedLineError("is damaged: it is no JSON text") from None
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise DamagedLineError("is no line of an archive")
    return data


def check_format(data: dict[str, Any]) -> None:
    """Refuse what a later version of this package has written.

    :raises DamagedLineError: it has.
    """
    version = data.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise DamagedLineError("does not say which version of the format it has")
    if version != FORMAT:
        raise DamagedLineError(f"has version {version} of the format; this code reads version {FORMAT}")


def record_from(data: dict[str, Any]) -> Record:
    """Return the canonical record of a header line.

    :raises DamagedLineError: it is none, or holds what no repository keeps.
    """
    check_format(data)
    documents = data.get("documents")
    if tuple(data) != _HEADER or not isinstance(documents, dict) or tuple(documents) != DOCUMENTS:
        raise DamagedLineError("is no header of a session")
    try:
        record = Record(
            session_id=data["session_id"],
            created_at=_time(data, "created_at"),
            updated_at=_time(data, "updated_at"),
            held_at=None if data["held_at"] is None else _time(data, "held_at"),
            version=data["version"],
            write_id="",
            error_count=data[ERRORS],
            log_count=data[LOGS],
            content=Content(
                phase=data["phase"],
                current_question_index=data["current_question_index"],
                active_task_id=data["active_task_id"],
                documents={name: None if value is None else _encode(value) for name, value in documents.items()},
            ),
        )
        return canonical(record)
    except InvalidSessionError as error:
        raise DamagedLineError(f"is no header of a session that can be kept: {error}") from None
    except (ValueError, RecursionError):  # integers and depths that this interpreter does not write
        raise DamagedLineError("is no header of a session that can be kept") from None


def entries_from(data: dict[str, Any], after: int) -> list[Any]:
    """Return the entries of a chunk, which has to begin after so many.

    :raises DamagedLineError: it is none, or another.
    """
    kind, entries = data["kind"], data.get("entries")
    if tuple(data) != ("kind", "after", "entries") or not isinstance(entries, list) or not 0 < len(entries) <= CHUNK:
        raise DamagedLineError(f"is no chunk of {kind}")
    if data["after"] != after:
        raise DamagedLineError(f"is not the next chunk of {kind}: one is missing, or there twice")
    if kind == LOGS:
        if not all(isinstance(line, str) for line in entries):
            raise DamagedLineError("is no chunk of logs")
        return entries
    try:
        return [_error_from(entry, position) for position, entry in enumerate(entries, after + 1)]
    except (InvalidSessionError, KeyError, TypeError, ValueError):
        raise DamagedLineError("is no chunk of errors") from None


def check_end(data: dict[str, Any], record: Record, counted: dict[str, int], digest: str) -> None:
    """Compare a closing line with what came before it.

    :raises DamagedLineError: they do not agree.
    """
    expected = {"kind": "end", "session_id": record.session_id, **_counts(record), "sha256": digest}
    if tuple(data) != tuple(expected) or data["session_id"] != record.session_id:
        raise DamagedLineError("is not the closing line of this session")
    for kind, count in _counts(record).items():
        if not data[kind] == count == counted[kind]:
            raise DamagedLineError(f"does not agree on the number of {kind} with the header, or with what is there")
    if data["sha256"] != digest:
        raise DamagedLineError("has another checksum than the session: it was damaged, or changed by hand")


def _error_from(entry: dict[str, Any], position: int) -> ErrorEntry:
    timestamp, task_id, message, phase = (entry[key] for key in ("timestamp", "task_id", "error_message", "phase"))
    if len(entry) != 4 or not (type(task_id) is type(message) is type(phase) is str):  # noqa: PLR2004 (those four)
        raise TypeError("no entry")
    return ErrorEntry(validation.check_time(timestamp), task_id, message, phase, position)


def _time(data: dict[str, Any], name: str) -> datetime:
    return validation.check_time(data[name])
