"""What a session may hold: ids, times, diagnostics and JSON values, and how each is checked.

The rules stand here once, below the model and every repository, so that the in-memory implementation refuses
exactly what a database would: a service must not meet its first refusal in production.
"""

from __future__ import annotations

import json
import marshal
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, cast

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model.builtin_types import plain_integer, plain_text
from vibeforge_sessions.model.json_encoding import (
    INTEGER_BOUND,
    MANY,
    MAX_DEPTH,
    MAX_VALUES,
    RefusedError,
    check_count,
    copy_of,
)

MAX_TASK_ID: Final = 255
MAX_PHASE: Final = 64
MAX_BIGINT: Final = 2**63 - 1

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._:~-]{1,64}")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


# --- times -----------------------------------------------------------------------------------------------


def utc_now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def moved(previous: object) -> datetime:
    """Return the current time, or a microsecond after `previous` where the clock has not moved on."""
    now = utc_now()
    try:
        previous = check_time(previous)
    except InvalidSessionError:  # somebody has put it there, and it is refused when it is to be stored
        return now
    if now > previous:
        return now
    try:
        return previous + timedelta(microseconds=1)
    except OverflowError:  # the last microsecond of the year 9999
        return previous


def check_time(value: object, *, path: str | None = None) -> datetime:
    """Return an aware datetime, or its ISO text, in UTC; refuse naive ones, whose moment nobody can tell."""
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    text = plain_text(value)
    if text is not None:
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidSessionError("is not a time in ISO 8601", path) from None
    if not issubclass(type(value), datetime):
        raise InvalidSessionError(f"must be a datetime, not {type(value).__name__}", path)
    try:
        moment = _in_utc(cast("datetime", value))
    except OverflowError:
        raise InvalidSessionError("is outside the years 1 to 9999 in UTC", path) from None
    except Exception:  # noqa: BLE001 (whatever somebody else's time zone raises)
        raise InvalidSessionError("has a time zone that does not tell its offset", path) from None
    if moment is None:
        raise InvalidSessionError("must be an aware datetime: one without a time zone names no moment", path)
    return moment


def check_datetime(value: object, path: str) -> datetime:
    """Return an aware datetime in UTC, and refuse texts, too."""
    if not issubclass(type(value), datetime):
        raise InvalidSessionError(f"must be a datetime, not {type(value).__name__}", path)
    return check_time(value, path=path)


def _in_utc(value: datetime) -> datetime | None:
    if type(value) is not datetime:
        value = datetime.fromisoformat(datetime.isoformat(value))
    return None if value.utcoffset() is None else value.astimezone(UTC)


# --- ids and numbers -------------------------------------------------------------------------------------


def check_session_id(value: object) -> str:
    """Return `value` if it is 1 to 64 of ``A-Z a-z 0-9 . _ : ~ -``; no database can mix two of these up."""
    text = value if type(value) is str else plain_text(value)
    if text is None or not _SESSION_ID.fullmatch(text):
        raise InvalidSessionError("must be 1 to 64 of the characters A-Z a-z 0-9 . _ : ~ -", "session_id")
    return text


def check_task_id(value: object, path: str) -> str:
    """Return `value` if it is 1 to 255 characters without control characters or surrogates."""
    text = plain_text(value)
    if text is None:
        raise InvalidSessionError(f"must be a text, not {type(value).__name__}", path)
    if not 1 <= len(text) <= MAX_TASK_ID or _CONTROL.search(text) or _SURROGATE.search(text):
        raise InvalidSessionError(
            f"must be 1 to {MAX_TASK_ID} characters without control characters or surrogates", path
        )
    return text


def check_integer(value: object, path: str, *, least: int, most: int = MAX_BIGINT) -> int:
    """Return `value` if it is an integer from `least` to `most`, at the most what a BIGINT column holds."""
    number = plain_integer(value)
    if number is None:
        raise InvalidSessionError(f"must be an integer, not {type(value).__name__}", path)
    if not least <= number <= most:
        limit = "2**63 - 1" if most == MAX_BIGINT else most
        raise InvalidSessionError(f"must be an integer from {least} to {limit}", path)
    return number


def new_write_id() -> str:
    """Return 128 random bits as text, by which a write can be recognised; a UUID of them takes three times as long."""
    return os.urandom(16).hex()


