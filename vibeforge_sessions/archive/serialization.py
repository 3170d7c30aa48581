"""Archive format: sessions as JSON Lines.

A session is a header line, its errors and its logs in chunks, and a closing line:

    {"kind":"session","format":1,"session_id":"…","created_at":"…","updated_at":"…","held_at":null,"version":3,…}
    {"kind":"errors","after":0,"entries":[{"timestamp":"…","task_id":"t1","error_message":"…","phase":"EXECUTION"},…]}
    {"kind":"logs","after":0,"entries":["[…] started",…]}
    {"kind":"end","session_id":"…","errors":1,"logs":1,"sha256":"…"}

The checksum covers all lines of the session before the closing line. An export has two more lines:
``{"kind":"archive","format":1}`` before its sessions and ``{"kind":"archive_end","sessions":1}`` after them. They
reveal an export that was truncated between two sessions.

Equal sessions give equal bytes, whatever database they are stored in: there are no write ids and no spaces, the keys
are in this order, and all characters are ASCII.
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
"""Version of the format. This code cannot read a higher version."""
LONGEST_LINE: Final = 64 * 1024 * 1024
"""Default maximum of bytes in a line. A longer line is rejected before it is read completely."""
CHUNK: Final = 1_000
"""Maximum of entries in a chunk."""
CHUNK_SIZE: Final = 1024 * 1024
"""Number of characters after which a chunk ends early. It limits the length of lines with long messages."""

BEGINNING: Final = b'{"kind":'
"""First bytes of every line."""
ERRORS: Final = "errors"
LOGS: Final = "logs"
_HEADER_KEYS: Final = (
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
    """A line cannot be read. The message gives the reason without showing the line."""


# --- writing -----------------------------------------------------------------------------------------------


def canonical(record: Record) -> Record:
    """Return a record in canonical form: without its write id, each document in its only encoding.

    :raises InvalidSessionError: the record violates the rules for sessions.
    """
    return dataclasses.replace(restoration.record_for_restore(record), write_id="")


def header_line(record: Record) -> bytes:
    """Return the first line of a session, from a canonical record."""
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
    # the stored texts are canonical: encoding them again would give equal texts, but take time
    documents = ",".join(f'"{name}":{content.documents[name] or "null"}' for name in DOCUMENTS)
    return f'{head[:-1]},"documents":{{{documents}}}}}\n'.encode("ascii")


def chunk_lines(kind: str, entries: Iterable[Any]) -> Iterator[tuple[bytes, list[Any]]]:
    """Yield chunk lines, each with its entries.

    A chunk ends after `CHUNK` entries, or once it has `CHUNK_SIZE` characters.
    """
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
    """Decode a line of an archive.

    :raises DamagedLineError: it is not a line of an archive.
    """
    try:
        data = validation.decode_json(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise DamagedLineError("is damaged: it is not a JSON text") from None
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise DamagedLineError("is not a line of an archive")
    return data


def check_format(data: dict[str, Any]) -> None:
    """Check the version of the format.

    :raises DamagedLineError: a later version of this package has written the file.
    """
    version = data.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise DamagedLineError("has no version of the format")
    if version != FORMAT:
        raise DamagedLineError(
            f"has version {version} of the format, but this code reads version {FORMAT}: upgrade the package"
        )


def record_from(data: dict[str, Any]) -> Record:
    """Return the canonical record of a header line.

    :raises DamagedLineError: it is not a header, or violates the rules for sessions.
    """
    check_format(data)
    documents = data.get("documents")
    if tuple(data) != _HEADER_KEYS or not isinstance(documents, dict) or tuple(documents) != DOCUMENTS:
        raise DamagedLineError("is not a header of a session")
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
        raise DamagedLineError(f"is not a header of a session that can be stored: {error}") from None
    except (ValueError, RecursionError):  # integers or nesting beyond the limits of this interpreter
        raise DamagedLineError("is not a header of a session that can be stored") from None


def entries_from(data: dict[str, Any], after: int) -> list[Any]:
    """Return the entries of a chunk.

    :param after: the number of entries before it.
    :raises DamagedLineError: it is not a chunk, or not the next one.
    """
    kind, entries = data["kind"], data.get("entries")
    if tuple(data) != ("kind", "after", "entries") or not isinstance(entries, list) or not 0 < len(entries) <= CHUNK:
        raise DamagedLineError(f"is not a chunk of {kind}")
    if data["after"] != after:
        raise DamagedLineError(f"is not the next chunk of {kind}: a chunk is missing or repeated")
    if kind == LOGS:
        if not all(isinstance(line, str) for line in entries):
            raise DamagedLineError("is not a chunk of logs")
        return entries
    try:
        return [_error_from(entry, position) for position, entry in enumerate(entries, after + 1)]
    except (InvalidSessionError, KeyError, TypeError, ValueError):
        raise DamagedLineError("is not a chunk of errors") from None


def check_end(data: dict[str, Any], record: Record, counted: dict[str, int], digest: str) -> None:
    """Compare a closing line with the lines before it.

    :raises DamagedLineError: they differ.
    """
    expected = {"kind": "end", "session_id": record.session_id, **_counts(record), "sha256": digest}
    if tuple(data) != tuple(expected) or data["session_id"] != record.session_id:
        raise DamagedLineError("is not the closing line of this session")
    for kind, count in _counts(record).items():
        if not data[kind] == count == counted[kind]:
            raise DamagedLineError(f"has another number of {kind} than the header, or than the chunks contain")
    if data["sha256"] != digest:
        raise DamagedLineError("has another checksum than the session: the file was damaged, or changed by hand")


def _error_from(entry: dict[str, Any], position: int) -> ErrorEntry:
    timestamp, task_id, message, phase = (entry[key] for key in ("timestamp", "task_id", "error_message", "phase"))
    if len(entry) != 4 or not (type(task_id) is type(message) is type(phase) is str):  # noqa: PLR2004 (these four)
        raise TypeError("not an entry")
    return ErrorEntry(validation.check_time(timestamp), task_id, message, phase, position)


def _time(data: dict[str, Any], name: str) -> datetime:
    return validation.check_time(data[name])
