"""Validation of ids, times, integers, diagnostics and JSON values.

Every repository uses these rules. The in-memory implementation therefore rejects exactly the values that a database
implementation rejects, and a service finds invalid values in its tests instead of in production.
"""

from __future__ import annotations

import json
import marshal
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, TypeVar

from vibeforge_sessions.errors import InvalidArgumentError, InvalidSessionError
from vibeforge_sessions.model.builtin_types import exact
from vibeforge_sessions.model.json_encoding import INTEGER_BOUND, MAX_DEPTH, normalize

MAX_TASK_ID: Final = 255
MAX_PHASE: Final = 64
MAX_BIGINT: Final = 2**63 - 1

SESSION_ID: Final = re.compile(r"[A-Za-z0-9._:~-]{1,64}")
SESSION_ID_RULE: Final = "must be 1 to 64 of the characters A-Z a-z 0-9 . _ : ~ -"
_CONTROL_PICTURES: Final = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_CONTROL_PICTURES[0x7F] = 0x2421
"""Replacements of control characters: a visible symbol for each one in ASCII, and ``�`` for the others."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


_TYPE_NAMES: Final = {str: "a string", int: "an integer", list: "a list", dict: "a dict"}

T = TypeVar("T")


def check_type(value: object, kind: type[T], path: str | None = None) -> T:
    """Return an instance of `kind` or of a subclass as an exact instance of `kind`; reject any other value.

    :param kind: `str`, `int`, `list` or `dict`.
    """
    found = value if type(value) is kind else exact(value)
    if type(found) is not kind:
        raise InvalidSessionError(f"must be {_TYPE_NAMES[kind]}, not {type(value).__name__}", path)
    return found


def check_field(fields: dict[str, Any], name: str, kind: type[T]) -> T:
    """Return a field of a session as an exact `kind`; an instance of a subclass is also replaced in the session."""
    value = fields[name]
    if type(value) is not kind:
        value = fields[name] = check_type(value, kind, name)
    return value


# --- times -----------------------------------------------------------------------------------------------


def utc_now() -> datetime:
    """Return the current time, timezone-aware, in UTC."""
    return datetime.now(UTC)


def monotonic_now(previous: object) -> datetime:
    """Return the current time, or `previous` plus a microsecond if the clock has not advanced beyond it."""
    now = utc_now()
    try:
        previous = check_time(previous)
        return max(now, previous + timedelta(microseconds=1))
    except InvalidSessionError:  # the caller assigned this value, which is rejected when the session is stored
        return now
    except OverflowError:  # the last microsecond of the year 9999
        return check_time(previous)


def check_time(value: object, *, path: str | None = None) -> datetime:
    """Return a timezone-aware datetime, given as a datetime or as ISO 8601 text, in UTC.

    A naive datetime is rejected, because its offset from UTC is unknown.
    """
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    value = exact(value)
    if type(value) is str:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidSessionError("must be a time in ISO 8601", path) from None
    return check_datetime(value, path)


def check_datetime(value: object, path: str | None) -> datetime:
    """Return a timezone-aware datetime in UTC; reject strings, unlike `check_time`."""
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if not issubclass(type(value), datetime):
        raise InvalidSessionError(f"must be a datetime, not {type(value).__name__}", path)
    try:
        moment = datetime.fromisoformat(datetime.isoformat(value))  # type: ignore[arg-type]
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except OverflowError:
        raise InvalidSessionError("must be within the years 1 to 9999 in UTC", path) from None
    except Exception:  # noqa: BLE001 (a caller's tzinfo may raise anything)
        raise InvalidSessionError(
            "must have a time zone whose utcoffset() does not fail: use datetime.timezone or zoneinfo", path
        ) from None
    raise InvalidSessionError("must be timezone-aware: add a time zone, such as datetime.UTC", path)


# --- ids and numbers -------------------------------------------------------------------------------------


def check_session_id(
    value: object, error: type[InvalidArgumentError | InvalidSessionError] = InvalidSessionError
) -> str:
    """Return `value` if it consists of 1 to 64 of the characters ``A-Z a-z 0-9 . _ : ~ -``.

    With these characters, no collation of the tables and no padding rule of a database makes two different ids equal.
    """
    text = value if type(value) is str else exact(value)
    if type(text) is not str or not SESSION_ID.fullmatch(text):
        raise error(SESSION_ID_RULE, "session_id")
    return text


def check_task_id(value: object, path: str) -> str:
    """Return `value` if it is 1 to 255 characters without control characters or surrogates."""
    text = check_type(value, str, path)
    if storable_task_id(text) != text:
        raise InvalidSessionError(
            f"must be 1 to {MAX_TASK_ID} characters without control characters or surrogates", path
        )
    return text


def check_integer(
    value: object,
    path: str,
    *,
    least: int,
    most: int = MAX_BIGINT,
    error: type[InvalidArgumentError | InvalidSessionError] = InvalidSessionError,
) -> int:
    """Return `value` if it is an integer from `least` to `most`; the default for `most` is the maximum of BIGINT."""
    number = value if type(value) is int else exact(value)
    if type(number) is not int:
        raise error(f"must be an integer, not {type(value).__name__}", path)
    if not least <= number <= most:
        limit = "2**63 - 1" if most == MAX_BIGINT else most
        raise error(f"must be an integer from {least} to {limit}", path)
    return number


def new_write_id() -> str:
    """Return a new write id: 128 random bits in hexadecimal. Generating a UUID would take three times as long."""
    return os.urandom(16).hex()


# --- diagnostics: never rejected -------------------------------------------------------------------------


def storable_text(value: object) -> str:
    """Return a diagnostic as text that every database can store: NUL becomes ``␀``, and each surrogate ``�``.

    The output of a compiler may contain NUL bytes and broken encodings, and recording a failure must not itself fail.
    An object that is not a string, such as an exception, is converted by ``str``.
    """
    text = value if type(value) is str else _as_text(value)
    if text.isascii():
        return text.replace("\0", "\u2400") if "\0" in text else text
    return _SURROGATE.sub("\ufffd", text.replace("\0", "\u2400"))


def storable_task_id(value: object) -> str:
    """Return a task id for the error history, with control characters replaced, cut at 255 characters."""
    return storable_text(value).translate(_CONTROL_PICTURES)[:MAX_TASK_ID] or "\ufffd"


def check_phase(text: str) -> str:
    """Return the text of a phase if every database can store it."""
    if storable_phase(text) != text:
        raise InvalidSessionError(f"must be 1 to {MAX_PHASE} characters without control characters", "phase")
    return text


def storable_phase(value: object) -> str:
    """Return the text of a phase for the error history, with control characters replaced, cut at 64 characters."""
    return storable_task_id(value)[:MAX_PHASE]


def _as_text(value: object) -> str:
    text = exact(value)  # for a string enum this is its value, whatever its __str__ returns
    if type(text) is str:
        return text
    if issubclass(type(value), bytes):
        return bytes.decode(value, "utf-8", "replace")  # type: ignore[arg-type]
    try:
        return str.__str__(str(value))
    except Exception:  # noqa: BLE001 (a broken __str__ must not hide the failure that is being recorded)
        return f"<{type(value).__name__}>"


# --- JSON values: exact or rejected ----------------------------------------------------------------------


def encode_json(value: object, path: str) -> str:
    """Return `value` as ASCII JSON text; `decode_json` returns an equal value with the same types and key order.

    A tuple becomes a list, and a member of an enum over str or int becomes its value. Any other value is rejected with
    an `InvalidSessionError` that names the path below `path` and does not contain the value.
    """
    try:
        if _is_builtin(value):
            try:
                text = _encoder.encode(value)
                if "\\ud" not in text:  # otherwise it may contain a surrogate pair, which `normalize` finds
                    return text
            except ValueError:  # NaN or an infinity, whose path `normalize` finds
                pass
        return _encoder.encode(normalize(value, path))
    except RecursionError:
        raise InvalidSessionError("must have fewer levels of nesting: the stack is too small", path) from None
    except InvalidSessionError:
        raise
    except ValueError:  # the application may have lowered sys.set_int_max_str_digits below MAX_INTEGER_DIGITS
        raise InvalidSessionError(
            "must have shorter integers: see sys.set_int_max_str_digits",
            path,
        ) from None


def fingerprint(value: Any) -> bytes | None:
    """Return bytes that are equal for two JSON values only if their JSON texts are equal; None for other values.

    It takes a tenth of the time of `encode_json`. Values with equal JSON texts may have different fingerprints, because
    the `marshal` format also records which parts are the same object.
    """
    try:
        return marshal.dumps(value)
    except ValueError:  # an enum member, for example, or a value that is not JSON
        return None


def decode_json(text: str) -> Any:
    """Return the value of a string written by `encode_json`.

    :raises ValueError: the text was not written by `encode_json`; deeply nested text may raise `RecursionError`.
    """
    return _decoder.decode(text)


_SCALAR_TYPES: Final = frozenset({str, float, bool, type(None)})
_CONTAINER_TYPES: Final = frozenset({dict, list, tuple})
_MAX_QUICK: Final = 1_000_000


def _is_builtin(value: object) -> bool:
    """Return whether a value consists of exact built-in types within the limits, in one loop for speed."""
    level: list[Any] = [[value]]
    count = 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                if not all([type(key) is str for key in container]):  # noqa: C419 (a generator takes twice the time)
                    return False
                items = container.values()
            else:
                items = container
            for item in items:
                kind = type(item)
                if kind in _SCALAR_TYPES:
                    continue
                if kind in _CONTAINER_TYPES:
                    below.append(item)
                elif kind is not int or not -INTEGER_BOUND < item < INTEGER_BOUND:
                    return False
        count += sum(map(len, below))
        if not below or count > _MAX_QUICK:
            return not below
        level = below
    return False


def _reject_constant(_: str) -> NoReturn:
    raise ValueError("must be a finite number: JSON has neither NaN nor infinities")


_encoder: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":"))
_decoder: Final = json.JSONDecoder(parse_constant=_reject_constant)
