"""Which JSON values can be kept: each is copied into JSON's own types, or refused with its path."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

from vibeforge_sessions.model.builtin_types import plain_integer, plain_items, plain_list, plain_number, plain_text

MAX_DEPTH: Final = 200
"""How deep a JSON value may be nested: ``[]`` is 1 deep, ``[[]]`` is 2."""
MAX_INTEGER_DIGITS: Final = 4300
"""CPython's own default limit for reading an integer from text."""
MAX_VALUES: Final = 10_000_000
"""How many values a JSON value may hold, all in all, as its text tells them.

Lists that hold another one twice, which does so with the next one, double with each: a hundred take no memory, and have
no end as text.
"""
MANY: Final = 100_000
"""From so many values on it is worth it to count them as `check_count` does."""
INTEGER_BOUND: Final = 10**MAX_INTEGER_DIGITS

_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_PATH_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"


class RefusedError(Exception):
    """A value inside a JSON value is refused; its path is collected while the stack unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.parts: list[str] = []

    @property
    def path(self) -> str:
        """Where it stands, below the value that was asked about."""
        return "".join(reversed(self.parts))


def copy_of(value: object) -> Any:
    """Return a copy of JSON's own types.

    A copy, since a subclass may show one thing to whoever checks it, and another one to whoever writes it.

    :raises RefusedError: it is no JSON value that can be kept.
    """
    return _Copying(value).copy(value, 1)


class _Copying:
    def __init__(self, whole: object) -> None:
        self._whole = whole
        self._before_counting = MANY

    def copy(self, value: object, depth: int) -> Any:
        """Return a copy of what stands at this depth; one frame of the stack for each."""
        items, entries = plain_items(value), plain_list(value)
        if items is None and entries is None:
            return _leaf(value)
        if depth > MAX_DEPTH:  # also what ends the walk through a list that holds itself
            raise RefusedError(_TOO_DEEP)
        self._before_counting -= len(items or entries or ())
        if self._before_counting < 0:
            check_count(self._whole)
            self._before_counting = MAX_VALUES
        copies: dict[str | int, Any] = {}
        keyed = enumerate(entries or ()) if items is None else ((_key(key), item) for key, item in items)
        for key, item in keyed:
            try:
                copies[key] = self.copy(item, depth + 1)
            except RefusedError as refused:
                refused.parts.append(_path_part(key))
                raise
        return list(copies.values()) if items is None else copies


def check_count(value: object) -> None:
    """Refuse what holds too many values, in the time that it takes to look into each list and dict once.

    :raises RefusedError: it holds too many, or itself.
    """
    if _count(value, {}, 1) > MAX_VALUES:
        raise RefusedError(f"more than {MAX_VALUES:,} values")


def _count(container: object, known: dict[int, int], depth: int) -> int:
    if depth > MAX_DEPTH:
        raise RefusedError(_TOO_DEEP)
    items = plain_items(container)
    entries = plain_list(container) or () if items is None else [item for _, item in items]
    count = len(entries)
    for entry in entries:
        if issubclass(type(entry), (dict, list, tuple)):
            found = known.get(id(entry))
            if found is None:
                found = known[id(entry)] = _count(entry, known, depth + 1)
            count += found
    return count


def _leaf(value: Any) -> Any:
    if value is None or value is True or value is False:
        return value
    text, number = plain_text(value), plain_integer(value)
    if text is not None:
        return _checked_text(text)
    if number is not None:
        if not -INTEGER_BOUND < number < INTEGER_BOUND:
            raise RefusedError(f"integers have at most {MAX_INTEGER_DIGITS} digits")
        return number
    size = plain_number(value)
    if size is None:
        raise RefusedError(f"a {type(value).__name__} is no JSON value")
    if not math.isfinite(size):
        raise RefusedError("NaN and infinities are no JSON values")
    return size


def _key(key: object) -> str:
    text = plain_text(key)
    if text is None:
        raise RefusedError(f"keys must be texts, not {type(key).__name__}")
    return _checked_text(text)


def _checked_text(text: str) -> str:
    # JSON text cannot tell such a pair from the one character that it would stand for
    if not text.isascii() and _SURROGATE_PAIR.search(text):
        raise RefusedError("two surrogates side by side would come back as one character")
    return text


def path_of(parts: Iterable[object]) -> str:
    """Return a path of keys and indexes, in which no key can be mistaken for anything else."""
    return "".join(map(_path_part, parts)).removeprefix(".")


def _path_part(key: object) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    name = str(key)
    return f".{name}" if _PATH_NAME.fullmatch(name) else f"[{name[:64]!a}]"
