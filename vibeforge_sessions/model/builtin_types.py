"""Normalization of values to exact built-in types.

A caller's value may be an instance of a subclass that overrides comparison, iteration or ``str``, and such a method may
raise or return something else at each call. Values are normalized to exact built-in types once, before validation, so
that the value that is stored is the value that was validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def exact_str(value: Any) -> str | None:
    """Return `value` as an exact `str`; None if it is not a string."""
    if type(value) is str:
        return value
    return str.__str__(value) if issubclass(type(value), str) else None


def exact_int(value: Any) -> int | None:
    """Return `value` as an exact `int`; None if it is not an integer, or is a bool."""
    kind = type(value)
    return int.__int__(value) if issubclass(kind, int) and kind is not bool else None


def exact_number(value: Any) -> int | float | None:
    """Return `value` as an exact `int` or `float`; None if it is neither, or is a bool."""
    return float.__float__(value) if issubclass(type(value), float) else exact_int(value)


def exact_list(value: Any) -> list[Any] | None:
    """Return a copy of a list or tuple as an exact `list`; None for any other type."""
    if issubclass(type(value), list):
        return list.copy(value)
    return list(tuple.__iter__(value)) if issubclass(type(value), tuple) else None


def exact_items(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the items of a dict as a list; None if `value` is not a dict."""
    return list(dict.items(value)) if issubclass(type(value), dict) else None


def exact_dict(value: Any) -> dict[Any, Any] | None:
    """Return a copy of a mapping as an exact `dict`; None if `value` is not a mapping, or if reading it raises."""
    try:
        items = exact_items(value)
        if items is not None:
            return dict(items)
        return dict(value) if issubclass(type(value), Mapping) else None
    except Exception:  # noqa: BLE001 (a caller's mapping or key may raise anything)
        return None