# --- diagnostics: never refused --------------------------------------------------------------------------


def storable_text(value: object) -> str:
    """Return a diagnostic as text that every database takes: NUL as ``␀``, each surrogate as ``�``.

    A compiler's output holds NUL bytes and broken encodings, and the moment of failure is the wrong one to
    raise. What is not a text (an exception, say) becomes its ``str``.
    """
    text = value if type(value) is str else _as_text(value)
    if text.isascii():
        return text.replace("\0", "\u2400") if "\0" in text else text
    return _SURROGATE.sub("\ufffd", text.replace("\0", "\u2400"))


def storable_task_id(value: object) -> str:
    """Return a task id for the error history: the same, or made to fit visibly (replaced, cut at 255)."""
    text = _CONTROL.sub(_control_picture, storable_text(value))[:MAX_TASK_ID]
    return text or "\ufffd"


def storable_phase(value: object) -> str:
    """Return the text of a phase for the error history, made to fit like a task id."""
    return storable_task_id(value)[:MAX_PHASE]


def _as_text(value: object) -> str:
    text = plain_text(value)  # an enum's value, whatever its class prints
    if text is not None:
        return text
    if issubclass(type(value), bytes):
        return bytes.decode(value, "utf-8", "replace")  # type: ignore[arg-type]
    try:
        return str.__str__(str(value))
    except Exception:  # noqa: BLE001 (a broken __str__ must not swallow the failure that it was to describe)
        return f"<{type(value).__name__}>"


def _control_picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:  # noqa: PLR2004 (C0 controls have their pictures in order)
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"  # noqa: PLR2004 (DEL)


# --- JSON values: exact or refused -----------------------------------------------------------------------


def encode_json(value: object, path: str) -> str:
    """Return `value` as ASCII JSON text that `decode_json` reads back equal, of the same types, in key order.

    Tuples, and enums over str or int, become the plain JSON value that they stand for. The rest is refused
    with `InvalidSessionError`, which names the path below `path` and never shows the value.
    """
    try:
        if _is_plain(value):
            text = _encode_plain(value)
            if text is not None:
                return text
        return _encoder.encode(copy_of(value))
    except RefusedError as refused:
        raise InvalidSessionError(refused.reason, path + refused.path) from None
    except RecursionError:
        raise InvalidSessionError("is nested deeper than what is left of this interpreter's stack", path) from None
    except ValueError:  # a host may have lowered sys.set_int_max_str_digits below our own limit
        raise InvalidSessionError("holds an integer that this interpreter does not write as text", path) from None


def fingerprint(value: Any) -> bytes | None:
    """Return bytes that are the same for two JSON values only if their JSON texts are the same; None for others.

    It costs a tenth of `encode_json`. The converse does not hold quite: the format also knows which parts are the same
    object, so that bytes that differ prove nothing.
    """
    try:
        return marshal.dumps(value)
    except ValueError:  # an enum, say, or what is no JSON value at all
        return None


def decode_json(text: str) -> Any:
    """Read what `encode_json` wrote; raises `ValueError` (or `RecursionError`) for anything else."""
    return _decoder.decode(text)


_PLAIN: Final = frozenset({str, float, bool, type(None)})


def _is_plain(value: object) -> bool:  # noqa: C901, PLR0912 (a loop that is run for every value, and so has no calls)
    """Tell quickly whether all is of JSON's own types, and not too deep; what is not, `copy_of` looks at."""
    level: list[Any] = [[value]]
    count, counted = 1, MANY
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
                if kind in _PLAIN:
                    continue
                if kind is int:
                    if not -INTEGER_BOUND < item < INTEGER_BOUND:
                        return False
                elif kind is dict or kind is list:
                    below.append(item)
                else:
                    return False
        if not below:
            return True
        count += sum(map(len, below))
        if count > counted:
            check_count(value)
            counted = MAX_VALUES
        level = below
    return False


def _encode_plain(value: object) -> str | None:
    """Return the text of what is plain; None where `copy_of` has to look at it: NaN, infinities, surrogates."""
    try:
        text = _encoder.encode(value)
    except ValueError:
        return None
    return None if "\\ud" in text else text


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("NaN and infinities are no JSON values")


_encoder: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":"))
_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant)
