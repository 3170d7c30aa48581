"""Normalization of JSON values to exact built-in types; an error names the path of an invalid value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model.builtin_types import exact

MAX_DEPTH: Final = 200
"""Maximum nesting depth of a JSON value: ``[]`` has depth 1, ``[[]]`` has depth 2."""
MAX_INTEGER_DIGITS: Final = 4300
"""CPython's default limit for converting text to an integer."""
MAX_VALUES: Final = 10_000_000
"""Maximum number of values in a JSON value, counted as they appear in its text.

If each list contains the next list twice, the length of the text doubles with each level. A hundred such lists use
almost no memory, but their text would be too long to be written.
"""
INTEGER_BOUND: Final = 10**MAX_INTEGER_DIGITS

_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_PATH_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def normalize(value: object, path: str) -> Any:
    """Return a copy of a JSON value that consists of exact built-in types.

    :raises InvalidSessionError: the value cannot be stored as JSON; the error names its path below `path`.
    """
    check_count(value, path)
    return _normalize(value, (path,))


def check_count(value: object, path: str) -> None:
    """Reject a value that contains too many values.

    A container that occurs several times at a level is read once, but is counted once per occurrence.

    :raises InvalidSessionError: the value contains more than 10,000,000 values.
    """
    level = {id(value): (value, 1)}
    total = 0
    for _ in range(MAX_DEPTH):
        below: dict[int, tuple[Any, int]] = {}
        for container, times in level.values():
            items = exact(container)
            items = list(items.values()) if type(items) is dict else items if type(items) is list else []
            total += times * len(items)
            for item in items:
                if issubclass(type(item), (dict, list, tuple)):
                    below[id(item)] = item, times + below.get(id(item), (None, 0))[1]
        if total > MAX_VALUES:
            raise InvalidSessionError(f"must contain at most {MAX_VALUES:,} values", path)
        level = below


def _normalize(given: object, path: tuple[object, ...]) -> Any:
    value = exact(given)
    if type(value) not in {list, dict}:
        return _check_scalar(value, path)
    if len(path) > MAX_DEPTH:  # also ends the recursion into a list that contains itself
        _reject(f"must have at most {MAX_DEPTH} levels of nesting", path)
    if type(value) is list:
        return [_normalize(item, (*path, index)) for index, item in enumerate(value)]
    for key in value:
        if type(exact(key)) is not str:
            _reject(f"keys must be strings, not {type(key).__name__}", path)
    texts = [_check_scalar(exact(key), path) for key in value]
    return {key: _normalize(item, (*path, key)) for key, item in zip(texts, value.values(), strict=True)}


def _check_scalar(value: Any, path: tuple[object, ...]) -> Any:
    kind = type(value)
    if kind is str:
        # in JSON text such a pair is identical to the single character that it encodes
        if not value.isascii() and _SURROGATE_PAIR.search(value):
            _reject("must not contain a surrogate pair: use the character that it encodes", path)
    elif kind is int:
        if not -INTEGER_BOUND < value < INTEGER_BOUND:
            _reject(f"must be an integer of at most {MAX_INTEGER_DIGITS} digits", path)
    elif kind is float:
        if not math.isfinite(value):
            _reject("must be a finite number: JSON has neither NaN nor infinities", path)
    elif value is not None and kind is not bool:
        _reject(f"must be a JSON value, not {kind.__name__}", path)
    return value


def _reject(reason: str, path: tuple[object, ...]) -> NoReturn:
    raise InvalidSessionError(reason, f"{path[0]}{''.join(map(_path_part, path[1:]))}")


def format_path(parts: Iterable[object]) -> str:
    """Return an unambiguous path of keys and indexes, such as ``answers.q[0]['a b']``."""
    return "".join(map(_path_part, parts)).removeprefix(".")


def _path_part(key: object) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    name = str(key)
    return f".{name}" if _PATH_NAME.fullmatch(name) else f"[{name[:64]!a}]"
