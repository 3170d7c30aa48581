"""Values of Python's own types, whatever a subclass has made of them.

A caller's value may be of a class that answers as it likes, or raises what it likes, when it is compared, counted,
iterated over or shown. What is to be checked and then stored is taken from its base, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain_text(value: Any) -> str | None:
    """Return the text that `value` is; None if it is none."""
    if type(value) is str:
        return value
    return str.__str__(value) if issubclass(type(value), str) else None


def plain_integer(value: Any) -> int | None:
    """Return the integer that `value` is; None if it is none, and for True and False."""
    kind = type(value)
    return int.__int__(value) if issubclass(kind, int) and kind is not bool else None


def plain_number(value: Any) -> int | float | None:
    """Return the integer or float that `value` is; None if it is neither."""
    return float.__float__(value) if issubclass(type(value), float) else plain_integer(value)


def plain_list(value: Any) -> list[Any] | None:
    """Return a copy of the list or tuple that `value` is; None if it is none."""
    if issubclass(type(value), list):
        return list.copy(value)
    return list(tuple.__iter__(value)) if issubclass(type(value), tuple) else None


def plain_items(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the items of the dict that `value` is; None if it is none."""
    return list(dict.items(value)) if issubclass(type(value), dict) else None


def dict_of(value: Any) -> dict[Any, Any] | None:
    """Return a copy of the mapping that `value` is; None if it is none, or does not let itself be read."""
    try:
        items = plain_items(value)
        if items is not None:
            return dict(items)
        return dict(value) if issubclass(type(value), Mapping) else None
    except Exception:  # noqa: BLE001 (whatever a mapping, or a key of one, raises)
        return None
