"""Archive format: sessions as JSON Lines.

A session consists of a header line, chunks of its errors, chunks of its logs, and a closing line:

    {"kind":"session","format":1,"session_id":"…","created_at":"…","updated_at":"…","held_at":null,"version":3,…}
    {"kind":"errors","after":0,"entries":[{"timestamp":"…","task_id":"t1","error_message":"…","phase":"EXECUTION"},…]}
    {"kind":"logs","after":0,"entries":["[…] started",…]}
    {"kind":"end","session_id":"…","errors":1,"logs":1,"sha256":"…"}

The checksum covers all lines of the session before the closing line. An export has two more lines:
``{"kind":"archive","format":1}`` before its sessions and ``{"kind":"archive_end","sessions":1}`` after them. They
reveal an export that was truncated between two sessions.

Equal sessions give equal bytes, whatever database they are stored in: there are no write ids and no spaces, the keys
are in the order shown above, and all characters are ASCII.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
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
"""Default maximum number of bytes in a line. A longer line is rejected before it is read completely."""
CHUNK: Final = 1_000
"""Maximum number of entries in a chunk."""
CHUNK_SIZE: Final = 1024 * 1024
"""Number of characters after which a chunk ends early. It limits the length of lines with long messages."""

BEGINNING: Final = b'{"kind":'
"""First bytes of every line."""
ERRORS: Final = "errors"
LOGS: Final = "logs"
_encode: Final = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


class DamagedLineError(Exception):
    """A line cannot be read. The message gives the reason without showing the line."""


# --- writing -----------------------------------------------------------------------------------------------


def canonical(record: Record) -> Record:
    """Return a record in canonical form: without its write id, and with the same encoding for equal documents.

    :raises InvalidSessionError: the record violates the rules for sessions.
    """
    return dataclasses.replace(restoration.record_for_restore(record), write_id="")


def encode_line(data: dict[str, Any]) -> bytes:
    """Return a line of an archive."""
    return f"{_encode(data)}\n".encode("ascii")


def header_of(record: Record) -> dict[str, Any]:
    """Return the header line of a session, given its canonical record."""
    documents = record.content.documents
    return {
        "kind": "session",
        "format": FORMAT,
        "session_id": record.session_id,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
        "held_at": None if record.held_at is None else record.held_at.isoformat(),
        "version": record.version,
        "phase": record.content.phase,
        "current_question_index": record.content.current_question_index,
        "active_task_id": record.content.active_task_id,
        ERRORS: record.error_count,
        LOGS: record.log_count,
        "documents": {name: validation.decode_json(documents[name] or "null") for name in DOCUMENTS},
    }


def chunk_lines(kind: str, entries: Iterable[Any]) -> Iterator[tuple[bytes, int]]:
    """Yield chunk lines, each with the number of its entries.

    A chunk ends after `CHUNK` entries, or once it has `CHUNK_SIZE` characters.
    """
    texts: list[str] = []
    size = after = 0
    for entry in entries:
        texts.append(_encode(dict(entry) if kind == ERRORS else entry))
        size += len(texts[-1])
        if len(texts) == CHUNK or size >= CHUNK_SIZE:
            yield _chunk(kind, after, texts), len(texts)
            after += len(texts)
            texts, size = [], 0
    if texts:
        yield _chunk(kind, after, texts), len(texts)


def _chunk(kind: str, after: int, texts: list[str]) -> bytes:
    return f'{{"kind":"{kind}","after":{after},"entries":[{",".join(texts)}]}}\n'.encode("ascii")


def end_of(record: Record, digest: str) -> dict[str, Any]:
    """Return the closing line of a session."""
    counts = {ERRORS: record.error_count, LOGS: record.log_count}
    return {"kind": "end", "session_id": record.session_id, **counts, "sha256": digest}


# --- reading -----------------------------------------------------------------------------------------------


def parse(line: bytes) -> dict[str, Any]:
    """Decode a line of an archive.

    :raises DamagedLineError: `line` is not a line of an archive.
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

    :raises DamagedLineError: the version is missing or invalid, or a later version of this package wrote the file.
    """
    version = data.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise DamagedLineError("has no valid format version")
    if version != FORMAT:
        raise DamagedLineError(
            f"has format version {version}, but this code reads only versions up to {FORMAT}: upgrade the package"
        )


def record_from(data: dict[str, Any]) -> Record:
    """Return the canonical record of a header line.

    :raises DamagedLineError: the line is not a header, or its values violate the rules for sessions.
    """
    check_format(data)
    try:
        held_at, given = data["held_at"], data["documents"]
        documents = {name: None if given[name] is None else _encode(given[name]) for name in DOCUMENTS}
        content = Content(data["phase"], data["current_question_index"], data["active_task_id"], documents)
        record = Record(
            session_id=data["session_id"],
            created_at=validation.check_time(data["created_at"]),
            updated_at=validation.check_time(data["updated_at"]),
            held_at=None if held_at is None else validation.check_time(held_at),
            version=data["version"],
            write_id="",
            error_count=data[ERRORS],
            log_count=data[LOGS],
            content=content,
        )
        record = canonical(record)
    except InvalidSessionError as error:
        raise DamagedLineError(f"is the header of a session that cannot be stored: {error}") from None
    except (KeyError, TypeError, ValueError, RecursionError):  # also for integers or nesting beyond Python's limits
        raise DamagedLineError("is not a header of a session") from None
    if tuple(data) != tuple(header_of(record)) or tuple(given) != DOCUMENTS:
        raise DamagedLineError("is not a header of a session")
    return record


def entries_from(data: dict[str, Any], after: int) -> list[Any]:
    """Return the entries of a chunk.

    :param after: the number of entries before the chunk.
    :raises DamagedLineError: the line is not a chunk, or not the next chunk.
    """
    kind, entries = data["kind"], data.get("entries")
    if tuple(data) != ("kind", "after", "entries") or not isinstance(entries, list) or not 0 < len(entries) <= CHUNK:
        raise DamagedLineError(f"is not a chunk of {kind}")
    if data["after"] != after:
        raise DamagedLineError(f"is not the next chunk of {kind}: a chunk is missing or repeated")
    try:
        return [_entry_from(kind, entry, position) for position, entry in enumerate(entries, after + 1)]
    except (KeyError, TypeError, ValueError):
        raise DamagedLineError(f"is not a chunk of {kind}") from None


def check_end(data: dict[str, Any], record: Record, counts: tuple[int, ...], digest: str) -> None:
    """Compare a closing line with the lines before it.

    :param counts: the numbers of errors and logs in the lines before it.
    :raises DamagedLineError: the closing line does not match the lines before it.
    """
    expected = end_of(record, digest)
    if tuple(data) != tuple(expected) or data["session_id"] != record.session_id:
        raise DamagedLineError("is not the closing line of this session")
    for kind, count in zip((ERRORS, LOGS), counts, strict=True):
        if not data[kind] == expected[kind] == count:
            raise DamagedLineError(f"states a number of {kind} that differs from the header or from the chunks")
    if data["sha256"] != digest:
        raise DamagedLineError("does not match the checksum of the session: the file was damaged, or changed by hand")


def _entry_from(kind: str, entry: Any, position: int) -> ErrorEntry | str:
    if kind == LOGS:
        return validation.check_type(entry, str, LOGS)
    timestamp, task_id, message, phase = (entry[key] for key in ("timestamp", "task_id", "error_message", "phase"))
    if len(entry) != 4 or not (type(task_id) is type(message) is type(phase) is str):  # noqa: PLR2004 (the four keys)
        raise TypeError("not an entry")
    return ErrorEntry(validation.check_time(timestamp), task_id, message, phase, position)
