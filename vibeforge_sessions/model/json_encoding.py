"""Normalization of JSON values: a copy of exact built-in types, or a rejection that names the path."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

from vibeforge_sessions.model.builtin_types import exact_int, exact_items, exact_list, exact_number, exact_str

MAX_DEPTH: Final = 200
"""Maximum nesting depth of a JSON value: ``[]`` has depth 1, ``[[]]`` has depth 2."""
MAX_INTEGER_DIGITS: Final = 4300
"""CPython's default limit for converting text to an integer."""
MAX_VALUES: Final = 10_000_000
"""Maximum number of values in a JSON value, counted in its text.

A list that contains another list twice, which contains a third list twice, and so on, doubles its text with each level.
A hundred such lists use almost no memory, but their text would never be complete.
"""
COUNT_THRESHOLD: Final = 100_000
"""Number of values from which on `check_count` is called, because it costs more than a simple sum."""
INTEGER_BOUND: Final = 10**MAX_INTEGER_DIGITS

_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_PATH_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOO_DEEP: Final = f"must have at most {MAX_DEPTH} levels of nesting"


class RejectedError(Exception):
    """Rejection of a value inside a JSON value; its path is collected while the stack unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.parts: list[str] = []

    @property
    def path(self) -> str:
        """Path of the rejected value, relative to the whole value."""
        return "".join(reversed(self.parts))


def normalize(value: object) -> Any:
    """Return a copy of a JSON value that consists of exact built-in types.

    The encoder gets this copy, because an instance of a subclass may give the validation and the encoder different
    values.

    :raises RejectedError: the value cannot be stored as JSON.
    """
    return _Normalizer(value).normalize(value, 1)


class _Normalizer:
    def __init__(self, whole: object) -> None:
        self._whole = whole
        self._before_counting = COUNT_THRESHOLD

    def normalize(self, value: object, depth: int) -> Any:
        """Return a normalized copy of the value at this depth, with one stack frame for each level."""
        items, entries = exact_items(value), exact_list(value)
        if items is None and entries is None:
            return _normalize_scalar(value)
        if depth > MAX_DEPTH:  # also ends the recursion into a list that contains itself
            raise RejectedError(_TOO_DEEP)
        self._before_counting -= len(items or entries or ())
        if self._before_counting < 0:
            check_count(self._whole)
            self._before_counting = MAX_VALUES
        copies: dict[str | int, Any] = {}
        keyed = enumerate(entries or ()) if items is None else ((_normalize_key(key), item) for key, item in items)
        for key, item in keyed:
            try:
                copies[key] = self.normalize(item, depth + 1)
            except RejectedError as rejection:
                rejection.parts.append(_path_part(key))
                raise
        return list(copies.values()) if items is None else copies


def check_count(value: object) -> None:
    """Reject a value that contains too many values; each list and dict is visited once, even if it is shared.

    :raises RejectedError: the value contains too many values, or contains itself.
    """
    if _count(value, {}, 1) > MAX_VALUES:
        raise RejectedError(f"must contain at most {MAX_VALUES:,} values")


def _count(container: object, known: dict[int, int], depth: int) -> int:
    if depth > MAX_DEPTH:
        raise RejectedError(_TOO_DEEP)
    items = exact_items(container)
    entries = exact_list(container) or () if items is None else [item for _, item in items]
    count = len(entries)
    for entry in entries:
        if issubclass(type(entry), (dict, list, tuple)):
            found = known.get(id(entry))
            if found is None:
                found = known[id(entry)] = _count(entry, known, depth + 1)
            count += found
    return count


def _normalize_scalar(value: Any) -> Any:
    if value is None or value is True or value is False:
        return value
    text, number = exact_str(value), exact_int(value)
    if text is not None:
        return _check_str(text)
    if number is not None:
        if not -INTEGER_BOUND < number < INTEGER_BOUND:
            raise RejectedError(f"must be an integer of at most {MAX_INTEGER_DIGITS} digits")
        return number
    size = exact_number(value)
    if size is None:
        raise RejectedError(f"must be a JSON value, not {type(value).__name__}")
    if not math.isfinite(size):
        raise RejectedError("must be a finite number: JSON has neither NaN nor infinities")
    return size


def _normalize_key(key: object) -> str:
    text = exact_str(key)
    if text is None:
        raise RejectedError(f"keys must be texts, not {type(key).__name__}")
    return _check_str(text)


def _check_str(text: str) -> str:
    # in JSON text such a pair is identical to the single character that it encodes
    if not text.isascii() and _SURROGATE_PAIR.search(text):
        raise RejectedError("must not contain a surrogate pair: use the character that it encodes")
    return text


def format_path(parts: Iterable[object]) -> str:
    """Return an unambiguous path of keys and indexes, such as ``answers.q[0]['a b']``."""
    return "".join(map(_path_part, parts)).removeprefix(".")


def _path_part(key: object) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    name = str(key)
    return f".{name}" if _PATH_NAME.fullmatch(name) else f"[{name[:64]!a}]"
