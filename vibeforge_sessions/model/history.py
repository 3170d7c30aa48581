"""Entries of a session's histories: `ErrorEntry` and log lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact, exact_dict

_KEYS: Final = ("timestamp", "task_id", "error_message", "phase")


class SessionPhase(StrEnum):
    """Phase of a session. It is stored as text, so that an application can add phases of its own."""

    QUESTIONNAIRE = "QUESTIONNAIRE"
    BUILD_SPEC = "BUILD_SPEC"
    IDEA = "IDEA"
    PLAN_REVIEW = "PLAN_REVIEW"
    EXECUTION = "EXECUTION"
    CLARIFICATION = "CLARIFICATION"
    VERIFICATION = "VERIFICATION"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"


# A slotted dataclass rather than a pydantic model: a history of 10,000 entries loads four times faster. Rows that this
# package wrote need no validation, and the garbage collector tracks fewer objects.
@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ErrorEntry(Mapping[str, str]):
    """One entry of the error history: immutable, with attributes, and readable like a dict.

    As a mapping it has the four keys of the dicts that the application used before: ``timestamp`` (ISO text),
    ``task_id``, ``error_message`` and ``phase`` (text). Two entries are equal if these four values are equal;
    `position` is not compared. An entry also equals a dict with the same four values.
    """

    timestamp: datetime
    """Time of the error; timezone-aware, UTC."""
    task_id: str
    """1 to 255 characters without control characters."""
    error_message: str
    """Any length; NUL is replaced with ``␀`` and each surrogate with ``�``."""
    phase: str
    """Phase in which the error occurred: a member of the session's phase enum, or the text of any other phase."""
    position: int | None = None
    """Position in the session's history: 1, 2, 3 … in commit order; None until the entry is stored."""

    @classmethod
    def of(cls, value: object, phases: type[StrEnum] = SessionPhase) -> Self:
        """Return an entry with exact built-in values, made from an entry or from a dict with the four keys.

        An entry is a diagnostic, so its strings are never rejected: characters that a database cannot store are
        replaced. A missing time becomes the current time.

        :raises InvalidSessionError: `value` is not a mapping, has other keys, or has no message.
        """
        if issubclass(type(value), cls):
            fields = {name: getattr(value, name) for name in (*_KEYS, "position")}
        else:
            fields = exact_dict(value) or {}
            if "error_message" not in fields or not fields.keys() <= set(_KEYS):
                raise InvalidSessionError(f"must be an ErrorEntry, or a dict with the keys {', '.join(_KEYS)}")
        position = exact(fields.get("position"))
        return cls(
            timestamp=validation.check_time(fields.get("timestamp", validation.utc_now())),
            task_id=validation.storable_task_id(fields.get("task_id", "")),
            error_message=validation.storable_text(fields["error_message"]),
            phase=phase_or_text(fields.get("phase", ""), phases),
            position=position if type(position) is int else None,
        )

    def at(self, position: int) -> Self:
        """Return the same entry with the given position."""
        return self if position == self.position else dataclasses.replace(self, position=position)

    def __getitem__(self, key: str) -> str:
        if key == "timestamp":
            return self.timestamp.isoformat()
        if key == "phase":
            return validation.storable_phase(self.phase)
        if key in _KEYS:
            return str(getattr(self, key))
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self) == (dict(other) if isinstance(other, ErrorEntry) else other)

    def __hash__(self) -> int:
        return hash((self.timestamp, self.task_id, self.error_message))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the entry and its values are immutable, so copies of a session may share it

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of, serialization=core_schema.plain_serializer_function_ser_schema(dict)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        text = {"type": "string"}
        properties = {key: text | {"title": key.replace("_", " ").title()} for key in _KEYS}
        properties["timestamp"] |= {"format": "date-time"}
        return {"title": cls.__name__, "type": "object", "properties": properties, "required": ["error_message"]}


def normalize_errors(entries: Iterable[object], phases: type[StrEnum], start: int = 0) -> tuple[ErrorEntry, ...]:
    """Return a caller's entries as normalized `ErrorEntry` objects.

    :param start: the index of the first entry in ``error_history``.
    :raises InvalidSessionError: an item is not an entry; the error names its path.
    """
    cleaned = []
    for index, entry in enumerate(entries, start):
        try:
            cleaned.append(ErrorEntry.of(entry, phases))
        except InvalidSessionError as error:
            raise InvalidSessionError(error.reason, f"error_history[{index}]") from None
    return tuple(cleaned)


def phase_or_text(value: object, phases: type[StrEnum]) -> str:
    """Return the member of `phases` with this value, or the value as storable text if there is no such member."""
    text = validation.storable_phase(value)
    try:
        return phases(text)
    except ValueError:
        return text


def log_line(message: object) -> str:
    """Return the log line ``[<ISO time>] message``, with storable characters only."""
    return f"[{validation.utc_now().isoformat()}] {validation.storable_text(message)}"
