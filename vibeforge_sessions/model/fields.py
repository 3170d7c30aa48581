"""Types of a session's fields: validation on construction, and JSON schema.

The validators are plain functions. Pydantic's own validator for `str` rejects surrogates, which documents may contain.
The JSON rules are checked when a session is stored, because its dicts can change until then.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema

from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact
from vibeforge_sessions.model.history import ErrorEntry


def new_session_id() -> str:
    """Return a new random session id."""
    return str(uuid.uuid4())


def now() -> datetime:
    """Return the current time."""
    return validation.utc_now()  # looked up at each call, because tests replace the clock


def _session_id(value: object) -> str:
    return new_session_id() if value is None else validation.check_session_id(value)


def _task_id(value: object) -> str:
    return validation.check_task_id(value, "active_task_id")


def _document(value: object) -> dict[str, Any]:
    return dict(validation.check_type(value, dict))


def _list(value: object) -> list[Any]:
    return list(validation.check_type(exact(value), list))


SessionId = Annotated[
    str,
    PlainValidator(_session_id),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9._:~-]{1,64}$"}),
]
TaskId = Annotated[str, PlainValidator(_task_id), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255})]
Time = Annotated[datetime, BeforeValidator(validation.check_time)]
Counter = Annotated[int, BeforeValidator(exact), Field(strict=True, ge=0, le=validation.MAX_BIGINT)]
Document = Annotated[
    dict[str, Any], PlainValidator(_document), WithJsonSchema({"type": "object", "additionalProperties": True})
]
Strings = Annotated[list[str], PlainValidator(_list), WithJsonSchema({"type": "array", "items": {"type": "string"}})]
ErrorEntries = Annotated[list[ErrorEntry], FailFast(), BeforeValidator(_list)]
"""Only the first invalid entry is reported, because a list may contain a million of them."""
