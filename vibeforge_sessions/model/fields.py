"""Types of a session's fields: validation on construction, and JSON schema.

The validators are plain functions. Pydantic's own validator for `str` rejects surrogates, which documents may contain.
The JSON rules are checked when a session is stored, because its dicts can change until then.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import exact_int, exact_items, exact_list, exact_str
from vibeforge_sessions.model.history import ErrorEntry

_OBJECT: Final = {"type": "object", "additionalProperties": True}
_STRINGS: Final = {"type": "array", "items": {"type": "string"}}


def new_session_id() -> str:
    """Return a new random session id."""
    return str(uuid.uuid4())


def now() -> datetime:
    """Return the current time."""
    return validation.utc_now()  # looked up at each call, because tests replace the clock


def check_str(value: object) -> str:
    """Return `value` as an exact `str`; pydantic would compare any other object with the phases by ``==``."""
    text = exact_str(value)
    if text is None:
        raise InvalidSessionError(f"must be a text, not {type(value).__name__}")
    return text


def _session_id(value: object) -> str:
    return new_session_id() if value is None else validation.check_session_id(value)


def _task_id(value: object) -> str | None:
    return None if value is None else validation.check_task_id(value, "active_task_id")


def _object(value: object) -> dict[str, Any]:
    items = exact_items(value)
    if items is None:
        raise InvalidSessionError(f"must be a dict, not {type(value).__name__}")
    return dict(items)


def _optional_object(value: object) -> dict[str, Any] | None:
    return None if value is None else _object(value)


def _list(value: object) -> list[Any]:
    entries = exact_list(value)
    if entries is None:
        raise InvalidSessionError(f"must be a list, not {type(value).__name__}")
    return entries


def _integer(value: object) -> object:
    number = exact_int(value)
    return value if number is None else number


SessionId = Annotated[
    str,
    PlainValidator(_session_id),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9._:~-]{1,64}$"}),
]
OptionalTaskId = Annotated[
    str | None,
    PlainValidator(_task_id),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 255}, {"type": "null"}]}),
]
Time = Annotated[datetime, BeforeValidator(validation.check_time)]
Counter = Annotated[int, BeforeValidator(_integer), Field(strict=True, ge=0, le=validation.MAX_BIGINT)]
Document = Annotated[dict[str, Any], PlainValidator(_object), WithJsonSchema(_OBJECT)]
OptionalDocument = Annotated[
    dict[str, Any] | None,
    PlainValidator(_optional_object),
    WithJsonSchema({"anyOf": [_OBJECT, {"type": "null"}]}),
]
Strings = Annotated[list[str], PlainValidator(_list), WithJsonSchema(_STRINGS)]
ErrorEntries = Annotated[list[ErrorEntry], FailFast(), BeforeValidator(_list)]
"""Only the first invalid entry is reported, because a list may contain a million of them."""
